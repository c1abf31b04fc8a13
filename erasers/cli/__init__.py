"""The command `erase`."""

from erasers.cli.app import main

__all__ = ["main"]
