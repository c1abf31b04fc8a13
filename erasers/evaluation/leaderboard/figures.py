"""Measurements beside the tasks, drawn for the page: maps of what goes with what, curves over many concepts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erasers.evaluation.leaderboard.plots import Scale, spread, svg
from erasers.evaluation.page import plain

_CELL, _LETTER, _LINE = 12.0, 6.6, 13.0
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 250.0, 230.0, 30.0, 12.0, 32.0

MAPS = (
    "What is erased from top to bottom, what is asked for across. Left, the darker the fewer pictures still show it, "
    "of those that did before; right, the darker the farther they moved from those of the unedited model, up to "
    "{top:.2g}. {samples} pictures a cell, of prompts that do not name what is erased beside it."
)
CURVES = (
    "One patch that erases the first 1 to {most} of: {words}. Left, the share of pictures that still show one of them "
    "when it is asked for; right, the share that show what is kept. {samples} pictures a point, with 95 % intervals."
)


def figure_of(path: Path) -> str:
    """A section of the page.

    Raises:
        ValueError: It holds no measurement that is drawn here; names the file.
        OSError: It cannot be read.
    """
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        title, draw = FIGURES[measured["measurement"]]
        content = draw(measured)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        known = " or ".join(FIGURES)
        raise ValueError(f"expected a measurement ({known}) in {path}, got {type(error).__name__}: {error}") from error
    return f'<section class="task measured"><h2>{plain(title)}, {plain(measured["model"])}</h2>\n{content}</section>\n'


def _maps(measured: Mapping[str, Any]) -> str:
    """Two maps a method, on one scale."""
    rows, names = measured["rows"], measured["receivers"]
    top = max(max(own.values()) for facts in rows.values() for own in facts["drift"].values()) or 1.0
    parts = []
    for row, facts in rows.items():
        correlation = facts.get("correlation")
        alike = (
            ""
            if correlation is None
            else f"; with likeness of words {correlation['rho']:.2f}, p {correlation['p']:.2g}"
        )
        lost = {e: {r: None if v is None else 1 - v for r, v in own.items()} for e, own in facts["kept"].items()}
        moved = {e: {r: v / top for r, v in own.items()} for e, own in facts["drift"].items()}
        maps = _map(f"{row}: lost", "lost", lost, names, facts) + _map(f"{row}: drift", "drift", moved, names, facts)
        parts.append(f'<figure data-row="{plain(row)}"><figcaption>{plain(row)}{alike}</figcaption>{maps}</figure>')
    said = MAPS.format(top=top, samples=measured["samples"])
    return f'<p class="quiet">{said}</p><div class="scroll plots" role="region" tabindex="0">{"".join(parts)}</div>'


def _map(
    label: str,
    kind: str,
    shades: Mapping[str, Mapping[str, float | None]],
    names: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    left = top = 8 + _LETTER * max(map(len, [*names, *shades]))
    parts = [
        f'<text x="{left - 4:.1f}" y="{top + _CELL * (k + 0.8):.1f}" class="end">{plain(emitter)}</text>'
        for k, emitter in enumerate(shades)
    ]
    for k, receiver in enumerate(names):
        x = left + _CELL * (k + 0.8)
        place = f"{x:.1f} {top - 4:.1f}"
        parts.append(f'<text transform="translate({place}) rotate(-90)">{plain(receiver)}</text>')
    for y, (emitter, own) in enumerate(shades.items()):
        for x, receiver in enumerate(names):
            shade = own.get(receiver)
            if shade is None:
                continue
            kept, drift = facts["kept"][emitter][receiver], facts["drift"][emitter][receiver]
            said = f"{emitter} erased, {receiver} asked: kept {kept:.2f}, drift {drift:.3f}" if kept is not None else ""
            place = f'x="{left + _CELL * x:.1f}" y="{top + _CELL * y:.1f}"'
            parts.append(
                f'<rect class="{kind}" {place} width="11" height="11" fill-opacity="{0.04 + 0.96 * shade:.2f}">'
                f"<title>{plain(said)}</title></rect>"
            )
    return svg(label, left + _CELL * len(names) + 4, top + _CELL * len(shades) + 4, "".join(parts))


def _curves(measured: Mapping[str, Any]) -> str:
    """Two plots, what is still shown and what is kept, with a line for every method."""
    rows = measured["rows"]
    most = max(row["count"] for row in rows)
    parts = [
        _curve("erased, still drawn", "shown", rows, most),
        _curve("kept", "kept", rows, most),
    ]
    said = CURVES.format(most=most, words=plain(", ".join(measured["words"][:most])), samples=measured["samples"])
    return f'<p class="quiet">{said}</p><div class="scroll plots" role="region" tabindex="0">{"".join(parts)}</div>'


def _curve(label: str, field: str, rows: Sequence[Mapping[str, Any]], most: int) -> str:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    down, end = max(_HEIGHT, _LINE * len(methods) + _TOP), _LEFT + _WIDTH
    up, right = Scale(0.0, down, _TOP), Scale(0.0, _LEFT, end)
    parts = [
        f'<path class="rule" d="M{_LEFT} {up(tick):.1f}H{end}"/>'
        f'<text class="number" x="{_LEFT - 13}" y="{up(tick) + 4:.1f}">{tick:.2g}</text>'
        for tick in up.ticks()
    ]
    parts += [
        f'<text class="number" x="{right(count / most):.1f}" y="{down + 14:.1f}">{count}</text>'
        for count in sorted({row["count"] for row in rows})
    ]
    parts.append(
        f'<text class="axis" x="{_LEFT + _WIDTH / 2}" y="{down + 28:.1f}">concepts in one patch: {label}</text>'
    )
    lines = {
        method: sorted(((row["count"], row[field]) for row in rows if row["method"] == method), key=lambda one: one[0])
        for method in methods
    }
    places = spread([up(points[-1][1]["value"]) for points in lines.values()], _LINE, _TOP, down)
    for (method, points), place in zip(lines.items(), places, strict=True):
        path = "L".join(f"{right(count / most):.1f} {up(share['value']):.1f}" for count, share in points)
        last = up(points[-1][1]["value"])
        whiskers = "".join(f"M{right(count / most):.1f} {up(s['low']):.1f}V{up(s['high']):.1f}" for count, s in points)
        said = ", ".join(f"{count}: {share['value']:.2f}" for count, share in points)
        parts.append(
            f'<g class="mark" data-row="{plain(method)}"><title>{plain(method)}, {said}</title>'
            f'<path class="line" d="M{path}"/><path class="whisker" d="{whiskers}"/>'
            f'<path class="lead" d="M{right(points[-1][0] / most):.1f} {last:.1f}L{end + 22} {place:.1f}"/>'
            f'<text x="{end + 25}" y="{place + 4:.1f}">{plain(method)}</text></g>'
        )
    return svg(label, end + 30 + 6.4 * max(map(len, methods)), down + _BOTTOM, "".join(parts))


FIGURES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "interference": ("What goes with what", _maps),
    "many": ("Many concepts in one patch", _curves),
}
"""Measurement -> title of its section, and what draws it."""
