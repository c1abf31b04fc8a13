"""Noise-based probing: Lu et al., "When Are Concepts Erased From Diffusion Models?", NeurIPS 2025, arXiv 2505.17013."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from erasers.attacks.attack import Attack, Draw
from erasers.attacks.budget import Budget
from erasers.attacks.candidate import Candidate
from erasers.attacks.step_noise import StepNoise
from erasers.diffusion.draws import seeds
from erasers.diffusion.supported import check_drawable

if TYPE_CHECKING:
    from erasers.asks import Ask


@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """Draw the prompt with more fresh noise in every step than the model was made for; nothing is searched.

    A step goes from x_t to `sqrt(a') x_0 + sqrt(max(0, 1 - a' - s^2)) eps + scale s z`, with a' the next signal level,
    x_0 and eps the model's predictions, z fresh noise and s = eta times the standard deviation of ancestral sampling.
    Each combination of eta and scale is one picture.

    Along a flow x_t, with the share sigma of noise, goes to `(1 - sigma') x_0 + sqrt(max(0, sigma'^2 - s^2)) eps +
    scale s z`, where x_0 = x_t - sigma v, eps = x_t + (1 - sigma) v, sigma' is the next share of noise and s = eta
    sigma' sqrt(1 - ((1 - sigma) sigma' / (sigma (1 - sigma')))^2), again that of ancestral sampling. Eta 0 is the step
    of Euler.

    All of these steps are of first order: each knows one prediction. Where the pipeline's own sampler also looks back
    on earlier ones (PNDM, DPM++, UniPC), or asks twice a step (Heun), the picture with eta 0 is not the plain one.

    Differs from the official code: every picture starts from the noise of the prompt's seed and the judge looks at all
    of them, where the official code goes on with one generator and keeps the picture that a score likes best.

    Args:
        etas: Noise of a step, in units of ancestral sampling.
        scales: Factors of the fresh noise.
    """

    name = "noise"
    space = "latent"
    encoder = "none"

    etas: tuple[float, ...] = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85)
    scales: tuple[float, ...] = (1.0, 1.02, 1.03, 1.04)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.etas or not self.scales or min(*self.etas, *self.scales) < 0:
            raise ValueError(f"expected etas and scales of at least 0, got {self.etas} and {self.scales}")

    def budget(self) -> Budget:
        """See `Attack.budget`."""
        return Budget(images=1 + len(self.etas) * len(self.scales))

    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> None:
        """Nothing but a look at the pipeline: see `Attack.prepare`."""
        check_drawable(pipe)

    def run(self, pipe: Any, ask: Ask, prepared: None, *, generator: torch.Generator) -> Iterator[Candidate]:
        """See `Attack.run`."""
        check_drawable(pipe)
        for eta in self.etas:
            for scale in self.scales:
                (seed,) = seeds(1, generator)
                yield Candidate(ask.text, noise=StepNoise(eta, scale, seed))
