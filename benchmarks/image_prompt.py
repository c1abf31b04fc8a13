"""What pictures as prompts bring back of a concept: shares by method, and the pictures of docs/images.md.

    python benchmarks/image_prompt.py --methods esd,co_erasing --picture docs/images.png

The unedited model draws some pictures of the concept, and every model is shown them through the IP-Adapter of the
world, beside an empty text and beside one that names the concept. Methods that train take their committed patches where
there are some, and are fitted otherwise. Shares have 95 % Wilson intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from model_card import save_sheet
from PIL import Image

from erasers import Patch, get_eraser, load_pipeline, worlds
from erasers.attacks.candidate import Candidate, Shown, placed
from erasers.diffusion.image_adapter import ImageAdapter
from erasers.eraser import options_for
from erasers.evaluation.drawing import generate
from erasers.evaluation.run.states import kept_patch
from erasers.evaluation.scores.metrics import score
from erasers.files.atomic import write_atomically
from erasers.judges import get_judge
from erasers.worlds import World
from erasers.worlds.shapes.prompts import Prompt

ROOT = Path(__file__).parents[1]
NOISES = 9
SHEET_PICTURES, SHEET_NOISES = 4, 2
TEXTS = {"picture alone": "", "picture and name": "a {}"}


def patch_of(method: str, world: World, pipe: Any, name: str) -> Patch:
    """The committed patch of a method, or one fitted now."""
    eraser, concept = get_eraser(method, **options_for(method, world.name)), world.concept(name)
    kept = kept_patch([ROOT / "benchmarks" / "patches"], method, eraser, name, (concept,))
    return kept or eraser.fit(pipe, concept, generator=torch.Generator().manual_seed(0))


def drawn(
    world: World, pipe: Any, adapter: ImageAdapter, pictures: Sequence[Image.Image], text: str
) -> list[list[Image.Image]]:
    """Of each picture that is shown beside a text, what is drawn from every noise."""
    every = []
    for number, picture in enumerate(pictures):
        with placed(pipe, [Candidate(text, image=Shown(adapter, picture, 1.0))] * NOISES) as arguments:
            noises = [torch.Generator().manual_seed(100 * number + noise) for noise in range(NOISES)]
            every.append(
                pipe(
                    **arguments,
                    num_inference_steps=world.steps,
                    guidance_scale=world.guidance,
                    generator=noises,
                ).images
            )
    return every


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--concept", default="star")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["esd", "co_erasing"])
    parser.add_argument("--pictures", type=int, default=12, help="that are shown")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "shapes-image-prompt.json")
    parser.add_argument(
        "--picture", type=Path, default=None, help="a PNG: what is shown, and what each model draws of it"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = worlds.get(worlds.DEFAULT)
    pipe, judge = load_pipeline(world.name), get_judge(world.judge)
    pipe.set_progress_bar_config(disable=True)
    adapter = ImageAdapter(pipe, "auto")
    asks = world.split_prompts(options.concept, options.pictures)["explicit"]
    settings: dict[str, Any] = {"steps": world.steps, "guidance": world.guidance, "batch": world.batch}
    pictures = [picture for batch in generate(pipe, asks, **settings) for picture in batch]
    sheet, shares = pictures[:SHEET_PICTURES] * SHEET_NOISES, dict[str, Any]()
    patches = {method: patch_of(method, world, pipe, options.concept) for method in options.methods}
    for name, patch in {"unedited": None, **patches}.items():
        with patch.applied(pipe) if patch else nullcontext():
            images = {
                label: drawn(world, pipe, adapter, pictures, text.format(options.concept))
                for label, text in TEXTS.items()
            }
        shares[name] = {}
        for label, rows in images.items():
            flat = [image for row in rows for image in row]
            share = score(judge.judge(flat, [Prompt("", {"object": options.concept}, 0)] * len(flat)))
            shares[name][label] = share and share.to_json()
            print(f"{name}, {label}: {shares[name][label]}", flush=True)
        sheet += [row[noise] for noise in range(SHEET_NOISES) for row in images["picture alone"][:SHEET_PICTURES]]
    facts = {"concept": options.concept, "pictures": len(pictures), "noises": NOISES, "shares": shares}
    write_atomically(options.out, lambda file: file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8"))
    if options.picture:
        save_sheet(sheet, options.picture, columns=SHEET_NOISES * len(pictures[:SHEET_PICTURES]), scale=3)


if __name__ == "__main__":
    main()
