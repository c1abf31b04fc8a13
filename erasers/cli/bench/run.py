"""`erase bench run`: a task is drawn, judged and scored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erasers.cli.bench.dry_run import is_embedded, say_what_is_missing, say_what_there_is
from erasers.cli.bench.helpers import helped, work
from erasers.cli.bench.options import RESULTS, Limit, Out, PromptFiles, TaskName
from erasers.cli.bench.start import Start
from erasers.cli.console import err, out, plain
from erasers.cli.eraser import bytes_of
from erasers.cli.groups import with_groups
from erasers.cli.model import Hardware
from erasers.cli.options import Memory
from erasers.eraser import eraser_class, list_erasers

if TYPE_CHECKING:
    from erasers.evaluation.run.run import Run


@with_groups
def run(
    *,
    task: TaskName,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A method, a preset or a stack (a+b) with its defaults. Repeatable. "
            "[dim]all methods, unless --patch[/dim]"
        ),
    ] = None,
    patch: Annotated[list[Path] | None, typer.Option(help="A patch file for one of the cases. Repeatable.")] = None,
    folder: Out = RESULTS,
    limit: Limit = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to draw and how long it may take, and draw nothing.")
    ] = False,
    prompts: PromptFiles = None,
    judge_model: Annotated[
        Path | None, typer.Option(help="Folder with the judge's model. [dim]fetched from where the task says[/dim]")
    ] = None,
    allow_adult: Annotated[bool, typer.Option("--allow-adult", help="Draw tasks with sexual content.")] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Processes that share the work. [dim]1; embedded model: one a core[/dim]"),
    ] = None,
    memory: Memory = None,
    hardware: Hardware,
) -> None:
    """Draw, judge and score the unedited model, the references, methods and patches; continues where it was stopped.

    Several processes share the work with --processes, or when `accelerate launch` or `torchrun` starts them.
    """
    usual = [name for name in list_erasers() if eraser_class(name).everywhere]
    methods = method or ([] if patch else usual)
    given = (folder, limit, allow_adult, prompts or [], judge_model, bytes_of(memory), hardware)
    start = Start(task, methods, patch or [], *given)
    if dry_run and not is_embedded(task):
        say_what_there_is(start)
        return
    job = start.begin()
    speaks = job.stage.share.rank == 0
    for case in job.stage.lacking if speaks else ():
        err.print(f"no reference for {plain(case)} here: {plain(job.stage.task.references[case])} is not there")
    if dry_run:
        say_what_is_missing(job)
        return
    with helped(job, processes, start):
        work(job, err if speaks else None)
    if speaks:
        _write(job, folder)


def _write(job: Run, folder: Path) -> None:
    """Measure and score what was drawn, and print where the results are."""
    from erasers.progress import progress

    for line in job.measures.lacking:
        err.print(plain(line))
    paths = job.write(lambda total: progress(err, "measuring", total))
    if job.damaged:
        err.print(f"{job.damaged} entries of {plain(folder)} did not match their hashes and were made anew")
    for path in paths:
        out.print(plain(path))
