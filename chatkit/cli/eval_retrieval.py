"""`chatkit eval retrieval`: what each leg of a search finds on a labelled set."""

from pathlib import Path
from typing import Any

import click

from chatkit.cli import setting_options
from chatkit.settings import load_settings


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--split", default="test", metavar="NAME", help="Judgements: qrels/NAME.tsv.")
@click.option("--limit", default=0, metavar="INT", help="Ask the first so many judged queries; 0 asks all.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw recall against latency as SVG.")
@click.option("--cache/--no-cache", "cached", default=True, help="Keep the vectors of a corpus in <home>/evaluation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options(
    "home",
    "models_dir",
    "profile",
    "encoder",
    "encoder_backend",
    "encoder_device",
    "encoder_precision",
    "encoder_pooling",
    "encoder_metric",
    "encoder_query_prefix",
    "encoder_passage_prefix",
    "threads",
    "dense_weight",
)
def retrieval(
    folder: Path,
    split: str,
    limit: int,
    picture: Path | None,
    cached: bool,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
) -> None:
    """Index the corpus in FOLDER and search it by meaning, by words, and by both, for every judged query.

    FOLDER has corpus.jsonl, queries.jsonl and qrels/test.tsv in the BEIR layout, each as it is or as .gz.

    \b
    chatkit eval retrieval sets/scifact --json
    chatkit eval retrieval sets/scifact --split train --picture recall.svg
    """
    from chatkit.evaluation.retrieval import RetrievalEval, eval_retrieval

    settings = load_settings(flags, file=Path(config) if config else None)
    what = RetrievalEval(split, limit, settings.home / "evaluation" if cached else None, picture)
    report = eval_retrieval(settings, folder, what, _Told())
    click.echo(report.as_json() if as_json else report.as_table())


class _Told:
    """Says how far it is, ten times a stage at most."""

    def __init__(self) -> None:
        self._last = ("", -1)

    def __call__(self, what: str, done: int, total: int) -> None:
        now = (what, 10 * done // max(total, 1))
        if now != self._last:
            self._last = now
            click.echo(f"{what} {done} of {total}", err=True)
