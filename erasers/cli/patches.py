"""What is done with patches: `erase apply`, `export`, `inspect` and `push`."""

from __future__ import annotations

import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from erasers.cli.console import err, in_bytes, out, plain
from erasers.cli.groups import with_groups
from erasers.cli.model import Hardware, ModelOptions
from erasers.cli.options import PATCH, Force, Overwrite, PatchReference, Strength
from erasers.cli.targets import check_targets, replaced
from erasers.cli.words import suggest
from erasers.files.atomic import put_in_place

if TYPE_CHECKING:
    from erasers.patch import Patch

FORMS = ("lora", "kohya", "delta")
_LISTED = 4
"""Hooks of a patch that are listed."""


@with_groups
def apply(
    *,
    patches: Annotated[list[str], typer.Argument(metavar="PATCH...", help=f"{PATCH}; applied in order.")],
    save: Annotated[Path, typer.Option("--save", "--out", help="New or empty folder for the erased model.")],
    base: ModelOptions,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the erased model that is in the folder already.")
    ] = False,
    strength: Strength = 1.0,
    force: Force = False,
    hardware: Hardware,
) -> None:
    """Apply patches and write a plain diffusers folder, which loads without this library."""
    hardware.check()
    with err.status("reading"):
        from erasers.folders.write import check_free_folder
        from erasers.pipeline import ErasedPipeline, as_patches, refuse_twice

        check_targets({"--save": save}, {"PATCH": patches, "--model": base.model}, overwrite=True)
        loaded = as_patches(patches)
        refuse_twice(base.model, loaded)
        folder = save.absolute() if overwrite and _holds_erased(save) else check_free_folder(save)
        pipe = base.load(hardware)
    for patch in loaded:
        patch.apply(pipe, strength=strength, force=force)
    with replaced(folder) as free:
        ErasedPipeline.save_pretrained(pipe, free, loaded)
    stock = (folder / "erasure.json").is_file()
    note = "with erasure.json beside the weights" if stock else "with hooks; it needs this library to load"
    out.print(f"erased model in {escape(str(save))}: a {type(pipe).__name__}, {note}")


@with_groups
def export(
    *,
    reference: PatchReference,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the file; the folder above it must exist.")],
    form: Annotated[
        str, typer.Option(help="lora (diffusers), kohya (web UIs, too), or delta (the edited weights themselves).")
    ] = "lora",
    base: ModelOptions,
    overwrite: Overwrite = False,
    force: Force = False,
    hardware: Hardware,
) -> None:
    """Write a patch as a file of weights that loads without this library. A LoRA can be switched off by its user."""
    _check_form(form)
    hardware.check()
    with err.status("reading"):
        from erasers.patch.forms import DELTA_FILE, LORA_FILE, check_folder
        from erasers.pipeline import as_patches

        check_folder(folder)
        check_targets({"--out": folder / (DELTA_FILE if form == "delta" else LORA_FILE)}, overwrite=overwrite)
        patch = as_patches(reference)[0]
        pipe = base.load(hardware)
    with TemporaryDirectory(dir=folder.absolute().parent, prefix=".erasers-") as staging:
        if form == "delta":
            written = patch.to_delta(pipe, staging, force=force)
        else:
            written = patch.to_lora(pipe, staging, form="peft" if form == "lora" else form, force=force)
        folder.mkdir(exist_ok=True)
        path = folder / written.name
        put_in_place(written, path, overwrite=overwrite)
    out.print(f"{form} in {escape(str(path))}  ({path.stat().st_size} bytes)")


def inspect(reference: PatchReference) -> None:
    """Say what a patch erases, from which weights, and what is in it."""
    with err.status("reading"):
        from erasers.patch import Patch
        from erasers.patch.find import find_patch

        path = find_patch(reference)
        patch = Patch.load(path)
    show_patch(path, patch)


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


def _holds_erased(folder: Path) -> bool:
    """Whether an erased model was saved there, by this library."""
    from erasers.folders.record import COMPONENT, RECORD

    return any((folder / name / RECORD).is_file() for name in ("", COMPONENT))


def _check_form(form: str) -> None:
    """Refuse a form in which no patch is written.

    Raises:
        ValueError: Not one of `FORMS`.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}{suggest(form, FORMS)}; expected {', '.join(FORMS)}")


def show_patch(path: Path, patch: Patch) -> None:
    """Print what a patch erases, from which weights, and its tensors."""
    meta = patch.meta
    out.print(f"[bold]{plain(path)}[/bold]  {in_bytes(path.stat().st_size)}")
    out.print(f"method    {plain(meta['method'])}  (erasers {plain(meta.get('library', 'unknown'))})")
    for entry in meta["concepts"]:
        rest = {key: value for key, value in entry.items() if key not in ("name", "anchor", "captions") and value}
        words = ", ".join(f"{key}={_listed(value)}" for key, value in rest.items())
        out.print(f"concept   {plain(entry.get('name'))}  -> {plain(repr(entry.get('anchor', '')))}  {plain(words)}")
        if isinstance(captions := entry.get("captions"), dict):
            out.print(f"keeps     {plain(captions.get('count'))} everyday captions ({plain(captions.get('name'))})")
    options = ", ".join(f"{key}={value}" for key, value in meta["config"].items())
    out.print(f"options   {plain(options)}")
    first = "".join(f"; {plain(name)} is {digest[:16]}..." for name, digest in list(meta["base"].items())[:1])
    out.print(f"base      {len(meta['base'])} weights in {meta.get('base_dtype', '?')}{first}")
    for group, ports in meta["groups"].items():
        doubt = "; a heuristic, for they read text that is mixed with the picture" if group.startswith("joint") else ""
        out.print(f"ports     {plain(group)}: {len(ports)}{doubt}")
    for hook in patch.hooks[:_LISTED]:
        out.print(f"hooks     {hook.kind} on {hook.target}")
    if len(patch.hooks) > _LISTED:
        out.print(f"hooks     ... {len(patch.hooks)} in all")
    table = Table("tensor", "shape", "dtype", "bytes", box=None, pad_edge=False)
    for name, tensor in patch.tensors.items():
        shape = " x ".join(map(str, tensor.shape))
        size = in_bytes(tensor.numel() * tensor.element_size())
        table.add_row(plain(name), shape, str(tensor.dtype).removeprefix("torch."), size)
    out.print(table, soft_wrap=False)
    command = f"erase apply {shlex.quote(str(path))} --model MODEL --save FOLDER"
    out.print(f"use       {plain(command)}  with the model that it was fitted on")


def _listed(value: object) -> str:
    """A value of a concept; texts that are only counted in the file as their number."""
    return f"{value['count']} texts" if isinstance(value, dict) and "count" in value else repr(value)
