"""What a run of a task begins with: the task and its files, the rows, the judge and the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasers.cli import processes
from erasers.cli.bench.options import prompt_files
from erasers.cli.console import err, plain
from erasers.cli.eraser import check_method
from erasers.cli.model import Hardware, ModelOptions

if TYPE_CHECKING:
    from erasers.evaluation.run.run import Run
    from erasers.evaluation.run.states import Row
    from erasers.evaluation.tasks.task import Task


@dataclass(frozen=True)
class Start:
    """What `erase bench run` was asked for; other processes begin with the same.

    Args:
        name: Of the task, or its file.
        methods: Methods and presets.
        patches: Files.
        folder: Of pictures, verdicts, patches and results.
        limit: Prompts a split, at most.
        allow_adult: Tasks with sexual content are drawn, too.
        prompts: As on the command line.
        judge_model: Folder in place of the model of the judge.
        memory: Bytes that there are for what takes gradients.
        hardware: What the model runs on.
    """

    name: str
    methods: Sequence[str]
    patches: Sequence[Path]
    folder: Path
    limit: int | None
    allow_adult: bool
    prompts: Sequence[str]
    judge_model: Path | None
    memory: int | None
    hardware: Hardware

    def begin(self) -> Run:
        """The run, with the model loaded; nothing is drawn.

        Raises:
            ValueError: From every check of what was asked for.
        """
        self.check_methods()
        self.hardware.check()
        with err.status("reading"):
            from erasers.evaluation.run.run import Run
            from erasers.evaluation.run.stage import Stage
            from erasers.judges import get_judge
            from erasers.processes import Share

            share, task = Share.of_environment(), self.task()
            task = _located(task, self.prompts, share.rank == 0)
            rows, judge = self.rows(task), get_judge(task.judge, **_judge_options(task, self.judge_model))
            gradients = any(plan.attack.budget().gradients for plan in task.attacks.values())
            self._check_memory(rows, gradients=gradients)
            pipe = ModelOptions(task.model).load(processes.own(self.hardware), gradients=gradients)
            run = Run(Stage(task, pipe, judge, self.folder, rows, share, self.memory))
        _check_prompts(run)
        return run

    def _check_memory(self, rows: Sequence[Row], *, gradients: bool) -> None:
        """Refuse a memory that nothing would use.

        Raises:
            ValueError: No attack takes gradients, and no method trains.
        """
        if self.memory is not None and not gradients and not any(row.eraser and row.eraser.trains for row in rows):
            raise ValueError("no method or attack here takes gradients, so there is no --memory")

    def check_methods(self) -> None:
        """Refuse methods that are not registered.

        Raises:
            ValueError: One is not.
        """
        for method in self.methods:
            check_method(method)

    def task(self) -> Task:
        """The task, cut to the limit.

        Raises:
            ValueError: Sexual content that nobody allowed, a file as the folder, or what is no task.
        """
        from erasers.evaluation.tasks.task import read_task

        task = read_task(self.name).limited(self.limit)
        if task.adult and not self.allow_adult:
            raise ValueError(f"{task.name} has sexual content; pass --allow-adult to draw it")
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"expected a folder as --out, got the file {self.folder}")
        return task

    def rows(self, task: Task) -> list[Row]:
        """What is measured beside the unedited model and the references."""
        from erasers.eraser import get_eraser, options_for
        from erasers.evaluation.run.states import Row
        from erasers.patch import Patch

        rows = [
            Row(name, "method", name, eraser=get_eraser(name, **options_for(name, task.model)))
            for name in dict.fromkeys(self.methods)
        ]
        for path in self.patches:
            patch = Patch.load(path)
            rows.append(Row(path.stem, "patch", patch.meta["method"], patch=patch))
        return rows


def _located(task: Task, prompts: Sequence[str], main: bool) -> Task:
    """The task with its files of prompts; says what they are."""
    from erasers.evaluation.tasks.notes import notes

    located = task.located(prompt_files(prompts))
    unpinned = [name for name, source in task.sources.items() if source.sha256 is None]
    for line in notes(located, unpinned) if main else ():
        err.print(plain(line))
    return located


def _judge_options(task: Task, model: Path | None) -> dict[str, Any]:
    """The options of the task's judge, with a folder in place of the model that the task names."""
    if model is None:
        return dict(task.judge_options)
    if "model" not in task.judge_options:
        raise ValueError(f"expected --judge-model for a judge with a model of its own, got {task.judge}")
    return {key: value for key, value in task.judge_options.items() if key != "revision"} | {"model": model}


def _check_prompts(run: Run) -> None:
    """Refuse prompts that the judge cannot judge, and say how many are cut."""
    from erasers.evaluation.tasks.notes import too_long
    from erasers.evaluation.tasks.prompts import check_wants

    samples = [sample for samples in run.stage.draws.values() for sample in samples]
    check_wants(run.stage.judge, samples)
    if run.stage.share.rank == 0 and (count := too_long(run.stage.pipe, samples)):
        err.print(f"{count} prompts are longer than the text encoder reads; it reads their beginning")
