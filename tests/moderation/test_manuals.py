"""Technical prose that the head is fitted on: read from docstrings, by module, tests and short lines left out."""

from chatkit.moderation import manuals


def test_paragraphs_are_those_of_docstrings_by_module_and_of_no_test(tmp_path):
    long = "Send the answer to the caller, and write the rest to the file that is named in the settings."
    (tmp_path / "post.py").write_text(
        f'"""{long}\n\nShort."""\n\ndef send():\n    r"""Sends.\n\n    {long.upper()}\n    """\n    x = "{long}"\n'
    )
    (tmp_path / "email").mkdir()
    (tmp_path / "email" / "parts.py").write_text(f'class Part:\n    """{long}"""\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_post.py").write_text(f'"""{long}"""\n')
    assert list(manuals.paragraphs(tmp_path)) == [("email", long), ("post", long), ("post", long.upper())]


def test_the_library_of_this_python_has_thousands():
    found = list(manuals.paragraphs())
    assert len(found) > 5000
    assert len({module for module, _ in found}) > 100
