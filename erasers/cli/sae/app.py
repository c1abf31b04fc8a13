"""The subcommands of `erase sae`."""

from __future__ import annotations

import typer

from erasers.cli.sae.published import import_
from erasers.cli.sae.train import train

sae = typer.Typer(
    rich_markup_mode="rich",
    no_args_is_help=True,
    help="Sparse autoencoders, which itd needs.",
)
sae.command()(train)
sae.command("import")(import_)
