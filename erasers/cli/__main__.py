"""`python -m erasers.cli`."""

from erasers.cli.app import main

main()
