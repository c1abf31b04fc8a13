"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Annotated, TypeVar

import typer

T = TypeVar("T", float | None, int | None)

DEFAULT_MODEL = "CompVis/stable-diffusion-v1-4"

PATCH = "A patch file, a folder with one, or a Hub id"
REPORT, PICTURES = "The report", "The pictures that are drawn"
"""Heads of groups of options in the help."""

PatchReference = Annotated[str, typer.Argument(metavar="PATCH", help=PATCH)]
Model = Annotated[
    str,
    typer.Option(
        help="[bold]shapes[/bold] or [bold]shapes-sd3[/bold] (embedded), a diffusers folder, a .safetensors file, "
        "or a Hub id."
    ),
]
Variant = Annotated[
    str | None, typer.Option(help="Of the model's files, e.g. fp16. [dim]the plain ones, or the only variant[/dim]")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")]
Config = Annotated[
    Path | None,
    typer.Option(
        help="Diffusers folder of a model like the checkpoint that --model names; it needs no weights. [dim]from the "
        "Hub[/dim]"
    ),
]
STEPS, SIZE, SEED, GUIDANCE = 10_000, 16_384, 2**63 - 1_000, 10_000.0
"""The most that the command takes; what is more is a slip, and would run for ever or out of memory."""


def _require(holds: Callable[[float], bool], expected: str) -> Callable[[T], T]:
    """What the argument parser asks about a number that was given; it refuses one that the ranges let through."""

    def check(value: T) -> T:
        if value is not None and not holds(value):
            raise ValueError(f"{expected}, got {value}")
        return value

    return check


finite = _require(isfinite, "expected a finite number")


Size = Annotated[
    int | None,
    typer.Option(
        min=8,
        max=SIZE,
        # Autoencoders make eight pixels, or more, of one place.
        callback=_require(lambda side: side % 8 == 0, "--size: expected a multiple of 8"),
        help="Side of the pictures in pixels. [dim]the model's own[/dim]",
        rich_help_panel=PICTURES,
    ),
]
ImageFile = Annotated[
    Path | None,
    typer.Option(
        "--image", help="Picture to draw from (image-to-image, inpainting, editing).", rich_help_panel=PICTURES
    ),
]
MaskFile = Annotated[
    Path | None,
    typer.Option("--mask", help="Mask for it: white is drawn anew (inpainting).", rich_help_panel=PICTURES),
]
ControlFile = Annotated[
    Path | None,
    typer.Option(
        "--control-image", help="Edges, depths or a pose, for a ControlNet or adapter.", rich_help_panel=PICTURES
    ),
]
ImageStrength = Annotated[
    float | None,
    typer.Option(
        "--image-strength",
        min=0,
        max=1,
        callback=finite,
        help="How far to go from --image, up to 1. [dim]the pipeline's own[/dim]",
        rich_help_panel=PICTURES,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps, xpu.")]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto, float32, float16, bfloat16. [dim]auto: float32 on a CPU, else float16; to train or to attack by "
        "gradients bfloat16, where the device has it[/dim]"
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory there is for what takes gradients, such as 24GB; batches are split until they fit, with the same "
        "result but for rounding. [dim]what the device has; on a CPU nothing is split[/dim]",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")]
Strength = Annotated[
    float,
    typer.Option(min=-100, max=100, callback=finite, help="Scale of the patches; 0 changes nothing, 1 is as fitted."),
]
Force = Annotated[bool, typer.Option("--force", help="Apply a patch that was fitted on other weights, too.")]
