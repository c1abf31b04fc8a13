"""The main command: a concept becomes an eraser's patch, and a report where one is asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from erasers.cli import processes
from erasers.cli.concepts import Words, anchor_notes, build_concepts
from erasers.cli.console import err, out, show_notes
from erasers.cli.cost import show_cost
from erasers.cli.eraser import Fitting, build_eraser, check_method
from erasers.cli.groups import given_options, with_groups
from erasers.cli.model import Hardware, ModelOptions, pick_device
from erasers.cli.options import Overwrite
from erasers.cli.pictures import DrawnFrom
from erasers.cli.recipe import RecipeFile, eraser_of
from erasers.cli.recipe import read as read_recipe
from erasers.cli.report import Planned, Report, ReportOptions, check_drawable
from erasers.cli.result import show_next, show_result
from erasers.cli.targets import check_out_file, check_targets, default_out, report_files, written_or_kept

if TYPE_CHECKING:
    from rich.status import Status

    from erasers.concept import Concept
    from erasers.eraser import Eraser
    from erasers.methods.leco import Recipe
    from erasers.patch import Patch


@with_groups
def erase(
    *,
    context: typer.Context,
    concept: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What goes. Repeat for several in one solve.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="A method, a preset, or several on top of each other (a+b); see [cyan]erase methods[/cyan]."),
    ] = "rece",
    recipe: RecipeFile = None,
    base: ModelOptions,
    words: Words,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A method option as KEY=VALUE. Repeatable.")
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="The patch; its folder must exist. [dim]<concept>-<method>.safetensors[/dim]"),
    ] = None,
    overwrite: Overwrite = False,
    report: ReportOptions,
    drawn_from: DrawnFrom,
    hardware: Hardware,
    fitting: Fitting,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what training will cost, and train nothing.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    """See `HELP`."""
    if context.invoked_subcommand is not None:
        _refuse_misplaced(context)
        return
    if version:
        out.print(f"erasers {_version()}")
        return
    asked = report.asked(context, drawn_from)
    check_method(method)
    hardware.check()
    plan = read_recipe(recipe, context) if recipe else None
    if out_file:
        check_out_file(out_file)
    inputs = {"--model": base.model, "--recipe": recipe, **drawn_from.files(), **words.files()}
    target = _Target(out_file, inputs, overwrite or dry_run)
    names = concept or (plan.names if plan else [])
    job = _Job(
        names, words, plan.method if plan else method, plan, setting or [], base, hardware, fitting, target, asked
    )
    _erase(job, dry_run=dry_run)


@dataclass(frozen=True)
class _Target:
    """Where the patch goes: a file, or one named after the concepts; what is read, by option, stays."""

    file: Path | None
    inputs: Mapping[str, object]
    overwrite: bool

    def checked(self, concepts: Sequence[Concept], method: str, others: Mapping[str, Path | None]) -> Path:
        """The file, which takes the place of nothing that is read or written.

        Args:
            concepts: What is erased.
            method: As on the command line.
            others: What else is written.
        """
        path = self.file or check_out_file(default_out(concepts, method))
        check_targets({"--out": path, **others}, self.inputs, overwrite=self.overwrite)
        return path


@dataclass(frozen=True)
class _Job:
    """What the main command was asked for."""

    names: Sequence[str]
    words: Words
    method: str
    recipe: Recipe | None
    settings: Sequence[str]
    base: ModelOptions
    hardware: Hardware
    fitting: Fitting
    target: _Target
    report: Report | None


def _erase(job: _Job, *, dry_run: bool) -> None:
    """The way of a concept: concept -> eraser -> patch -> report."""
    speaks = processes.join(job.hardware)
    with err.status("reading") as status:
        concepts = _concepts(job)
        if job.recipe:
            eraser, note = eraser_of(job.recipe, job.settings)
        else:
            eraser, note = build_eraser(job.method, job.settings, concepts, job.base.model)
        memory = job.fitting.check(eraser, concepts)
        target = job.target.checked(concepts, job.method, _others(job))
        if dry_run:
            pipe, planned = _bare(job, eraser, status), None
        else:
            pipe, planned = _load(job, eraser, concepts, status, judged=speaks)
    if note and speaks:
        err.print(escape(note))
    if dry_run:
        show_cost(eraser, pipe, concepts, pick_device(processes.own(job.hardware).device), memory)
        show_notes(_notes(job, concepts))
        return
    patch, seconds = _fit(job.fitting, eraser, pipe, concepts, memory)
    if speaks:
        written_or_kept(patch.save, target, overwrite=job.target.overwrite)
    job.fitting.forget()
    if speaks:
        facts = {"edit_seconds": seconds, "patch_bytes": target.stat().st_size, "patch_file": str(target)}
        summary = planned.make(patch, concepts, {**facts, "model": job.base.model}) if planned else None
        show_notes(_notes(job, concepts))
        show_result(concepts, patch, target, seconds, planned.folder if planned else None, summary)
        show_next(target, job.base.model)


def _concepts(job: _Job) -> tuple[Concept, ...]:
    from erasers import worlds

    concepts = build_concepts(job.names, job.words, world=worlds.find(job.base.model))
    if job.recipe and not job.words.anchor:
        # Its prompts say what becomes of a concept, and no anchor does.
        concepts = tuple(replace(concept, anchor="") for concept in concepts)
    if job.report:
        check_drawable(concepts)
    return concepts


def _notes(job: _Job, concepts: Sequence[Concept]) -> list[str]:
    """What was chosen for the user; a recipe says itself what becomes of its prompts."""
    return [] if job.recipe else anchor_notes(concepts, job.words)


def _others(job: _Job) -> dict[str, Path | None]:
    """What is written beside the patch."""
    return {"--checkpoint": job.fitting.checkpoint, **report_files(job.report.folder if job.report else None)}


def _load(
    job: _Job, eraser: Eraser, concepts: Sequence[Concept], status: Status, *, judged: bool
) -> tuple[Any, Planned | None]:
    """The model, and how it will draw the report; the judges come first, for they are sooner refused."""
    settled = None
    if job.report:
        status.update("loading the judges of the report")
        settled = job.report.settle(job.base.model, concepts, judged=judged)
    status.update("loading the model")
    pipe = job.base.load(processes.own(job.hardware), gradients=eraser.trains)
    return pipe, job.report.plan(settled, pipe) if job.report and settled else None


def _bare(job: _Job, eraser: Eraser, status: Status) -> Any:
    """The model without its weights; an embedded one is small, and has them, so that a call can be timed."""
    from erasers import worlds

    status.update("reading the model")
    bare = worlds.find(job.base.model) is None
    return job.base.load(processes.own(job.hardware), gradients=eraser.trains, bare=bare)


def _fit(
    fitting: Fitting, eraser: Eraser, pipe: Any, concepts: Sequence[Concept], memory: int | None
) -> tuple[Patch, float]:
    """The patch, and how many seconds it took."""
    import torch

    generator = torch.Generator().manual_seed(fitting.seed)
    more: dict[str, Any] = {"checkpoint": fitting.checkpoint, "memory": memory} if eraser.trains else {}
    started = time.perf_counter()
    # A training shows bars of its own.
    with nullcontext() if eraser.trains else err.status("erasing"):
        patch = eraser.fit(pipe, list(concepts), generator=generator, progress=True, **more)
    return patch, round(time.perf_counter() - started, 4)


def _version() -> str:
    from erasers.version import library_version

    return library_version()


def _refuse_misplaced(context: typer.Context) -> None:
    if given := given_options(context):
        raise ValueError(f"{given[0]} stands before {context.invoked_subcommand!r}; options of a subcommand follow it")
