"""The subcommands of `erase measure`."""

from __future__ import annotations

import typer

from erasers.cli.measure.blindspots import blindspots
from erasers.cli.measure.capability import capability
from erasers.cli.measure.interference import interference
from erasers.cli.measure.traces import traces

measure = typer.Typer(
    rich_markup_mode="rich",
    no_args_is_help=True,
    help="What a patch left behind, hid or took along, each with its control.",
)
for command in (traces, capability, blindspots, interference):
    measure.command()(command)
