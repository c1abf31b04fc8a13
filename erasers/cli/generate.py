"""`erase generate`: pictures of a prompt, with and without patches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from erasers.cli.console import err, out
from erasers.cli.groups import refuse_idle, with_groups
from erasers.cli.model import Hardware, ModelOptions
from erasers.cli.options import GUIDANCE, SEED, STEPS, Force, Overwrite, Size, Strength, finite
from erasers.cli.pictures import DrawnFrom, in_format, picture_format
from erasers.cli.targets import check_out_file, check_targets, written_or_kept


@with_groups
def generate(
    *,
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    base: ModelOptions,
    references: Annotated[
        list[str] | None, typer.Option("--patch", help="A patch; before and after are drawn. Repeatable.")
    ] = None,
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
    drawn_from: DrawnFrom,
    out_file: Annotated[
        Path, typer.Option("--out", help="The picture: .png, .jpg, .webp or .bmp; its folder must exist.")
    ] = Path("out.png"),
    overwrite: Overwrite = False,
    strength: Strength = 1.0,
    force: Force = False,
    hardware: Hardware,
) -> None:
    """Draw a prompt; with patches, before and after side by side, from the same noise."""
    hardware.check()
    if not references:
        refuse_idle(context, ["--strength", "--force"], "for patches; add --patch PATCH")
    target = check_out_file(out_file)
    check_targets(
        {"--out": target}, {"--patch": references, "--model": base.model, **drawn_from.files()}, overwrite=overwrite
    )
    kind = picture_format(target)
    if not prompt.strip():
        raise ValueError("an empty prompt; say what to draw, e.g. 'a red star'")
    pictures = drawn_from.read()
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
        patches = as_patches(references or [])
        refuse_twice(base.model, patches)
        world = worlds.find(base.model)
        if world and (unknown := world.unknown_words(prompt)):
            err.print(f"{world.name} does not know {escape(', '.join(unknown))}; the picture will not show it")
        pipe = base.load(hardware)
        profile = profile_for(base.model)
        profile = replace(profile, size=size or profile.size)
        drawing = drawings.plan(pipe, profile, pictures, steps=steps, guidance=guidance)
    asks = [PlainPrompt(prompt, seed + i) for i in range(n)]
    settings = {key: getattr(drawing.profile, key) for key in reporting.SETTINGS}
    draw = partial(drawings.generate, drawing.pipe, asks, **settings)
    with err.status("drawing"):
        before = [picture for batch in draw() for picture in batch]
        for patch in patches:
            patch.apply(pipe, strength=strength, force=force)
        after = [picture for batch in draw() for picture in batch] if patches else []
    if patches:
        pairs = zip(asks, before, after, strict=True)
        names = ", ".join(str(entry.get("name")) for patch in patches for entry in patch.meta["concepts"])
        rows = [
            grid.GridRow(f"{names} erased", f"seed {ask.seed}", [grid.Cell(a), grid.Cell(b)]) for ask, a, b in pairs
        ]
        sheet = grid.draw_grid(prompt, rows)
    else:
        sheet = grid.tile(before, columns=min(4, n))
    written_or_kept(in_format(partial(grid.save_image, sheet), kind), target, overwrite=overwrite)
    out.print(f"{n} picture{'s' if n > 1 else ''} in {escape(str(target))}: {escape(drawing.said)}")
