import codecs
import json
import re
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatkit.retrieval.apart import Reader
from chatkit.retrieval.build import build_index
from chatkit.retrieval.document import Unreadable
from chatkit.retrieval.formats import html
from chatkit.retrieval.parsing import parse
from chatkit.retrieval.writing import read_passages

PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8"><title>Ports &amp; addresses &#8212; Handbook</title>
  <style>p { color: red }</style><script>var secret = "not text";</script>
  <link rel="stylesheet" href="http://127.0.0.1:9/never-fetched.css">
</head>
<body>
  <nav><ul><li><a href="/">Home</a><li><a href="/all">All pages</a></ul></nav>
  <main>
    <h1>Ports &amp; addresses</h1>
    <p>The service   listens on
       <b>port</b>&nbsp;<code>8080</code>.<br>Loopback only.</p>
    <!-- a comment -->
    <h2>Time-outs</h2>
    <p>A silent connection is closed<sup>1</sup>.</p>
    <ul>
      <li>After 30&thinsp;s by the proxy</li>
      <li>After 60 s by the service
        <ol start="3"><li>first the read side<li>then the write side</ol>
      </li>
    </ul>
    <h3>In a table</h3>
    <table>
      <caption>Defaults</caption>
      <thead><tr><th>Setting</th><th>Value</th></tr></thead>
      <tr><td>read<br>time-out</td><td><p>30</p></td></tr>
      <tr><td>write time-out<td>60
    </table>
    <pre><code>
chatkit serve \\
    --port 8080 &lt;file

# done
</code></pre>
    <h2>Hidden</h2>
    <p hidden>not shown</p><p style="color:red; display : none">not shown</p><p aria-hidden="true">not shown</p>
    <div style="visibility:hidden"><p>not shown</p></div><template><p>not shown</p></template>
    <noscript>not shown</noscript><dialog>not shown</dialog><button>not shown</button><svg><text>not shown</text></svg>
    <details><summary>More</summary><p>Folded, yet shown on a click.</p></details>
  </main>
  <footer>Edited in spring</footer>
</body>
</html>"""

TEXT = """Ports & addresses

The service listens on port 8080.
Loopback only.

Time-outs

A silent connection is closed1.

- After 30\u2009s by the proxy
- After 60 s by the service
  3. first the read side
  4. then the write side

In a table

Defaults
Setting | Value
read time-out | 30
write time-out | 60

chatkit serve \\
    --port 8080 <file

# done

Hidden

More

Folded, yet shown on a click.

Edited in spring"""


def read(markup, name="a.html"):
    return parse(Path(name), name, markup if isinstance(markup, bytes) else markup.encode())


def sections(document):
    return {section.heading: document.text[section.start : section.end].strip() for section in document.sections}


def test_a_page_becomes_what_it_shows():
    document = read(PAGE)
    assert document.title == "Ports & addresses — Handbook"
    assert document.text == TEXT


def test_headings_are_sections_nested_like_those_of_markdown():
    found = sections(read(PAGE))
    assert list(found) == ["", "Time-outs", "Time-outs > In a table", "Hidden"]
    assert found[""] == "The service listens on port 8080.\nLoopback only."
    assert found["Time-outs > In a table"].startswith("Defaults\nSetting | Value\n")
    assert "Time-outs" not in found["Time-outs"]


@pytest.mark.parametrize(
    ("head", "title", "section"),
    [
        ("<title> The\n page </title><h1>Other</h1>", "The page", "Other"),
        ("<title>Site: the page</title><h1>The Page</h1>", "Site: the page", ""),
        ("<h1>Only a heading</h1>", "Only a heading", ""),
        ("<svg><title>A drawing</title></svg>", "release notes 2", ""),
        ("<title></title><h1></h1>", "release notes 2", ""),
    ],
)
def test_the_title_is_the_pages_else_its_first_heading_else_the_files_name(head, title, section):
    document = read(f"{head}<p>words", "release_notes-2.htm")
    assert document.title == title
    assert [s.heading for s in document.sections] == [section]


def test_a_heading_that_is_never_closed_is_text_not_a_heading():
    document = read("<h2>Short</h2><h3>" + "many words " * 100)
    assert [section.heading for section in document.sections] == ["Short"]
    assert document.text.count("many words") == 100


def test_a_table_that_lays_out_the_page_keeps_its_sections():
    document = read(
        "<table><tr><td>Menu<td><h2>Ports</h2><p>Port 8080.</p><table><tr><th>a<th>b<tr><td><td>d</table></table>"
    )
    assert sections(document) == {"": "Menu", "Ports": "Port 8080.\n\na | b\n| d"}


@pytest.mark.parametrize(
    "content",
    [
        "<p>Größe – 東京".encode(),
        codecs.BOM_UTF8 + '<meta charset="latin-1"><p>Größe – 東京'.encode(),
        codecs.BOM_UTF16_LE + "<p>Größe – 東京".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "<p>Größe – 東京".encode("utf-16-be"),
        b"<META CHARSET='GBK'><p>" + "Größe – 東京".encode("gb18030"),
        b'<meta content="text/html; charset=gb18030" http-equiv=content-type><p>' + "Größe – 東京".encode("gb18030"),
        b"<!-- <meta charset=koi8-r> --><meta charset=utf-8><p>" + "Größe – 東京".encode(),
        b'<?xml version="1.0" encoding="gb18030"?><html><body><p>' + "Größe – 東京".encode("gb18030"),
        '<meta charset="utf-16"><p>Größe – 東京'.encode(),
    ],
)
def test_the_charset_is_the_marks_else_the_pages_own_else_utf8(content):
    assert read(content).text == "Größe – 東京"


def test_a_page_that_says_latin_1_is_read_as_browsers_do():
    assert read(b"<meta charset=iso-8859-1><p>5 \x80 \x96 caf\xe9").text == "5 € – café"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<p>caf\xe9", r"is not UTF-8 \(byte 6\); convert it to UTF-8"),
        (b"<meta charset=shift_jis><p>\x81", "is not CP932, which its charset 'shift_jis' names"),
        (b"<meta charset=unicode_escape><p>x", "names the encoding 'unicode_escape', which is not known"),
        (b"<meta charset=bz2><p>x", "names the encoding 'bz2'"),
        (b"<meta charset=nonsense><p>x", "names the encoding 'nonsense'"),
        ("<p>x".encode("utf-16-le"), "NUL"),
        (b"", "shows no text"),
        (b"<title>Only a title</title><p hidden>x", "shows no text"),
        (b"<html hidden><p>x", "shows no text"),
    ],
)
def test_a_page_that_cannot_be_read_says_why(content, reason):
    with pytest.raises(Unreadable, match=reason):
        read(content)


def test_a_script_closed_as_xml_does_swallow_nothing_of_an_xhtml_page():
    page = (
        '<?xml version="1.0"?><html><head><script src="x.js"/><title>T</title></head><body><p>a<br/>b</p></body></html>'
    )
    document = read(page, "a.xhtml")
    assert (document.title, document.text) == ("T", "a\nb")


NAMES = (
    "p div table tr td th ul ol li h1 h2 pre br b a font svg math template select button nav script title head body "
    "html frameset dialog plaintext textarea details caption form x-y"
)
ATTRIBUTES = st.sampled_from(["", " hidden", " style='display:none'", " start=7", " start=-x", " open", " class", '="'])
PIECES = st.one_of(
    st.builds("<{}{}>".format, st.sampled_from(NAMES.split()), ATTRIBUTES),
    st.builds("</{}>".format, st.sampled_from(NAMES.split())),
    st.builds("<{}/>".format, st.sampled_from(NAMES.split())),
    st.sampled_from(["<!--", "-->", "<![CDATA[", "]]>", "&#xD800;", "&#0;", "&nbsp;", "&notit;", "<", "<!", "</", '"']),
    st.text(alphabet=string.ascii_letters + " \n\t\r\f\x0b\xa0\xad\u3000", max_size=12),
)


@given(pieces=st.lists(PIECES, max_size=40))
@settings(max_examples=400, deadline=None)
def test_any_markup_gives_a_text_with_sections_in_order_or_a_reason(pieces):
    try:
        page = html.read("".join(pieces).encode())
    except Unreadable:
        return
    end = 0
    for section in page.sections:
        assert end <= section.start <= section.end <= len(page.text)
        end = section.end
    assert page.text == page.text.strip("\n")
    assert len(page.text) <= 40 * 40


@given(content=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda b: b"<meta charset=cp1252>" + b)))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_page_or_a_reason(content):
    try:
        page = html.read(content)
    except Unreadable:
        return
    assert page.text.strip()


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<pre>0 <ul><li>a <pre>x</pre> b</li></ul>y</pre>z", "0 a x by\n\nz"),
        ("<pre><pre><pre>x</pre></pre></pre><ol><li>a", "x\n\n1. a"),
        ("<table><tr><td>1<math><td>x</td></math>w</td><td>z", "1 x w | z"),
        ("<math><td>x</td><td>y</td></math>z", "x | y\nz"),
        ("<math><td>x</td></math><h2>Top</h2>z<math><td>y", "x\n\nTop\n\nz\ny"),
        ("<table><tr><td>1<math><td>x<mi><h1>Top</h1></mi></td></math>w</td><td>z", "1\n\nx\n\nTop\n\nw\n\nz"),
    ],
)
def test_code_in_code_and_cells_in_cells_end_with_the_outermost(markup, text):
    assert read(markup).text == text


WRAPS = """
<pre>*</pre> <table><tr><td>*</td></tr></table> <td>*</td> <th>* <ul>*</ul> <ol><li>*</li></ol> <li>*</li>
<math>*</math> <math><mi>*</mi></math> <h1>*</h1> <h2>*</h2>
"""
NESTED = st.recursive(
    st.sampled_from(["a", "b ", "<br>", ""]),
    lambda inside: st.builds(
        lambda wrap, parts: wrap.replace("*", "".join(parts)),
        st.sampled_from(WRAPS.split()),
        st.lists(inside, max_size=3),
    ),
    max_leaves=30,
)


@given(parts=st.lists(NESTED, min_size=1, max_size=3))
@settings(max_examples=400, deadline=None)
def test_any_nesting_of_code_tables_lists_formulas_and_headings_is_read_whole(parts):
    markup = "".join(parts)
    shown = sorted(re.sub(r"<[^>]*>|[^ab]", "", markup))  # browsers move what may not stand in a table before it
    try:
        page = html.read(markup.encode())
    except Unreadable:
        assert shown == []
        return
    assert sorted(re.sub(r"[^ab]", "", page.text)) == shown


def test_navigation_is_read_only_where_it_lists_titles():
    menu = "<nav><a href=/>Home</a> <a href=/all>All pages</a></nav>"
    related = "<nav><ul><li><a href=/a>How the ports are chosen</a><li><a href=/b>When a lease runs out</a></ul></nav>"
    assert read(f"{menu}<p>Words.{related}").text == "Words.\n\n- How the ports are chosen\n- When a lease runs out"


def test_a_page_nested_deeper_than_a_recursion_goes_is_read():
    assert read("<ul><li>" * 3000 + "deep").text.endswith("- deep")
    assert read("<div><p><b>" * 3000 + "deep").text == "deep"
    assert read("<table><tr><td>" * 3000 + "deep").text == "deep"


def test_html_is_built_with_offsets_into_the_text_and_one_hostile_page_ends_nothing(
    corpus, indexes, encoder, monkeypatch
):
    monkeypatch.setattr("chatkit.retrieval.building.cutting.Reader", lambda: Reader(cpu_seconds=1))
    (corpus / "page.html").write_text(PAGE)
    (corpus / "bomb.htm").write_text("<div>" * 1_000_000)
    (corpus / "menu.xhtml").write_text("<nav>Home</nav>")
    report = build_index(["corpus"], indexes, name="docs", encoder=encoder)
    assert report.documents == 4
    assert {entry.source for entry in report.skipped} == {"corpus/bomb.htm", "corpus/menu.xhtml"}
    rows = [row for row in read_passages(report.folder).to_pylist() if row["source"] == "corpus/page.html"]
    assert {row["section"] for row in rows} == {"", "Time-outs", "Time-outs > In a table", "Hidden"}
    for row in rows:
        assert TEXT[row["start"] : row["end"]] == row["text"]
    assert json.dumps(rows).count("not shown") == 0
