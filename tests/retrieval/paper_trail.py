"""Small PDF and Office files, made by hand where no library makes them."""

import hashlib
import io
import zipfile

_PADDING = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")
_FILE_ID = b"0123456789abcdef"
W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def pdf(pages, *, password="", title="", picture=False):
    """Return a PDF: `pages` are lists of (size of type, line); with a password in the oldest of its ciphers."""
    key = _key(password) if password else b""
    objects = {1: b"<</Type/Catalog/Pages 2 0 R>>", 3: b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"}
    kids = []
    for lines in pages:
        number = max(objects) + 1
        kids.append(b"%d 0 R" % number)
        content, y = b"", 780
        for size, line in lines:
            y -= round(size * 1.3)
            shown = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)").encode("latin-1")
            content += b"BT /F1 %d Tf 50 %d Td (%s) Tj ET\n" % (size, y, shown)
        if picture:
            content += b"q 500 0 0 700 50 50 cm BI /W 1 /H 1 /CS /G /BPC 8 ID \x80 EI Q\n"
        objects[number] = (
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F1 3 0 R>>>>/Contents %d 0 R>>"
            % (number + 1)
        )
        stream = _rc4(_object_key(key, number + 1), content) if key else content
        objects[number + 1] = b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream)
    objects[2] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(pages), b" ".join(kids))
    trailer = b"/Root 1 0 R"
    if title:
        objects[max(objects) + 1] = b"<</Title(%s)>>" % title.encode()
        trailer += b"/Info %d 0 R" % max(objects)
    if key:
        user = _rc4(key, _PADDING)
        objects[max(objects) + 1] = b"<</Filter/Standard/V 1/R 2/P -4/O<%s>/U<%s>>>" % (
            _owner(password).hex().encode(),
            user.hex().encode(),
        )
        trailer += b"/Encrypt %d 0 R/ID[<%s><%s>]" % (max(objects), _FILE_ID.hex().encode(), _FILE_ID.hex().encode())
    return _written(objects, trailer)


def _written(objects, trailer):
    out, places = b"%PDF-1.4\n", {}
    for number, content in sorted(objects.items()):
        places[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % places[number] for number in sorted(places))
    start = len(out)
    size = len(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
    return out + b"trailer\n<</Size %d%s>>\nstartxref\n%d\n%%%%EOF\n" % (size, trailer, start)


def _padded(password):
    return (password.encode() + _PADDING)[:32]


def _owner(password):
    return _rc4(hashlib.md5(_padded(password)).digest()[:5], _padded(password))


def _key(password):
    permissions = (-4).to_bytes(4, "little", signed=True)
    return hashlib.md5(_padded(password) + _owner(password) + permissions + _FILE_ID).digest()[:5]


def _object_key(key, number):
    return hashlib.md5(key + number.to_bytes(3, "little") + b"\0\0").digest()[: len(key) + 5]


def _rc4(key, content):
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in content:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def package(parts):
    """Return a ZIP archive of name → content."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def repacked(content, **changes):
    """Return an archive with the parts whose names are given (`__` for `/`, `_` for `.`) replaced or added."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for name, part in changes.items():
        parts[name.replace("__", "/").replace("_", ".")] = part
    return package(parts)


def saved(document):
    """Return what a document of one of the Office libraries saves."""
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def epub(chapters, *, title="A book", encrypted=False):
    """Return a book with the bodies of its chapters."""
    parts = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": (
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
        ),
    }
    items = "".join(
        f'<item id="c{at}" href="chapter%20{at}.xhtml" media-type="application/xhtml+xml"/>'
        for at in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{at}"/>' for at in range(len(chapters)))
    parts["OEBPS/book.opf"] = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<dc:title>{title}</dc:title></metadata><manifest>{items}</manifest><spine>{spine}</spine></package>"
    )
    for at, body in enumerate(chapters):
        parts[f"OEBPS/chapter {at}.xhtml"] = f"<html><head><title>{title}</title></head><body>{body}</body></html>"
    if encrypted:
        parts["META-INF/encryption.xml"] = (
            '<encryption xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData>'
            '<enc:EncryptionMethod Algorithm="http://www.w3.org/2001/04/xmlenc#aes128-cbc"/>'
            "</enc:EncryptedData></encryption>"
        )
    return package(parts)
