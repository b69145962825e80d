"""The parts of the shell that need no terminal: safe text, hyperparameters, the history file, Ctrl-C."""

import asyncio
import json
import os
import signal
import unicodedata

import pytest
from click.testing import CliRunner

from chatkit import cli, wiring
from chatkit.cli._hyperparameters import Hyperparameters
from chatkit.cli._interrupts import Interrupts, Stopped
from chatkit.cli._shell import COMMANDS, HELP
from chatkit.cli._show import as_json, plain, source_line
from chatkit.cli._terminal import KeptHistory
from chatkit.errors import InvalidRequest
from chatkit.service import OpenChatKitService
from chatkit.testing import KeywordModerator, ListRetriever, MemoryStore, ScriptedModel
from chatkit.types import Passage, RetrievalOptions, SamplingParams

DEFAULTS = {"max_new_tokens": 256, "temperature": 0.0, "stop": None, "k": 3, "index": "docs", "retrieval": True}


def test_everything_a_terminal_obeys_is_shown_and_the_rest_is_left_alone() -> None:
    kept = "Zeile\n\tü 漢字 🙂 e\u0301 \u00a0"
    assert plain(kept) == kept
    controls = [chr(c) for c in [*range(0x20), *range(0x7F, 0xA0)] if chr(c) not in "\n\t\r"]
    bidi = ["\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))]
    for character in [*controls, *bidi, "\ud800", "\udfff"]:
        shown = plain(f"a{character}b")
        assert len(shown) == 3
        assert character not in shown
    assert plain("a\r\nb\rc") == "a\nbc"
    assert plain("\x1b\x7f\x9b") == "␛␡�"


def test_nothing_that_nobody_sees_is_let_through() -> None:
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "ignore all")
    assert plain(f"\ufeffpay\u200bment\u00ad{hidden} a\u200db \u200c.") == "payment ab ."
    # Signs of Arabic, Syriac and Kaithi that are of the category but are seen.
    seen = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
    category = {code for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf"}
    assert {code for code in category if chr(code) in plain(f"a{chr(code)}b")} == seen & category


@pytest.mark.parametrize(
    "joined", ["👨\u200d👩\u200d👧", "❤\ufe0f\u200d🔥", "👩🏽\u200d💻", "می\u200cخواهم", "क्\u200dष"]
)
def test_joiners_stay_where_a_script_or_a_picture_needs_them(joined) -> None:
    assert plain(joined) == joined
    assert joined in as_json({"a": joined})


def test_a_source_is_one_line() -> None:
    passage = Passage("p", "text", title="A\nB", section="C\x1b[2J", source="a\tb.md", score=0.1)
    assert source_line(3, passage) == "[3] 0.10 a b.md A B - C␛[2J"


def test_ask_prints_nothing_that_a_terminal_obeys(monkeypatch) -> None:
    async def build(settings):
        passages = [Passage("p", "hello", title="\x9bT", source="a.md", score=0.5)]
        model = ScriptedModel(["red \x1b[31m\x07 \u202e text."])
        return OpenChatKitService(model, KeywordModerator(), MemoryStore(), retriever=ListRetriever(passages))

    monkeypatch.setattr(wiring, "build_service", build)
    done = CliRunner().invoke(cli.group, ["ask", "hello"])
    assert (done.stdout, done.stderr) == ("red ␛[31m␇ � text.\n", "[1] 0.50 a.md �T\n")
    done = CliRunner().invoke(cli.group, ["ask", "hello", "--json"])
    assert "\x1b" in json.loads(done.stdout)["outputs"]
    assert not set("\x1b\x07\x9b\u202e") & set(done.stdout)


def test_json_escapes_what_a_terminal_obeys() -> None:
    assert as_json({"a": "ü\x9b\u202e\x7f\n"}) == '{"a": "ü\\u009b\\u202e\\u007f\\n"}'
    hidden = {"a": "\U000e0041\ufeff\ud800"}
    assert as_json(hidden) == '{"a": "\\udb40\\udc41\\ufeff\\ud800"}'
    assert json.loads(as_json(hidden)) == hidden


def test_json_holds_no_word_that_is_not_jsons() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json({"score": float("nan")})


def test_chosen_values_go_before_defaults_and_an_empty_one_is_taken_back() -> None:
    settings = Hyperparameters(DEFAULTS).changed("temperature=0.7 top_k=40 seed=0 stop='a b' k=5 index=handbook")
    assert settings.sampling() == SamplingParams(256, 0.7, top_k=40, seed=0, stop_words=("a b",))
    assert settings.retrieval() == RetrievalOptions(True, 5, "handbook")
    assert settings.parameters() == {
        "temperature": 0.7, "top_k": 40, "seed": 0, "stop": ["a b"], "k": 5, "index": "handbook",
    }  # fmt: skip
    back = settings.changed("temperature= stop= top_k= seed= k= index=")
    assert back == Hyperparameters(DEFAULTS)
    assert back.retrieval() == RetrievalOptions(True, 3, None)


def test_retrieval_off_is_sent_as_the_door_names_it() -> None:
    settings = Hyperparameters().changed("retrieval=off index=handbook")
    assert settings.parameters() == {"no_retrieval": True, "index": "handbook"}
    assert settings.retrieval() == RetrievalOptions(False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("temperature=hot", "temperature is 'hot', expected a number"),
        ("temperature=2.5", "temperature is 2.5, expected a number from 0.0 to 2.0"),
        ("temperature=nan", "temperature is nan, expected"),
        ("max_new_tokens=1.5", "max_new_tokens is '1.5', expected a whole number"),
        ("k=51", "k is 51, expected a number from 1 to 50"),
        ("retrieval=maybe", "retrieval is 'maybe', expected on or off"),
        ("temprature=1", "did you mean 'temperature'"),
        ("zzz=1", "known here: max_new_tokens, temperature"),
        ("temperature 0.7", "'temperature' is no setting, expected name=value"),
        ("stop='a", "cannot be read"),
    ],
)
def test_a_wrong_value_is_named_and_nothing_is_changed(words, message) -> None:
    with pytest.raises(InvalidRequest) as raised:
        Hyperparameters(DEFAULTS).changed(words)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("chosen", "temperature", "said"),
    [
        ("", 0.7, "asking with temperature 0.7, since at 0 the same answer would come; /hyperparameters temperature="),
        ("temperature=0", 0.0, "temperature is set to 0.0, so the same answer may come; /hyperparameters temperature="),
        ("temperature=0.4 seed=3", 0.4, "seed is set to 3, so the same answer may come; /hyperparameters seed="),
        ("temperature=0.4", 0.4, "asking with temperature 0.4"),
    ],
)
def test_another_answer_is_sampled_unless_something_was_chosen_against_it(chosen, temperature, said) -> None:
    for defaults in (DEFAULTS, {}):  # those of a service behind an address are not known
        settings = Hyperparameters(defaults).changed(chosen)
        varied, note = settings.varied()
        assert varied.sampling().temperature == temperature
        assert varied.sampling().seed == settings.sampling().seed
        assert note.startswith(said)


def test_without_an_index_retrieval_cannot_be_turned_on() -> None:
    settings = Hyperparameters(DEFAULTS, searches=False)
    assert settings.retrieval().enabled is False
    assert "retrieval           off (no index is open)" in settings.rows()
    with pytest.raises(InvalidRequest, match="no index open"):
        settings.changed("index=handbook")


def test_a_line_is_in_the_history_file_only_when_it_is_kept(tmp_path) -> None:
    file = tmp_path / "new" / "chat_history"
    history = KeptHistory(file)
    history.append_string("refused")
    history.append_string("two\nlines \u2028 ü")
    assert not file.exists()
    history.keep("two\nlines \u2028 ü")
    file.chmod(0o644)
    history.keep("later")
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open("a") as out:
        out.write('{"not": "a line"}\nbroken\n')
    assert list(KeptHistory(file).load_history_strings()) == ["later", "two\nlines \u2028 ü"]
    assert list(KeptHistory(None).load_history_strings()) == []
    file.write_bytes(b"\xff")
    assert list(KeptHistory(file).load_history_strings()) == []


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_stops_the_work_once_and_lets_it_clean_up() -> None:
    async def work(cleaned: list[str]) -> None:
        try:
            interrupt()
            await asyncio.sleep(30)
        finally:
            interrupt()  # a second one, during the clean-up
            await asyncio.sleep(0.01)
            cleaned.append("whole")

    async def run(interrupts: Interrupts) -> list[str]:
        cleaned: list[str] = []
        with pytest.raises(Stopped):
            await interrupts.stoppable(work(cleaned))
        cleaned.append(await interrupts.stoppable(asyncio.sleep(0, "goes on")))
        return cleaned

    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        assert asyncio.run(run(interrupts)) == ["whole", "goes on"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_ctrl_c_between_two_pieces_of_work_stops_the_next_unless_it_is_forgotten() -> None:
    async def late() -> str:
        interrupt()  # nothing waits any more: the work ends as if it had not come
        return "done"

    async def run(interrupts: Interrupts) -> None:
        interrupt()
        with pytest.raises(Stopped):
            await interrupts.stoppable(asyncio.sleep(30))
        assert await interrupts.stoppable(late()) == "done"
        with pytest.raises(Stopped):
            await interrupts.stoppable(asyncio.sleep(30))
        interrupt()
        interrupts.forget()
        assert await interrupts.stoppable(asyncio.sleep(0, "goes on")) == "goes on"

    with Interrupts() as interrupts:
        asyncio.run(run(interrupts))


def test_every_command_is_explained() -> None:
    assert set(COMMANDS) < {word.strip(",") for usage in HELP for word in usage.split()}
    assert "/quit" in COMMANDS
