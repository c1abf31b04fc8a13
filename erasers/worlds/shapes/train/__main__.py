"""Command line of the training script.

`python -m erasers.worlds.shapes.train --out runs/shapes` runs every stage in order and puts the pipeline together in
`runs/shapes/model`; an interrupted run goes on where it stopped. `--stage unet --without star` retrains the denoiser on
a world without stars.
"""

from __future__ import annotations

from collections.abc import Sequence

from erasers.worlds.shapes.train import assembly, clip, image_prompt, judge, text, unet, vae
from erasers.worlds.training.command import Stage, run_stages

STAGES: dict[str, Stage] = {
    "judge": lambda options, device: judge.run(options.out, device, options.seed),
    "vae": lambda options, device: vae.run(options.out, device, options.seed),
    "text": lambda options, device: text.run(options.out, device, options.seed),
    "unet": lambda options, device: unet.run(options.out, device, options.seed, options.without),
    "assemble": lambda options, device: assembly.run(options.out),
    "clip": lambda options, device: clip.run(options.out, device, options.seed),
    "image_prompt": lambda options, device: image_prompt.run(options.out, device, options.seed),
}
EXTRA_STAGES = ("clip", "image_prompt")
"""Run only when asked for: the first needs the extra `[clip]`, the second is of the model that the package holds."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that were asked for."""
    run_stages("shapes", __doc__, STAGES, "unet", arguments, EXTRA_STAGES)


if __name__ == "__main__":
    main()
