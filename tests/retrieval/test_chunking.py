from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatkit.errors import ConfigError
from chatkit.retrieval.chunking import Chunking, cut
from chatkit.retrieval.document import Unreadable
from chatkit.retrieval.parsing import parse


def chunks_of(text, encoder, max_tokens=32, name="a.md"):
    document = parse(Path(name), name, text.encode())
    return document, list(cut(document, Chunking(max_tokens), encoder.count_tokens_of))


LINES = st.sampled_from(
    [
        "# Title",
        "## Part",
        "words of a sentence. And one more!",
        "",
        "```",
        "- item",
        "x" * 300,
        "日本語の文。",
        "\t",
        "---",
    ]
)


@given(lines=st.lists(LINES, max_size=25))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_offsets_are_exact_budgets_hold_and_no_word_is_lost(encoder, lines):
    text = "\n".join(lines)
    try:
        document, chunks = chunks_of(text, encoder)
    except Unreadable:
        return
    end = 0
    for chunk in chunks:
        assert document.text[chunk.start : chunk.end] == chunk.text == chunk.text.strip()
        assert chunk.start >= end
        end = chunk.end
        assert encoder.count_tokens(chunk.text) - 2 <= 32
    kept = sum(character.isalnum() for chunk in chunks for character in chunk.text)
    meant = sum(c.isalnum() for section in document.sections for c in document.text[section.start : section.end])
    assert kept == meant


def test_paragraphs_fill_a_chunk_up_to_the_budget(encoder):
    text = "\n\n".join(f"Paragraph {number} has exactly nine tokens." for number in range(6))
    _, chunks = chunks_of(text, encoder, name="a.txt")
    assert [chunk.text.count("Paragraph") for chunk in chunks] == [4, 2]


def test_a_long_paragraph_is_cut_between_sentences(encoder):
    text = " ".join(f"This is sentence number {number} of a long paragraph." for number in range(12))
    _, chunks = chunks_of(text, encoder, name="a.txt")
    assert len(chunks) > 3
    assert all(chunk.text.startswith("This") and chunk.text.endswith(".") for chunk in chunks)


def test_a_chunk_never_crosses_a_heading_and_headings_alone_are_no_chunk(encoder):
    _, chunks = chunks_of("# T\n## A\none\n## B\n### C\ntwo\n## D\n---\n", encoder)
    assert [(chunk.section, chunk.text) for chunk in chunks] == [("A", "one"), ("B > C", "two")]


def test_title_and_section_are_embedded_but_not_kept_in_the_text(encoder):
    _, (chunk,) = chunks_of("# Guide\n## Ports\nIt is 8080.", encoder)
    assert chunk.text == "It is 8080."
    assert chunk.embedded == "Guide > Ports\nIt is 8080."


def test_an_id_stays_when_text_elsewhere_changes(encoder):
    _, before = chunks_of("# T\n## A\none\n## B\ntwo", encoder)
    _, after = chunks_of("# T\n## A\none and more\n## B\ntwo", encoder)
    assert before[1].id == after[1].id
    assert before[0].id != after[0].id


@pytest.mark.parametrize("options", [{"max_tokens": 3}, {"max_tokens": "160"}, {"overlap": 4}])
def test_wrong_options_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Chunking.from_options(options)
