"""`python -m chatkit`."""

from chatkit.cli import main

main()
