"""Markdown, read as it is so that offsets point into the file: only headings and fences are looked for."""

import re

from chatkit.retrieval.document import Outline, Section

_HEADING = re.compile(r"(#{1,6})[ \t]+(.*?)(?:(?:^|[ \t]+)#+)?\s*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_BETWEEN_RULES = re.compile(r"---[ \t]*\r?\n(.*?)\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
# What settings in YAML look like: a key each line, with what is below it further in, a list or a comment.
_KEY = re.compile(r"[\w\"'][^:#]*:(?:\s|$)")
_BELOW_KEY = re.compile(r"[ \t#}\]]|-\s|\s*$")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def read(text: str) -> tuple[str, tuple[Section, ...]]:
    """Return title and sections, cut at ATX headings that stand outside fenced code.

    The first level-one heading is the title; empty where there is none.
    """
    title = fence = ""
    body = _after_front_matter(text)
    outline = Outline(body)
    for start, line in _lines(text, body):
        fence = _fence_after(line, fence)
        heading = None if fence else _HEADING.match(line)
        if heading is None:
            continue
        level, words = len(heading[1]), _plain(heading[2])
        is_title = level == 1 and not title
        outline.heading(level, words, start, min(start + len(line) + 1, len(text)), is_title=is_title)
        if is_title:
            title = words
    return title, outline.sections(text)


def _lines(text: str, start: int) -> list[tuple[int, str]]:
    lines = []
    for line in text[start:].split("\n"):
        lines.append((start, line))
        start += len(line) + 1
    return lines


def _fence_after(line: str, fence: str) -> str:
    """Return the fence that is open after `line`, empty for none. A fence is closed by one of its kind, as long."""
    match = _FENCE.match(line)
    if match is None:
        return fence
    if not fence:
        return match[1]
    closes = match[1].startswith(fence) and not line.strip().strip(fence[0])
    return "" if closes else fence


def _after_front_matter(text: str) -> int:
    """Return where the body starts: a leading block between two lines of `---` is settings if it looks like YAML."""
    match = _BETWEEN_RULES.match(text)
    if match is None:
        return 0
    first, *others = match[1].split("\n")
    is_settings = _KEY.match(first.lstrip()) or (first.startswith("#") and any(map(_KEY.match, others)))
    return match.end() if is_settings and all(_KEY.match(one) or _BELOW_KEY.match(one) for one in others) else 0


def _plain(heading: str) -> str:
    """Return a heading without links, code marks and emphasis."""
    words = _LINK.sub(r"\1", heading)
    return " ".join(re.sub(r"[`*]", "", words).split())
