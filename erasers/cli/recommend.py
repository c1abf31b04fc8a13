"""`erase recommend`: methods for a model and a concept, by what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as Grid

from erasers.cli.console import err, out
from erasers.cli.groups import with_groups
from erasers.cli.model import Hardware, ModelOptions
from erasers.cli.words import suggest
from erasers.concept import KINDS, Concept

if TYPE_CHECKING:
    from erasers.evaluation.recommend.choosing import Choice, Wish
    from erasers.evaluation.recommend.measured import Share, Table
    from erasers.worlds import World


@with_groups
def recommend(
    *,
    concept: Annotated[str, typer.Option(metavar="TEXT", help="What goes.")],
    base: ModelOptions,
    kind: Annotated[
        str | None, typer.Option(help=f"What it is: {', '.join(KINDS)}. [dim]that of its preset, else object[/dim]")
    ] = None,
    white_box: Annotated[
        bool, typer.Option("--white-box", help="Others get the weights: they take hooks off, search and fine-tune.")
    ] = False,
    many: Annotated[int, typer.Option(metavar="N", min=1, max=100_000, help="Concepts at once.")] = 1,
    no_training: Annotated[bool, typer.Option("--no-training", help="Only methods that do not train.")] = False,
) -> None:
    """Name the methods for a model and a concept, the best first, with what was measured of them and what they cost.

    The figures are those of the committed results on embedded models, on a concept of the same kind where there is one.
    It reads the model's configuration alone, and says what was not measured.
    """
    from erasers import worlds
    from erasers.evaluation.recommend.choosing import Wish, chosen, concept_like, unmeasured
    from erasers.evaluation.recommend.measured import ALL

    world = worlds.find(base.model)
    erased = _concept(concept, kind, world)
    wish = Wish(erased.kind, white_box, many, not no_training)
    with err.status("reading the model"):
        pipe = base.load(Hardware(), bare=world is None)
    table, note = _measured(pipe, world)
    choices, refused = _fitting(chosen(table, wish), pipe)
    case = concept_like(table, wish.kind)
    out.print(note)
    several = choices[0].count if choices else 1
    where = f"all its concepts ({', '.join(sorted(table.kinds))})" if case == ALL else f"{case} (its {wish.kind})"
    where = f"{several} concepts in one patch, without attacks" if several > 1 else f"{table.task}, {where}"
    out.print(f"figures   {where}; 0 useless, 1 perfect, with 95 % intervals")
    out.print("          holds: under the worst attack; near: similar concepts; s: seconds of one core of a CPU")
    if several == 1 and case == ALL:
        out.print(f"          nothing was measured on a concept of kind {wish.kind}")
    if several == 1 and case in table.tuned:
        out.print(f"          settings of some methods were chosen on {case}")
    if many > several:
        measured = f"each is of {several if several > 1 else 'one'} at a time"
        out.print(f"          {measured}; {many} at once were not measured")
    if not choices:
        raise ValueError("expected a method that suits and was measured, got none; ask for less (see --help)")
    out.print(_grid(choices, wish), soft_wrap=False)
    for name, why in {**refused, **_left_out(table, wish)}.items():
        out.print(f"left out  {name}: {escape(why)}")
    if lacking := unmeasured(_supporting(pipe), table, many=several > 1):
        out.print(f"not measured on {table.model}: {', '.join(lacking)}")
    name = erased.name if " " not in erased.name else f'"{erased.name}"'
    out.print(f"next      erase --concept {name} --model {base.model} --method {choices[0].row.name} --report report")


def _concept(name: str, kind: str | None, world: World | None) -> Concept:
    if kind is not None and kind not in KINDS:
        raise ValueError(f"expected --kind among {', '.join(KINDS)}, got {kind!r}{suggest(kind, KINDS)}")
    erased = world.concept(name) if world else Concept.of(name)
    given: Any = kind
    return replace(erased, kind=given) if given else erased


def _measured(pipe: Any, world: World | None) -> tuple[Table, str]:
    """The table that says most of a model, and how near it is."""
    from erasers.evaluation.recommend.choosing import nearest
    from erasers.evaluation.recommend.measured import tables
    from erasers.models.ports import find_family

    known = tables()
    if world and (own := [table for table in known if table.model == world.name]):
        return own[0], f"model     {world.name}, on which all was measured"
    family, _ = find_family(pipe)
    table = nearest(known, family)
    if table.denoiser == family.denoiser:
        near = f"measured on {table.model}, a small model of this family; no large checkpoint was"
    else:
        near = f"nothing was measured; the order is that on {table.model}, which text enters in the nearest way"
    return table, f"model     {family.title}: {near}"


def _fitting(choices: Sequence[Choice], pipe: Any) -> tuple[list[Choice], dict[str, str]]:
    """The choices that support a pipeline, and why the others do not."""
    fit, refused = [], dict[str, str]()
    for choice in choices:
        if why := _refusal(choice.row.name, pipe):
            refused[choice.row.name] = why
        else:
            fit.append(choice)
    return fit, refused


def _refusal(name: str, pipe: Any) -> str:
    """Why a method does not support a pipeline; "" where it does."""
    from erasers.eraser import get_eraser
    from erasers.models.families import UnsupportedPipeline

    try:
        get_eraser(name).check_pipe(pipe)
    except (UnsupportedPipeline, ValueError) as error:
        return str(error)
    return ""


def _left_out(table: Table, wish: Wish) -> dict[str, str]:
    """Why measured methods do not suit the wish."""
    from erasers.evaluation.recommend.choosing import left_out

    return {row.name: why for row in table.rows if (why := left_out(row.name, wish))}


def _supporting(pipe: Any) -> list[str]:
    """The registered methods that support a pipeline."""
    from erasers.eraser import list_erasers

    return [name for name in list_erasers() if not _refusal(name, pipe)]


def _grid(choices: Sequence[Choice], wish: Wish) -> Grid:
    """What was measured of each choice."""
    from erasers.evaluation.recommend.choosing import withstands

    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("", "method", "score", "erased", "holds", "near", "rest", "s", "KiB"):
        grid.add_column(head, no_wrap=True)
    for number, choice in enumerate(choices, start=1):
        figures, row = choice.figures, choice.row
        grid.add_row(
            f"{'=' if choice.level else ''}{number}",
            row.name,
            f"{choice.score:.2f}",
            *(_share(share) for share in (figures.erasure, withstands(figures, wish))),
            *(_value(share) for share in (figures.neighbours, figures.specificity)),
            "-" if row.seconds is None else f"{row.seconds:.3g}",
            f"{row.nbytes / 1024:.0f}",
        )
    return grid


def _share(share: Share | None) -> str:
    return "-" if share is None else f"{share.value:.2f}\n{share.low:.2f}-{share.high:.2f}"


def _value(share: Share | None) -> str:
    return "-" if share is None else f"{share.value:.2f}"
