"""`chatkit eval answers`."""

from pathlib import Path
from typing import Any

import click

from chatkit.cli import setting_options
from chatkit.settings import load_settings


@click.command("answers")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--limit", default=0, metavar="INT", help="Ask the first so many questions; 0 asks all.")
@click.option("--at-once", default=16, metavar="INT", help="Turns that run at a time.")
@click.option("--only-retrieved", is_flag=True, help="Ask each question once, with what the search finds.")
@click.option("--max-new-tokens", default=32, metavar="INT", help="Length of a reply, in tokens.")
@click.option("--instructions", default="", metavar="TEXT", help="A system message of your own, after the service's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every question and reply.")
@setting_options(
    "models_dir", "profile", "chat_model", "encoder", "engine", "k", "min_score", "policy", "system_prompt", "threads"
)
def answers(
    folder: Path,
    limit: int,
    at_once: int,
    only_retrieved: bool,
    max_new_tokens: int,
    instructions: str,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
) -> None:
    """Ask the questions of a set in the BEIR layout and compare the replies with the answers in metadata.answers.

    \b
    chatkit eval answers DIR --limit 240
    chatkit eval answers DIR --json >answers.json

    Every question is one turn of the service, greedy, three times: without retrieval, with what an index of the set's
    corpus gives, and with the passage judged right.
    """
    from tqdm import tqdm

    from chatkit.evaluation.answers import AnswerEval, eval_answers

    settings = load_settings(flags, file=Path(config) if config else None)
    what = AnswerEval(limit, at_once, max_new_tokens, instructions, only_retrieved=only_retrieved)
    with tqdm(desc="turns", unit="turn", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = eval_answers(settings, folder, what, progress)
    click.echo(report.as_json() if as_json else report.as_table())
