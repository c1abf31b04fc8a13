"""`erase generate`: pictures of a prompt, with and without patches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from erasers.cli import input as cli_input
from erasers.cli.input import load_model
from erasers.cli.options import (
    DEFAULT_MODEL,
    GUIDANCE,
    SEED,
    STEPS,
    Config,
    ControlFile,
    Device,
    Dtype,
    Force,
    ImageFile,
    ImageStrength,
    MaskFile,
    Model,
    Overwrite,
    Revision,
    Size,
    Strength,
    Variant,
    finite,
    model_options,
)
from erasers.cli.output import err, out
from erasers.cli.pictures import read_pictures
from erasers.cli.places import check_places


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    model: Model = DEFAULT_MODEL,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    patch: Annotated[list[str] | None, typer.Option(help="A patch; before and after are drawn. Repeatable.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, max=64, help="Pictures.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=SEED, help="Seed of the first picture; the next has the next.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=STEPS, help="Denoising steps. [dim]20 for shapes, else the pipeline's; few where distilled[/dim]"
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=-GUIDANCE,
            max=GUIDANCE,
            callback=finite,
            help="Guidance scale. [dim]4 for shapes, else the pipeline's; none where distilled[/dim]",
        ),
    ] = None,
    size: Size = None,
    image: ImageFile = None,
    mask: MaskFile = None,
    control_image: ControlFile = None,
    image_strength: ImageStrength = None,
    out_file: Annotated[Path, typer.Option("--out", help="The picture, a PNG; its folder must exist.")] = Path(
        "out.png"
    ),
    overwrite: Overwrite = False,
    strength: Strength = 1.0,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Draw a prompt; with patches, before and after side by side, from the same noise."""
    cli_input.check_device(device)
    cli_input.check_dtype(dtype)
    target = cli_input.check_out_file(out_file)
    inputs = {"--image": image, "--mask": mask, "--control-image": control_image}
    check_places({"--out": target}, {"--patch": patch, "--model": model, **inputs}, overwrite=overwrite)
    if not prompt.strip():
        raise ValueError("an empty prompt; say what to draw, e.g. 'a red star'")
    pictures = read_pictures(image, mask, control_image, image_strength)
    with err.status("reading"):
        from erasers import worlds
        from erasers.asks import PlainPrompt
        from erasers.evaluation import drawing as drawings
        from erasers.evaluation import grid
        from erasers.evaluation.profile.profile import profile_for
        from erasers.evaluation.refusal.refusal import refuse_minors
        from erasers.evaluation.report import report as reporting
        from erasers.pipeline import as_patches, refuse_twice

        refuse_minors(prompt)
        loaded = as_patches(patch or [])
        refuse_twice(model, loaded)
        world = worlds.find(model)
        if world and (unknown := world.unknown_words(prompt)):
            err.print(f"{world.name} does not know {escape(', '.join(unknown))}; the picture will not show it")
        pipe = load_model(model, device, dtype, **model_options(variant, revision, config))
        profile = profile_for(model)
        profile = replace(profile, size=size or profile.size)
        drawing = drawings.plan(pipe, profile, pictures, steps=steps, guidance=guidance)
    asks = [PlainPrompt(prompt, seed + i) for i in range(n)]
    draw = partial(
        drawings.generate, drawing.pipe, asks, **{key: getattr(drawing.profile, key) for key in reporting.SETTINGS}
    )
    with err.status("drawing"):
        before = [picture for images in draw() for picture in images]
        for one in loaded:
            one.apply(pipe, strength=strength, force=force)
        after = [picture for images in draw() for picture in images] if loaded else []
    if loaded:
        pairs = zip(asks, before, after, strict=True)
        names = ", ".join(str(entry.get("name")) for one in loaded for entry in one.meta["concepts"])
        rows = [grid.Row(f"{names} erased", f"seed {ask.seed}", [grid.Cell(a), grid.Cell(b)]) for ask, a, b in pairs]
        grid.save_image(grid.draw_grid(prompt, rows), target)
    else:
        grid.save_image(grid.tile(before, columns=min(4, n)), target)
    out.print(f"{n} picture{'s' if n > 1 else ''} in {escape(str(target))}: {escape(drawing.said)}")
