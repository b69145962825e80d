"""What a moderator needs of a language model that judges: how likely given answers are, or a reply. No library."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from chatkit.types import Message


def called(model: str) -> str:
    """Return what replies, tokens and metrics name a model by: of a path the last part, for the rest is a machine's."""
    if not model.startswith(("/", "./", "../", "~/")):
        return model
    return os.path.basename(os.path.abspath(os.path.expanduser(model))) or "local"


@dataclass(frozen=True, slots=True)
class Question:
    """What a judging model is asked: messages in its own chat template, or a prompt as it stands.

    Attributes:
        messages: the last one is what is judged.
        arguments: values by name that the template takes beside the messages, such as a policy.
        prompt: the whole prompt, of a model without a template; `messages` is empty then.
    """

    messages: tuple[Message, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a reply, and how likely the model held others in its place.

    Attributes:
        top: text → natural logarithm of its probability, the likeliest ones.
    """

    text: str
    top: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judging model answered; `tokens` is empty where its server tells no probabilities."""

    text: str
    tokens: tuple[Token, ...] = ()


class Judge(Protocol):
    """A judging model, wherever it runs."""

    @property
    def name(self) -> str:
        """What the model is called in results and metrics."""
        ...

    @property
    def version(self) -> str:
        """What tells its weights from others, "" where nobody says."""
        ...

    async def close(self) -> None:
        """Let go of the model; checks that run end with EngineFailed."""
        ...


class LikelihoodJudge(Judge, Protocol):
    """A model in reach whose numbers can be read: no text is generated."""

    async def likelihoods(self, questions: Sequence[Question], answers: Sequence[str]) -> list[list[float]]:
        """Return for every question how likely each answer is as what comes next, in one forward pass.

        Returns:
            (questions, answers) natural logarithms of joint probabilities of the answers' tokens.

        Raises:
            TooLarge: a question with its answers is longer than the model reads.
            EngineFailed: the model does not answer.
        """
        ...


class ReplyJudge(Judge, Protocol):
    """A model behind a server, which is asked for a short reply."""

    async def reply(self, question: Question, *, most_tokens: int) -> Reply:
        """Return the likeliest reply, at most `most_tokens` long.

        Raises:
            TooLarge: the question is longer than the model reads.
            Unavailable: the server does not answer, or has no room (Overloaded).
            InvalidRequest: it refuses the request.
        """
        ...
