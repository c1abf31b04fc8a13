"""`erase measure traces`: what of a concept is left in the weights of the text encoders."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from erasers.cli.console import err, out, plain
from erasers.cli.groups import with_groups
from erasers.cli.measure.results import Patches, Results, named_patches
from erasers.cli.model import Hardware, ModelOptions


@with_groups
def traces(
    *,
    context: typer.Context,
    patches: Patches,
    base: ModelOptions,
    columns: Annotated[int, typer.Option(min=1, max=10_000, help="Columns that count as those of a word.")] = 10,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            help="Strongest tokens of a projection to compare. [dim]200; a twentieth of a small vocabulary[/dim]",
        ),
    ] = None,
    results: Results,
    hardware: Hardware,
) -> None:
    """Hold the columns of the text encoders that write a concept's word against those after a patch."""
    hardware.check()
    results.check(context, {"PATCH": patches, "--model": base.model})
    with err.status("reading"):
        from erasers.evaluation.probes.traces import draw_traces
        from erasers.evaluation.probes.traces import traces as measure_traces

        rows = named_patches(patches)
        pipe = base.load(hardware)
        measured = {"model": base.model, **measure_traces(pipe, rows, columns=columns, count=tokens)}
    _show(measured)
    results.write(measured, draw_traces)


def _show(measured: dict[str, Any]) -> None:
    from erasers.evaluation.probes.traces import lines

    for title, groups in lines(measured):
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for head in ("columns of", "changed", "cosine", "distance", "tokens", "points"):
            table.add_column(head, no_wrap=True)
        for word, facts in groups.items():
            points = f"{facts['before']:.2f} > {facts['after']:.2f}" if "before" in facts else ""
            numbers = (f"{facts[name]:.3f}" for name in ("cosine", "distance", "jaccard"))
            table.add_row(plain(word), f"{facts['changed']}/{facts['columns']}", *numbers, points)
        out.print(f"[bold]{plain(title)}[/bold]")
        out.print(table, soft_wrap=False)
    out.print("tokens: overlap of the strongest tokens of their projections before and after")
    out.print("points: how far columns point at their word before > after, in standard deviations of the vocabulary")
    for row, facts in measured["rows"].items():
        if facts["hooks"]:
            out.print(f"{plain(row)} has {facts['hooks']} hooks on text encoders, which change no weight")
