"""Measures how often the judges of the embedded world are right and stores it beside their profiles.

    python benchmarks/judges.py             # about a minute of one core; the CLIP needs the extra [clip]
    python benchmarks/judges.py --dry-run   # print the figures and write nothing

Every value of every property is asked for in fresh renders, half of which show it. Of the renders that do not, half
show another value; the others show none of the world's where the world can draw that: an object that has dissolved, a
colour that has no name. Questions about several properties at once are wrong in one of them. Scenes are as the model's
training pictures, so most of one style are stamped; where the stamp is asked for, half of every style is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import erasers.judges
from erasers.evaluation.scores.calibration import Calibration, Truth, key, measure
from erasers.files.atomic import write_atomically
from erasers.judges import Judge, get_judge
from erasers.worlds.shapes import render, vocabulary
from erasers.worlds.shapes.scenes import Scenes, sample_scenes
from erasers.worlds.shapes.train.judge import independent_marks

SEED = 78_000_001
FILE = Path(erasers.judges.__file__).parent / "calibration.json"
JUDGES = {"oracle/shapes": 200, "clip_zeroshot/shapes": 150}
"""Judge -> pictures a question that show it, and as many that do not."""
VALUES = {
    "object": vocabulary.OBJECTS,
    "colour": vocabulary.COLOURS,
    "style": vocabulary.STYLES,
    "mark": ("none", vocabulary.MARK),
}
TOGETHER = (("colour", "object"), ("object", "style"), ("colour", "object", "style"))


def showing(name: str, index: int, n: int, generator: torch.Generator, *, shown: bool = True) -> Scenes:
    """n scenes that have, or have not, a value."""
    scenes = sample_scenes(4 * n * len(VALUES[name]), generator)
    if name == "mark":
        scenes = independent_marks(scenes, generator)
    return scenes[(getattr(scenes, name) == index) == shown][slice(n)]


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Tensors [n, 3, 32, 32] in [-1, 1] as pictures."""
    pixels = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in pixels]


def nameless(name: str, scenes: Scenes, generator: torch.Generator) -> Tensor:
    """Renders that show no value of a property: dissolved objects, colours off the palette."""
    if name == "object":
        return render.dissolved(scenes, generator)
    sdf, centre = render.distances(scenes, generator)
    return render.draw(scenes, sdf, centre, render.off_palette(len(scenes), generator), generator)


def one_value(name: str, index: int, n: int, generator: torch.Generator) -> tuple[list[Image.Image], list[Truth]]:
    """2n renders, of which the first n show the value."""
    wants = {name: VALUES[name][index]}
    empty = n // 2 if name in ("object", "colour") else 0
    parts = [showing(name, index, n, generator), showing(name, index, n - empty, generator, shown=False)]
    pictures = [render.render(scenes, generator) for scenes in parts]
    if empty:
        pictures.append(nameless(name, sample_scenes(empty, generator), generator))
    return to_images(torch.cat(pictures)), [Truth(wants, row < n) for row in range(2 * n)]


def several(names: tuple[str, ...], n: int, generator: torch.Generator) -> tuple[list[Image.Image], list[Truth]]:
    """2n renders; the first n show what is asked, the others differ from it in one property, in turn."""
    scenes = sample_scenes(2 * n, generator)
    truths = []
    for row in range(2 * n):
        index = {name: int(getattr(scenes, name)[row]) for name in names}
        if row >= n:
            name = names[row % len(names)]
            index[name] = (index[name] + 1 + row % (len(VALUES[name]) - 1)) % len(VALUES[name])
        truths.append(Truth({name: VALUES[name][value] for name, value in index.items()}, row < n))
    return to_images(render.render(scenes, generator)), truths


def calibrate(judge: Judge, samples: int) -> dict[str, Calibration]:
    """All figures of one judge; every judge gets the same pictures."""
    figures = {}
    asked: list[Callable[[torch.Generator], tuple[list[Image.Image], list[Truth]]]] = [
        lambda generator, name=name, index=index: one_value(name, index, samples, generator)
        for name, values in VALUES.items()
        for index in range(len(values))
    ]
    asked += [lambda generator, names=names: several(names, samples, generator) for names in TOGETHER]
    for number, ask in enumerate(asked):
        images, truths = ask(torch.Generator().manual_seed(SEED + number))
        figures[key(truths[0].wants)] = measure(judge, images, truths)
    return figures


def line(name: str, figures: Calibration) -> str:
    """One row of the printed table."""
    shares = (figures.sensitivity, figures.specificity)
    return f"{name:24}" + "".join(
        f"{100 * share.value:8.1f} % [{100 * share.low:5.1f}, {100 * share.high:5.1f}]" if share else f"{'-':>24}"
        for share in shares
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, help="pictures a question that show it, and as many that do not")
    parser.add_argument("--judges", default=",".join(JUDGES), help="which ones; the figures of others stay as they are")
    parser.add_argument("--dry-run", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    table: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    for name in options.judges.split(","):
        started = time.perf_counter()
        judge = get_judge(name)
        figures = calibrate(judge, options.samples or JUDGES.get(name, 150))
        print(f"{name}: sensitivity, specificity ({time.perf_counter() - started:.0f} s)")
        for wants, figure in figures.items():
            print(line(wants, figure))
        table[judge.name] = {
            "fingerprint": judge.fingerprint.digest,
            "pictures": f"fresh renders, seeds from {SEED}",
            "wants": {wants: figure.to_json() for wants, figure in figures.items()},
        }
    if not options.dry_run:
        text = json.dumps(table, indent=1, sort_keys=True) + "\n"
        write_atomically(FILE, lambda file: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
