"""`chatkit bench`: chatkit against the bare parts it is made of."""

from pathlib import Path
from typing import Any

import click

from chatkit.cli import setting_options
from chatkit.errors import InvalidRequest
from chatkit.settings import load_settings


@click.group()
def bench() -> None:
    """Measure chatkit against the bare parts it is made of; benchmarks/README.md says how and what came out."""


@bench.command()
@click.option("--clients", default="1,8,16", metavar="N,N", help="Clients at a time, one measurement each.")
@click.option("--prompt-tokens", default=215, metavar="INT", help="Length of every prompt as the model reads it.")
@click.option("--new-tokens", default=64, metavar="INT", help="Length of every answer.")
@click.option("--rounds", default=5, metavar="INT", help="Rounds of each side; medians are reported.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("chat_model", "gate", "threads", "kv_cache_gb", "max_running", "models_dir")
def engine(
    clients: str,
    prompt_tokens: int,
    new_tokens: int,
    rounds: int,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
) -> None:
    """Measure the whole service over HTTP against the bare OpenVINO pipeline, in turns, on the same prompts.

    \b
    chatkit bench engine --clients 1,8,16 --json
    """
    from chatkit.evaluation.bench import EngineBench, bench_engine

    settings = load_settings(flags, file=Path(config) if config else None)
    wanted = EngineBench(_numbers(clients), prompt_tokens, new_tokens, rounds)
    report = bench_engine(settings, wanted, lambda line: click.echo(line, err=True))
    click.echo(report.as_json() if as_json else report.as_table())


def _numbers(listed: str) -> tuple[int, ...]:
    """Return the numbers of a list such as "1,8,16"."""
    try:
        return tuple(int(part) for part in listed.split(","))
    except ValueError:
        raise InvalidRequest(f"--clients is {listed!r}, expected numbers with commas, such as 1,8,16") from None
