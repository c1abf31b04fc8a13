"""Draws the training curves of an embedded model from its logs: `python benchmarks/curves.py --model shapes`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

from erasers import worlds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=worlds.list(), default=worlds.DEFAULT, help="the world")
    folder = Path(__file__).parent / parser.parse_args().model
    files = sorted((folder / "logs").glob("*.jsonl"))
    figure, axes = plt.subplots(2, -(-len(files) // 2), figsize=(14, 6), squeeze=False)
    for axis in axes.flat[len(files) :]:
        axis.axis("off")
    for axis, file in zip(axes.flat, files, strict=False):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for key in rows[0]:
            if key not in ("step", "seconds", "cpu_seconds", "psnr"):
                axis.plot([row["step"] for row in rows], [row[key] for row in rows], label=key, linewidth=1)
        axis.set(title=file.stem, xlabel="step", yscale="log")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
