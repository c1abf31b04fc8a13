"""Command line of the training script.

`python -m erasers.worlds.shapes_sd3.train --out runs/shapes-sd3` trains two text encoders and the denoiser and puts the
pipeline together in `runs/shapes-sd3/model`; an interrupted run goes on where it stopped. Pictures, judge, tokenizer
and autoencoder are those of `shapes`. `--stage transformer --without star` retrains the denoiser on a world without
stars.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch

from erasers.worlds.shapes_sd3.train import assembly, text, transformer
from erasers.worlds.training.command import Stage, run_stages


def _encoder(name: str, options: argparse.Namespace, device: torch.device) -> None:
    text.run(options.out, device, options.seed, name)


STAGES: dict[str, Stage] = {
    **{name: partial(_encoder, name) for name in text.ENCODERS},
    "transformer": lambda options, device: transformer.run(options.out, device, options.seed, options.without),
    "assemble": lambda options, device: assembly.run(options.out),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that were asked for."""
    run_stages("shapes-sd3", __doc__, STAGES, "transformer", arguments)


if __name__ == "__main__":
    main()
