from pathlib import Path

import pytest

from chatkit.retrieval.document import Unreadable
from chatkit.retrieval.parsing import parse

MARKDOWN = """---
title: settings of a site generator
---
# The `guide` to [links](https://example.org)

Intro.

## First ##

Body one.

```sh
# a comment, not a heading
```

### Deeper

Body two.

## Empty

## Last
Body three.
"""


def read(text, name="a.md"):
    return parse(Path(name), name, text.encode())


def test_markdown_is_cut_at_its_headings_and_offsets_point_into_the_file():
    document = read(MARKDOWN)
    assert document.title == "The guide to links"
    assert document.text == MARKDOWN
    bodies = {section.heading: MARKDOWN[section.start : section.end].strip() for section in document.sections}
    assert bodies == {
        "": "Intro.",
        "First": "Body one.\n\n```sh\n# a comment, not a heading\n```",
        "First > Deeper": "Body two.",
        "Last": "Body three.",
    }


def test_what_stands_between_two_breaks_is_text_unless_it_looks_like_settings():
    text = "---\n\n# Real title\n\nImportant first part.\n\n---\n\nSecond part.\n"
    document = read(text)
    assert document.title == "Real title"
    assert text[document.sections[-1].start :].startswith("\nImportant first part.")
    for settings in ("title: x\ntags:\n- a\n  - b\n", "# a comment\nkey: |\n  many words\n\nother: [\n]\n"):
        [section] = read(f"---\n{settings}---\nBody.").sections
        assert section.start == len(f"---\n{settings}---\n")


def test_closing_hashes_are_no_words_of_a_heading_and_others_are():
    assert read("# Title ##\r\n\r\nwords").title == "Title"
    assert read("# C# and F#\nwords").title == "C# and F#"


def test_a_second_title_is_a_section():
    assert [section.heading for section in read("# One\na\n# Two\nb\n## Three\nc").sections] == [
        "",
        "Two",
        "Two > Three",
    ]


def test_a_file_without_a_title_is_named_after_itself():
    assert read("words", "release_notes-2.txt").title == "release notes 2"
    assert read("## Only a section\nwords", "read-me.md").title == "read me"


def test_an_unclosed_fence_swallows_no_error():
    assert len(read("# T\n```\n# in the fence\n").sections) == 1


def test_windows_line_ends_and_a_byte_order_mark_are_read():
    document = parse(Path("a.md"), "a.md", b"\xef\xbb\xbf# T\r\n\r\nbody\r\n## S\r\nmore\r\n")
    assert document.title == "T"
    assert [section.heading for section in document.sections] == ["", "S"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.md", b"caf\xe9", "not UTF-8 .byte 3."),
        ("a.txt", b"a\0b", "NUL"),
        ("a.txt", b" \n", "is empty"),
        ("a.pdf", b"%PDF", "neither Markdown nor HTML nor text"),
    ],
)
def test_what_cannot_be_read_says_why(name, content, reason):
    with pytest.raises(Unreadable, match=reason):
        parse(Path(name), name, content)
