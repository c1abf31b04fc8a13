"""`erase bench run --dry-run`: what there is to draw, and how long it may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erasers.cli.bench.start import Start
from erasers.cli.console import err, out, plain

if TYPE_CHECKING:
    from erasers.evaluation.run.run import Run


def is_embedded(name: str) -> bool:
    """Whether a task is for an embedded model, which loads in a moment."""
    from erasers import worlds
    from erasers.evaluation.tasks.task import read_task

    return worlds.find(read_task(name).model) is not None


def say_what_is_missing(run: Run) -> None:
    """What a run on this folder would still draw and train."""
    from erasers.evaluation.tasks.cost import Load, estimate

    cases = {row.name: run.stage.cases(row) for row in run.stage.all_rows}
    loads = [Load(name, count, cases[name]) for name, count in run.picturing.missing().items()]
    for line in estimate(run.stage.task, loads, run.fitting.costs()):
        out.print(plain(line))


def say_what_there_is(start: Start) -> None:
    """What a run would draw into an empty folder: counted without the model, its judge and files of prompts."""
    from erasers.evaluation.run.states import case_of, find_reference
    from erasers.evaluation.scores.records import UNEDITED
    from erasers.evaluation.scores.results import REFERENCE
    from erasers.evaluation.tasks.cost import estimate, loads

    start.check_methods()
    task = start.task()
    rows = {UNEDITED: list(task.named_cases)}
    if task.references:
        rows[REFERENCE] = [case for case, path in task.references.items() if find_reference(task.places(path))]
    for row in start.rows(task):
        rows[row.name] = [case_of(task, row.patch)] if row.patch else list(task.named_cases)
    for line in estimate(task, loads(task, rows)):
        out.print(plain(line))
    err.print("counted as for an empty folder, without loading the model")
