"""`chatkit eval`: figures on labelled sets."""

import click

from chatkit.cli.eval_answers import answers
from chatkit.cli.eval_retrieval import retrieval


@click.group("eval")
def eval() -> None:
    """Measure on a labelled set of yours, in the BEIR layout."""


eval.add_command(answers)
eval.add_command(retrieval)
