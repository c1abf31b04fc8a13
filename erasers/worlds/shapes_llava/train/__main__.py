"""Command line of the training script.

`python -m erasers.worlds.shapes_llava.train --out runs/shapes-llava` trains a LLaVA to say what is in a picture, and
puts it with its processor in `runs/shapes-llava/model`; an interrupted run goes on where it stopped. Pictures are those
of `shapes`. `--stage sight --without star` trains one that never saw a star.
"""

from __future__ import annotations

from collections.abc import Sequence

from erasers.worlds.shapes_llava.train import assembly, sight
from erasers.worlds.training.command import Stage, run_stages

STAGES: dict[str, Stage] = {
    "sight": lambda options, device: sight.run(options.out, device, options.seed, options.without),
    "assemble": lambda options, device: assembly.run(options.out),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that were asked for."""
    run_stages("shapes-llava", __doc__, STAGES, "sight", arguments)


if __name__ == "__main__":
    main()
