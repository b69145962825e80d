"""`chatkit serve`."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import click

from chatkit.cli import log_to_stderr, setting_options
from chatkit.settings import describe, load_settings


@click.command()
@setting_options(*(name for name, *_ in describe()))
def serve(config: str | None, flags: dict[str, Any]) -> None:
    """Answer over HTTP until stopped.

    \b
    chatkit serve
    chatkit serve --port 9000 --index handbook
    curl localhost:8080/invocations -d '{"inputs": "What does chatkit do?"}'

    GET /ping answers 503 while the models load and 200 from then on. Ctrl-C or SIGTERM lets open turns end first.
    """
    from chatkit import engines
    from chatkit.server import run

    settings = load_settings(flags, file=Path(config) if config else None)
    log_to_stderr()
    engines.follow(settings)
    listener = run.bind(settings)
    click.echo("loading the models …", err=True)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run.serve(settings, listener, lambda line: click.echo(line, err=True)))
