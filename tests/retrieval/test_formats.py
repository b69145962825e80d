import bz2
import copy
import datetime
import json
import re

import docx
import openpyxl
import pptx
import pytest
from lxml import etree
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from chatkit.retrieval.document import Document, Unreadable
from chatkit.retrieval.parsing import Begun, LeftOut, Limits, parse_file
from tests.retrieval.paper_trail import epub, pdf, repacked, saved

BODY = "The service listens on port 8080, and every other address than loopback needs a key for"


@pytest.fixture
def read(tmp_path):
    """Returns the documents in a file of that name and content, and the reasons for what was left out."""

    def parse(name, content, **limits):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        found = list(parse_file(path, name, Limits(**limits)))
        documents = [entry for entry in found if isinstance(entry, Document)]
        for document in documents:
            ends = [0, *(place for part in document.sections for place in (part.start, part.end)), len(document.text)]
            assert ends == sorted(ends)
        return documents, [entry.reason for entry in found if isinstance(entry, LeftOut)]

    return parse


def sections_of(document):
    return [(part.page, part.heading, document.text[part.start : part.end].strip()) for part in document.sections]


def test_a_pdf_has_pages_paragraphs_and_larger_type_as_headings(read):
    first = [(20, "Ports and addresses"), (10, BODY), (10, "all of its doors."), (14, "Time-outs"), (10, "30 seconds.")]
    [document], left_out = read("a.pdf", pdf([first, [(10, "On the next page.")]], title="untitled"))
    assert document.title == "Ports and addresses"
    assert sections_of(document) == [
        (1, "", f"{BODY} all of its doors."),
        (1, "Time-outs", "30 seconds."),
        (2, "Time-outs", "On the next page."),
    ]
    assert left_out == []


def test_running_heads_of_a_pdf_are_dropped_and_its_own_title_counts(read):
    pages = [
        [(10, "Handbook 2 of ports"), (20, ""), (10, f"Text {word}."), (20, ""), (10, f"Page {number + 6} of 9")]
        for number, word in enumerate(("one", "two", "three", "four", "five"), start=1)
    ]
    [document], _ = read("a.pdf", pdf(pages, title="The handbook"))
    assert document.title == "The handbook"
    assert [text for _, _, text in sections_of(document)] == [
        "Text one.",
        "Text two.",
        "Text three.",
        "Text four.",
        "Text five.",
    ]
    assert [part.page for part in document.sections] == [1, 2, 3, 4, 5]


def test_headings_and_lines_of_the_text_are_no_running_heads(read):
    words = ("one", "two", "three", "four", "five")
    headings = [
        [(20, f"Article {number}"), (10, f"It is {word}."), (10, f"So it is {word}.")]
        for number, word in enumerate(words, start=1)
    ]
    [document], _ = read("a.pdf", pdf(headings))
    assert [part.heading for part in document.sections][1:] == [f"Article {number}" for number in range(2, 6)]
    bills = [
        [(10, f"Invoice {1000 + 37 * at} of {12 * at} EUR"), (20, ""), (10, f"For {word}."), (10, "Pay it.")]
        for at, word in enumerate(words)
    ]
    [document], _ = read("b.pdf", pdf(bills))
    for at, word in enumerate(words):
        assert f"Invoice {1000 + 37 * at} of {12 * at} EUR\nFor {word}.\nPay it." in document.text


def test_pages_that_cannot_be_loaded_are_told(read):
    content = pdf([[(10, f"Page {number}.")] for number in range(1, 6)])
    assert content.count(b"/Type/Page/Parent") == 5
    at = [found.start() for found in re.finditer(rb"/Type/Page/", content)][2]
    [document], left_out = read("a.pdf", content[:at] + b"/Type/Nope/" + content[at + 11 :])
    assert "Page 4." in document.text
    assert "Page 3." not in document.text
    assert left_out == ["pages that cannot be read: 3; get a whole copy of it"]


def test_pages_that_look_scanned_are_told_and_a_pdf_of_nothing_else_is_refused(read):
    text = pdf([[(10, "Words.")]])
    assert read("a.pdf", text)[1] == []
    with pytest.raises(Unreadable, match=r"no text on its 2 pages, looks scanned; recognise its text first"):
        read("b.pdf", pdf([[], []], picture=True))
    with pytest.raises(Unreadable, match=r"no text on its 1 pages$"):
        read("c.pdf", pdf([[]]))


def test_an_encrypted_pdf_opens_with_its_password_only(read):
    locked = pdf([[(10, "A secret.")]], password="open")
    with pytest.raises(Unreadable, match=r"^is encrypted; save it without a password"):
        read("a.pdf", locked, passwords=["wrong"])
    [document], _ = read("a.pdf", locked, passwords=["wrong", "open"])
    assert document.text.strip() == "A secret."


def test_a_docx_gives_headings_lists_tables_notes_and_keeps_deleted_words_out(read):
    made = docx.Document()
    made.add_heading("Handbook", 0)
    made.add_paragraph("Intro.")
    made.add_heading("Ports", 1)
    made.add_paragraph("first", style="List Bullet")
    made.add_heading("Numbers", 2)
    table = made.add_table(2, 2)
    for cell, words in zip((c for row in table.rows for c in row.cells), ("Door", "Port", "HTTP", "8080"), strict=True):
        cell.text = words
    paragraph = made.add_paragraph("After")
    paragraph.add_run("\tthe tab")
    made.add_comment(paragraph.runs, "Is that so?", "Reader")
    content = saved(made)
    [document], _ = read("a.docx", content)
    assert document.title == "Handbook"
    assert sections_of(document) == [
        (0, "", "Intro."),
        (0, "Ports", "- first"),
        (0, "Ports > Numbers", "Door | Port\nHTTP | 8080\n\nAfter\tthe tab\n\nIs that so?"),
    ]
    deleted = (
        '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p>'
        "<w:r><w:t>kept</w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t xml:space='preserve'> added</w:t></w:r></w:ins></w:p></w:body></w:document>"
    )
    [document], _ = read("b.docx", repacked(content, word__document_xml=deleted))
    assert document.text.startswith("kept added")
    assert "gone" not in document.text


def test_a_pptx_gives_a_page_a_slide_with_tables_charts_and_notes(read):
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Ducks"
    slide.placeholders[1].text = "They swim."
    slide.notes_slide.notes_text_frame.text = "Say it slowly."
    second = deck.slides.add_slide(deck.slide_layouts[6])
    table = second.shapes.add_table(1, 2, Inches(1), Inches(1), Inches(4), Inches(1)).table
    table.cell(0, 0).text, table.cell(0, 1).text = "Year", "2019"
    figures = CategoryChartData()
    figures.categories = ["2019", "2020"]
    figures.add_series("Ducks seen", (120.0, 135.5))
    chart = second.shapes.add_chart(XL_CHART_TYPE.BAR_CLUSTERED, 0, Inches(3), Inches(4), Inches(3), figures).chart
    chart.has_title = True
    chart.chart_title.text_frame.text = "Ducks by year"
    third = deck.slides.add_slide(deck.slide_layouts[5])
    third.shapes.title.text = "The end"
    [document], _ = read("a.pptx", saved(deck))
    assert document.title == "Ducks"
    assert sections_of(document) == [
        (1, "Ducks", "Ducks\n\nThey swim.\n\nSay it slowly."),
        (2, "Slide 2", "Slide 2\n\nYear | 2019\n\nDucks by year\n\n| 2019 | 2020\nDucks seen | 120 | 135.5"),
        (3, "The end", "The end"),
    ]


def test_an_xlsx_gives_a_section_a_sheet_and_rows_that_say_their_heads(read):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Sales"
    for row in (
        [None, "Sales of ducks"],
        [],
        [None, "Year", "Sold", "Since"],
        [None, 2019, 12.5, datetime.datetime(2019, 5, 1)],
        [None, 2020, None, True],
    ):
        sheet.append(row)
    book.create_sheet("Empty")
    [document], _ = read("a.xlsx", saved(book))
    assert sections_of(document) == [
        (0, "Sales", "Sales of ducks\n\nYear | Sold | Since\nYear: 2019 | Sold: 12.5 | Since: 2019-05-01\n"
        "Year: 2020 | Since: True"),
    ]  # fmt: skip


def test_an_epub_gives_its_chapters_in_reading_order(read):
    chapters = ["<h1>One</h1><p>First.", "<nav>menu</nav>", "<h1>Two</h1><h2>Deep</h2><p>Second."]
    [document], _ = read("a.epub", epub(chapters))
    assert document.title == "A book"
    assert sections_of(document) == [(0, "One", "First."), (0, "Two > Deep", "Second.")]
    with pytest.raises(Unreadable, match="encrypted by its publisher"):
        read("b.epub", epub(chapters, encrypted=True))


def test_lines_of_jsonl_are_documents_named_by_id_or_line(read):
    lines = [
        {"_id": "d7", "title": "Ports", "text": "Port 8080."},
        {"door": {"name": "HTTP", "port": 8080}, "open": True, "tags": ["a", "b"]},
        {"text": " "},
    ]
    content = "\n".join(json.dumps(line) for line in lines) + "\n[1]\nnot json\n"
    documents, left_out = read("a.jsonl", content)
    assert [(document.source, document.title, document.text) for document in documents] == [
        ("a.jsonl#d7", "Ports", "Port 8080."),
        ("a.jsonl#2", "a 2", "door.name: HTTP\ndoor.port: 8080\nopen: True\ntags: a, b"),
    ]
    assert left_out == ["lines that are no JSON objects with words: 3, the first is line 3"]


def test_rows_of_csv_are_documents_where_they_hold_texts_and_else_lines_with_their_heads(read):
    documents, _ = read("faq.csv", 'id;question;text\n1;"Which; port?";Port 8080.\n2;Why?;"It is\nfree."\n')
    assert [(document.source, document.text) for document in documents] == [
        ("faq.csv#1", "Port 8080."),
        ("faq.csv#2", "It is\nfree."),
    ]
    [document], _ = read("cups.tsv", "Team\tCups\nMaple Leafs\t13\nCanadiens\t24\n")
    assert (document.source, document.text) == ("cups.tsv", "Team: Maple Leafs | Cups: 13\nTeam: Canadiens | Cups: 24")
    documents, _ = read("long.csv", "Name,Number\n" + "".join(f"n{at},{at}\n" for at in range(2500)))
    assert [document.source for document in documents] == [
        "long.csv#1-1000",
        "long.csv#1001-2000",
        "long.csv#2001-2500",
    ]
    assert documents[2].text.splitlines()[0] == "Name: n2000 | Number: 2000"


def test_cells_beyond_the_heads_of_a_csv_stay_in_the_text_or_are_told(read):
    documents, left_out = read("a.csv", "id,text\n1,Ducks eat bread, rice and corn\n2,Geese eat grass,\n")
    assert [document.text for document in documents] == ["Ducks eat bread, rice and corn", "Geese eat grass"]
    assert left_out == []
    documents, left_out = read("b.csv", "text,kind\nDucks eat bread, rice,food\n")
    assert [document.text for document in documents] == ["Ducks eat bread"]
    assert left_out == [
        "rows with more cells than there are heads: 1, the first is row 1; their rest was put to 'kind'; "
        "quote cells that hold ','"
    ]


def test_a_csv_of_one_column_of_texts_is_a_document_a_row(read):
    documents, _ = read("a.csv", 'text\n"Hello, world one."\n"Second, longer text here."\n')
    assert [(document.source, document.text) for document in documents] == [
        ("a.csv#1", "Hello, world one."),
        ("a.csv#2", "Second, longer text here."),
    ]
    with pytest.raises(Unreadable, match="has no row with words below its heads"):
        read("b.csv", "id,text\n")


def test_shapes_with_the_number_of_the_title_and_those_drawn_in_two_ways_are_read(read):
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "Ducks"
    same, other = (slide.shapes.add_textbox(0, 0, Inches(3), Inches(1)) for _ in range(2))
    same.text_frame.text, other.text_frame.text = "They swim.", "They fly."
    same._element.nvSpPr.cNvPr.set("id", str(slide.shapes.title.shape_id))
    space = "http://schemas.openxmlformats.org/markup-compatibility/2006"
    alternatives = etree.Element(f"{{{space}}}AlternateContent")
    other._element.addprevious(alternatives)
    etree.SubElement(alternatives, f"{{{space}}}Choice", Requires="a14").append(other._element)
    etree.SubElement(alternatives, f"{{{space}}}Fallback").append(copy.deepcopy(same._element))
    [document], _ = read("a.pptx", saved(deck))
    assert document.text == "Ducks\n\nThey swim.\n\nThey fly."


def test_what_is_not_read_of_a_workbook_is_told(read):
    book = openpyxl.Workbook()
    book.active.append(["=SUM(1,2)", "words"])
    book.active.cell(2, 1200, "far away")
    [document], left_out = read("a.xlsx", saved(book))
    assert document.text == "Sheet\n\nwords"
    assert left_out == [
        "formulas without a value: 1; open and save it in a program for workbooks",
        "columns of 'Sheet' after 1000",
    ]


def test_sections_of_chapters_stand_under_their_chapter(read):
    chapters = [f"<h1>{word}</h1><p>Intro.</p><h2>Food</h2><p>Frogs." for word in ("Storks", "Herons")]
    content = epub(chapters)
    for at, word in enumerate(("Storks", "Herons")):
        page = f"<html><head><title>{word}</title></head><body>{chapters[at]}</body></html>"
        content = repacked(content, **{f"OEBPS__chapter {at}_xhtml": page})
    [document], _ = read("a.epub", content)
    assert [part.heading for part in document.sections] == ["Storks", "Storks > Food", "Herons", "Herons > Food"]


def test_of_an_article_with_its_history_the_last_revision_is_read(read):
    [document], _ = read(
        "wiki.xml",
        '<mediawiki xmlns="x"><page><title>T</title><ns>0</ns><id>1</id><revision><text>Old.</text></revision>'
        "<revision><text>New.</text></revision></page></mediawiki>",
    )
    assert document.text == "New."


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">
<page><title>Anchor</title><ns>0</ns><id>12</id><revision><text>{{Infobox|name=x}}
[[File:Anchor.jpg|thumb|An anchor with a [[chain]]]]
An '''anchor''' ({{IPA|x}}) holds a [[vessel|ship]].&lt;ref name="a"&gt;{{cite}}&lt;/ref&gt;
== History ==
* Stone
=== Bronze ===
{| class="wikitable"
! a !! b
|}
Bronze anchors.
== References ==
{{reflist}}
=== Below ===
not wanted
== Design ==
Flukes. [[Category:Ships]]</text></revision></page>
<page><title>Anker</title><ns>0</ns><id>13</id><redirect title="Anchor"/><revision><text>#REDIRECT [[Anchor]]</text></revision></page>
<page><title>Talk:Anchor</title><ns>1</ns><id>14</id><revision><text>Talk.</text></revision></page>
</mediawiki>"""  # noqa: E501


@pytest.mark.parametrize("name", ["wiki.xml", "wiki.xml.bz2"])
def test_a_dump_of_a_wiki_gives_a_document_an_article(read, name):
    content = DUMP.encode()
    [document], left_out = read(name, bz2.compress(content) if name.endswith("bz2") else content)
    assert (document.source, document.title) == (f"{name}#12", "Anchor")
    assert sections_of(document) == [
        (0, "", "An anchor holds a ship."),
        (0, "History", "- Stone"),
        (0, "History > Bronze", "Bronze anchors."),
        (0, "Design", "Flukes."),
    ]
    assert left_out == ["left out of it: redirects, 1", "left out of it: pages that are no articles, 1"]


def test_a_dump_that_breaks_off_gives_what_came_before(tmp_path):
    path = tmp_path / "wiki.xml"
    path.write_text(DUMP.replace("</mediawiki>", "<page><title>Half"))
    found = parse_file(path, "wiki.xml")
    assert next(found) == Begun()
    assert next(found).title == "Anchor"
    with pytest.raises(Unreadable, match="breaks off or is broken"):
        list(found)
    path.write_text("<feed/>")
    with pytest.raises(Unreadable, match="no export of a MediaWiki"):
        list(parse_file(path, "wiki.xml"))
