"""Patterns of filters, as the shell has them: `*`, `?` and `[ab]`. Pure."""

import re

_GLOB = re.compile(r"\*|\?|\[!?\]?[^]]*\]")


def is_pattern(text: str) -> bool:
    """Whether a filter is a pattern rather than a name."""
    return _GLOB.search(text) is not None


def regex_of(pattern: str) -> str:
    """Return what matches a whole text as the pattern does, in RE2's words."""
    parts, end = [], 0
    for match in _GLOB.finditer(pattern):
        parts.append(re.escape(pattern[end : match.start()]))
        found, end = match.group(), match.end()
        if found in "*?":
            parts.append(".*" if found == "*" else ".")
        else:
            inside = found[1:-1]
            negated = "^" if inside.startswith("!") else ""
            inside = inside.removeprefix("!").replace("\\", "\\\\").replace("[", r"\[").replace("]", r"\]")
            parts.append(f"[{negated}{inside.replace('^', chr(92) + '^')}]" if inside else re.escape(found))
    return f"^(?s:{''.join(parts)}{re.escape(pattern[end:])})$"
