"""The `erase` command: its subcommands, and one line and an exit code for every error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from erasers.cli.audit import audit
from erasers.cli.bench import bench
from erasers.cli.console import fail
from erasers.cli.erase import erase
from erasers.cli.errors import check_text, refusal
from erasers.cli.generate import generate
from erasers.cli.help import EXAMPLES, HELP
from erasers.cli.measure.app import measure
from erasers.cli.methods import methods
from erasers.cli.patches import apply, export, inspect, push
from erasers.cli.recommend import recommend
from erasers.cli.sae import explain, sae
from erasers.cli.threads import let_idle_threads_sleep

app = typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)
app.callback(invoke_without_command=True, help=HELP, epilog=EXAMPLES)(erase)
for command in (methods, recommend, apply, export, inspect, push, generate, audit, explain):
    app.command()(command)
app.add_typer(bench, name="bench")
app.add_typer(sae, name="sae")
app.add_typer(measure, name="measure")


def main() -> None:
    """Run the command; every error is one line on stderr and an exit code, 2 for bad input."""
    let_idle_threads_sleep()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command with arguments and return its exit code. `ERASERS_DEBUG=1` shows tracebacks."""
    try:
        check_text(arguments)
        code = app(list(arguments), prog_name="erase", standalone_mode=False)
        # The argument parser turns an interrupt into this code.
        return fail("interrupted", 130) if code == 130 else int(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", 130)
    except Exception as error:
        if os.environ.get("ERASERS_DEBUG"):
            raise
        return fail(*refusal(error))
