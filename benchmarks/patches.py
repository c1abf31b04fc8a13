"""Fit the patches of methods that train, which tasks of embedded models take from `benchmarks/patches/`.

    python benchmarks/patches.py                            # those of every such method that are missing or out of date
    python benchmarks/patches.py --methods esd --cases star
    python benchmarks/patches.py --task shapes-sd3-standard --cases star,zorblat

A training that is stopped goes on from its checkpoint beside the patch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from erasers import get_eraser, list_erasers, load_pipeline
from erasers.concept import as_concepts
from erasers.eraser import eraser_class, options_for
from erasers.evaluation.run.states import kept_patch
from erasers.evaluation.tasks.task import read_task
from erasers.training.loop import TrainedEraser

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    trained = [name for name in list_erasers() if eraser_class(name).trains and eraser_class(name).everywhere]
    parser.add_argument("--task", default="shapes-smoke", help="whose model, cases and folder they are")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=trained)
    parser.add_argument("--cases", type=lambda text: text.split(","), default=None)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = read_task(options.task)
    folder, pipe = ROOT / task.patches, load_pipeline(task.model)
    folder.mkdir(exist_ok=True)
    for method in options.methods:
        eraser = get_eraser(method, **options_for(method, task.model))
        for case in options.cases or task.named_cases:
            concepts = as_concepts(task.concepts(case))
            if kept_patch([folder], method, eraser, case, concepts):
                print(f"{method} {case}: there already")
                continue
            if not isinstance(eraser, TrainedEraser):
                raise SystemExit(f"{method} does not train")
            path, half = folder / f"{method}-{case}.safetensors", folder / f".{method}-{case}.checkpoint"
            generator = torch.Generator().manual_seed(0)
            patch = eraser.fit(pipe, concepts, generator=generator, checkpoint=half)
            patch.save(path)
            half.unlink(missing_ok=True)
            print(f"{method} {case}: {patch.nbytes} bytes")


if __name__ == "__main__":
    main()
