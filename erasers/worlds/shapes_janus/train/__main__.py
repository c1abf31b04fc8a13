"""Command line of the training script.

`python -m erasers.worlds.shapes_janus.train --out runs/shapes-janus` trains the book of picture tokens and the language
model that draws them, and puts the model together in `runs/shapes-janus/model`; an interrupted run goes on where it
stopped. Pictures and judge are those of `shapes`. `--stage language --without star` retrains the language model on a
world without stars. The part that sees pictures is not trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from erasers.worlds.shapes_janus.train import assembly, book, language
from erasers.worlds.training.command import Stage, run_stages

STAGES: dict[str, Stage] = {
    "book": lambda options, device: book.run(options.out, device, options.seed),
    "decoder": lambda options, device: book.run_decoder(options.out, device, options.seed),
    "language": lambda options, device: language.run(options.out, device, options.seed, options.without),
    "assemble": lambda options, device: assembly.run(options.out),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that were asked for."""
    run_stages("shapes-janus", __doc__, STAGES, "language", arguments)


if __name__ == "__main__":
    main()
