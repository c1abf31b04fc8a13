"""Methods in the order in which they suit a wish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import harmonic_mean

from erasers.eraser import Eraser, eraser_class
from erasers.evaluation.recommend.measured import ALL, Figures, Measured, Share, Table
from erasers.models.families import FAMILIES, Family


@dataclass(frozen=True)
class Wish:
    """What a method is for.

    Args:
        kind: Of the concept: object, style and so on.
        white_box: Others will have the weights: they can take hooks off, and change embeddings, noise and weights.
        many: Concepts at once.
        training: Whether the method may train.
    """

    kind: str = "object"
    white_box: bool = False
    many: int = 1
    training: bool = True


@dataclass(frozen=True)
class Choice:
    """A method that suits.

    Args:
        row: What was measured of it.
        figures: Those that count: of the concept of the wish's kind, or of all.
        score: Harmonic mean of them.
        level: Whether its interval of what decides meets that of the first, so that the order is not certain.
        count: Concepts that were erased at once.
    """

    row: Measured
    figures: Figures
    score: float
    level: bool = False
    count: int = 1


def nearest(known: Sequence[Table], family: Family) -> Table:
    """The table of the model that text enters in the way nearest to that of a family."""
    kinds = {own.denoiser: own.kind for own in FAMILIES}

    def nearness(table: Table) -> tuple[bool, bool, bool]:
        kind = kinds[table.denoiser]
        # Behind one embedder text and picture are mixed, whether in joint blocks or in one sequence.
        return table.denoiser == family.denoiser, kind == family.kind, (kind == "cross") == (family.kind == "cross")

    return max(known, key=nearness)


def concept_like(table: Table, kind: str) -> str:
    """The concept of a task that is of a kind; `ALL` where there is none."""
    return next((concept for concept, own in sorted(table.kinds.items()) if own == kind), ALL)


def chosen(table: Table, wish: Wish) -> list[Choice]:
    """The methods of a table that suit a wish, the best first.

    Their score is the harmonic mean of erasure, of what withstands attacks (by text alone, or of every kind where
    others will have the weights), of neighbours, unrelated concepts and looks, of those that were measured. For several
    concepts it is that of erasure and what is kept, with the largest number of concepts that was measured up to theirs.
    """
    choices = _of_many(table, wish) if wish.many > 1 and table.many else _of_single(table, wish)
    choices.sort(key=lambda choice: (-choice.score, choice.row.name))
    return [
        replace(choice, level=number > 0 and _meet(choices[0].figures, choice.figures, wish))
        for number, choice in enumerate(choices)
    ]


def _of_single(table: Table, wish: Wish) -> list[Choice]:
    case, choices = concept_like(table, wish.kind), []
    for row in table.rows:
        figures = row.figures.get(case)
        if figures is not None and not left_out(row.name, wish) and (score := score_of(figures, wish)) is not None:
            choices.append(Choice(row, figures, score))
    return choices


def _of_many(table: Table, wish: Wish) -> list[Choice]:
    counts = sorted({own.count for own in table.many if own.count > 1})
    count = max((own for own in counts if own <= wish.many), default=counts[0])
    choices = []
    for own in (own for own in table.many if own.count == count and not left_out(own.name, wish)):
        row = Measured(own.name, {}, own.nbytes, own.seconds)
        score = harmonic_mean([max(own.erasure.value, 0.0), own.kept.value])
        choices.append(Choice(row, Figures(erasure=own.erasure, specificity=own.kept), score, count=count))
    return choices


def left_out(name: str, wish: Wish) -> str:
    """Why a method does not suit a wish; "" where it does."""
    members = members_named(name)
    if wish.white_box and any(member.hooks for member in members):
        return "hooks, which whoever has the pipeline can take off"
    if any(member.trains for member in members):
        if not wish.training:
            return "trains"
        if wish.many > 1:
            return "trains, and was not measured with several concepts"
    return ""


def members_named(name: str) -> list[type[Eraser]]:
    """The classes of a method, a preset or a stack."""
    return [eraser_class(member) for member in name.split("+")]


def withstands(figures: Figures, wish: Wish) -> Share | None:
    """What withstands the attacks of a wish."""
    return figures.probes if wish.white_box else figures.texts


def score_of(figures: Figures, wish: Wish) -> float | None:
    """The harmonic mean; None where erasure, attacks or everything that is kept was not measured."""
    held = withstands(figures, wish)
    kept = [share for share in (figures.neighbours, figures.specificity, figures.utility) if share is not None]
    if figures.erasure is None or held is None or not kept:
        return None
    return harmonic_mean([max(share.value, 0.0) for share in (figures.erasure, held, *kept)])


def _meet(first: Figures, other: Figures, wish: Wish) -> bool:
    """Whether the intervals of erasure and of what withstands attacks meet, or of what is kept where none were made."""
    second = [withstands(own, wish) or own.specificity for own in (first, other)]
    pairs = ((first.erasure, other.erasure), second)
    return all(one and two and one.low <= two.high and two.low <= one.high for one, two in pairs)


def unmeasured(names: Sequence[str], table: Table, *, many: bool = False) -> list[str]:
    """Registered methods of which the table has no row, neither by themselves nor by a preset.

    Args:
        names: The methods.
        table: The table.
        many: Rows of several concepts at once count.
    """
    rows = table.many if many else table.rows
    there = {cls.name for row in rows if "+" not in row.name for cls in members_named(row.name)}
    return [name for name in names if name not in there]
