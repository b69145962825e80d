"""`chatkit` with a moderator that looks at nothing, for benchmarks/loss.py; it takes the same arguments."""

import sys

from chatkit import cli, wiring
from chatkit.testing import KeywordModerator


def main() -> None:
    """Put the moderator in the place of the real one and go on as chatkit."""
    wiring.open_moderator = lambda settings, encoder: KeywordModerator()
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
