"""Tokenizers, and text from tokens as they come: whole characters, and no sequence of tokens that it fails on.

The rule of `tokenizers.DecodeStream`, which raises where a tokenizer with byte fallback takes back text that it has
given: a run of bytes that is UTF-8 becomes one that is not by the bytes that follow.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from chatkit.errors import BrokenModel, MissingExtra

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What tokenizers write for bytes that are no character, or not yet one.
_UNREADABLE = "\ufffd"
# A character is four bytes at most; what is longer unreadable is let go, or each step would read all of it again.
_MOST_HELD = 32
# Tokens whose text is the same wherever they stand.
_PLAIN = ("a", "e", "x", "1", ".")


class Decoder:
    """Puts one sequence of tokens together; control tokens are no text."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # given already; what follows is read behind it, for the space between
        self._given = ""
        self._held: list[int] = []

    def feed(self, token: int) -> str:
        """Take the next token; return the text that is certain now."""
        self._held.append(token)
        text = self._text([*self._before, *self._held])
        patient = len(self._held) < _MOST_HELD
        if patient and (text == self._given or text.endswith(_UNREADABLE)):
            return ""
        if patient and text.startswith(self._given):
            new = text[len(self._given) :]
            self._before, self._held = self._held, []
        else:
            new = self._read_anew()
        self._given = self._text(self._before)
        return new

    def finish(self) -> str:
        """Return what is held of whole characters, at the end."""
        text = self._text([*self._before, *self._held])
        new = text[len(self._given) :] if text.startswith(self._given) else self._read_anew()
        self._before, self._given, self._held = [], "", []
        return new.rstrip(_UNREADABLE)

    def _read_anew(self) -> str:
        """Return the text of what is held without what came before; what follows is read without both."""
        plain = [i for i in map(self._tokenizer.token_to_id, _PLAIN) if i is not None and self._text([i])][:1]
        text = self._text([*plain, *self._held])
        self._before, self._held = plain, []
        return text[len(self._text(plain)) :]

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def load_tokenizer(folder: Path, *, derived: bool = False) -> "Tokenizer":
    """Read `tokenizer.json` of a model folder.

    Args:
        derived: the folder was written here, and will be again when it is gone.

    Raises:
        BrokenModel: it cannot be read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", "local") from error
    file = folder / "tokenizer.json"
    step = f"remove {str(folder)!r} and start again" if derived else "copy tokenizer.json of the model again"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{str(file)!r} cannot be read ({getattr(error, 'strerror', error)}); {step}") from error
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library has no class of its own for it
        why = (str(error).splitlines() or ["unknown"])[0][:200]
        raise BrokenModel(f"{str(file)!r} is no tokenizer ({why}); {step}") from error
