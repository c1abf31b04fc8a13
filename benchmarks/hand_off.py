"""Does a concept come back when the unedited model draws the first steps? By method and number of steps.

    python benchmarks/hand_off.py --methods uce,esd,safe,concept_slider --out benchmarks/results/shapes-hand-off.json

0 steps are the erased model alone, all of them the unedited one. Methods that train take their committed patches.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from reversal import patch_of

from erasers import load_pipeline, worlds
from erasers.evaluation.probes.hand_off import handed_off
from erasers.evaluation.scores.metrics import score
from erasers.files.atomic import write_atomically
from erasers.judges import get_judge

METHODS = ("uce", "rece", "esd", "doco", "few_shot", "adv_unlearn", "robust_ablation", "itd", "safe", "concept_slider")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--concept", default="star")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=METHODS)
    parser.add_argument("--first", type=lambda text: list(map(int, text.split(","))), default=[0, 1, 2, 4, 8, 20])
    parser.add_argument("--samples", type=int, default=25)
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the shares")
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = worlds.get(worlds.DEFAULT)
    pipe, judge = load_pipeline(world.name), get_judge(world.judge)
    asks = world.split_prompts(options.concept, options.samples)["explicit"]
    settings: dict[str, Any] = {"steps": world.steps, "guidance": world.guidance, "batch": world.batch}
    shares: dict[str, dict[int, Any]] = {}
    for method in options.methods:
        patch = patch_of(method, options.concept, pipe)
        shares[method] = {}
        for first in options.first:
            verdicts = judge.judge(handed_off(pipe, patch, asks, first=first, **settings), asks)
            share = score(verdicts)
            shares[method][first] = share and share.to_json()
            print(f"{method}: {first} steps unedited, {shares[method][first]}", flush=True)
    if options.out:
        text = json.dumps({"concept": options.concept, "samples": len(asks), "methods": shares}, indent=1) + "\n"
        write_atomically(options.out, lambda file: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
