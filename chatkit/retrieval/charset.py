"""Which encoding a text is in: its byte order mark, else what a page says of itself, else UTF-8."""

import codecs
import re

from chatkit.retrieval.document import Unreadable

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# The WHATWG standard looks into the first 1024 bytes; pages that begin with a long comment are common.
_LOOKED_AT = 4096
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_META = re.compile(rb"<meta\b[^>]*?\bcharset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_XML = re.compile(rb"\s*<\?xml\b[^>]*?\bencoding\s*=\s*[\"']([\w.:-]+)", re.IGNORECASE)
# Python's names of the encodings of the WHATWG standard. Others of Python's are no encodings of pages, and some take
# very long.
_SINGLE = (
    "iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-10 iso8859-13 iso8859-14 iso8859-15 "
    "iso8859-16 koi8-r koi8-u cp866 cp874 mac-roman mac-cyrillic "
    "cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258"
)
_MULTIPLE = "utf-8 gb18030 big5hkscs euc_jp cp932 iso2022_jp cp949"
# Those that pages name for the larger ones that they are written in.
_READ_AS = {name: name for name in f"{_SINGLE} {_MULTIPLE}".split()} | {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
# Labels of the standard that Python does not know.
_LABELS = {
    label: name
    for name, labels in {
        "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 x-unicode20utf8",
        "iso8859-2": "iso88592",
        "iso8859-6": "csiso88596e csiso88596i iso-8859-6-e iso-8859-6-i",
        "iso8859-7": "sun_eu_greek",
        "iso8859-8": "csiso88598e csiso88598i iso-8859-8-e iso-8859-8-i logical visual",
        "iso8859-15": "csisolatin9",
        "koi8-r": "koi koi8",
        "koi8-u": "koi8-ru",
        "mac-roman": "csmacintosh mac macintosh x-mac-roman",
        "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
        "cp874": "dos-874 windows-874",
        "gb18030": "csgb2312 gb_2312 gb_2312-80 x-gbk",
        "big5hkscs": "cn-big5 x-x-big5",
        "euc_jp": "cseucpkdfmtjapanese x-euc-jp",
        "cp932": "windows-31j x-sjis",
        "cp949": "cseuckr csksc56011987 iso-ir-149 ks_c_5601-1989 ksc_5601 windows-949",
        **{f"cp{number}": f"x-cp{number}" for number in range(1250, 1259)},
    }.items()
    for label in labels.split()
}
# One wrong character in so many is damage; more of them are another encoding.
_SOUND_FOR_EACH_WRONG = 1000
_WRONG = "\ufffd"


def decode(content: bytes, told: str = "") -> str:
    """Return a page's characters, without a byte order mark; the few that are wrong are U+FFFD.

    Args:
        content: the page.
        told: the charset that came with the page, which goes before what the page says of itself; "" for none, and one
            that is not known counts as none.

    Raises:
        Unreadable: it names an encoding that pages are not written in, or is not in the one it names.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            return _decoded(content[len(mark) :], name, "its byte order mark")
    if name := _codec(told):
        return _forgiven(content, name, f"the charset {told[:40]!r} that came with it")
    head = _COMMENT.sub(b"", content[:_LOOKED_AT])
    named = _META.search(head) or _XML.match(head)
    if named is None:
        return _forgiven(content, "utf-8", "")
    label = named[1].decode("ascii", "replace")
    if label.lower().startswith("utf-16"):
        return _forgiven(content, "utf-8", "")  # the name was readable as ASCII, so it is not UTF-16
    name = _codec(label)
    if not name:
        raise Unreadable(f"names the encoding {label[:40]!r}, which is not known; convert it to UTF-8")
    return _forgiven(content, name, f"its charset {label!r}")


def wrong_characters(text: str) -> int:
    """Return how many characters of a text stand for what could not be read."""
    return text.count(_WRONG)


def _codec(label: str) -> str:
    """Return the name of the encoding in which a page with that label is read, empty for a label of none."""
    label = label.strip().lower()
    if label.startswith("utf-16"):
        return "utf-16-be" if label == "utf-16be" else "utf-16-le"
    try:
        return _LABELS.get(label) or _READ_AS.get(codecs.lookup(label).name, "")
    except (LookupError, ValueError):
        return ""


def _forgiven(content: bytes, name: str, named_by: str) -> str:
    """Return the characters, a few wrong ones replaced; what is undefined in an encoding of single bytes always is."""
    text = content.decode(name, "replace")
    wrong = text.count(_WRONG)
    if wrong and name not in _SINGLE.split() and wrong * _SOUND_FOR_EACH_WRONG > len(text):
        return _decoded(content, name, named_by)
    return _without_zeros(text)


def decode_text(content: bytes) -> str:
    """Return a plain text's characters, by its byte order mark, else UTF-8.

    Raises:
        Unreadable: in another encoding, binary, or without a word.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            text = _decoded(content[len(mark) :], name, "its byte order mark")
            break
    else:
        text = _decoded(content, "utf-8", "")
    if not text.strip():
        raise Unreadable("is empty")
    return text


def encoding_of(head: bytes) -> str:
    """Return Python's name for the encoding of a text that begins with `head`, with which the mark is read as well."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8-sig"


def _decoded(content: bytes, name: str, named_by: str) -> str:
    try:
        text = content.decode(name)
    except UnicodeDecodeError as error:
        why = f", which {named_by} names" if named_by else ""
        raise Unreadable(f"is not {name.upper()}{why} (byte {error.start}); convert it to UTF-8") from error
    return _without_zeros(text)


def _without_zeros(text: str) -> str:
    if "\0" in text:
        raise Unreadable("holds NUL characters, so it is no text")
    return text
