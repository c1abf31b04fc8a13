"""The plots of the leaderboard's page: what a row erases, or withstands, against what it keeps, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from erasers.evaluation.leaderboard.text import score_text, time_text
from erasers.evaluation.leaderboard.views import Board, BoardRow
from erasers.evaluation.page import plain
from erasers.evaluation.scores.bootstrap import Estimate

ACROSS, UP = ("neighbours", "specificity", "utility"), ("erasure", "robustness")
"""Scores that say what is kept, of which the first that a board has is plotted, and what is plotted against it."""

_LINE, _RADII = 13.0, (3.0, 9.0)
_LETTER = 6.4
_WIDTH, _HEIGHT, _SMALL = 330.0, 330.0, (190.0, 150.0)
_LEFT, _TOP, _BOTTOM = 34.0, 12.0, 34.0


@dataclass(frozen=True)
class Scale:
    """A range of scores, laid onto a length.

    Args:
        low: The score at `start`.
        start: Place of `low`.
        end: Place of the score 1.
    """

    low: float
    start: float
    end: float

    def __call__(self, score: float) -> float:
        """Place of a score; one below the range lies on its edge."""
        share = (min(max(score, self.low), 1.0) - self.low) / (1 - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round scores between the ends, at most six."""
        step = 0.2 if self.low < 0.5 else 0.1 if self.low < 0.8 else 0.05
        return [k * step for k in range(math.ceil(self.low / step - 1e-9), round(1 / step) + 1)]


@dataclass(frozen=True)
class Point:
    """A row that has both scores of a plot.

    Args:
        row: The row.
        kept: Its score across.
        won: Its score upwards.
    """

    row: BoardRow
    kept: Estimate
    won: Estimate


def points(board: Board, across: str, up: str) -> list[Point]:
    """The rows of a board that have both scores."""
    pairs = ((row, row.scores.get(across), row.scores.get(up)) for row in board.rows)
    return [
        Point(row, kept, won) for row, kept, won in pairs if isinstance(kept, Estimate) and isinstance(won, Estimate)
    ]


def pairs_of(board: Board) -> list[tuple[str, str]]:
    """(across, up) of every plot that a board has scores for."""
    across = next((name for name in ACROSS if points(board, name, name)), None)
    return [(across, up) for up in UP if across and points(board, across, up)]


def scatter(title: str, board: Board, across: str, up: str) -> str:
    """Two scores of every row against each other, with names at the right and lines to them.

    A circle's size is the time to make the patch; baselines are squares. Rows that lack a score are left out.
    """
    some = points(board, across, up)
    height = max(_HEIGHT, _LINE * len(some) + _TOP + _BOTTOM)
    x = Scale(_low([point.kept for point in some]), _LEFT, _LEFT + _WIDTH)
    y = Scale(_low([point.won for point in some]), height - _BOTTOM, _TOP)
    at, radii = x.end + 26, _radii(some)
    places = spread([y(point.won.value) for point in some], _LINE, _TOP, height - _BOTTOM)
    marks = [
        _mark(point, (across, up), x, y, radius, _name(point, x, y, at, place))
        for point, radius, place in zip(some, radii, places, strict=True)
    ]
    width = at + 4 + _LETTER * max(len(point.row.name) for point in some)
    return svg(f"{title}: {up} against {across}", width, height, _frame(x, y, across, up) + "".join(marks))


def small_multiples(title: str, boards: Sequence[Board], up: str) -> str:
    """The same plot for every concept, against what that has scores for, without names and all on one scale."""
    cases = [
        (board.case, across, points(board, across, up))
        for board in boards
        for across, what in pairs_of(board)
        if what == up
    ]
    every = [point for *_, some in cases for point in some]
    width, height = _SMALL
    x = Scale(_low([point.kept for point in every]), _LEFT, width - 8)
    y = Scale(_low([point.won for point in every]), height - _BOTTOM, _TOP)
    parts = []
    for case, across, some in cases:
        marks = "".join(_mark(point, (across, up), x, y, 3.5) for point in some)
        plot = svg(f"{title}, {case}: {up} against {across}", width, height, _frame(x, y, across, up) + marks)
        parts.append(f"<figure>{plot}<figcaption>{plain(case)}</figcaption></figure>")
    return "".join(parts)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places nearest to those that are wanted, `gap` apart, in their order, between `low` and `high` where they fit.

    Runs of places that would overlap are laid about their middle (pool adjacent violators).
    """
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    runs: list[tuple[float, int]] = []
    for rank, k in enumerate(order):
        mean, count = wanted[k] - rank * gap, 1
        while runs and runs[-1][0] > mean:
            before, number = runs.pop()
            mean, count = (before * number + mean * count) / (number + count), number + count
        runs.append((mean, count))
    firsts = [mean for mean, count in runs for _ in range(count)]
    last = max(low, high - gap * (len(wanted) - 1))
    places = [0.0] * len(wanted)
    for rank, (k, first) in enumerate(zip(order, firsts, strict=True)):
        places[k] = min(max(first, low), last) + rank * gap
    return places


def _low(scores: Sequence[Estimate]) -> float:
    """The tenth at or below the lowest value, and no more than a half."""
    return min(0.5, math.floor(10 * max(0.0, min((score.value for score in scores), default=0.0))) / 10)


def _radii(some: Sequence[Point]) -> list[float]:
    """Of circles, by the logarithm of the time to make the patch; the smallest where that is not known."""
    logs = [math.log10(max(point.row.seconds or 0.0, 0.01)) for point in some]
    known = [log for log, point in zip(logs, some, strict=True) if point.row.seconds is not None]
    least, span = min(known, default=0.0), (max(known, default=0.0) - min(known, default=0.0)) or 1.0
    small, large = _RADII
    return [small + (large - small) * max(0.0, log - least) / span for log in logs]


def _mark(point: Point, names: tuple[str, str], x: Scale, y: Scale, radius: float, name: str = "") -> str:
    """A row's intervals as a cross, its values as a circle or a square, and what both are when pointed at."""
    row, kept, won = point.row, point.kept, point.won
    h, v = x(kept.value), y(won.value)
    whiskers = f"M{x(kept.low):.1f} {v:.1f}H{x(kept.high):.1f}M{h:.1f} {y(won.low):.1f}V{y(won.high):.1f}"
    if row.baseline:
        shape = f'<rect class="dot" x="{h - 4:.1f}" y="{v - 4:.1f}" width="8" height="8"/>'
    else:
        shape = f'<circle class="dot" cx="{h:.1f}" cy="{v:.1f}" r="{radius:.1f}"/>'
    said = [
        f"{what} {value} ({interval})"
        for what, (value, interval) in zip(names, map(score_text, (kept, won)), strict=True)
    ]
    said += [time_text(row.seconds)] if row.seconds is not None else []
    kind = "mark base" if row.baseline else "mark"
    return (
        f'<g class="{kind}" data-row="{plain(row.name)}"><title>{plain(row.name)}: {", ".join(said)}</title>'
        f'<path class="whisker" d="{whiskers}"/>{shape}{name}</g>'
    )


def _name(point: Point, x: Scale, y: Scale, at: float, place: float) -> str:
    h, v = x(point.kept.value), y(point.won.value)
    return (
        f'<path class="lead" d="M{h:.1f} {v:.1f}L{at:.1f} {place:.1f}"/>'
        f'<text x="{at + 3:.1f}" y="{place + 4:.1f}">{plain(point.row.name)}</text>'
    )


def _frame(x: Scale, y: Scale, across: str, up: str) -> str:
    """Axes with their names and lines at round scores."""
    down, parts = y.start, []
    for tick in x.ticks():
        parts.append(f'<path class="rule" d="M{x(tick):.1f} {y.end:.1f}V{down:.1f}"/>')
        parts.append(f'<text class="number" x="{x(tick):.1f}" y="{down + 14:.1f}">{tick:.2g}</text>')
    for tick in y.ticks():
        parts.append(f'<path class="rule" d="M{x.start:.1f} {y(tick):.1f}H{x.end:.1f}"/>')
        parts.append(f'<text class="number" x="{x.start - 13:.1f}" y="{y(tick) + 4:.1f}">{tick:.2g}</text>')
    middle = (y.start + y.end) / 2
    parts.append(f'<text class="axis" x="{(x.start + x.end) / 2:.1f}" y="{down + 28:.1f}">{plain(across)}</text>')
    parts.append(f'<text class="axis" x="8" y="{middle:.1f}" transform="rotate(-90 8 {middle:.1f})">{plain(up)}</text>')
    return "".join(parts)


def svg(label: str, width: float, height: float, content: str) -> str:
    """A plot with a name, as large as it is."""
    size = f'width="{width:.0f}" height="{height:.0f}"'
    return (
        f'<svg class="plot" role="img" aria-label="{plain(label)}" {size} '
        f'viewBox="0 0 {width:.0f} {height:.0f}">{content}</svg>'
    )
