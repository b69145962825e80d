"""`chatkit serve`: every setting it takes reaches the server, and the port is taken before anything is loaded."""

from click.testing import CliRunner

from chatkit import cli
from chatkit.server import run
from chatkit.settings import Secret


def test_settings_reach_the_server_and_the_port_is_bound_first(monkeypatch) -> None:
    order = []

    async def serve(settings, listener, announce):
        order.append((settings, listener.getsockname()[0]))
        listener.close()
        announce("ready")

    monkeypatch.setattr(run, "serve", serve)
    result = CliRunner().invoke(
        cli.group, ["serve", "--port", "0", "--index", "", "--api-key", "canary-key", "--gate", "stream_first"]
    )
    assert result.exit_code == 0, result.output
    ((settings, host),) = order
    assert (settings.port, settings.index, settings.gate, host) == (0, "", "stream_first", "127.0.0.1")
    assert isinstance(settings.api_key, Secret)
    assert result.stdout == ""
    assert result.stderr.splitlines() == ["loading the models …", "ready"]


def test_help_shows_the_default_of_every_setting() -> None:
    text = CliRunner().invoke(cli.group, ["serve", "--help"]).output
    for flag in ("--host", "--port", "--api-key", "--gate", "--deadline-s", "--config"):
        assert flag in text
    assert "[default: 8080]" in text
