"""The command line: help, exit codes, settings and what is never printed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from chatkit import cli, errors

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ChatkitError)]
CODES = {
    "InvalidRequest": 2, "TooLarge": 2, "ConfigError": 2, "MissingExtra": 2, "NotFound": 3, "UnknownModel": 3,
    "BadIndex": 3, "TooSlow": 2, "Forbidden": 1,
    "IndexMismatch": 3, "BrokenIndex": 3, "Unavailable": 4, "Overloaded": 4, "EngineFailed": 4, "StoreFailed": 4,
    "NotSaved": 4, "Offline": 4, "ChatkitError": 1, "Unauthorized": 1, "Conflict": 1, "ModelError": 1, "BrokenModel": 1,
}  # fmt: skip


def run(*arguments: str, cwd=None, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "chatkit", *arguments],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_every_command_without_importing_one() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name, text in cli.COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert text in done.stdout
    assert done.stderr == ""


def test_the_version_is_the_packages() -> None:
    from chatkit import __version__

    assert run("--version").stdout.strip().endswith(__version__)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help_with_its_own_words(name) -> None:
    result = CliRunner().invoke(cli.group, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Usage: ")


def test_an_unknown_command_or_flag_is_exit_code_2_and_no_traceback() -> None:
    for arguments in (("nonsense",), ("serve", "--nonsense"), ("ask",)):
        done = run(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_has_its_exit_code_and_is_one_line_on_stderr(kind, monkeypatch, capsys) -> None:
    made = kind("module", "extra") if kind is errors.MissingExtra else kind("what went wrong")

    @click.command()
    def failing() -> None:
        raise made

    monkeypatch.setattr(cli, "group", failing)
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == CODES[kind.__name__]
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {made}\n")


def test_every_error_class_is_in_the_table() -> None:
    assert {kind.__name__ for kind in ERRORS} == set(CODES)


def test_an_interrupt_is_exit_code_130(monkeypatch, capsys) -> None:
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "group", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip().endswith("interrupted")


def test_an_unknown_setting_in_the_file_is_named_with_the_nearest(tmp_path) -> None:
    (tmp_path / "chatkit.toml").write_text("prot = 9000\n")
    done = run("serve", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: 'chatkit.toml' sets 'prot', which is no setting; did you mean 'port'?\n"


def test_flags_go_before_variables_before_the_file(tmp_path, monkeypatch) -> None:
    from chatkit.server import run as server

    seen = []
    monkeypatch.setattr(server, "bind", lambda settings: seen.append(settings) or _refuse())
    file = tmp_path / "settings.toml"
    file.write_text("port = 1001\nthreads = 3\nk = 7\ngate = 'final_only'\n")
    environ = {"CHATKIT_PORT": "1002", "CHATKIT_THREADS": "2"}
    CliRunner().invoke(cli.group, ["serve", "--config", str(file), "--port", "1003"], env=environ)
    (settings,) = seen
    assert (settings.port, settings.threads, settings.k, settings.gate) == (1003, 2, 7, "final_only")
    assert settings.max_queue == 256


def _refuse() -> None:
    raise errors.ConfigError("enough")


def test_a_flag_that_does_not_fit_is_named_as_the_flag() -> None:
    done = run("serve", "--port", "eighty")
    assert (done.returncode, done.stderr) == (2, "error: --port is 'eighty', expected a value of type int\n")


def test_a_host_that_others_reach_needs_a_key() -> None:
    done = run("serve", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "CHATKIT_API_KEY" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_secret_is_never_printed(tmp_path) -> None:
    for arguments, environment in (
        (("serve", "--port", "x"), {"CHATKIT_API_KEY": "canary-key"}),
        (("serve", "--api-key", " canary-key"), {}),
        (("serve", "--help"), {"CHATKIT_API_KEY": "canary-key"}),
        (("serve", "--host", "256.0.0.1"), {"CHATKIT_API_KEY": "canary-key"}),
    ):
        done = run(*arguments, **environment)
        assert "canary-key" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_the_installed_script_is_this_command() -> None:
    table = tomllib.loads((Path(cli.__file__).parents[2] / "pyproject.toml").read_text())
    assert table["project"]["scripts"] == {"chatkit": "chatkit.cli:main"}


def test_output_into_a_closed_pipe_ends_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "chatkit", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    complaints = process.stderr.read()
    process.stderr.close()
    process.wait(30)
    assert "Traceback" not in complaints
