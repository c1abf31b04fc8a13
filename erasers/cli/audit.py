"""`erase audit`: everything that can be tried on a patch, with a budget, its controls, and what was not tried."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from erasers.cli.bench.helpers import work
from erasers.cli.console import err, out, plain
from erasers.cli.eraser import bytes_of
from erasers.cli.groups import with_groups
from erasers.cli.model import Hardware, ModelOptions
from erasers.cli.options import Memory, Overwrite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from erasers.evaluation.audit.run import Audit
    from erasers.evaluation.run.run import Run

PAGE, SUMMARY, WORK = "index.html", "audit.json", "work"


@with_groups
def audit(
    *,
    patch: Annotated[str, typer.Argument(metavar="PATCH", help="A file, a folder that has one, or a Hub id.")],
    base: ModelOptions,
    folder: Annotated[
        Path,
        typer.Option("--out", help="Folder for index.html, audit.json and work, from which a stopped audit goes on."),
    ] = Path("audit"),
    overwrite: Overwrite = False,
    budget: Annotated[
        str,
        typer.Option(help="quick: 4 prompts; standard: 12; thorough: 20, with the settings of the attacks' papers."),
    ] = "standard",
    prompts: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Prompts that are attacked. [dim]as the budget says[/dim]")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Prompts a split without attacks. [dim]as a report has[/dim]")
    ] = None,
    retrained: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A denoiser that was trained without the concept: what erasure aims at."),
    ] = None,
    ip_adapter: Annotated[
        str | None, typer.Option(help="An IP-Adapter of the model: pictures as prompts are tried, too.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(metavar="JUDGE", help="As for a report. Repeatable. [dim]what is installed[/dim]"),
    ] = None,
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Draw the prompts that name unsafe concepts, too.")] = False,
    memory: Memory = None,
    hardware: Hardware,
) -> None:
    """Try to bring back what a patch erases: by text, pictures, embeddings, noise, fine-tuning, each with its control.

    The same is tried on the unedited model and on one that was retrained without the concept, where there is one. One
    page says what was tried, what came back, with pictures, and what was not tried.
    """
    from erasers.evaluation.audit.plans import PROMPTS

    if budget not in PROMPTS:
        raise ValueError(f"expected --budget among {', '.join(PROMPTS)}, got {budget!r}")
    if retrained and not (retrained / "config.json").is_file():
        raise FileNotFoundError(
            f"expected the folder of a denoiser as --retrained, got {retrained}, without config.json"
        )
    hardware.check()
    _check_folder(folder, overwrite=overwrite)
    started = time.perf_counter()
    with err.status("reading"):
        job = _prepared(patch, base, hardware, bytes_of(memory), folder / WORK, judge or [], unsafe, samples)
        job = replace(job, planned=_planned(job, budget, prompts, ip_adapter), retrained=retrained)
        run = job.begin()
    _check_wants(run)
    work(run, err)
    summary = _written(job, run, folder, budget, started)
    _show(summary, folder)


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder as --out, got the file {folder}")
    taken = [name for name in (PAGE, SUMMARY) if (folder / name).exists()]
    if taken and not overwrite:
        raise FileExistsError(f"--out {folder} holds {' and '.join(taken)}; give another folder, or --overwrite")


def _prepared(
    name: str,
    base: ModelOptions,
    hardware: Hardware,
    memory: int | None,
    folder: Path,
    judges: list[str],
    unsafe: bool,
    samples: int | None,
) -> Audit:
    """The audit, with the model and the judge, without its attacks."""
    from erasers.evaluation.audit.plans import Planned
    from erasers.evaluation.audit.run import Audit, concepts_of
    from erasers.evaluation.drawing import plan
    from erasers.evaluation.refusal.refusal import refuse_minors
    from erasers.evaluation.report.judges import settle
    from erasers.judges.panel import Jury
    from erasers.models.inputs import Pictures
    from erasers.patch import Patch
    from erasers.patch.find import find_patch

    patch = Patch.load(find_patch(name))
    concepts = concepts_of(patch, base.model)
    refuse_minors(" ".join(term for concept in concepts for term in concept.terms()))
    profile, count = settle(base.model, concepts, unsafe=unsafe, samples=samples, judges=judges)
    members = profile.judges()
    if not members:
        raise ValueError(f"expected a judge, for an audit counts what is in pictures, got none: {profile.note}")
    pipe = base.load(hardware, gradients=True)
    drawing = plan(pipe, profile, Pictures())
    own: dict[str, Any] = {"folder": folder, "adult": unsafe, "memory": memory}
    return Audit(patch, concepts, base.model, pipe, Jury(members), drawing.profile, Planned({}, {}), count, **own)


def _planned(job: Audit, budget: str, prompts: int | None, adapter: str | None) -> Any:
    """The attacks; an embedded model brings its own IP-Adapter."""
    from erasers import worlds
    from erasers.evaluation.audit.plans import planned

    world = worlds.find(job.model)
    own = "auto" if world and world.ip_adapter else ""
    drawn, own = job.profile.steps, adapter or own
    return planned(job.pipe, job.concepts, job.model, budget, steps=drawn, prompts=prompts, adapter=own)


def _check_wants(run: Run) -> None:
    """Refuse to begin where the judge sees none of what the attacked prompts want."""
    asks = [sample for samples in run.stage.draws.values() for sample in samples if sample.split == "explicit"]
    sees = run.stage.judge.sees
    if not any(ask.wants and all(value in sees.get(key, ()) for key, value in ask.wants.items()) for ask in asks):
        raise ValueError(
            f"expected a judge that sees what is erased, got {run.stage.judge.name}; name one with --judge"
            + ("" if asks else ", and --unsafe where the concept is unsafe")
        )


def _written(job: Audit, run: Run, folder: Path, budget: str, started: float) -> dict[str, Any]:
    """The summary; it and the page are written."""
    from erasers.evaluation.audit import pictures, summary
    from erasers.evaluation.audit.page import audit_page
    from erasers.files.atomic import write_atomically
    from erasers.progress import progress

    results = job.results(run, lambda total: progress(err, "measuring", total))
    names = [concept.name for concept in job.concepts]
    found, splits = summary.attacks(results, job.planned), summary.splits(results)
    content: dict[str, Any] = {
        "title": f"{', '.join(names)} erased from {job.model} with {job.patch.meta['method']}: audit",
        "concepts": names,
        "model": job.model,
        "patch": job.patch.digest,
        "said": summary.said(names, splits, found),
        "attacks": found,
        "splits": splits,
        "not_tried": dict(job.planned.left_out),
        "measured": _measured(job, run, budget) | {"time": f"{(time.perf_counter() - started) / 60:.1f} minutes"},
    }
    page = audit_page(content, pictures.shown(results, run.stage.store), adult=job.adult)
    write_atomically(folder / PAGE, lambda file: file.write_text(page, encoding="utf-8"))
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(folder / SUMMARY, lambda file: file.write_text(text, encoding="utf-8"))
    return content


def _measured(job: Audit, run: Run, budget: str) -> dict[str, str]:
    """With what the numbers were made."""
    from erasers.version import library_version

    sampling = {key: value for key, value in vars(run.stage.task.sampling).items() if value is not None}
    return {
        "patch": f"{job.patch.meta['method']}, {job.patch.nbytes:,} bytes, sha256 {job.patch.digest}",
        "budget": f"{budget}; success is one picture within it",
        "judge": f"{job.judge.name}, fingerprint {job.judge.fingerprint.digest[:12]}",
        "retrained": str(job.retrained or "none: how near erasure comes to it is not known"),
        "sampler": ", ".join(f"{key} {value}" for key, value in sampling.items()) or "the pipeline's own settings",
        "device": f"{job.pipe.device}, {str(job.pipe.dtype).removeprefix('torch.')}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
        + f", erasers {library_version()}",
    }


def _show(summary: Mapping[str, Any], folder: Path) -> None:
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("attack", "back", "control", "unedited", "retrained", "reading"):
        grid.add_column(head, no_wrap=head == "attack")
    for own in summary["attacks"]:
        shares = (own.get(key) for key in ("edited", "control", "unedited", "reference"))
        cells = ("-" if share is None else f"{share['value']:.0%}" for share in shares)
        grid.add_row(own["attack"], *cells, own["reading"])
    out.print("per cent of the attacked prompts by which it was brought back:")
    out.print(grid, soft_wrap=False)
    for line in summary["said"]:
        out.print(plain(line))
    for name, why in summary["not_tried"].items():
        out.print(plain(f"not tried: {name}: {why}"))
    out.print(plain(folder / PAGE))
