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
# Python's names of the encodings that the WHATWG standard knows: others of Python's are no encodings of pages, and
# some take very long.
_KNOWN = (
    "utf-8 ascii iso8859-1 iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-10 "
    "iso8859-11 iso8859-13 iso8859-14 iso8859-15 iso8859-16 koi8-r koi8-u cp866 cp874 mac-roman mac-cyrillic tis-620 "
    "cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 "
    "gb2312 gbk gb18030 big5 big5hkscs euc_jp shift_jis cp932 iso2022_jp euc_kr cp949"
)
# Pages that say Latin-1 are in Windows-1252, which has letters where Latin-1 has controls; so do browsers read them.
_READ_AS = {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932"}


def decode(content: bytes) -> str:
    """Return a page's characters, without a byte order mark.

    Raises:
        Unreadable: it names an encoding that pages are not written in, or is not in the one it names.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            return _decoded(content[len(mark) :], name, "its byte order mark")
    head = _COMMENT.sub(b"", content[:_LOOKED_AT])
    named = _META.search(head) or _XML.match(head)
    if named is None:
        return _decoded(content, "utf-8", "")
    label = named[1].decode("ascii", "replace")
    if label.lower().startswith("utf-16"):
        return _decoded(content, "utf-8", "")  # the name was readable as ASCII, so it is not UTF-16
    try:
        name = codecs.lookup(label).name
    except LookupError:
        name = ""
    if name not in _KNOWN.split():
        raise Unreadable(f"names the encoding {label[:40]!r}, which is not known; convert it to UTF-8")
    return _decoded(content, _READ_AS.get(name, name), f"its charset {label!r}")


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
    if "\0" in text:
        raise Unreadable("holds NUL characters, so it is no text")
    return text
