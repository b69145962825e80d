import errno
import os

import pytest

from chatkit.errors import InvalidRequest
from chatkit.retrieval.entries import Skipped
from chatkit.retrieval.gathering import gather


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A working directory with a folder `root` of two notes, one of them in a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "a.md").write_text("words")
    (tmp_path / "root" / "sub" / "b.md").write_text("more words")
    return tmp_path


def gathered(*sources):
    return gather(sources, tell=lambda done, total: None)


def named(*sources):
    return [file.source for file in gathered(*sources).files]


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("root/*.md", ["root/a.md"]),
        ("root/**/*.md", ["root/a.md", "root/sub/b.md"]),
        ("**", ["root/a.md", "root/sub/b.md"]),
        ("r?ot/[st]ub/**/b*", ["root/sub/b.md"]),
        ("root/**/sub/**/**/*.md", ["root/sub/b.md"]),
        ("root/*", ["root/a.md"]),
        ("root/*/*/*.md", []),
    ],
)
def test_a_pattern_names_the_files_that_it_matches(corpus, pattern, files):
    (corpus / "root" / ".hidden").mkdir()
    (corpus / "root" / ".hidden" / "b.md").write_text("hidden")
    assert named(pattern) == named(corpus / pattern) == files


def test_links_that_go_round_in_a_circle_do_not_keep_a_pattern_going(corpus):
    for name in ("one", "two"):
        (corpus / "root" / "sub" / name).symlink_to(".")
    for source in ("root/**/*.md", "root/*/**/b.md", "root"):
        found = gathered(source)
        assert "root/sub/b.md" in [file.source for file in found.files]
        assert found.skipped == ()


def test_links_are_followed_to_files_inside_and_those_that_lead_out_are_told(corpus):
    (corpus / "secret.md").write_text("secret")
    (corpus / "private").mkdir()
    (corpus / "private" / "c.md").write_text("private")
    (corpus / "root" / "inside.md").symlink_to("sub/b.md")
    for name, target in (("leak.md", "../secret.md"), ("nowhere.md", "none"), ("out", "../private")):
        (corpus / "root" / name).symlink_to(target)
    for source in ("root", "root/**/*"):
        found = gathered(source)
        assert [file.source for file in found.files] == ["root/a.md", "root/sub/b.md"]
        assert [entry.source for entry in found.skipped] == ["root/leak.md", "root/nowhere.md", "root/out"]
        assert {entry.reason for entry in found.skipped} == {
            "is a link that leads out of its source, or nowhere; name what it leads to"
        }
    assert named("root/leak.md") == ["secret.md"]


def test_files_of_other_kinds_are_counted(corpus):
    for name in ("old.doc", "older.DOC", "table.ods", "Makefile", ".hidden.doc"):
        (corpus / "root" / "sub" / name).write_text("x")
    found = gathered("root")
    assert found.skipped == ()
    assert found.other_kinds == (
        Skipped("root", "files of other kinds, which are not read: 4 (.doc 2, without suffix 1, .ods 1)"),
    )
    assert gathered("root/*.ods").skipped == (Skipped("root/*.ods", "matches no file of a kind that is read"),)


def test_a_folder_that_cannot_be_listed_is_told(corpus, monkeypatch):
    (corpus / "root" / "locked").mkdir(mode=0)
    if os.geteuid() == 0:  # for whom nothing is locked
        listing = os.scandir

        def scandir(folder):
            if str(folder).endswith("locked"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
            return listing(folder)

        monkeypatch.setattr(os, "scandir", scandir)
    found = gathered("root")
    assert [file.source for file in found.files] == ["root/a.md", "root/sub/b.md"]
    assert found.skipped == (Skipped("root/locked", "cannot be listed (Permission denied)"),)


def test_a_home_folder_of_nobody_is_refused(corpus):
    with pytest.raises(InvalidRequest, match=r"'~nosuchuser/x.md' names nobody's home folder"):
        gathered("~nosuchuser/x.md")
