"""The command line of a training in stages."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Stage = Callable[[argparse.Namespace, torch.device], None]
"""Trains a stage into `options.out` with `options.seed`; that of the denoiser reads `options.without`."""


def run_stages(
    world: str,
    description: str | None,
    stages: Mapping[str, Stage],
    denoiser: str,
    arguments: Sequence[str] | None,
    extra: Sequence[str] = (),
) -> None:
    """Run the stages that were asked for.

    Args:
        world: Names the folder that is written.
        description: Of the command.
        stages: Name -> stage, in order.
        denoiser: The stage that may leave a thing of the world out.
        arguments: Of the command; those of the process when None.
        extra: Stages that run only when asked for.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m erasers.worlds.{world.replace('-', '_')}.train", description=description
    )
    usual = [name for name in stages if name not in extra]
    parser.add_argument("--out", type=Path, default=Path("runs") / world, help="folder of weights, logs, checkpoints")
    parser.add_argument(
        "--stage", choices=list(stages), action="append", help=f"repeatable; default: {', '.join(usual)}"
    )
    parser.add_argument("--without", metavar="WORD", help=f"leave an object, colour or style out ({denoiser} only)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: torch's choice")
    options = parser.parse_args(arguments)
    names = options.stage or usual
    if options.without and names != [denoiser]:
        parser.error(f"--without needs --stage {denoiser} and no other stage")
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in names:
        stages[name](options, device)
