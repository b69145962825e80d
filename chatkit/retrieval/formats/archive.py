"""ZIP packages read part by part, each and all of them bounded, whatever they say of their size."""

import io
import zipfile
import zlib
from pathlib import Path
from types import TracebackType

from chatkit.retrieval.document import Unreadable

# Bytes of one part, and of all parts that are read, unfolded. The text of a thousand pages is some 5 MB of XML.
PART_BYTES = 64 * 2**20
ALL_BYTES = 256 * 2**20
# The archive's own list of parts.
_MOST_PARTS = 20_000
_READ_AS_XML = (".xml", ".rels", ".vml")
_DECLARED = (b"<!DOCTYPE", b"<!ENTITY")
# Documents with macros and templates have the same parts as plain ones; the libraries ask for the plain name.
_PLAIN = {
    b"application/vnd.ms-word.document.macroEnabled.main+xml": (
        b"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    ),
    b"application/vnd.ms-powerpoint.presentation.macroEnabled.main+xml": (
        b"application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml"
    ),
    b"application/vnd.openxmlformats-officedocument.presentationml.slideshow.main+xml": (
        b"application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml"
    ),
}


class Archive:
    """An open package; a context manager."""

    def __init__(self, path: Path, *, part_bytes: int = PART_BYTES, all_bytes: int = ALL_BYTES) -> None:
        self._part_bytes, self._left = part_bytes, all_bytes
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError) as error:
            raise _damaged(error) from error
        if len(self._zip.namelist()) > _MOST_PARTS:
            raise Unreadable(f"has {len(self._zip.namelist())} parts, at most {_MOST_PARTS} are read")

    def __enter__(self) -> "Archive":
        """Return it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the file."""
        self._zip.close()

    @property
    def names(self) -> list[str]:
        """The names of all parts, in the archive's order."""
        return self._zip.namelist()

    def read(self, name: str) -> bytes:
        """Return one part, unfolded.

        Raises:
            Unreadable: it is not there, locked, damaged, or larger than a part may be, by its own word or in fact.
        """
        try:
            entry = self._zip.getinfo(name)
            if entry.flag_bits & 1:
                raise Unreadable("is encrypted; save it without a password")
            most = min(self._part_bytes, self._left)
            if entry.file_size > most:
                raise _bomb(name, most)
            with self._zip.open(entry) as part:
                content = part.read(most + 1)
        except KeyError as error:
            raise Unreadable(f"is damaged: its part {name!r} is missing") from error
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
            raise _damaged(error) from error
        if len(content) > most:
            raise _bomb(name, most)
        self._left -= len(content)
        return content

    def without_media(self) -> io.BytesIO:
        """Return a copy of an Office package that holds its XML; pictures, sounds and other files in it are empty.

        Raises:
            Unreadable: as `read`, and where XML declares entities: Office writes none, and they can unfold without end.
        """
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as out:
            for name in dict.fromkeys(self.names):
                content = self.read(name) if name.lower().endswith(_READ_AS_XML) else b""
                letters = content.replace(b"\0", b"") if b"\0" in content[:8] else content  # of UTF-16
                if any(declared in letters for declared in _DECLARED):
                    raise Unreadable(f"its part {name!r} declares entities, which no Office file does")
                if name == "[Content_Types].xml":
                    for special, plain in _PLAIN.items():
                        content = content.replace(special, plain)
                out.writestr(name, content)
        copy.seek(0)
        return copy


def _bomb(name: str, most: int) -> Unreadable:
    return Unreadable(f"its part {name!r} unfolds to more than {most // 2**20} MiB, which is not read; split the file")


def _damaged(error: Exception) -> Unreadable:
    return Unreadable(f"is a damaged or truncated archive ({error}); get a whole copy of it")
