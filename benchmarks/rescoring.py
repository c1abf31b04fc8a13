"""Seconds that it takes to score verdicts that are already there: pillars, their mean and every interval.

    python benchmarks/rescoring.py                  # 10,000 verdicts
    python benchmarks/rescoring.py --verdicts 50000

The verdicts are made up: two models, four splits, CLIP scores and two attacks, one picture a prompt, which is the most
prompts that so many verdicts can have.
"""

from __future__ import annotations

import argparse
import json
import random
import time

from erasers import asks
from erasers.evaluation.scores.bootstrap import RESAMPLES
from erasers.evaluation.scores.pillars import Rise, Scheme, measure
from erasers.evaluation.scores.records import Record

SPLITS = (*asks.SPLITS, asks.UTILITY)
ATTACKS = ("attack/one", "attack/two")


def make_records(splits: tuple[str, ...], prompts: int, seed: int) -> list[Record]:
    """One record a prompt and split; attacks are on the explicit prompts."""
    rng = random.Random(seed)
    names = {split: "explicit" if split in ATTACKS else split for split in splits}
    return [
        Record(split, f"{name} {k}", k, rng.gauss(30, 3) if split == "utility" else rng.random() < 0.7)
        for split, name in names.items()
        for k in range(prompts)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--verdicts", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    prompts = options.verdicts // (2 * len(SPLITS) + len(ATTACKS))
    unedited, edited = make_records(SPLITS, prompts, 0), make_records((*SPLITS, *ATTACKS), prompts, 1)
    seconds, cpu_seconds = [], []
    for _ in range(options.repeat):
        start, cpu_start = time.perf_counter(), time.process_time()
        measure(edited, unedited, Scheme(kappa=0.5), kid=Rise(0.01, 0.01, prompts))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    best = {"seconds": round(min(seconds), 3), "cpu_seconds": round(min(cpu_seconds), 3)}
    print(json.dumps({"verdicts": len(unedited) + len(edited), "resamples": RESAMPLES} | best))


if __name__ == "__main__":
    main()
