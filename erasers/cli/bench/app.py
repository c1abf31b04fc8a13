"""The subcommands of `erase bench`."""

from __future__ import annotations

import typer

from erasers.cli.bench.rows import compare, leaderboard, score
from erasers.cli.bench.run import run
from erasers.cli.bench.verify import verify

bench = typer.Typer(rich_markup_mode="rich", no_args_is_help=True, help="Measure methods and patches on a task.")
for command in (run, score, verify, compare, leaderboard):
    bench.command()(command)
