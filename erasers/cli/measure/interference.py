"""`erase measure interference`: what erasing each concept of an embedded world does to every other one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from erasers.cli.console import err, out, plain
from erasers.cli.eraser import build_eraser, check_method
from erasers.cli.groups import with_groups
from erasers.cli.measure.drawing import settings_of, world_of
from erasers.cli.measure.results import Results
from erasers.cli.model import Hardware, ModelOptions
from erasers.cli.options import STEPS


@with_groups
def interference(
    *,
    context: typer.Context,
    methods: Annotated[
        list[str], typer.Argument(metavar="METHOD...", help="A method, a preset or a stack; each is a row.")
    ],
    base: ModelOptions,
    concept: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Erased; repeatable, each alone. [dim]every concept of the world[/dim]"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=STEPS, help="Denoising steps. [dim]the world's own[/dim]")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="Pictures of each concept that is asked for.")] = 8,
    results: Results,
    hardware: Hardware,
) -> None:
    """Erase each concept alone and ask for all others, with the prompts and noise of the unedited model."""
    hardware.check()
    results.check(context, {"--model": base.model})
    if len(set(methods)) < len(methods):
        raise ValueError("expected each method once, got one twice")
    for method in methods:
        check_method(method)
    with err.status("reading"):
        from erasers.evaluation.probes import interference as probe
        from erasers.progress import progress

        world = world_of(base.model)
        named = [world.concept(word) for word in concept or world.words]
        emitters = list(dict.fromkeys(own.name for own in named))
        erasers = {method: build_eraser(method, [], named, base.model)[0] for method in methods}
        pipe = base.load(hardware)
        for eraser in erasers.values():
            eraser.check_pipe(pipe)
        total = probe.pictures(world, emitters, samples, len(methods))
    with progress(err, "drawing", total) as advance:
        looked = probe.interference(
            pipe, erasers, world, emitters, settings_of(world, steps), samples=samples, advance=advance
        )
    measured = {"model": base.model, **looked}
    _show(measured)
    results.write(measured, probe.draw_interference)


def _show(measured: dict[str, Any]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("row", "erased", "others", "least: erased, asked for", "likeness of words"):
        table.add_column(head, no_wrap=head in ("erased", "others"))
    for row, facts in measured["rows"].items():
        pairs = [(emitter == name, share) for emitter, own in facts["kept"].items() for name, share in own.items()]
        own, others = (
            [share for same, share in pairs if same == where and share is not None] for where in (True, False)
        )
        means = (f"{sum(some) / len(some):.2f}" if some else "none" for some in (own, others))
        least = "; ".join(f"{pair['erased']}, {pair['asked']} {pair['kept']:.2f}" for pair in facts["worst"][:2])
        correlation = facts.get("correlation")
        alike = "none" if correlation is None else f"{correlation['rho']:.2f} (p {correlation['p']:.4f})"
        table.add_row(plain(row), *means, plain(least), alike)
    out.print("share of pictures that still show what is asked for, of those that did before:")
    out.print(table, soft_wrap=False)
    out.print(
        "likeness of words: rank correlation of how far pictures move with how alike two names are, of all concepts"
    )
