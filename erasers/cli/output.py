"""What the `erase` command prints: results on stdout, progress and the one line of an error on stderr."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from erasers.concept import Concept
    from erasers.eraser import Eraser
    from erasers.patch import Patch

if not os.environ.get("COLUMNS", "80").strip("0 "):
    # A terminal of no columns would show nothing.
    del os.environ["COLUMNS"]
# Tables keep to the width of the terminal; other lines are left whole for whoever reads them by program.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
_LISTED = 4
_MEASURED = 50_000_000
"""Weights of a denoiser up to which a dry run measures how long a call takes."""
PASSES_OF_A_GRADIENT = 3
"""Forward passes of the denoiser that a forward and a backward pass take as long as."""


def show_result(
    concepts: Sequence[Concept],
    patch: Patch,
    target: Path,
    seconds: float,
    report: Path | None,
    summary: dict[str, Any] | None,
) -> None:
    """Print what was erased, the table of the report, and where the files are."""
    for one in concepts:
        out.print(f"[bold]{escape(one.name)}[/bold] -> {escape(repr(one.anchor))}")
    if summary and summary["splits"]:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for head in ("prompts", "should", "n", "before", "after", "reading"):
            table.add_column(head, no_wrap=head != "reading")
        for split, pair in summary["splits"].items():
            should = "fall" if split in ("explicit", "synonym") else "stay"
            reading = summary.get("readings", {}).get(split, {"word": "", "warning": ""})
            word = f"[{'red' if reading['warning'] else 'green'}]{escape(reading['word'])}[/]"
            numbers = (str(pair["after"]["n"]), _percent(pair["before"]), _percent(pair["after"]))
            table.add_row(split, should, *numbers, word)
        out.print("share of the pictures that show the concept, or what was asked for where it should stay:")
        out.print(table, soft_wrap=False)
    if summary and summary.get("drawn"):
        out.print(escape(f"drawn     {summary['drawn']}"))
    if summary and summary.get("note"):
        out.print(escape(f"note: {summary['note']}"))
    out.print(
        f"patch     {escape(str(target))}  ({_bytes(target.stat().st_size)}, {patch.meta['method']}, {seconds:.2f} s)"
    )
    if report:
        for line in (summary or {}).get("warnings", ()):
            out.print(f"[bold red]look at[/bold red]   {plain(line)}")
        out.print(
            f"report    {escape(str(report / 'index.html'))}  (open it in a browser; grid.png and summary.json beside)"
        )


def show_next(patch: Path, model: str) -> None:
    """Print what a user may do with a new patch."""
    command = f"erase generate PROMPT --model {shlex.quote(model)} --patch {shlex.quote(str(patch))}"
    out.print(f"next      {plain(command)}  (before and after; see also erase apply)")


def show_notes(notes: Sequence[str]) -> None:
    """Print what was chosen for the user, on stderr."""
    for note in notes:
        err.print(plain(note))


def show_cost(eraser: Eraser, pipe: Any, concepts: Sequence[Concept], memory: int | None = None) -> None:
    """Print what a training will need, by counting: calls, what is trained, memory, work, and the time of all that.

    Args:
        eraser: The method.
        pipe: The pipeline.
        concepts: What would be erased.
        memory: Bytes that there are; what the device has where None.
    """
    if not eraser.trains:
        out.print(f"{eraser.name} trains nothing")
        return
    from erasers.diffusion.needs import free_memory, gigabytes
    from erasers.training.foretelling import REFERENCE
    from erasers.training.loop import TrainedEraser, seconds_a_pass

    if not isinstance(eraser, TrainedEraser):
        raise ValueError(f"expected {eraser.name} to foretell its cost, got a method that cannot")
    found = eraser.foretell(pipe, list(concepts))
    room = free_memory(pipe) if memory is None else memory
    batch = found.largest if room is None else found.batch(room)
    out.print(f"{eraser.name}  {found.calls}")
    out.print(f"trains    {found.trained:,} numbers of {found.weights} weights")
    parts = {"model": found.model, "training": found.state, "latents": found.latents}
    rest = found.memory(batch) - sum(parts.values())
    out.print(
        f"memory    {gigabytes(found.memory(batch))}: "
        + ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items())
        + f", activations {gigabytes(rest)} with {batch} of {found.largest} latents at once; "
        f"one at once takes {gigabytes(found.memory(1))} in all"
    )
    out.print(f"work      {found.flops:.3g} floating-point operations; {found.hours:.2g} hours of {REFERENCE}")
    if sum(parameter.numel() for parameter in pipe.unet.parameters()) > _MEASURED:
        return
    seconds = seconds_a_pass(pipe)
    total = seconds * (found.calls.denoiser + PASSES_OF_A_GRADIENT * found.calls.gradients)
    out.print(f"estimate  {total / 60:.1f} minutes, {seconds * 1000:.3g} ms a denoiser call (measured, one at a time)")


def _percent(score: dict[str, Any]) -> str:
    return f"{score['value']:.0%} ({100 * score['low']:.0f} to {100 * score['high']:.0f})"


def _bytes(count: int) -> str:
    return (
        f"{count} bytes" if count < 1024 else f"{count / 1024:.1f} KB" if count < 2**20 else f"{count / 2**20:.1f} MB"
    )


def show_patch(path: Path, patch: Patch) -> None:
    """Print what a patch erases, from which weights, and its tensors."""
    meta = patch.meta
    out.print(f"[bold]{plain(path)}[/bold]  {_bytes(path.stat().st_size)}")
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
        size = _bytes(tensor.numel() * tensor.element_size())
        table.add_row(plain(name), shape, str(tensor.dtype).removeprefix("torch."), size)
    out.print(table, soft_wrap=False)
    command = f"erase apply {shlex.quote(str(path))} --model MODEL --save FOLDER"
    out.print(f"use       {plain(command)}  with the model that it was fitted on")


def _listed(value: object) -> str:
    """A value of a concept; texts that are only counted in the file as their number."""
    return f"{value['count']} texts" if isinstance(value, dict) and "count" in value else repr(value)


def plain(value: object) -> str:
    """Text that may come from a file, for printing: no markup, and no characters that a terminal obeys."""
    return escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)))


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line on stderr; stands in for `warnings.showwarning`."""
    err.print(f"warning: {plain(message)}")


def fail(message: str, code: int) -> int:
    """Print an error as one line on stderr and return its exit code."""
    line = " ".join(str(message).split())
    err.print(f"[bold red]error:[/bold red] {plain(line)}")
    return code
