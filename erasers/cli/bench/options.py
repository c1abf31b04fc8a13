"""Options that several subcommands of `erase bench` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

RESULTS = Path("results")
TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="A task such as shapes-smoke or sd14-artists, or a file.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder of pictures, verdicts, patches and results; created.")]
Limit = Annotated[
    int | None, typer.Option(min=1, max=1_000_000, help="At most so many prompts a split, kept apart from the rest.")
]
TaskFiles = Annotated[
    list[Path] | None,
    typer.Option("--task", metavar="FILE", help="The file of a task that is not of the package. Repeatable."),
]
PromptFiles = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FILE", help="Your copy of a file of prompts that the task names. Repeatable."),
]


def prompt_files(prompts: Sequence[str]) -> dict[str, Path]:
    """Name -> file, of the option --prompts.

    Raises:
        ValueError: Something else than NAME=FILE.
    """
    pairs = [given.partition("=")[::2] for given in prompts]
    if wrong := [given for given, (name, file) in zip(prompts, pairs, strict=True) if not (name and file)]:
        raise ValueError(f"expected --prompts NAME=FILE, got {wrong[0]!r}")
    return {name: Path(file) for name, file in pairs}
