"""`erase bench verify`: result files held against their tasks, and some of their pictures drawn again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erasers.cli import input as cli_input
from erasers.cli.options import Device, Dtype
from erasers.cli.output import err, out, plain

if TYPE_CHECKING:
    from erasers.evaluation.run.verifying import Verifier
    from erasers.evaluation.scores.results import Result
    from erasers.evaluation.tasks.task import Task
    from erasers.patch import Patch

TaskFiles = Annotated[
    list[Path] | None,
    typer.Option("--task", metavar="FILE", help="The file of a task that is not of the package. Repeatable."),
]
PromptFiles = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FILE", help="Your copy of a file of prompts that the task names. Repeatable."),
]


def verify(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Result files.")],
    task: TaskFiles = None,
    prompts: PromptFiles = None,
    patch: Annotated[list[Path] | None, typer.Option(help="A patch of the rows. Repeatable.")] = None,
    redraw: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Draw so many pictures of each row again, by chance, and judge them."),
    ] = None,
    allow_adult: Annotated[bool, typer.Option("--allow-adult", help="Draw tasks with sexual content, too.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Hold result files against their tasks and baselines and compute every score anew; exit code 1 if any is wrong.

    What a file cannot show is named. With --redraw, pictures are drawn and judged again, for which a row needs its
    patches; what came of it is kept beside the file, and the leaderboard says so.
    """
    from erasers.evaluation.run.verifying import Verifier
    from erasers.evaluation.scores.results import read_result
    from erasers.patch import Patch

    cli_input.check_device(device)
    cli_input.check_dtype(dtype)
    files, patches = prompt_files(prompts or []), [Patch.load(path) for path in patch or []]
    verifier = Verifier(task or [], files, patches)
    right = [path for path in results if _verify(path, verifier)]
    held = right
    if redraw:
        how, rows = _Redraw(redraw, patches, files, device, dtype), [read_result(path) for path in right]
        tasks = [verifier.task_of(row) for row in rows]
        if any(one.adult for one in tasks) and not allow_adult:
            raise ValueError("expected --allow-adult to draw a task with sexual content, got none")
        held = [row.path for one, row in zip(tasks, rows, strict=True) if _redraw(row.path, one, row, how)]
    if len(held) < len(results):
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Redraw:
    """How many pictures of each row are drawn again, and with what."""

    count: int
    patches: Sequence[Patch]
    prompts: Mapping[str, Path]
    device: str
    dtype: str


def prompt_files(prompts: Sequence[str]) -> dict[str, Path]:
    """Name -> file, of the option --prompts.

    Raises:
        ValueError: Something else than NAME=FILE.
    """
    pairs = [one.partition("=")[::2] for one in prompts]
    if wrong := [one for one, (name, file) in zip(prompts, pairs, strict=True) if not (name and file)]:
        raise ValueError(f"expected --prompts NAME=FILE, got {wrong[0]!r}")
    return {name: Path(file) for name, file in pairs}


def _verify(path: Path, verifier: Verifier) -> bool:
    found = verifier.verify(path)
    for line in found.wrong:
        out.print(f"{plain(path)}: {plain(line)}")
    if not found.wrong:
        out.print(f"{plain(path)}: it is of its task, and all scores follow from its samples")
    for line in found.unchecked:
        out.print(f"{plain(path)}: not checked here: {plain(line)}")
    return not found.wrong


def _redraw(path: Path, task: Task, row: Result, how: _Redraw) -> bool:
    """Draw pictures of a row again, and keep what came of it when its verdicts hold."""
    from tempfile import TemporaryDirectory

    from erasers.evaluation.run.redrawing import redraw
    from erasers.evaluation.run.stage import Stage
    from erasers.judges import get_judge
    from erasers.progress import progress

    drawn = row.data.get("drawn", {"dtype": "float32"})
    pipe = cli_input.load_model(task.model, how.device, drawn["dtype"] if how.dtype == "auto" else how.dtype)
    mine = {facts["patch"]["digest"] for facts in row.data["cases"].values() if facts["patch"]}
    patches = [patch for patch in how.patches if patch.digest in mine] or how.patches
    with TemporaryDirectory() as folder, progress(err, "drawing again", how.count) as advance:
        stage = Stage(task.located(how.prompts), pipe, get_judge(task.judge, **task.judge_options), Path(folder))
        found = redraw(row, stage, how.count, patches, advance=advance)
    said = f"{found.agree} of {found.samples} verdicts are the same"
    if found.compared:
        said += f", {found.same} of {found.compared} pictures to the pixel"
    out.print(f"{plain(path)}: drawn again ({plain(', '.join(found.cases))}): {said}")
    if found.holds:
        found.write(path)
    else:
        out.print(f"{plain(path)}: its verdicts are not those of its model")
    return found.holds
