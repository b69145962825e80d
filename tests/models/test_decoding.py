"""Text from tokens as they come: no sequence of tokens is too much, and valid ones are what the tokenizer says."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from chatkit.models.chat_stopping import RowStop
from chatkit.models.decoding import Decoder
from tests.models import tiny

PIECES = ["a", "b", "▁", "▁the", "▁fox", "é", "漢", "st", "op", "🙂"]


def byte_fallback() -> Tokenizer:
    """Return a tokenizer with the decoder of Llama 2: bytes for what has no token, a space taken off the start."""
    pieces = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    made = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [], byte_fallback=True))
    made.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made


@pytest.fixture(scope="module")
def llama():
    return byte_fallback()


def ids_of(tokenizer, *pieces: str | bytes) -> list[int]:
    """Return the tokens of pieces, and those of single bytes."""
    ids: list[int] = []
    for piece in pieces:
        names = [piece] if isinstance(piece, str) else [f"<0x{byte:02X}>" for byte in piece]
        ids += [tokenizer.token_to_id(name) for name in names]
    return ids


def decoded(tokenizer, ids: list[int]) -> str:
    decoder = Decoder(tokenizer)
    return "".join([*map(decoder.feed, ids), decoder.finish()])


def test_no_sequence_of_tokens_is_too_much(llama) -> None:
    chance = random.Random(1)
    for tokenizer in (llama, tiny.tokenizer().backend_tokenizer):
        size = tokenizer.get_vocab_size()
        for _ in range(600):
            ids = [chance.randrange(size) for _ in range(chance.randrange(1, 60))]
            decoded(tokenizer, ids)
            stop = RowStop(tokenizer, ["zzz"])
            assert not any([stop.hit(token) for token in ids])


def test_valid_text_is_what_the_tokenizer_says_of_the_whole(llama) -> None:
    chance = random.Random(2)
    characters = "aZ é漢🙂\n߿"
    for _ in range(600):
        pieces = [chance.choice([*PIECES, "<s>", *(c.encode() for c in characters)]) for _ in range(30)]
        ids = ids_of(llama, *pieces)
        assert decoded(llama, ids) == llama.decode(ids, skip_special_tokens=True)
    byte_level = tiny.tokenizer().backend_tokenizer
    for _ in range(300):
        text = "".join(chance.choices([*characters, "the ", " fox", "<|end|>"], k=20))
        ids = byte_level.encode(text).ids
        assert decoded(byte_level, ids) == byte_level.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ((b"A", b"\xff", "▁the", "▁fox"), "A\ufffd the fox"),
        (("a", "漢".encode(), b"\xe5", "b", "▁the"), "a漢\ufffdb the"),
        ((b"\xff" * 100, "▁the", "▁fox"), "\ufffd" * 100 + " the fox"),
        (("▁the", *["<s>"] * 100, "▁fox"), "the fox"),
        (("a", "漢".encode()[:2]), "a"),
    ],
)
def test_bytes_that_are_no_character_are_marked_and_the_rest_is_whole(llama, pieces, text) -> None:
    assert decoded(llama, ids_of(llama, *pieces)) == text


def test_a_stop_word_is_found_behind_bytes_that_are_no_character(llama) -> None:
    row = RowStop(llama, ["stop"])
    hits = [row.hit(token) for token in ids_of(llama, b"A", b"\xff", "▁the", "st", "op")]
    assert hits == [False] * 4 + [True]
