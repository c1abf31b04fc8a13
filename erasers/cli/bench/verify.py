"""`erase bench verify`: result files held against their tasks, and some of their pictures drawn again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erasers.cli.bench.options import PromptFiles, TaskFiles, prompt_files
from erasers.cli.console import err, out, plain
from erasers.cli.groups import refuse_idle, with_groups
from erasers.cli.model import Hardware, ModelOptions

if TYPE_CHECKING:
    from erasers.evaluation.run.verifying import Verifier
    from erasers.evaluation.scores.results import Result
    from erasers.evaluation.tasks.task import Task
    from erasers.patch import Patch


@with_groups
def verify(
    *,
    context: typer.Context,
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Result files.")],
    task: TaskFiles = None,
    prompts: PromptFiles = None,
    patch: Annotated[list[Path] | None, typer.Option(help="A patch of the rows. Repeatable.")] = None,
    redraw: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Draw so many pictures of each row again, by chance, and judge them."),
    ] = None,
    allow_adult: Annotated[bool, typer.Option("--allow-adult", help="Draw tasks with sexual content, too.")] = False,
    hardware: Hardware,
) -> None:
    """Hold result files against their tasks and baselines and compute every score anew; exit code 1 if any is wrong.

    What a file cannot show is named. With --redraw, pictures are drawn and judged again, for which a row needs its
    patches; what came of it is kept beside the file, and the leaderboard says so.
    """
    from erasers.evaluation.run.verifying import Verifier
    from erasers.evaluation.scores.results import read_result
    from erasers.patch import Patch

    if not redraw:
        idle = ["--allow-adult", "--device", "--dtype"]
        refuse_idle(context, idle, "for pictures that are drawn again; add --redraw N")
    hardware.check()
    files, patches = prompt_files(prompts or []), [Patch.load(path) for path in patch or []]
    verifier = Verifier(task or [], files, patches)
    right = [path for path in results if _verify(path, verifier)]
    held = right
    if redraw:
        how, rows = _Redraw(redraw, patches, files, hardware), [read_result(path) for path in right]
        tasks = [verifier.task_of(row) for row in rows]
        if any(of_row.adult for of_row in tasks) and not allow_adult:
            raise ValueError("expected --allow-adult to draw a task with sexual content, got none")
        held = [row.path for of_row, row in zip(tasks, rows, strict=True) if _redraw(row.path, of_row, row, how)]
    if len(held) < len(results):
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Redraw:
    """How many pictures of each row are drawn again, and with what."""

    count: int
    patches: Sequence[Patch]
    prompts: Mapping[str, Path]
    hardware: Hardware


def _verify(path: Path, verifier: Verifier) -> bool:
    verification = verifier.verify(path)
    for line in verification.wrong:
        out.print(f"{plain(path)}: {plain(line)}")
    if not verification.wrong:
        out.print(f"{plain(path)}: it is of its task, and all scores follow from its samples")
    for line in verification.unchecked:
        out.print(f"{plain(path)}: not checked here: {plain(line)}")
    return not verification.wrong


def _redraw(path: Path, task: Task, row: Result, how: _Redraw) -> bool:
    """Draw pictures of a row again, and keep what came of it when its verdicts hold."""
    from tempfile import TemporaryDirectory

    from erasers.evaluation.run.redrawing import redraw
    from erasers.evaluation.run.stage import Stage
    from erasers.judges import get_judge
    from erasers.progress import progress

    drawn = row.data.get("drawn", {"dtype": "float32"})
    dtype = drawn["dtype"] if how.hardware.dtype == "auto" else how.hardware.dtype
    pipe = ModelOptions(task.model).load(replace(how.hardware, dtype=dtype))
    own = {facts["patch"]["digest"] for facts in row.data["cases"].values() if facts["patch"]}
    patches = [patch for patch in how.patches if patch.digest in own] or how.patches
    with TemporaryDirectory() as folder, progress(err, "drawing again", how.count) as advance:
        stage = Stage(task.located(how.prompts), pipe, get_judge(task.judge, **task.judge_options), Path(folder))
        redrawn = redraw(row, stage, how.count, patches, advance=advance)
    said = f"{redrawn.agree} of {redrawn.samples} verdicts are the same"
    if redrawn.compared:
        said += f", {redrawn.same} of {redrawn.compared} pictures to the pixel"
    out.print(f"{plain(path)}: drawn again ({plain(', '.join(redrawn.cases))}): {said}")
    if redrawn.holds:
        redrawn.write(path)
    else:
        out.print(f"{plain(path)}: its verdicts are not those of its model")
    return redrawn.holds
