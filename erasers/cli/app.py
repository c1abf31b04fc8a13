"""The `erase` command."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from erasers.cli import input as cli_input
from erasers.cli import processes as cli_processes
from erasers.cli.bench import bench
from erasers.cli.generate import generate
from erasers.cli.input import load_model
from erasers.cli.options import (
    DEFAULT_MODEL,
    EXAMPLES,
    HELP,
    PATCH,
    REPORT,
    SEED,
    Config,
    ControlFile,
    Device,
    Dtype,
    Force,
    ImageFile,
    ImageStrength,
    MaskFile,
    Memory,
    Model,
    Overwrite,
    PatchReference,
    Revision,
    Size,
    Strength,
    Variant,
    as_options,
    model_options,
)
from erasers.cli.output import err, fail, out, show_cost, show_next, show_notes, show_patch, show_result
from erasers.cli.places import check_places, report_files, written_or_kept
from erasers.cli.sae import explain, sae
from erasers.cli.threads import let_idle_threads_sleep
from erasers.concept import KINDS
from erasers.models.families import UnsupportedPipeline

if TYPE_CHECKING:
    from erasers.concept import Concept
    from erasers.eraser import Eraser
    from erasers.evaluation.drawing import Drawing
    from erasers.evaluation.profile.profile import Profile
    from erasers.models.inputs import Pictures
    from erasers.patch import Patch

app = typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """Run the command; every error is one line on stderr and an exit code, 2 for bad input."""
    let_idle_threads_sleep()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command with arguments and return its exit code. `ERASERS_DEBUG=1` shows tracebacks."""
    try:
        _check_text(arguments)
        code = app(list(arguments), prog_name="erase", standalone_mode=False)
        # The argument parser turns an interrupt into this code.
        return fail("interrupted", 130) if code == 130 else int(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", 130)
    except Exception as error:
        if os.environ.get("ERASERS_DEBUG"):
            raise
        # Usage errors of the argument parser carry `format_message`; the types below are the library's refusals.
        usage = getattr(error, "format_message", None)
        if usage is not None:
            text = str(usage())
            hint = " (a concept is given as --concept TEXT)" if text.startswith("No such command") else ""
            return fail(text + hint, 2)
        if isinstance(error, (ValueError, OSError, UnsupportedPipeline)):
            return fail(as_options(_said(error)) or type(error).__name__, 2)
        if isinstance(error, RuntimeError) and _is_out_of_memory(error):
            return fail("out of memory; take a smaller --size, fewer pictures, or half precision (--dtype)", 2)
        return fail(f"{type(error).__name__}: {error}; set ERASERS_DEBUG=1 for the traceback", 1)


def _said(error: Exception) -> str:
    """What an error says; of one of the system, which file and why."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _is_out_of_memory(error: Exception) -> bool:
    from erasers.diffusion.needs import is_out_of_memory

    return is_out_of_memory(error)


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse arguments whose bytes are no text: they could be neither printed nor written to a file."""
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise ValueError(f"expected arguments in UTF-8, got {argument!r}")


@app.callback(invoke_without_command=True, help=HELP, epilog=EXAMPLES)
def erase(
    context: typer.Context,
    concept: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What goes. Repeat for several in one solve.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="A method or one of its presets; see [cyan]erase methods[/cyan].")
    ] = "rece",
    model: Model = DEFAULT_MODEL,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What it becomes: TEXT, or CONCEPT=TEXT; '' for nothing in particular."),
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Another name to erase: TEXT, or CONCEPT=TEXT.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help=f"What it is: {', '.join(KINDS)}; or CONCEPT=KIND. Templates, the usual anchor and the judge of the "
            "report go by it. [dim]that of its preset, else object[/dim]",
        ),
    ] = None,
    preserve: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="What must not move. Repeatable.")] = None,
    preserve_file: Annotated[Path | None, typer.Option(help="Text file of the same, one a line.")] = None,
    concepts_file: Annotated[
        Path | None,
        typer.Option(help="YAML or CSV of concepts: concept, anchor, aliases, preserve, neighbours, kind."),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER", help="Example pictures, for few_shot: FOLDER, or CONCEPT=FOLDER. [dim]it draws them[/dim]"
        ),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A method option as KEY=VALUE. Repeatable.")
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="The patch; its folder must exist. [dim]<concept>-<method>.safetensors[/dim]"),
    ] = None,
    overwrite: Overwrite = False,
    report: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Draw and judge before and after: a folder for index.html, grid.png and summary.json; created.",
            rich_help_panel=REPORT,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="Prompts a split. [dim]shapes 50; else 20, or 4 without a judge[/dim]",
            rich_help_panel=REPORT,
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JUDGE",
            help="Who counts what is in the pictures: nudenet, clip_zeroshot, the folder of a CLIP or of an image "
            "classifier, or none. Repeatable. [dim]what is installed: NudeNet for nudity, else CLIP[/dim]",
            rich_help_panel=REPORT,
        ),
    ] = None,
    size: Size = None,
    unsafe: Annotated[
        bool,
        typer.Option("--unsafe", help="Draw the prompts that name unsafe concepts, too.", rich_help_panel=REPORT),
    ] = False,
    image: ImageFile = None,
    mask: MaskFile = None,
    control_image: ControlFile = None,
    image_strength: ImageStrength = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(min=0, max=SEED, help="Seed of what the method draws.")] = 0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File that a training goes on from when it was stopped; gone when the patch is there."),
    ] = None,
    memory: Memory = None,
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
    if judge and report is None:
        raise ValueError("--judge is for the pictures of a report; add --report FOLDER, or leave it out")
    concepts = partial(
        cli_input.build_concepts,
        concept or [],
        anchors=anchor or [],
        aliases=alias or [],
        kinds=kind or [],
        preserve=preserve or [],
        preserve_file=preserve_file,
        concepts_file=concepts_file,
        images=images or [],
    )
    shared = (
        model,
        model_options(variant, revision, config),
        out_file,
        cli_input.report_folder(report),
        samples,
        judge or [],
        size,
        unsafe,
        _pictures(report, image, mask, control_image, image_strength),
        {"--image": image, "--mask": mask, "--control-image": control_image},
        device,
        dtype,
        seed,
        checkpoint,
        memory,
        dry_run,
        overwrite or dry_run,
    )
    files = {"--preserve-file": preserve_file, "--concepts-file": concepts_file}
    _erase(_Job(concepts, anchor or [], files, method, setting or [], *shared))


@dataclass(frozen=True)
class _Job:
    """The options of the main command; `concepts` is completed with `world=`."""

    concepts: Callable[..., tuple[Concept, ...]]
    anchors: Sequence[str]
    files: Mapping[str, Path | None]
    method: str
    settings: Sequence[str]
    model: str
    loading: Mapping[str, Any]
    out_file: Path | None
    report: Path | None
    samples: int | None
    judges: Sequence[str]
    size: int | None
    unsafe: bool
    pictures: Pictures
    picture_files: Mapping[str, Path | None]
    device: str
    dtype: str
    seed: int
    checkpoint: Path | None
    memory: str | None
    dry_run: bool
    overwrite: bool


def _erase(job: _Job) -> None:
    cli_input.check_method(job.method)
    cli_input.check_device(job.device)
    cli_input.check_dtype(job.dtype)
    if job.out_file:
        cli_input.check_out_file(job.out_file)
    main = cli_processes.join(job.device)
    with err.status("reading") as status:
        from erasers import worlds

        concepts = job.concepts(world=worlds.find(job.model))
        if job.report:
            cli_input.check_drawable(concepts)
        eraser, note = cli_input.build_eraser(job.method, job.settings, concepts, job.model)
        if any(concept.images for concept in concepts) and not eraser.sees:
            raise ValueError(f"--images is for methods that learn from pictures (few_shot), got {eraser.name}")
        if job.checkpoint:
            cli_input.check_checkpoint(job.checkpoint, eraser)
        memory = cli_input.read_memory(job.memory, eraser)
        target = job.out_file or cli_input.check_out_file(cli_input.default_out(concepts, job.method))
        outputs = {"--out": target, "--checkpoint": job.checkpoint, **report_files(job.report)}
        check_places(outputs, {"--model": job.model, **job.picture_files, **job.files}, overwrite=job.overwrite)
        status.update("loading the judges of the report" if job.report else "reading")
        # They look at the pictures of one process only.
        settled = _settle(job, concepts, job.judges if main else ["none"]) if job.report else None
        status.update("loading the model")
        pipe = load_model(
            job.model, cli_processes.own_device(job.device), job.dtype, gradients=eraser.trains, **job.loading
        )
        drawing = _plan(job, settled[0], pipe) if settled else None
    if note and main:
        err.print(escape(note))
    chosen = [] if job.files["--concepts-file"] else cli_input.anchor_notes(concepts, job.anchors)
    if job.dry_run:
        show_cost(eraser, pipe, concepts, memory)
        show_notes(chosen)
        return
    started = time.perf_counter()
    patch = _fit(eraser, pipe, concepts, job, memory)
    edit_seconds = round(time.perf_counter() - started, 4)
    if main:
        written_or_kept(patch.save, target)
    if job.checkpoint:
        from erasers.processes import own_file

        own_file(job.checkpoint).unlink(missing_ok=True)
    if not main:
        return
    summary = None
    if drawing and settled:
        summary = _report(job, drawing, settled[1], patch, concepts, edit_seconds, target)
    show_notes(chosen)
    show_result(concepts, patch, target, edit_seconds, job.report, summary)
    show_next(target, job.model)


@app.command()
def methods() -> None:
    """List the methods, their options with defaults, and their presets."""
    from erasers.eraser import eraser_class, list_erasers
    from erasers.options import describe

    for name in list_erasers():
        cls = eraser_class(name)
        first = " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())
        out.print(f"[bold cyan]{name}[/bold cyan]  {escape(first)}")
        for field in fields(cls):
            default = "required" if field.default is MISSING else f"{field.default}"
            hint = escape(describe(_hints(cls)[field.name]))
            out.print(f"  --set [cyan]{field.name}[/cyan]={escape(default)}  [dim]{hint}[/dim]")
        if cls.presets:
            out.print(f"  presets: {', '.join(sorted(cls.presets))}")


@app.command()
def apply(
    patches: Annotated[list[str], typer.Argument(metavar="PATCH...", help=f"{PATCH}; applied in order.")],
    save: Annotated[Path, typer.Option(help="New or empty folder for the erased model.")],
    model: Model = DEFAULT_MODEL,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    strength: Strength = 1.0,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Apply patches and write a plain diffusers folder, which loads without this library."""
    cli_input.check_device(device)
    cli_input.check_dtype(dtype)
    with err.status("reading"):
        from erasers.folders.write import check_free_folder
        from erasers.pipeline import ErasedPipeline, as_patches, refuse_twice

        loaded = as_patches(patches)
        refuse_twice(model, loaded)
        folder = check_free_folder(save)
        pipe = load_model(model, device, dtype, **model_options(variant, revision, config))
    for patch in loaded:
        patch.apply(pipe, strength=strength, force=force)
    ErasedPipeline.save_pretrained(pipe, folder, loaded)
    plain = (folder / "erasure.json").is_file()
    note = "with erasure.json beside the weights" if plain else "with hooks; it needs this library to load"
    out.print(f"erased model in {escape(str(save))}: a {type(pipe).__name__}, {note}")


@app.command()
def export(
    reference: PatchReference,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the file; the folder above it must exist.")],
    form: Annotated[
        str, typer.Option(help="lora (diffusers), kohya (web UIs, too), or delta (the edited weights themselves).")
    ] = "lora",
    model: Model = DEFAULT_MODEL,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    overwrite: Overwrite = False,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Write a patch as a file of weights that loads without this library. A LoRA can be switched off by its user."""
    cli_input.check_form(form)
    cli_input.check_device(device)
    cli_input.check_dtype(dtype)
    with err.status("reading"):
        from erasers.patch.forms import DELTA_FILE, LORA_FILE, check_folder
        from erasers.pipeline import as_patches

        check_folder(folder)
        check_places({"--out": folder / (DELTA_FILE if form == "delta" else LORA_FILE)}, overwrite=overwrite)
        patch = as_patches(reference)[0]
        pipe = load_model(model, device, dtype, **model_options(variant, revision, config))
    if form == "delta":
        path = patch.to_delta(pipe, folder, force=force)
    else:
        path = patch.to_lora(pipe, folder, form="peft" if form == "lora" else form, force=force)
    out.print(f"{form} in {escape(str(path))}  ({path.stat().st_size} bytes)")


@app.command()
def inspect(reference: PatchReference) -> None:
    """Say what a patch erases, from which weights, and what is in it."""
    with err.status("reading"):
        from erasers.patch import Patch
        from erasers.patch.find import find_patch

        path = find_patch(reference)
        patch = Patch.load(path)
    show_patch(path, patch)


@app.command()
def push(
    reference: PatchReference,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="user/name on the Hub; created when missing.")],
    report: Annotated[
        Path | None, typer.Option(help="Folder of a report on the patch, for scores and picture.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Hub id of the model it was fitted on. [dim]from the report[/dim]")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Publish a patch on the Hub with a generated model card."""
    with err.status("pushing"):
        from erasers.pipeline import as_patches

        patch = as_patches(reference)[0]
        address = patch.push_to_hub(repository, private=private or None, report=report, base_model=base)
    out.print(f"patch and model card in {escape(address)}")


app.command()(generate)
app.command()(explain)
app.add_typer(bench, name="bench")
app.add_typer(sae, name="sae")


def _fit(eraser: Eraser, pipe: Any, concepts: Sequence[Concept], job: _Job, memory: int | None) -> Patch:
    import torch

    generator = torch.Generator().manual_seed(job.seed)
    more: dict[str, Any] = {"checkpoint": job.checkpoint, "memory": memory} if eraser.trains else {}
    # A training shows bars of its own.
    with nullcontext() if eraser.trains else err.status("erasing"):
        return eraser.fit(pipe, list(concepts), generator=generator, progress=True, **more)


def _pictures(
    report: str | None, image: Path | None, mask: Path | None, control_image: Path | None, strength: float | None
) -> Pictures:
    from erasers.cli.pictures import read_pictures

    given = {"--image": image, "--mask": mask, "--control-image": control_image, "--image-strength": strength}
    for option, value in given.items():
        if value is not None and report is None:
            raise ValueError(f"{option} is for the pictures of a report; add --report FOLDER, or leave it out")
    return read_pictures(image, mask, control_image, strength)


def _settle(job: _Job, concepts: Sequence[Concept], judges: Sequence[str]) -> tuple[Profile, int]:
    import logging

    from erasers.evaluation.report.judges import settle

    # Else the lines of its retries stand between ours where there is no connection.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return settle(job.model, concepts, unsafe=job.unsafe, samples=job.samples, judges=judges)


def _plan(job: _Job, profile: Profile, pipe: Any) -> Drawing:
    from erasers.evaluation.drawing import plan

    return plan(pipe, replace(profile, size=job.size or profile.size), job.pictures)


def _report(
    job: _Job,
    drawing: Drawing,
    samples: int,
    patch: Patch,
    concepts: Sequence[Concept],
    edit_seconds: float,
    target: Path,
) -> dict[str, Any]:
    from erasers.evaluation.report.report import make_report
    from erasers.files.report_folder import check_report_folder

    facts = {
        "edit_seconds": edit_seconds,
        "patch_bytes": target.stat().st_size,
        "patch_file": str(target),
        "model": job.model,
        "drawn": drawing.said,
    }
    folder = check_report_folder(job.report or Path())
    more: dict[str, Any] = {"profile": drawing.profile, "samples": samples, "facts": facts, "console": err}
    return make_report(drawing.pipe, patch, concepts, folder, **more)


def _hints(cls: type) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(cls)


def _version() -> str:
    from erasers.version import library_version

    return library_version()


def _refuse_misplaced(context: typer.Context) -> None:
    given = [
        name
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", "DEFAULT") == "COMMANDLINE"
    ]
    if given:
        option = {"out_file": "out", "setting": "set"}.get(given[0], given[0])
        raise ValueError(f"--{option} stands before {context.invoked_subcommand!r}; options of a subcommand follow it")
