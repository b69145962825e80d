"""`chatkit eval`: figures on labelled sets."""

import click

from chatkit.cli.eval_answers import answers


@click.group("eval")
def eval() -> None:
    """Measure on a labelled set of yours, in the BEIR layout."""


eval.add_command(answers)
