"""The process that owns a judging model: asked how likely answers are, it says so, one check at a time.

Commands come as JSON lines on stdin, events leave as JSON lines on stdout; the end of stdin is the end of the process.

commands: {"ask": number, "questions": [{"prompt": …} | {"messages": [[role, content], …], "arguments": {…}}, …],
           "answers": [text, …]}
events:   {"ready": true, "window": tokens} · {"answer": number, "likelihoods": [[…], …], "forwards": so far}
          {"failed": number, "kind": code of the error, "message": …} · {"fatal": …} · {"alive": true} every second
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chatkit.errors import BrokenModel, ChatkitError
from chatkit.models import worker_io

_PROBE = "chatkit-probe"


def main() -> int:
    """Load, say so, work; a failure is the last event."""
    options, events = worker_io.opened()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the core that the service needs
    try:
        judge = Judge(options)
        events.send({"ready": True, "window": judge.core.window})
        worker_io.keep_saying_alive(events)
        commands = worker_io.commands(sys.stdin)
        while (command := commands.get()) is not None:
            events.send(judge.answer(command))
    except BrokenPipeError:
        return 0  # the service is gone
    except (ChatkitError, RuntimeError) as error:
        events.fatal(worker_io.message(error), error.code if isinstance(error, ChatkitError) else "")
        return 1
    except Exception as error:
        events.fatal(f"{type(error).__name__}: {worker_io.message(error)}")
        raise
    return 0


class Judge:
    """A loaded model with its tokenizer.

    Args:
        options: of judge_process.JudgeOptions, with the folder as `model` and pairs of questions as `samples`.

    Raises:
        ModelError: the model cannot be used; BrokenModel where its chat template cannot.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        import torch
        from transformers import AutoTokenizer

        from chatkit.models.chat_load import LoadOptions, load_model
        from chatkit.models.likelihood import Likelihoods

        if options["threads"]:
            torch.set_num_threads(options["threads"])
        folder = Path(options["model"])
        loading = LoadOptions(dtype=options["dtype"], quantize=options["quantize"], device=options["device"])
        self.core = Likelihoods(load_model(folder, loading))
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (ValueError, OSError, KeyError) as error:
            raise BrokenModel(f"{str(folder)!r} has no tokenizer to be read: {worker_io.message(error)}") from error
        self._parts = False
        pairs = options["samples"]
        if pairs and pairs[0][0].get("messages"):
            self._find_style(pairs[0][0])
        for first, second in pairs:
            self.core.keep(self.ids(first), self.ids(second))

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Return the event that answers a command."""
        number = command["ask"]
        try:
            prompts = [self.ids(question) for question in command["questions"]]
            found = self.core.score(prompts, [self._words(answer) for answer in command["answers"]])
        except ChatkitError as error:
            return {"failed": number, "kind": error.code, "message": worker_io.message(error)}
        return {"answer": number, "likelihoods": found, "forwards": self.core.forwards}

    def ids(self, question: Mapping[str, Any]) -> list[int]:
        """Return a question's prompt as the model reads it."""
        if question.get("prompt"):
            return list(self._tokenizer(question["prompt"]).input_ids)
        return list(self._tokenizer(self._written(question), add_special_tokens=False).input_ids)

    def _words(self, answer: str) -> list[int]:
        return list(self._tokenizer(answer, add_special_tokens=False).input_ids)

    def _written(self, question: Mapping[str, Any]) -> str:
        """Return what the chat template makes of a question.

        Raises:
            BrokenModel: it refuses the messages, or there is none.
        """
        messages: Sequence[Any] = [
            {"role": role, "content": [{"type": "text", "text": content}] if self._parts else content}
            for role, content in question["messages"]
        ]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **question.get("arguments", {})
                )
            )
        except Exception as error:  # a template is a program of others
            raise BrokenModel(f"the guard model's chat template fails ({type(error).__name__})") from error

    def _find_style(self, question: Mapping[str, Any]) -> None:
        """Find out whether the template takes a message's content as text or as parts.

        Raises:
            BrokenModel: it leaves out what was said either way.
        """
        role = question["messages"][0][0]
        probe = {**question, "messages": [[role, _PROBE]]}
        for self._parts in (False, True):
            try:
                if _PROBE in self._written(probe):
                    return
            except BrokenModel:
                continue
        raise BrokenModel("the guard model's chat template leaves out what is to be judged; name another model")


if __name__ == "__main__":
    sys.exit(main())
