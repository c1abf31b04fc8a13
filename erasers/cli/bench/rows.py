"""What is done with results of a task: `erase bench score`, `compare` and `leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from erasers.cli.bench.options import RESULTS, Limit, Out, PromptFiles, TaskFiles, TaskName, prompt_files
from erasers.cli.console import err, out, plain
from erasers.cli.options import Overwrite
from erasers.cli.targets import check_targets

_LEADERBOARD = ("leaderboard.md", "leaderboard.html")


def score(task: TaskName, folder: Out = RESULTS, limit: Limit = None) -> None:
    """Score the results of a task anew; nothing is drawn or judged."""
    from erasers.evaluation.scores.scoring import rescore
    from erasers.evaluation.tasks.task import read_task

    read = read_task(task).limited(limit)
    for path in rescore(folder / read.folder, read.scheme):
        out.print(plain(path))


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A result file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another of the same task.")],
) -> None:
    """Compare two rows of a task on the pictures that both were scored on; p-values are Holm's over all lines."""
    from rich.table import Table

    from erasers.evaluation.scores.results import drawn_apart
    from erasers.evaluation.scores.scoring import compare as pairs

    table = Table("score", "A", "B", "A - B", "95 % interval", "pictures", "p", "", box=None, pad_edge=False)
    for pair in pairs(first, second):
        interval = f"{pair.difference.low:+.3f} to {pair.difference.high:+.3f}"
        better = "A" if pair.difference.value > 0 else "B"
        verdict = f"{better} is better" if pair.p <= 0.05 else "tie"
        numbers = (f"{pair.first:.3f}", f"{pair.second:.3f}", f"{pair.difference.value:+.3f}", interval)
        table.add_row(pair.name, *numbers, str(pair.difference.n), f"{pair.p:.3g}", verdict)
    out.print(table, soft_wrap=False)
    for note in drawn_apart(first, second):
        err.print(plain(note))


def leaderboard(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Result files, or folders of them.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the two files; created.")] = Path("leaderboard"),
    overwrite: Overwrite = False,
    allow_adult: Annotated[
        bool, typer.Option("--allow-adult", help="Show pictures of tasks with sexual content, blurred.")
    ] = False,
    task: TaskFiles = None,
    prompts: PromptFiles = None,
) -> None:
    """Write leaderboard.md and leaderboard.html from the results that verify; exit code 1 if others were left out."""
    from erasers.evaluation.leaderboard.write import write_leaderboard
    from erasers.evaluation.run.verifying import Verifier, verified
    from erasers.evaluation.scores.results import result_files

    check_targets({name: folder / name for name in _LEADERBOARD}, overwrite=overwrite)
    right, refused = verified(result_files(results), Verifier(task or [], prompt_files(prompts or [])))
    for path, why in refused.items():
        err.print(f"{plain(path)} is left out: {plain(why)}")
    if right:
        write_leaderboard(right, folder, allow_adult=allow_adult)
        for name in _LEADERBOARD:
            out.print(plain(folder / name))
    if refused:
        raise typer.Exit(1)
