"""`erase measure capability`: whether a model that does not draw a concept is still able to."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from erasers.cli.console import err, out, plain
from erasers.cli.groups import with_groups
from erasers.cli.measure.drawing import Drawn, concept_of, world_of
from erasers.cli.measure.results import Patches, Results, named_patches
from erasers.cli.model import Hardware, ModelOptions
from erasers.cli.options import finite


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--strengths: expected numbers with commas between them, got {text!r:.80}") from None
    if any(not 0 < abs(finite(value) or 0) <= 1000 for value in values):
        raise ValueError(f"--strengths: expected numbers up to 1000 and none of them 0, got {text!r:.80}")
    return values


@with_groups
def capability(
    *,
    context: typer.Context,
    patches: Patches,
    base: ModelOptions,
    concept: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What is looked for. [dim]what they erase[/dim]")
    ] = None,
    drawn: Drawn,
    samples: Annotated[int, typer.Option(min=1, max=100_000, help="Pictures of each point of the grid.")] = 10,
    strengths: Annotated[
        str, typer.Option(metavar="LIST", help="What the direction is multiplied with, with commas between.")
    ] = "0.5,1,2,4",
    site: Annotated[
        list[str] | None,
        typer.Option(help="Where it is added: text, attention, middle. Repeatable. [dim]all that there are[/dim]"),
    ] = None,
    results: Results,
    hardware: Hardware,
) -> None:
    """Add the unedited model's direction of a concept to what edited ones compute, where no prompt names it."""
    drawn.check(context, results, hardware, patches, base.model)
    multiplied = _numbers(strengths)
    with err.status("reading"):
        from erasers.evaluation.probes import capability as probe
        from erasers.judges import get_judge
        from erasers.progress import progress

        rows, world = named_patches(patches), world_of(base.model)
        erased = world.concept(concept_of(rows, concept))
        wants = world.split_prompts(erased.name, 1)["explicit"][0].wants
        grid = probe.Grid(erased, wants, samples, multiplied, tuple(site or ()))
        pipe, judge = base.load(hardware), get_judge(world.judge)
        states = drawn.states(pipe, rows, (probe.UNEDITED, probe.RETRAINED))
        total = grid.pictures(len(probe.chosen_sites(pipe, grid.sites))) * len(states)
    with progress(err, "drawing", total) as advance:
        looked = probe.capability(pipe, states, grid, judge, drawn.settings(world), advance)
    measured = {"model": base.model, **looked}
    _show(measured)
    results.write(measured, probe.draw_capability)


def _show(measured: dict[str, Any]) -> None:
    concept = measured["concept"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("row", "by name", "brought to", "random", "where", "reading"):
        table.add_column(head, no_wrap=head != "reading")
    for row, facts in measured["rows"].items():
        shares = (f"{facts[name]['value']:.0%}" for name in ("named", "best", "floor"))
        where = f"{facts['best']['site']}, {facts['best']['strength']:g}"
        table.add_row(plain(row), *shares, where, facts.get("reading", ""))
    out.print(f"share of {measured['samples']} pictures that show [bold]{plain(concept)}[/bold]:")
    out.print(table, soft_wrap=False)
    out.print("by name: prompts name it; brought to: they do not, and the best of all directions, sites and strengths")
