"""Draws the pictures of `architecture.md` from the imports of the package and the layers in `pyproject.toml`.

    python docs/architecture.py            # write them, and print the figures of the house
    python docs/architecture.py --check    # exit 1 and name the pictures that are not what the imports say

An import counts wherever it stands: at the top of a file, inside of a function, or for types alone.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import accumulate, pairwise
from pathlib import Path

import grimp

from erasers.files.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "erasers"
PICTURES = {"architecture.svg": PACKAGE, "architecture-evaluation.svg": f"{PACKAGE}.evaluation"}

Arrow = tuple[str, str]
"""Who imports, and what."""

WIDTH, MARGIN, LEFT = 1000, 14, 40
WIDEST, TRUNK, GAP, LINE = 172, 6, 9, 15
LETTER, LINES = 6.6, 4
SIZES = (2, 5, 10, 20, 40, 80)
"""Numbers of files that are told apart; a picture that counted each would have to be drawn anew for every file."""
SWEEPS = 100

STYLE = """\
:root { --paper: #fbfbfa; --ink: #1d2733; --quiet: #5b6773; --band: #f0f2f3; --box: #ffffff; --edge: #8b97a3;
  --arrow: #4f6275; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e8edf2; --quiet: #a3afbb; --band: #1b2127;
  --box: #252d35; --edge: #66727e; --arrow: #9db0c3; } }
text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink); }
.name { font-size: 14px; font-weight: 600; }
.quiet { fill: var(--quiet); }
.paper { fill: var(--paper); }
.band { fill: var(--band); }
.box { fill: var(--box); stroke: var(--edge); }
.arrow { fill: none; stroke: var(--arrow); }
#head path { fill: var(--arrow); }"""


@dataclass(frozen=True)
class Room:
    """A module or a package among its neighbours.

    Args:
        name: Without the package around it.
        files: How many modules it has.
        words: What it says of itself.
    """

    name: str
    files: int
    words: str


@dataclass(frozen=True)
class House:
    """What is in a package: its rooms on their floors, the highest first, and the imports between them.

    Args:
        floors: The layers of the contract.
        arrows: Who imports what, and how many files of it do.
    """

    floors: Sequence[Sequence[Room]]
    arrows: Mapping[Arrow, int]


def read(graph: grimp.ImportGraph, package: str) -> House:
    """The rooms of a package on the floors of its contract.

    Raises:
        SystemExit: There is no contract for it, or one that does not name what is there.
    """
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next((entry["layers"] for entry in contracts if entry.get("containers") == [package]), None)
    if layers is None:
        raise SystemExit(f"expected a contract of layers for {package} in pyproject.toml, got none")
    floors = [re.split(r"\s*[|:]\s*", layer) for layer in layers]
    there = {name.rpartition(".")[2] for name in graph.find_children(package)}
    if {*there} != {name for floor in floors for name in floor}:
        odd = sorted(there.symmetric_difference(name for floor in floors for name in floor))
        raise SystemExit(f"expected the layers of {package} to name all that is there, got a difference: {odd}")
    rooms = [[_room(graph, f"{package}.{name}") for name in floor] for floor in floors]
    return House(rooms, arrows_between(graph, package))


def _room(graph: grimp.ImportGraph, module: str) -> Room:
    path = ROOT / module.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    sentence = re.split(r"(?<=\.)\s", ast.get_docstring(ast.parse(source)) or "")[0].rstrip(".")
    name = module.rpartition(".")[2]
    words = re.sub(rf"^{name}: ", "", sentence.replace("`", ""), flags=re.IGNORECASE)
    return Room(name, 1 + len(graph.find_descendants(module)), words[:1].upper() + words[1:])


def arrows_between(graph: grimp.ImportGraph, package: str) -> dict[Arrow, int]:
    """The imports between the children of a package, and how many files make each."""
    importers: dict[Arrow, set[str]] = {}
    inside = len(package) + 1
    for importer in graph.find_descendants(package):
        for imported in graph.find_modules_directly_imported_by(importer):
            ends = importer[inside:].partition(".")[0], imported[inside:].partition(".")[0]
            if imported.startswith(f"{package}.") and ends[0] != ends[1]:
                importers.setdefault(ends, set()).add(importer)
    return {arrow: len(files) for arrow, files in sorted(importers.items())}


def reached(arrows: Iterable[Arrow]) -> dict[str, set[str]]:
    """All that each start of an arrow leads to, in any number of steps."""
    nexts: dict[str, set[str]] = {}
    for start, end in arrows:
        nexts.setdefault(start, set()).add(end)
    ways: dict[str, set[str]] = {}
    for start in nexts:
        ways[start], todo = set(), [start]
        while todo:
            fresh = nexts.get(todo.pop(), set()) - ways[start]
            ways[start] |= fresh
            todo += fresh
    return ways


def shortest(arrows: Iterable[Arrow]) -> list[Arrow]:
    """The arrows that no longer way implies."""
    arrows = list(arrows)
    ways = reached(arrows)
    return [
        (start, end)
        for start, end in arrows
        if not any(end in ways.get(other, ()) for begin, other in arrows if begin == start and other != end)
    ]


def circles(arrows: Iterable[Arrow]) -> list[list[str]]:
    """Groups whose members lead to each other."""
    ways = reached(arrows)
    groups = {tuple(sorted(end for end in ends if start in ways.get(end, ()))) for start, ends in ways.items()}
    return [list(group) for group in sorted(groups) if group]


def all_circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Circles of files, and of neighbours in every package."""
    of_files = circles((a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a))
    packages = sorted(module for module in graph.modules if graph.find_children(module))
    of_neighbours = [
        [f"{package}.{name}" for name in circle]
        for package in packages
        for circle in circles(arrows_between(graph, package))
    ]
    return of_files + [circle for circle in of_neighbours if circle not in of_files]


def longest_way(arrows: Iterable[Arrow]) -> int:
    """Rooms on the longest way down, of imports without a circle."""
    ways = reached(arrows)
    depth: dict[str, int] = {}
    for start in sorted(ways, key=lambda name: len(ways[name])):
        depth[start] = 1 + max(depth.get(end, 1) for end in ways[start])
    return max(depth.values(), default=1)


def figures(graph: grimp.ImportGraph) -> dict[str, int]:
    """What can be counted in the whole house."""
    house = read(graph, PACKAGE)
    return {
        "modules": len(graph.modules),
        "rooms": sum(map(len, house.floors)),
        "layers": len(house.floors),
        "rooms on the longest way down": longest_way(house.arrows),
        "arrows between rooms": len(house.arrows),
        "of which no longer way implies": len(shortest(house.arrows)),
        "circles at any depth": len(all_circles(graph)),
    }


Stop = tuple[int, str]
"""A point of the picture: a floor and a name. Ways to a room cross the floors above it at one stop, under its name."""
Step = tuple[Stop, Stop]
"""From a stop to one on the floor below."""


def steps_of(house: House) -> dict[Step, int]:
    """The arrows that are drawn, floor by floor, and how many files go that way."""
    floor_of = {room.name: floor for floor, rooms in enumerate(house.floors) for room in rooms}
    steps: dict[Step, int] = {}
    for start, end in shortest(house.arrows):
        top, ground = floor_of[start], floor_of[end]
        for step in pairwise([(top, start), *((floor, end) for floor in range(top + 1, ground + 1))]):
            steps[step] = steps.get(step, 0) + house.arrows[start, end]
    return steps


def ordered(floors: int, rooms: Iterable[Stop], steps: Iterable[Step]) -> list[list[Stop]]:
    """The stops of every floor from left to right, with few crossings."""
    steps = list(steps)
    stops = sorted({*rooms, *(stop for step in steps for stop in step)})
    order = [[stop for stop in stops if stop[0] == floor] for floor in range(floors)]
    best = order
    for sweep in range(SWEEPS):
        side = -1 if sweep % 2 == 0 else 1
        order = [list(line) for line in order]
        for floor in range(1, floors) if side < 0 else range(floors - 2, -1, -1):
            rank = {stop: index for index, stop in enumerate(order[floor + side])}
            own = {stop: index for index, stop in enumerate(order[floor])}
            order[floor].sort(key=lambda stop: mean([rank[end] for end in ends(stop, steps) if end in rank], own[stop]))
        best = min(best, order, key=lambda tried: crossings(tried, steps))
    return swapped(best, steps)


def swapped(order: list[list[Stop]], steps: Sequence[Step]) -> list[list[Stop]]:
    """Neighbours change places as long as that saves crossings."""
    fewest, improved = crossings(order, steps), True
    while improved:
        improved = False
        for line in order:
            for left in range(len(line) - 1):
                line[left : left + 2] = reversed(line[left : left + 2])
                if (count := crossings(order, steps)) < fewest:
                    fewest, improved = count, True
                else:
                    line[left : left + 2] = reversed(line[left : left + 2])
    return order


def crossings(order: Sequence[Sequence[Stop]], steps: Iterable[Step]) -> int:
    """How often steps cross each other."""
    rank = {stop: index for line in order for index, stop in enumerate(line)}
    by_floor: dict[int, list[tuple[int, int]]] = {}
    for upper, lower in steps:
        by_floor.setdefault(upper[0], []).append((rank[upper], rank[lower]))
    return sum(
        (a - c) * (b - d) < 0
        for lines in by_floor.values()
        for number, (a, b) in enumerate(lines)
        for c, d in lines[:number]
    )


def ends(stop: Stop, steps: Iterable[Step]) -> list[Stop]:
    """The stops that steps lead to from a stop, and from which they lead to it."""
    return [lower if upper == stop else upper for upper, lower in steps if stop in (upper, lower)]


def mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def placed(order: Sequence[Sequence[Stop]], widths: Mapping[Stop, float], steps: Iterable[Step]) -> dict[Stop, float]:
    """The middle of every stop in pixels, near to where its steps lead; ways that pass through floors are straight."""
    steps = list(steps)
    middles = {
        stop: LEFT + (WIDTH - LEFT - MARGIN) * (number + 0.5) / len(line)
        for line in order
        for number, stop in enumerate(line)
    }
    pulls = {
        stop: [end for end in ends(stop, steps) for _ in range(9 if widths[stop] == widths[end] == TRUNK else 1)]
        for stop in middles
    }
    for sweep in range(SWEEPS):
        for line in order if sweep % 2 == 0 else order[::-1]:
            wanted = [mean([middles[end] for end in pulls[stop]], middles[stop]) for stop in line]
            middles |= zip(line, side_by_side(wanted, [widths[stop] for stop in line]), strict=True)
    left = min(middles[stop] - widths[stop] / 2 for stop in middles)
    right = max(middles[stop] + widths[stop] / 2 for stop in middles)
    return {stop: middle + (LEFT + WIDTH - MARGIN - left - right) / 2 for stop, middle in middles.items()}


def side_by_side(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Middles as near as can be to those that are wanted (least squares), in their order, without overlap."""
    offsets = [0.0, *accumulate((left + right) / 2 + GAP for left, right in pairwise(widths))]
    blocks: list[list[float]] = []
    for value, offset in zip(wanted, offsets, strict=True):
        blocks.append([value - offset])
        while len(blocks) > 1 and mean(blocks[-2], 0) > mean(blocks[-1], 0):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    low, high = LEFT + widths[0] / 2, WIDTH - MARGIN - widths[-1] / 2 - offsets[-1]
    level = [min(max(mean(block, 0), low), high) for block in blocks for _ in block]
    return [value + offset for value, offset in zip(level, offsets, strict=True)]


@dataclass(frozen=True)
class Plan:
    """Where everything is, in pixels.

    Args:
        rooms: Stop -> room.
        widths: Of stops.
        middles: Of stops.
        tops: Of floors.
        bottoms: Of floors.
        ports: (step, 0 or 1) -> where it leaves its upper stop and meets its lower one.
        bends: Step -> how far down between its floors it turns, from 0 to 1.
        words: Stop -> what its box says, in lines.
    """

    rooms: Mapping[Stop, Room]
    widths: Mapping[Stop, float]
    middles: Mapping[Stop, float]
    tops: Sequence[float]
    bottoms: Sequence[float]
    ports: Mapping[tuple[Step, int], float]
    bends: Mapping[Step, float]
    words: Mapping[Stop, Sequence[str]]


def plan(house: House, steps: Mapping[Step, int]) -> Plan:
    """Lay everything out."""
    rooms = {(floor, room.name): room for floor, line in enumerate(house.floors) for room in line}
    order = ordered(len(house.floors), rooms, steps)
    widths = {stop: width for line in order for stop, width in widths_of(line, rooms).items()}
    words = {stop: said(room.words, widths[stop]) for stop, room in rooms.items()}
    tops: list[float] = []
    bottoms: list[float] = []
    for floor, line in enumerate(order):
        above = sum(upper[0] == floor - 1 for upper, _ in steps)
        tops.append(bottoms[-1] + 34 + 3 * above if floor else MARGIN)
        bottoms.append(tops[-1] + 34 + LINE * max(len(words[stop]) for stop in line if stop in rooms))
    middles = placed(order, widths, steps)
    ports = ports_of(steps, middles, widths)
    return Plan(rooms, widths, middles, tops, bottoms, ports, bends_of(steps, ports), words)


def widths_of(line: Sequence[Stop], rooms: Iterable[Stop]) -> dict[Stop, float]:
    """Widths of the stops of one floor: rooms share what ways leave to them."""
    count = sum(stop in rooms for stop in line)
    left = WIDTH - LEFT - MARGIN - GAP * (len(line) - 1) - TRUNK * (len(line) - count)
    return {stop: min(WIDEST, left // count) if stop in rooms else TRUNK for stop in line}


def ports_of(
    steps: Iterable[Step], middles: Mapping[Stop, float], widths: Mapping[Stop, float]
) -> dict[tuple[Step, int], float]:
    """Steps of a room stand side by side; those of a way that passes through a floor are one."""
    steps = list(steps)
    ports = {}
    for side in (0, 1):
        for stop in {step[side] for step in steps}:
            own = sorted((step for step in steps if step[side] == stop), key=lambda step: middles[step[1 - side]])
            apart = min(18.0, (widths[stop] - 30) / len(own)) if widths[stop] > TRUNK else 0.0
            for number, step in enumerate(own):
                ports[step, side] = middles[stop] + apart * (number - (len(own) - 1) / 2)
    return ports


def bends_of(steps: Iterable[Step], ports: Mapping[tuple[Step, int], float]) -> dict[Step, float]:
    """Of those that go the same way between two floors, the foremost turns first, so that none runs along another."""
    groups: dict[tuple[int, bool], list[Step]] = {}
    for step in steps:
        groups.setdefault((step[0][0], ports[step, 1] > ports[step, 0]), []).append(step)
    bends: dict[Step, float] = {}
    for (_, right), group in groups.items():
        group.sort(key=lambda step: ports[step, 0], reverse=right)
        bends |= {step: 0.2 + 0.6 * (number + 0.5) / len(group) for number, step in enumerate(group)}
    return bends


def said(words: str, width: float) -> list[str]:
    """Lines for a box: all words, else those before the last comma or colon that fit, else as many as fit."""
    while len(lines := textwrap.wrap(words, int((width - 14) / LETTER))) > LINES:
        shorter = re.split(r"[,:;](?=[^,:;]*$)", words)[0]
        words = shorter if shorter != words else " ".join(words.rstrip("…").split()[:-1]) + "…"
    return lines


def draw(house: House, title: str) -> str:
    """The picture as SVG."""
    steps = steps_of(house)
    laid = plan(house, steps)
    notes = (
        "An arrow leads from what imports to what is imported; it is wider where 3 files import, and widest from 7 on.",
        "Arrows that a longer way implies are left out. The number in a box is how many files it has at least.",
    )
    height = int(laid.bottoms[-1]) + 2 * MARGIN + LINE * len(notes)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{STYLE}\n</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0.5 L8 4 L0 7.5 z"/></marker></defs>',
            f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
            *(band(laid, floor) for floor in range(len(laid.tops))),
            *(curve(laid, step, count) for step, count in sorted(steps.items())),
            *(box(laid, stop) for stop in laid.rooms),
            *(text("quiet", LEFT, height - MARGIN - LINE * (1 - number), note) for number, note in enumerate(notes)),
            "</svg>\n",
        ]
    )


def band(laid: Plan, floor: int) -> str:
    """The ground of a floor, with its number."""
    top, bottom = laid.tops[floor], laid.bottoms[floor]
    return (
        f'<rect class="band" y="{top - 6:g}" width="{WIDTH}" height="{bottom - top + 12:g}"/>'
        f"{text('name quiet', 14, (top + bottom) / 2 + 5, str(len(laid.tops) - floor))}"
    )


def curve(laid: Plan, step: Step, count: int) -> str:
    """One step; where it ends at no room it goes on through that floor."""
    upper, lower = step
    start, end = round(laid.ports[step, 0], 1), round(laid.ports[step, 1], 1)
    top, foot = laid.bottoms[upper[0]], laid.tops[lower[0]]
    bend = round(top + (foot - top) * laid.bends[step], 1)
    path = f"M{start:g} {top:g} C{start:g} {bend:g} {end:g} {bend:g} {end:g} {foot:g}"
    width = 1 if count < 3 else 1.8 if count < 7 else 2.8
    tail = '" marker-end="url(#head)' if lower in laid.rooms else f" V{laid.bottoms[lower[0]]:g}"
    return f'<path class="arrow" stroke-width="{width}" d="{path}{tail}"/>'


def box(laid: Plan, stop: Stop) -> str:
    """A room with its name, how many files it has, and its words."""
    room, width, top = laid.rooms[stop], laid.widths[stop], laid.tops[stop[0]]
    left = round(laid.middles[stop] - width / 2, 1)
    height = laid.bottoms[stop[0]] - top
    size = max((size for size in SIZES if size <= room.files), default=0)
    files = text("quiet", left + width - 8, top + 19, f"{size}+", ' text-anchor="end"') if size else ""
    lines = [text("quiet", left + 8, top + 36 + LINE * number, line) for number, line in enumerate(laid.words[stop])]
    return (
        f'<rect class="box" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="4"/>'
        f"{text('name', left + 8, top + 19, room.name)}{files}{''.join(lines)}"
    )


def text(kind: str, x: float, y: float, words: str, more: str = "") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}"{more}>{escape(words)}</text>'


def main(arguments: Sequence[str]) -> int:
    """Write or check the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a picture is not current")
    check = parser.parse_args(arguments).check
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    stale = 0
    for name, package in PICTURES.items():
        path, picture = Path(__file__).with_name(name), draw(read(graph, package), f"The layers of {package}")
        if not check:
            write_atomically(path, partial(Path.write_text, data=picture, encoding="utf-8"))
        elif not path.exists() or path.read_text(encoding="utf-8") != picture:
            print(f"docs/{name} is not what the imports say; run python docs/architecture.py")
            stale = 1
    for words, number in figures(graph).items():
        print(f"{words}: {number}")
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
