"""`chatkit eval`: figures on labelled sets."""

import click

from chatkit.cli.eval_answers import answers
from chatkit.cli.eval_moderation import moderation
from chatkit.cli.eval_retrieval import retrieval


@click.group("eval")
def eval() -> None:
    """Measure on a labelled set of yours."""


eval.add_command(answers)
eval.add_command(moderation)
eval.add_command(retrieval)
