"""What a file is: by its name, and by its first bytes where they say."""

import bz2
import re
import zipfile
import zlib
from pathlib import Path

from chatkit.retrieval.document import Unreadable

# Suffixes, and the reader of each. `.bz2` counts with the suffix before it.
READ_BY = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".txt": "text",
    ".text": "text",
    ".pdf": "pdf",
    ".docx": "docx",
    ".docm": "docx",
    ".pptx": "pptx",
    ".pptm": "pptx",
    ".ppsx": "pptx",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".epub": "epub",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".xml": "wikitext",
    ".xml.bz2": "wikitext",
}
# In folders only dumps of a wiki are taken of the files with these suffixes: others are seldom meant.
_ANY_XML = frozenset({".xml", ".xml.bz2"})
# Kinds that are told by their content, whatever the name says, and what people call them.
_NAMES = {"pdf": "a PDF", "docx": "a DOCX", "pptx": "a PPTX", "xlsx": "an XLSX", "epub": "an EPUB"}
_HEAD = 4096
_PDF = b"%PDF-"
# Where readers of PDF look for its mark.
_PDF_WITHIN = 1024
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")
_WIKI = b"<mediawiki"
_BZIP2 = b"BZh"
_RTF = b"{\\rtf"
# Bytes that no text has: what begins like a known kind and has none of them is a text about something else.
_CONTROLS = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_OTHERS = {
    b"\x1f\x8b": "gzip-compressed",
    _BZIP2: "bzip2-compressed",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"GIF8": "a picture (GIF)",
    b"II*\0": "a picture (TIFF)",
    b"MM\0*": "a picture (TIFF)",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    _RTF: "an RTF document",
    b"PAR1": "a Parquet file",
    b"SQLite format 3": "an SQLite database",
}
_ZIPPED = (("word/", "docx"), ("ppt/", "pptx"), ("xl/", "xlsx"))


def suffix_of(path: Path) -> str:
    """Return the suffix in small letters, of `a.xml.bz2` both parts."""
    suffix = path.suffix.lower()
    return "".join(path.suffixes[-2:]).lower() if suffix == ".bz2" else suffix


def is_taken(path: Path) -> bool:
    """Whether a file in a folder, or matched by a pattern, is one of the kinds that are read."""
    suffix = suffix_of(path)
    if suffix not in READ_BY:
        return False
    return suffix not in _ANY_XML or _is_dump(path)


def kind_of(path: Path) -> str:
    """Return the name of the reader for a file.

    Raises:
        Unreadable: empty, locked, of a kind that is not read, or named as another kind than it is.
        OSError: it cannot be read.
    """
    suffix = suffix_of(path)
    named = READ_BY.get(suffix, "")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise Unreadable("is empty (0 bytes)")
    found = _by_content(path, head, named)
    if found and named and found != named:
        raise Unreadable(f"is {_NAMES[found]} by its content but named {suffix}; rename it to .{found}")
    if not found and named in _NAMES:
        raise Unreadable(
            f"is named {suffix} but is no {named.upper()} by its content; it is damaged or of another kind"
        )
    if not found and not named:
        raise Unreadable(f"is of a kind that is not read (suffix {suffix!r}, expected {', '.join(sorted(READ_BY))})")
    return found or named


def _by_content(path: Path, head: bytes, named: str) -> str:
    """Return the kind that the content alone proves; empty for text.

    Raises:
        Unreadable: it is proven to be of a kind that is not read.
    """
    if head.lstrip().startswith(_PDF) or (named == "pdf" and _PDF in head[:_PDF_WITHIN]):
        return "pdf"
    if head.startswith(_ZIP):
        return _zipped(path)
    if head.startswith(_OLE):
        raise Unreadable(_old_office(path))
    if head.startswith(_BZIP2) and named == "wikitext" and path.suffix.lower() == ".bz2":
        return ""
    for mark, name in _OTHERS.items():
        if head.startswith(mark) and (mark == _RTF or _CONTROLS.search(head)):
            raise Unreadable(f"is {name} by its content, which is not read")
    return ""


def _zipped(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            mimetype = archive.read("mimetype")[:_HEAD] if "mimetype" in names[:1] and _is_small(archive) else b""
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        raise Unreadable(f"is a damaged or truncated archive ({error}); get a whole copy of it") from error
    if mimetype.startswith(b"application/epub+zip") or "META-INF/container.xml" in names:
        return "epub"
    if "xl/workbook.bin" in names:
        raise Unreadable("is a binary workbook; save it as .xlsx")
    if mimetype.startswith(b"application/vnd.oasis"):
        raise Unreadable("is an OpenDocument file; save it as .docx, .pptx or .xlsx")
    if "[Content_Types].xml" in names:
        for folder, kind in _ZIPPED:
            if any(name.startswith(folder) for name in names):
                return kind
    raise Unreadable("is a ZIP archive by its content; unpack it and name what is in it")


def _is_small(archive: zipfile.ZipFile) -> bool:
    return archive.getinfo("mimetype").file_size <= _HEAD


def _old_office(path: Path) -> str:
    """Return the reason for an OLE container: Office's encryption puts the whole document into one."""
    with path.open("rb") as file:
        while block := file.read(2**20):
            if _ENCRYPTED_PACKAGE in block:
                return "is encrypted; save it without a password"
    return "is of an old Office format (.doc, .xls, .ppt), or another OLE file; save it as .docx, .xlsx or .pptx"


def _is_dump(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(2 * 2**20 if path.suffix.lower() == ".bz2" else _HEAD)
        if head.startswith(_BZIP2):
            head = bz2.BZ2Decompressor().decompress(head, max_length=_HEAD)
    except (OSError, EOFError):
        return False
    return _WIKI in head
