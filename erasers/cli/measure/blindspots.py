"""`erase measure blindspots`: what else a patch took along, over all concepts of an embedded world."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from erasers.cli.console import err, out, plain
from erasers.cli.groups import with_groups
from erasers.cli.measure.drawing import Drawn, world_of
from erasers.cli.measure.results import Patches, Results, named_patches
from erasers.cli.model import Hardware, ModelOptions


@with_groups
def blindspots(
    *,
    context: typer.Context,
    patches: Patches,
    base: ModelOptions,
    drawn: Drawn,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="Pictures of each concept of the world.")] = 8,
    results: Results,
    hardware: Hardware,
) -> None:
    """Hold pictures of all concepts against those by the unedited model, with the same prompts and noise."""
    drawn.check(context, results, hardware, patches, base.model)
    with err.status("reading"):
        from erasers.evaluation.probes import blindspots as probe
        from erasers.progress import progress

        rows, world = named_patches(patches), world_of(base.model)
        named = [str(entry.get("name")) for patch in rows.values() for entry in patch.meta["concepts"]]
        erased = list(dict.fromkeys(world.concept(name).name for name in named))
        pipe = base.load(hardware)
        states = drawn.states(pipe, rows, (probe.UNEDITED, probe.RETRAINED))
        asks = probe.asked(world, erased, samples)
        total = (len(states) + 1) * sum(map(len, asks.values()))
    with progress(err, "drawing", total) as advance:
        settings = drawn.settings(world)
        looked = probe.blindspots(pipe, states, world, erased, settings, samples=samples, advance=advance)
    measured = {"model": base.model, **looked}
    _show(measured)
    results.write(measured, probe.draw_blindspots)


def _show(measured: dict[str, Any]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("row", "erased", "others", "least of them", "farthest: asked for, seen"):
        table.add_column(head, no_wrap=head not in ("row", "farthest: asked for, seen"))
    for row, facts in measured["rows"].items():
        erased = ", ".join(f"{name} {value:.2f}" for name, value in facts["erased"].items())
        least = "" if facts["kept_least"] is None else "{1} {0:.2f}".format(*facts["kept_least"])
        others = "" if facts["kept_mean"] is None else f"{facts['kept_mean']:.2f}"
        far = "; ".join(f"{asked}, {seen} {value:.2f}" for asked, seen, value in facts["farthest"][:2])
        table.add_row(plain(row), plain(erased), others, plain(least), plain(far))
    out.print(
        "how often a concept is seen where it is asked for: .5 as before, below .1 more than half gone, above .9 new"
    )
    out.print(table, soft_wrap=False)
    if measured["unseen"]:
        out.print(f"without a feature of their own, and so not in the map: {plain(', '.join(measured['unseen']))}")
