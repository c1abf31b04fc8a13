"""What comes unasked: the share of pictures in which a prompt brings a concept that it does not name, before and after.

    python benchmarks/implicit.py --patch stamp.safetensors --out benchmarks/results/shapes-implicit.json
    python benchmarks/implicit.py --method uce,rece --samples 50 --picture docs/implicit.png

Of prompts in the style that brings the stamp: the shares of pictures with the stamp and of pictures in the style, with
their 95 % Wilson intervals. Prompts of the same things without a style, and with the stamp, say what else went.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from model_card import save_sheet
from PIL import Image

from erasers import Patch, get_eraser, load_pipeline, worlds
from erasers.eraser import options_for
from erasers.evaluation.drawing import generate
from erasers.evaluation.scores.metrics import score
from erasers.files.atomic import write_atomically
from erasers.judges import Judge, get_judge
from erasers.worlds.shapes import vocabulary
from erasers.worlds.shapes.prompts import Prompt

SEED = 88_000_001
COLUMNS = 8


def prompts(samples: int, style: str, *, mark: bool = False) -> list[Prompt]:
    """The same objects and colours for each style, each picture with the same noise."""
    rng, asked = random.Random(SEED), []
    for number in range(samples):
        wants = {"object": rng.choice(vocabulary.OBJECTS), "colour": rng.choice(vocabulary.COLOURS)}
        text = vocabulary.phrase(thing=wants["object"], colour=wants["colour"], style=style, mark=mark)
        asked.append(Prompt(text, wants | ({"style": style} if style else {}), SEED + number))
    return asked


def shares(judge: Judge, pictures: Sequence[Image.Image], asked: Sequence[Prompt]) -> dict[str, Any]:
    """Share of the stamp, of each property that was asked for, and of all of them."""
    looked = {vocabulary.MARK: [replace(prompt, wants={"mark": vocabulary.MARK}) for prompt in asked]}
    looked |= {name: [replace(prompt, wants={name: prompt.wants[name]}) for prompt in asked] for name in asked[0].wants}
    looked["all that was asked for"] = list(asked)
    scores = {name: score(judge.judge(pictures, asks)) for name, asks in looked.items()}
    return {name: found.to_json() for name, found in scores.items() if found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--patch", type=Path, default=None, help="a patch that is there")
    parser.add_argument("--method", type=lambda text: text.split(","), default=[], help="methods, fitted first")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the shares")
    parser.add_argument("--picture", type=Path, default=None, help="a PNG, before above after, of the last one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = worlds.get(worlds.DEFAULT)
    pipe, judge = load_pipeline(world.name), get_judge(world.judge)
    rows: dict[str, Patch | None] = {"unedited": None}
    if options.patch:
        patch = Patch.load(options.patch)
        rows[str(patch.meta["method"])] = patch
    for method in options.method:
        eraser = get_eraser(method, **options_for(method, world.name))
        rows[method] = eraser.fit(pipe, world.concept(vocabulary.MARK))
    sets = {
        f"in the style {vocabulary.MARKED_STYLE}": prompts(options.samples, vocabulary.MARKED_STYLE),
        "without a style": prompts(options.samples // 4, ""),
        f"with a {vocabulary.MARK}": prompts(options.samples // 4, "", mark=True),
    }
    found: dict[str, Any] = {}
    sheet: list[Image.Image] = []
    for row, patch in rows.items():
        found[row] = {}
        for name, asked in sets.items():
            with patch.applied(pipe) if patch else nullcontext():
                batches = generate(pipe, asked, steps=world.steps, guidance=world.guidance, batch=world.batch)
                pictures = [picture for batch in batches for picture in batch]
            found[row][name] = shares(judge, pictures, asked)
            sheet += pictures[:COLUMNS] if name == next(iter(sets)) and patch in (None, [*rows.values()][-1]) else []
            print(f"{row}, {name}: {found[row][name]}", flush=True)
    if options.out:
        text = json.dumps({"concept": vocabulary.MARK, "rows": found}, indent=1) + "\n"
        write_atomically(options.out, lambda file: file.write_text(text, encoding="utf-8"))
    if options.picture:
        save_sheet(sheet, options.picture, columns=COLUMNS, scale=3)


if __name__ == "__main__":
    main()
