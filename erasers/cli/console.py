"""Where the `erase` command speaks: results on stdout, progress, notes and the one line of an error on stderr."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

if not os.environ.get("COLUMNS", "80").strip("0 "):
    # A terminal of no columns would show nothing.
    del os.environ["COLUMNS"]
# Tables keep to the width of the terminal; other lines are left whole for whoever reads them by program.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def plain(value: object) -> str:
    """Text that may come from a file, for printing: no markup, and no characters that a terminal obeys."""
    return escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)))


def in_bytes(count: int) -> str:
    """A size in the unit that suits it."""
    return (
        f"{count} bytes" if count < 1024 else f"{count / 1024:.1f} KB" if count < 2**20 else f"{count / 2**20:.1f} MB"
    )


def show_notes(notes: Sequence[str]) -> None:
    """Print what was chosen for the user, on stderr."""
    for note in notes:
        err.print(plain(note))


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line on stderr; stands in for `warnings.showwarning`."""
    err.print(f"warning: {plain(message)}")


def fail(message: str, code: int) -> int:
    """Print an error as one line on stderr and return its exit code."""
    line = " ".join(str(message).split())
    err.print(f"[bold red]error:[/bold red] {plain(line)}")
    return code
