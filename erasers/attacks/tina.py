"""TINA, inversion without a text: arXiv 2603.17828."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from erasers.attacks.attack import Attack, Draw
from erasers.attacks.budget import Budget, Preparation
from erasers.attacks.candidate import Candidate
from erasers.attacks.step_noise import StepNoise
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latents import latents_of
from erasers.diffusion.noise import step_back, time_grid
from erasers.diffusion.supported import check_drawable
from erasers.options import Bound

if TYPE_CHECKING:
    from erasers.asks import Ask


@dataclass(frozen=True, kw_only=True)
class TINA(Attack):
    """Find the noise from which the edited model, without any text, draws a picture of the concept.

    The picture is the one that the unedited model draws of the prompt. It is followed back to noise, step by step, with
    the empty prompt: each step looks for the latents from which a step of DDIM, or of Euler along a flow, comes to the
    last ones. Nearly every picture has such noise, whether the model knows what it shows or not: read the success
    against that of a model retrained without the concept.

    It is exact where guidance does nothing to the empty prompt, as in Stable Diffusion 1, 2 and 3; SDXL guides away
    from zeros, and distilled models read a guidance scale.

    Differs from the paper: latents are found by an iteration that takes no gradient, in place of steps of an optimizer.

    Args:
        steps: With which pictures are drawn.
        rounds: Of the iteration, in each step; the paper has 25 steps of its optimizer.
    """

    name = "tina"
    space = "latent"
    encoder = "none"
    bounds = (Bound("steps rounds", 1),)
    embedded = {"steps": 20}

    steps: int = 50
    rounds: int = 25

    def budget(self) -> Budget:
        """See `Attack.budget`; passes without gradients do not count."""
        return Budget(encodes=1, images=2)

    def preparation(self, prompts: int) -> Preparation:
        """See `Attack.preparation`."""
        return Preparation(images=prompts)

    def prepare(
        self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator
    ) -> dict[tuple[str, int], torch.Tensor]:
        """(text, seed) -> latents of the picture `[1, c, h, w]`: see `Attack.prepare`."""
        check_drawable(pipe)
        images = draw(pipe, {"prompt": [ask.text for ask in asks]}, [ask.seed for ask in asks])
        return {(ask.text, ask.seed): latents_of(pipe, [image]) for ask, image in zip(asks, images, strict=True)}

    def run(
        self, pipe: Any, ask: Ask, prepared: Mapping[tuple[str, int], torch.Tensor], *, generator: torch.Generator
    ) -> Iterator[Candidate]:
        """See `Attack.run`."""
        check_drawable(pipe)
        noise = inverted(pipe, prepared[ask.text, ask.seed], conditions(pipe, [""]), self.steps, self.rounds)
        yield Candidate("", latents=adaptor_of(pipe).handed(noise), noise=StepNoise(0.0, 1.0, 0))


@torch.no_grad()
def inverted(pipe: Any, latents: torch.Tensor, condition: Condition, steps: int, rounds: int) -> torch.Tensor:
    """The noise `[1, c, h, w]` from which `steps` steps without guidance come to latents `[1, c, h, w]`.

    A step is z' = a z + b eps(z): in each round z moves by what z' lacks, over a.
    """
    grid = time_grid(pipe, steps, tuple(latents.shape[1:]))
    times, befores = (torch.tensor(own, device=latents.device) for own in (grid, [*grid[1:], -1]))
    for time, before in zip(times.flip(0)[:, None], befores.flip(0)[:, None], strict=True):
        goal, latents = latents, latents.clone()
        slope = step_back(pipe, torch.ones_like(goal), time, before, torch.zeros_like(goal))
        for _ in range(rounds):
            reached = step_back(pipe, latents, time, before, predict(pipe, latents, time, condition))
            latents = latents + (goal - reached) / slope
    return latents
