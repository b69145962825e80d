"""The pages: what is generated is current, links lead somewhere, and every command line that is shown exists."""

import itertools
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from chatkit.cli import COMMANDS, group
from chatkit.recipes import read_recipe
from chatkit.retrieval.gathering import gather
from chatkit.settings import Settings, describe
from tests.serving import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("[a-z]*/README.md")])
SETTINGS = {spec.name for spec in fields(Settings)}
# What the tables and texts write for a command that is not said.
PLACEHOLDER = "COMMAND"
# A call, and the settings for it alone that may go before.
CALL = r"(?:CHATKIT_\w+=\S* )*(?:\.venv/bin/)?chatkit"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def made():
    """Return the functions of scripts/docs.py."""
    return runpy.run_path(str(ROOT / "scripts" / "docs.py"))


def test_the_command_line_page_is_what_the_commands_say_now(made) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == made["cli_page"](), "docs/cli.md is behind the commands; run: make docs"


def test_the_configuration_page_is_what_the_settings_say_now(made) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == made["configuration_page"](page), "docs/configuration.md is behind the settings; run: make docs"


def test_the_table_has_one_row_a_setting_with_its_default_and_meaning() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("| `")]
    assert [row[0].strip(" `") for row in rows] == [name for name, *_ in describe()]
    for (name, kind, default, text), row in zip(describe(), rows, strict=True):
        shown = [re.sub(r"`(<[^`]+>)`|\\(.)", r"\1\2", cell.strip()) for cell in row]
        assert shown == [f"`{name}`", kind, f"`{default}`" if default else "", text], name


def test_a_page_with_an_old_table_gets_the_new_one_and_keeps_its_words(made) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    old = page.replace("| `port` | int | `8080` |", "| `port` | int | `1` |").replace("| `k` |", "| `gone` |")
    assert old != page
    assert made["configuration_page"](old + "\nA last word.\n") == page + "\nA last word.\n"


def test_the_command_line_page_has_every_command_and_every_option() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    commands = list(walk(group, "chatkit"))
    assert len(commands) > len(COMMANDS)
    for path, command in commands:
        assert re.search(rf"^##+ `{path}`$", page, re.M), path
        section = page.split(f"# `{path}`\n")[1].split("\n## ")[0].split("\n### ")[0]
        flags = [option.opts[-1] for option in command.params if isinstance(option, click.Option)]
        if {"--" + name.replace("_", "-") for name in SETTINGS} <= set(flags):
            assert "all of [configuration.md](configuration.md)" in section
            flags = []
        for flag in set(flags) - {"--help", "--config"}:
            assert re.search(rf"[`, ]{re.escape(flag)}[` /]", section), (path, flag)


def test_the_index_of_the_docs_takes_every_page_but_the_generated_one() -> None:
    recipe = read_recipe(str(ROOT / "index" / "docs.toml"))
    taken = {file.path for file in gather(recipe.sources, tell=lambda done, total: None).files}
    pages = {page for page in PAGES if (ROOT / "docs") in page.parents}
    assert taken & pages == pages - {ROOT / "docs" / "cli.md"}
    assert {ROOT / "README.md", ROOT / "index" / "README.md"} <= taken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_link_leads_to_a_file_and_a_heading_that_exist(page) -> None:
    for target in links_of(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)} links to {target}, and {file.name} is not there"
        assert ROOT in file.parents, f"{name_of(page)} links to {target}, outside of the repository"
        if anchor:
            assert anchor in anchors_of(file.read_text(encoding="utf-8")), f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_command_line_in_a_page_names_what_exists(page) -> None:
    text = page.read_text(encoding="utf-8")
    shown = [(line, "[OPTIONS]" not in line) for line in command_lines(text)]
    for line, whole in [*shown, *((name, False) for name in named_calls(text))]:
        try:
            check_command_line(line, whole=whole)
        except (AssertionError, click.UsageError) as error:
            message = error.format_message() if isinstance(error, click.UsageError) else str(error)
            raise AssertionError(f"{name_of(page)} shows {line!r}: {message}") from error


@pytest.mark.parametrize(
    "line",
    [
        "chatkit nonsense",
        "chatkit serve --nonsense",
        "chatkit models nonsense",
        "chatkit serve extra",
        "chatkit moderate --direction sideways text",
        "chatkit search",
        "CHATKIT_NONSENSE=1 chatkit serve",
        "make x && .venv/bin/chatkit nonsense",
        "docker compose run models chatkit nonsense",
        "docker run chatkit:local chatkit serve --nonsense",
    ],
)
def test_a_command_line_that_does_not_exist_would_be_found(line) -> None:
    (found,) = command_lines(f"```\n{line}\n```\n")
    with pytest.raises((AssertionError, click.UsageError)):
        check_command_line(found)


def test_a_call_that_a_text_names_may_lack_arguments_and_nothing_else() -> None:
    check_command_line("chatkit search --min-score 0", whole=False)
    check_command_line("chatkit COMMAND --help", whole=False)
    with pytest.raises(click.MissingParameter):
        check_command_line("chatkit search --min-score 0")
    with pytest.raises(click.NoSuchOption):
        check_command_line("chatkit search --least 0", whole=False)


def test_what_is_called_chatkit_and_is_no_call_is_passed_over() -> None:
    lines = (
        "chatkit = Client()",
        """curl -d '{"inputs": "What does chatkit do?"}'""",
        "docker compose exec -T chatkit cat FILE",
        "docker build -t chatkit:local .",
        'chatkit says "',
    )
    for line in lines:
        assert list(command_lines(f"```\n{line}\n```\n")) == [], line


def test_links_headings_and_command_lines_are_read_as_they_are_written() -> None:
    page = (
        "# A `code` title, and more\n[a](b.md#c-d) ![i](i.png) `[no](link)`\n"
        "```\n[no](x.md)\n# no heading\nchatkit ask \\\n  hello   what it prints\n```\n"
        "    chatkit models list | head\n\nSay `chatkit serve --port 1`, not `chatkit`.\n"
    )
    assert list(links_of(page)) == ["b.md#c-d", "i.png"]
    assert anchors_of(page) == {"a-code-title-and-more"}
    assert list(command_lines(page)) == ["chatkit ask hello", "chatkit models list"]
    assert list(named_calls(page)) == ["chatkit serve --port 1"]


def test_the_recipe_is_one_that_the_toml_reader_takes() -> None:
    assert tomllib.loads((ROOT / "index" / "docs.toml").read_text(encoding="utf-8"))["name"] == "docs"


def walk(command: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command below `command` with its path, groups included."""
    context = click.Context(command)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        yield f"{path} {name}", inner
        if isinstance(inner, click.Group):
            yield from walk(inner, f"{path} {name}")


def without_fences(page: str) -> str:
    return re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)


def links_of(page: str) -> Iterator[str]:
    """Yield the targets of a page's links and images, those in code left out."""
    text = re.sub(r"`[^`\n]*`(?!\])", "", without_fences(page))
    yield from re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)


def anchors_of(page: str) -> set[str]:
    """Return what a page's headings are called in links: small letters, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#{1,6} (.+)$", without_fences(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def command_lines(page: str) -> Iterator[str]:
    """Yield the calls of chatkit in a page's blocks of code, with the variables that go before.

    Two spaces end a command: what follows is what the line prints or means.
    """
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", page, re.M | re.S)
    blocks += re.findall(r"^ {4}(.*)$", without_fences(page), re.M)
    for block in blocks:
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            for words in shell_commands(re.split(r" {2,}", line.strip())[0]):
                found = [at for at, word in enumerate(words) if re.fullmatch(r"(\.venv/bin/)?chatkit", word)]
                # After `exec` stands the service of that name, and Python has a variable of it.
                if found and words[found[0] - 1] not in ("exec", "-T") and words[found[0] + 1 :][:1] != ["="]:
                    before = itertools.takewhile(lambda word: "=" in word, reversed(words[: found[0]]))
                    yield shlex.join([*reversed([*before]), "chatkit", *words[found[0] + 1 :]])


def shell_commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each simple command of a shell line; nothing for a line that is none."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        tokens = list(lexer)
    except ValueError:  # a quote that does not end: no shell
        return
    for operator, words in itertools.groupby(tokens, key=lambda token: set(token) <= set("();<>|&")):
        if not operator:
            yield list(itertools.takewhile(lambda word: word != "#", words))


def named_calls(page: str) -> Iterator[str]:
    """Yield the calls of chatkit that the text of a page names, which may lack arguments."""
    yield from re.findall(rf"`({CALL} [^`\n]+)`", without_fences(page))


def check_command_line(line: str, *, whole: bool = True) -> None:
    """Parse a call of chatkit without running it; brackets around what may be left out are taken away.

    Raises:
        click.UsageError: an option does not exist or does not fit, or, of a whole call, an argument is missing.
        AssertionError: a command or a variable does not exist.
    """
    words = shlex.split(re.sub(r"'?\[OPTIONS\]'? ?", "", line))
    while "=" in words[0]:
        name = words.pop(0).partition("=")[0].removeprefix("CHATKIT_").lower()
        assert name in SETTINGS | {"config"}, f"{name} is no setting"
    words = [word.strip("[]") for word in words[1:]]
    command: click.Command = group
    context = click.Context(group, info_name="chatkit")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name == PLACEHOLDER:
            return
        inner = command.get_command(context, name)
        assert inner is not None, f"{context.command_path} has no command {name!r}"
        command, context = inner, click.Context(inner, info_name=name, parent=context)
    if isinstance(command, click.Group):
        assert set(words) <= {"--help", "-h", "--version"}, f"{context.command_path} has no {words}"
    elif "--help" not in words:
        try:
            command.make_context(str(context.info_name), words, parent=context.parent)
        except click.MissingParameter:
            if whole:
                raise


def test_every_page_is_reached_from_the_readme_by_links() -> None:
    found, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in found or page.suffix != ".md":
            continue
        found.add(page)
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        waiting += [(page.parent / target).resolve() for target in targets]
    assert {name_of(page) for page in PAGES} - {name_of(page) for page in found} == set()
