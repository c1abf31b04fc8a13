"""Seconds that every method takes to fit a patch for an embedded model, on one core.

    python benchmarks/cost.py --out benchmarks/results/shapes-cost.json
    python benchmarks/cost.py --methods uce,esd --model shapes-sd3

Rows of the tasks take committed patches of the methods that train, so their seconds are measured here. CPU seconds
count what the process did and not what else the machine was doing; where both are far apart, it was not idle.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from erasers import get_eraser, list_erasers, load_pipeline, worlds
from erasers.eraser import eraser_class, options_for
from erasers.files.atomic import write_atomically
from erasers.worlds.shapes.prompts import concept_for


def cost(method: str, concept: str, model: str, pipe: Any) -> dict[str, float | int]:
    """One fit of a method with its settings for the embedded model: seconds and bytes of the patch."""
    eraser = get_eraser(method, **options_for(method, model))
    start, busy = time.perf_counter(), time.process_time()
    patch = eraser.fit(pipe, concept_for(concept), generator=torch.Generator().manual_seed(0))
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - busy, 3),
        "bytes": patch.nbytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    usual = [name for name in list_erasers() if eraser_class(name).everywhere]
    parser.add_argument("--methods", type=lambda text: text.split(","), default=usual)
    parser.add_argument("--concept", default="star")
    parser.add_argument("--model", choices=worlds.list(), default=worlds.DEFAULT, help="the world")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = load_pipeline(options.model)
    get_eraser("uce").fit(pipe, concept_for(options.concept))
    costs = {}
    for method in options.methods:
        costs[method] = cost(method, options.concept, options.model, pipe)
        print(f"{method}: {costs[method]['seconds']} s, {costs[method]['cpu_seconds']} s of CPU", flush=True)
    if options.out:
        text = json.dumps({"concept": options.concept, "threads": 1, "methods": costs}, indent=1) + "\n"
        write_atomically(options.out, lambda file: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
