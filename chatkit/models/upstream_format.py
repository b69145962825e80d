"""Messages as an upstream server gets them: one canonical text a prompt, markers of other people's templates broken.

The upstream writes the prompt by its own chat template, which is not here. So a prompt is the messages in JSON, and
what could be read as a marker by any common template is broken in whatever comes from outside.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chatkit.errors import BrokenModel, InvalidRequest
from chatkit.markers import Markers
from chatkit.prompt_formats import fold_greeting, fold_systems
from chatkit.types import Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Systems = Literal["first", "none", "any"]

# The markers of common templates by name, broken in every spelling: ChatML, Llama 2 and 3, Mistral, Gemma, Phi, Zephyr,
# Falcon, OpenChatKit, ChatGLM, EXAONE, BlueLM, Granite, Cohere, DeepSeek, ERNIE, Ling, MiniMax.
_NAMED = tuple(
    f"{opening}{name}{closing}"
    for opening, names, closing in (
        ("<|", "im_start im_end endoftext begin_of_text end_of_text start_header_id end_header_id eot_id eom_id", "|>"),
        ("<|", "system user assistant observation end human bot tool start_of_role end_of_role channel message", "|>"),
        ("<|", "START_OF_TURN_TOKEN END_OF_TURN_TOKEN SYSTEM_TOKEN USER_TOKEN CHATBOT_TOKEN start return call", "|>"),
        ("<|", "begin▁of▁sentence end▁of▁sentence User Assistant", "|>"),
        ("<", "s /s bos eos pad unk sop eop human bot start_of_turn end_of_turn start_of_image image", ">"),
        ("<", "BOS_TOKEN EOS_TOKEN PAD_TOKEN UNK_TOKEN beginning_of_sentence end_of_sentence role /role", ">"),
        ("]~", "b] !b[", ""),
        ("[e~", "[", ""),
        ("<<", "SYS /SYS", ">>"),
        (
            "[",
            "INST /INST SYSTEM_PROMPT /SYSTEM_PROMPT AVAILABLE_TOOLS /AVAILABLE_TOOLS TOOL_RESULTS /TOOL_RESULTS",
            "]",
        ),
        ("[", "TOOL_RESULTS /TOOL_RESULTS TOOL_CALLS TOOL_CONTENT ARGS THINK /THINK gMASK sMASK MASK", "]"),
        ("[|", "Human AI User Assistant system endofturn", "|]"),
    )
    for name in names.split()
)
# What else has the look of one, whatever its name, and the openings of lines that stand for a role. The template is not
# here, so whether it marks roles in plain words is not known: those of Alpaca and Vicuna are broken for every model.
# Text is folded before it is compared, so one spelling stands for all: full-width, upper case, with invisible marks.
_LOOKS = r"""(?mx:
      <\|[^<>|\n]{1,64}\|?>                      # <|…|>, <|…>
    | <[^<>|\s]{1,64}\|>                         # <…|>
    | \[\|[^\[\]|\n]{1,64}\|\]                  # [|…|]
    | \[round\ \d{1,6}\]                        # ChatGLM
    | <(?:extra_id_|special_|reserved_|unused)\d{1,6}>   # Nemotron, Baichuan, Gemma
    | <seed:[^<>\s]{1,32}>                       # Seed
    | \#\#\#\ (?:instruction|input|response|system|user|human|assistant)[ ]?:
    | ^user: | ^assistant:                       # Vicuna
    )"""


class MessagesFormat:
    """A PromptFormat whose prompts are JSON: `messages_in` reads them back.

    An answer that opens the conversation becomes a part of the first system message unless `systems` is `any`, since
    templates that want the two sides in turns refuse it.

    Args:
        systems: which system messages stay of their own. `first` keeps one that opens the prompt and puts any other in
            front of the message that follows it, since many templates refuse it elsewhere; `none` is for templates that
            take none at all; `any` leaves every one where it stands.
        special_tokens: what the upstream's tokenizer reads as control tokens, as far as it is known.
    """

    stop_words: tuple[str, ...] = ()

    def __init__(self, systems: Systems = "first", special_tokens: Sequence[str] = ()) -> None:
        self._systems = systems
        self._markers = Markers([*_NAMED, *special_tokens], _LOOKS)

    def neutralise(self, text: str) -> str:
        """Return `text` with a space put into everything that a common template may have for a marker."""
        return self._markers.broken(text)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the messages as JSON, byte for byte the same for the same messages."""
        if self._systems != "any":
            messages = fold_systems(fold_greeting(messages), keep_first=self._systems == "first")
        rows = [{"role": message.role, "content": message.content} for message in messages]
        return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def messages_in(prompt: str) -> list[dict[str, str]]:
    """Return the messages of a rendered prompt, as the upstream's API takes them.

    Raises:
        InvalidRequest: it is no prompt of this format, or one without messages.
    """
    rows = _rows(prompt)
    if not rows:
        raise InvalidRequest("the prompt is not in the form of messages, expected what the model's format renders")
    return rows


def _rows(text: str) -> list[dict[str, str]] | None:
    if not text.startswith('[{"role":"'):
        return None
    try:
        rows: Any = json.loads(text)
    except ValueError:
        return None
    fine = isinstance(rows, list) and all(
        isinstance(row, dict) and set(row) == {"role", "content"} and isinstance(row["content"], str) for row in rows
    )
    return rows if fine else None


# What a template writes around one message, and around them all (a beginning, the opening of the answer, in some the
# day or a sentence of its own where there is no system message). Tokens; ChatML and Llama 3 take 5 a message.
_AROUND_MESSAGE, _AROUND_PROMPT = 8, 32

_PIECES = re.compile(
    r"""
      (?P<code>(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]+)
    | (?P<word>[A-Za-z]+)(?![^\W\d_])
    | (?P<digit>\d)
    | (?P<blank>[ \t]+)
    | (?P<sign>[\x00-\x7f])
    | (?P<latin>[A-Za-z\u00c0-\u024f\u1e00-\u1eff]+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a tokenizer makes of `text`, rather too many than too few.

    The weights are fitted to SmolLM2's tokenizer, 49,152 entries made of English and code, as a bad case for anything
    else: one with a larger vocabulary makes fewer tokens of the same text. docs/engines.md has how far it is off.
    """
    total = 0.0
    for piece in _PIECES.finditer(text):
        total += _weight(piece.lastgroup or "", piece.group())
    return int(total * 1.05) + 1 if text else 0


def _weight(kind: str, piece: str) -> float:
    size = len(piece)
    if kind == "word":
        return 1.0 if size <= 4 else size / (3.5 if piece[1:].islower() else 2.1)
    if kind == "latin":
        return size / 1.4 + sum(character >= "\u1e00" for character in piece)
    if kind == "other":
        return _of_script(ord(piece))
    if kind == "code":
        return size / 1.1
    return float(kind != "blank" or size > 1)


def _of_script(point: int) -> float:
    """Return the tokens of one character outside Latin script; a character has two to four bytes."""
    if point < 0x800:
        return 1.25
    if 0xAC00 <= point < 0xD7B0:
        return 2.8
    return 2.0 if point < 0x10000 else 3.5


def read_tokenizer(place: Path) -> "Tokenizer":
    """Return the tokenizer of a model: `place` is its tokenizer.json, or a folder that has one.

    Raises:
        BrokenModel: it is not there, or not a tokenizer.
    """
    from tokenizers import Tokenizer

    file = place / "tokenizer.json" if place.is_dir() else place
    problem = "holds no tokenizer"
    try:
        text = file.read_text(encoding="utf-8")
        if "model" in json.loads(text):
            return Tokenizer.from_str(text)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (ValueError, TypeError):  # for bytes that are no text too
        problem = "is not JSON"
    except Exception as error:  # the library has no class of its own for it
        problem = f"is no tokenizer ({(str(error).splitlines() or ['unknown'])[0][:200]})"
    raise BrokenModel(f"{str(file)!r} {problem}; set upstream_tokenizer to a tokenizer.json or a folder with one")


class TokenCounter:
    """Counts the tokens of prompts and of plain texts.

    Args:
        tokenizer: of the upstream's model; an estimate unless given.

    Attributes:
        special_tokens: every string that the tokenizer reads as a control token.
    """

    def __init__(self, tokenizer: "Tokenizer | None" = None) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values() if tokenizer else ()
        self.special_tokens = tuple(token.content for token in added if token.special)

    def __call__(self, text: str) -> int:
        """Return the tokens of `text`; of a rendered prompt with what a template writes around its messages."""
        rows = _rows(text)
        if rows is None:
            return self._plain(text)
        return sum(self._plain(row["content"]) + _AROUND_MESSAGE for row in rows) + _AROUND_PROMPT

    def _plain(self, text: str) -> int:
        if self._tokenizer is None:
            return estimate_tokens(text)
        # Other than `encode`, this lets go of the interpreter, so that a long text in a thread holds nobody up.
        return len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)
