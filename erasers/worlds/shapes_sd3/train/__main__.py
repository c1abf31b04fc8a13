"""Command line of the training script.

`python -m erasers.worlds.shapes_sd3.train --out runs/shapes-sd3` trains two text encoders and the denoiser and puts the
pipeline together in `runs/shapes-sd3/model`; an interrupted run goes on where it stopped. Pictures, judge, tokenizer
and autoencoder are those of `shapes`. `--stage transformer --without star` retrains the denoiser on a world without
stars.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from erasers.worlds.shapes_sd3.train import assembly, text, transformer

STAGES = (*text.ENCODERS, "transformer", "assemble")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m erasers.worlds.shapes_sd3.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/shapes-sd3"), help="folder of weights and logs")
    parser.add_argument("--stage", choices=STAGES, action="append", help="repeatable; default: all of them in order")
    parser.add_argument("--without", metavar="WORD", help="leave an object, colour or style out (transformer only)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: torch's choice")
    options = parser.parse_args(arguments)
    stages = options.stage or STAGES
    if options.without and stages != ["transformer"]:
        parser.error("--without needs --stage transformer and no other stage")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if stage in text.ENCODERS:
            text.run(options.out, device, options.seed, stage)
        elif stage == "transformer":
            transformer.run(options.out, device, options.seed, options.without)
        else:
            assembly.run(options.out)


if __name__ == "__main__":
    main()
