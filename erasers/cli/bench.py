"""`erase bench`: run tasks of the benchmark, and check, compare and show their results."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from erasers.cli import input as cli_input
from erasers.cli import processes as cli_processes
from erasers.cli.options import Device, Dtype, Memory, Overwrite
from erasers.cli.output import err, out, plain
from erasers.cli.places import check_places
from erasers.cli.verify import PromptFiles, TaskFiles, prompt_files, verify
from erasers.eraser import list_erasers

if TYPE_CHECKING:
    from erasers.evaluation.run.run import Run
    from erasers.evaluation.run.states import Row
    from erasers.evaluation.tasks.task import Task

bench = typer.Typer(rich_markup_mode="rich", no_args_is_help=True, help="Measure methods and patches on a task.")

TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="A task such as shapes-smoke or sd14-artists, or a file.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder of pictures, verdicts, patches and results; created.")]
Limit = Annotated[
    int | None, typer.Option(min=1, max=1_000_000, help="At most so many prompts a split, kept apart from the rest.")
]
_LEADERBOARD = ("leaderboard.md", "leaderboard.html")
RESULTS = Path("results")
_WORTH_A_PROCESS = 300
"""Pictures that take longer to draw than another process takes to start."""
_PATIENCE = 20.0
"""Seconds in which another process may end what all others have done, too."""


@bench.command()
def run(
    task: TaskName,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method or preset with its defaults. Repeatable. [dim]all methods, unless --patch[/dim]"),
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
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Draw, judge and score the unedited model, the references, methods and patches; continues where it was stopped.

    Several processes share the work with --processes, or when `accelerate launch` or `torchrun` starts them.
    """
    methods = method or ([] if patch else list_erasers())
    room = cli_input.bytes_of(memory)
    if dry_run and not _embedded(task):
        _say_what_there_is(task, methods, patch or [], folder, limit, allow_adult)
        return
    start = (task, methods, patch or [], folder, limit, allow_adult, device, dtype, prompts or [], judge_model, room)
    job = _start(*start)
    main = job.stage.share.rank == 0
    for case in job.stage.lacking if main else ():
        err.print(f"no reference for {plain(case)} here: {plain(job.stage.task.references[case])} is not there")
    if dry_run:
        _say_what_is_missing(job)
        return
    with _helped(job, processes, start):
        _work(job, err if main else None)
    if main:
        for line in job.measures.lacking:
            err.print(plain(line))
        from erasers.progress import progress

        paths = job.write(lambda total: progress(err, "measuring", total))
        if job.damaged:
            err.print(f"{job.damaged} entries of {plain(folder)} did not match their hashes and were made anew")
        for path in paths:
            out.print(plain(path))


@bench.command()
def score(task: TaskName, folder: Out = RESULTS, limit: Limit = None) -> None:
    """Score the results of a task anew; nothing is drawn or judged."""
    from erasers.evaluation.scores.scoring import rescore
    from erasers.evaluation.tasks.task import read_task

    read = read_task(task).limited(limit)
    for path in rescore(folder / read.folder, read.scheme):
        out.print(plain(path))


bench.command()(verify)


@bench.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A result file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another of the same task.")],
) -> None:
    """Compare two rows of a task on the pictures that both were scored on; p-values are Holm's over all lines."""
    from rich.table import Table

    from erasers.evaluation.scores.results import drawn_apart
    from erasers.evaluation.scores.scoring import compare as pairs

    table = Table("score", "A", "B", "A - B", "95 % interval", "pictures", "p", "", box=None, pad_edge=False)
    for one in pairs(first, second):
        interval = f"{one.difference.low:+.3f} to {one.difference.high:+.3f}"
        better = "A" if one.difference.value > 0 else "B"
        verdict = f"{better} is better" if one.p <= 0.05 else "tie"
        numbers = (f"{one.first:.3f}", f"{one.second:.3f}", f"{one.difference.value:+.3f}", interval)
        table.add_row(one.name, *numbers, str(one.difference.n), f"{one.p:.3g}", verdict)
    out.print(table, soft_wrap=False)
    for note in drawn_apart(first, second):
        err.print(plain(note))


@bench.command()
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
    from erasers.evaluation.leaderboard.leaderboard import write_leaderboard
    from erasers.evaluation.run.verifying import Verifier, verified
    from erasers.evaluation.scores.results import result_files

    check_places({name: folder / name for name in _LEADERBOARD}, overwrite=overwrite)
    right, refused = verified(result_files(results), Verifier(task or [], prompt_files(prompts or [])))
    for path, why in refused.items():
        err.print(f"{plain(path)} is left out: {plain(why)}")
    if right:
        write_leaderboard(right, folder, allow_adult=allow_adult)
        for name in _LEADERBOARD:
            out.print(plain(folder / name))
    if refused:
        raise typer.Exit(1)


def _work(job: Run, console: Console | None) -> None:
    """Fit, draw, judge and attack."""
    from erasers.progress import progress

    with progress(console, "erasing", job.fitting.left() if console else 0) as advance:
        job.fitting.work(advance)
    with progress(console, "drawing and judging", job.judging.left() if console else 0) as advance:
        job.judging.work(advance)
    if job.stage.task.attacks:
        with progress(console, "attacking", job.attacking.left() if console else 0) as advance:
            job.attacking.work(advance)


@contextmanager
def _helped(job: Run, processes: int | None, start: tuple[Any, ...]) -> Iterator[None]:
    """Inside, other processes work on the same task; what they leave, this one does.

    Args:
        job: This process's.
        processes: How many there are then; None: as many as pay.
        start: Arguments of `_start`.
    """
    world = processes or _paying(job)
    if world == 1:
        yield
        return
    import torch

    from erasers.processes import Share

    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    helpers = [context.Process(target=_help, args=(start, rank, world), daemon=True) for rank in range(1, world)]
    for helper in helpers:
        helper.start()
    job.stage.share = Share(0, world)
    torch.set_num_threads(max(1, threads // world))
    try:
        yield
        for helper in helpers:
            helper.join(_PATIENCE)
        failed = [helper for helper in helpers if helper.exitcode]
        if failed:
            err.print(f"{len(failed)} of {world} processes failed; their work was done by the others")
    finally:
        torch.set_num_threads(threads)
        for helper in helpers:
            helper.terminate()
            helper.join()


def _paying(job: Run) -> int:
    """One process, or one for each core where a network is too small to make use of several for one picture."""
    from erasers import worlds

    small = worlds.find(job.stage.task.model) and job.stage.pipe.device.type == "cpu" and "RANK" not in os.environ
    if not small or sum(job.judging.missing().values()) < _WORTH_A_PROCESS:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _help(start: tuple[Any, ...], rank: int, world: int) -> None:
    """What another process does; it says nothing."""
    import torch

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        _work(_start(*start), None)


def _start(
    name: str,
    methods: Sequence[str],
    patches: Sequence[Path],
    folder: Path,
    limit: int | None,
    allow_adult: bool,
    device: str,
    dtype: str,
    prompts: Sequence[str],
    judge_model: Path | None,
    memory: int | None,
) -> Run:
    for one in methods:
        cli_input.check_method(one)
    cli_input.check_device(device)
    cli_input.check_dtype(dtype)
    with err.status("reading"):
        from erasers.evaluation.run.run import Run
        from erasers.evaluation.run.stage import Stage
        from erasers.evaluation.tasks.task import read_task
        from erasers.judges import get_judge
        from erasers.processes import Share

        share, task = Share.of_environment(), read_task(name).limited(limit)
        _check(task, folder, allow_adult)
        task = _located(task, prompts, share.rank == 0)
        rows, judge = _rows(methods, patches, task), get_judge(task.judge, **_judge_options(task, judge_model))
        gradients = any(plan.attack.budget().gradients for plan in task.attacks.values())
        pipe = cli_input.load_model(task.model, cli_processes.own_device(device), dtype, gradients=gradients)
        job = Run(Stage(task, pipe, judge, folder, rows, share, memory))
    _check_prompts(job)
    return job


def _located(task: Task, prompts: Sequence[str], main: bool) -> Task:
    """The task with its files of prompts; says what they are."""
    from erasers.evaluation.tasks.notes import notes

    found = task.located(prompt_files(prompts))
    for line in notes(found, [name for name, one in task.sources.items() if one.sha256 is None]) if main else ():
        err.print(plain(line))
    return found


def _judge_options(task: Task, model: Path | None) -> dict[str, Any]:
    """The options of the task's judge, with a folder in place of the model that the task names."""
    if model is None:
        return dict(task.judge_options)
    if "model" not in task.judge_options:
        raise ValueError(f"expected --judge-model for a judge with a model of its own, got {task.judge}")
    return {key: value for key, value in task.judge_options.items() if key != "revision"} | {"model": model}


def _check_prompts(job: Run) -> None:
    """Refuse prompts that the judge cannot judge, and say how many are cut."""
    from erasers.evaluation.tasks.notes import too_long
    from erasers.evaluation.tasks.prompts import check_wants

    samples = [sample for some in job.stage.draws.values() for sample in some]
    check_wants(job.stage.judge, samples)
    if job.stage.share.rank == 0 and (count := too_long(job.stage.pipe, samples)):
        err.print(f"{count} prompts are longer than the text encoder reads; it reads their beginning")


def _say_what_is_missing(job: Run) -> None:
    """What a run on this folder would still draw."""
    from erasers.evaluation.tasks.cost import Load, estimate

    cases = {row.name: job.stage.cases(row) for row in job.stage.all_rows}
    for line in estimate(
        job.stage.task, [Load(name, count, cases[name]) for name, count in job.judging.missing().items()]
    ):
        out.print(plain(line))


def _embedded(name: str) -> bool:
    """Whether a task is for an embedded model, which loads in a moment."""
    from erasers import worlds
    from erasers.evaluation.tasks.task import read_task

    return worlds.find(read_task(name).model) is not None


def _say_what_there_is(
    name: str, methods: Sequence[str], patches: Sequence[Path], folder: Path, limit: int | None, allow_adult: bool
) -> None:
    """What a run would draw into an empty folder: counted without the model, its judge and files of prompts."""
    from erasers.evaluation.run.states import REFERENCE, case_of, find_reference
    from erasers.evaluation.scores.records import UNEDITED
    from erasers.evaluation.tasks.cost import estimate, loads
    from erasers.evaluation.tasks.task import read_task

    for one in methods:
        cli_input.check_method(one)
    task = read_task(name).limited(limit)
    _check(task, folder, allow_adult)
    rows = {UNEDITED: list(task.named_cases)}
    if task.references:
        rows[REFERENCE] = [case for case, path in task.references.items() if find_reference(task.places(path))]
    for row in _rows(methods, patches, task):
        rows[row.name] = [case_of(task, row.patch)] if row.patch else list(task.named_cases)
    for line in estimate(task, loads(task, rows)):
        out.print(plain(line))
    err.print("counted as for an empty folder, without loading the model")


def _check(task: Task, folder: Path, allow_adult: bool) -> None:
    if task.adult and not allow_adult:
        raise ValueError(f"{task.name} has sexual content; pass --allow-adult to draw it")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder as --out, got the file {folder}")


def _rows(methods: Sequence[str], patches: Sequence[Path], task: Task) -> list[Row]:
    from erasers.eraser import get_eraser, options_for
    from erasers.evaluation.run.states import Row
    from erasers.patch import Patch

    rows = [
        Row(name, "method", name, eraser=get_eraser(name, **options_for(name, task.model)))
        for name in dict.fromkeys(methods)
    ]
    for path in patches:
        patch = Patch.load(path)
        rows.append(Row(path.stem, "patch", patch.meta["method"], patch=patch))
    return rows
