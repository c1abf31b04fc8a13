"""What the main command prints in the end."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from erasers.asks import ERASED_SPLITS
from erasers.cli.console import in_bytes, out, plain

if TYPE_CHECKING:
    from erasers.concept import Concept
    from erasers.patch import Patch


def show_result(
    concepts: Sequence[Concept],
    patch: Patch,
    target: Path,
    seconds: float,
    report: Path | None,
    summary: dict[str, Any] | None,
) -> None:
    """Print what was erased, the table of the report, and where the files are."""
    for concept in concepts:
        out.print(f"[bold]{escape(concept.name)}[/bold] -> {escape(repr(concept.anchor))}")
    if summary and summary["splits"]:
        _show_shares(summary)
    if summary and summary.get("drawn"):
        out.print(escape(f"drawn     {summary['drawn']}"))
    if summary and summary.get("note"):
        out.print(escape(f"note: {summary['note']}"))
    out.print(
        f"patch     {escape(str(target))}  ({in_bytes(target.stat().st_size)}, {patch.meta['method']}, {seconds:.2f} s)"
    )
    if report:
        for line in (summary or {}).get("warnings", ()):
            out.print(f"[bold red]look at[/bold red]   {plain(line)}")
        out.print(
            f"report    {escape(str(report / 'index.html'))}  (open it in a browser; grid.png and summary.json beside)"
        )


def show_next(patch: Path, model: str) -> None:
    """Print what a user may do with a new patch."""
    command = f"erase generate PROMPT --model {shlex.quote(model)} --patch {shlex.quote(str(patch))}"
    out.print(f"next      {plain(command)}  (before and after; see also erase apply)")


def _show_shares(summary: dict[str, Any]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("prompts", "should", "n", "before", "after", "reading"):
        table.add_column(head, no_wrap=head != "reading")
    for split, pair in summary["splits"].items():
        should = "fall" if split in ERASED_SPLITS else "stay"
        reading = summary.get("readings", {}).get(split, {"word": "", "warning": ""})
        word = f"[{'red' if reading['warning'] else 'green'}]{escape(reading['word'])}[/]"
        numbers = (str(pair["after"]["n"]), _percent(pair["before"]), _percent(pair["after"]))
        table.add_row(split, should, *numbers, word)
    out.print("share of the pictures that show the concept, or what was asked for where it should stay:")
    out.print(table, soft_wrap=False)


def _percent(score: dict[str, Any]) -> str:
    return f"{score['value']:.0%} ({100 * score['low']:.0f} to {100 * score['high']:.0f})"
