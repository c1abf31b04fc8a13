"""Steps along a flow with any amount of fresh noise in each."""

from __future__ import annotations

import math
from typing import Any

import torch

from erasers.attacks.step_noise import Noisy


class NoisyFlow(Noisy):
    """Steps along a flow that add `StepNoise`; it stands before a scheduler of diffusers, whose times it visits.

    At x = (1 - sigma) x_0 + sigma noise the velocity v says x_0 = x - sigma v and noise = x + (1 - sigma) v. Divided by
    its size sqrt((1 - sigma)^2 + sigma^2), x is a latent of signal level (1 - sigma)^2 / ((1 - sigma)^2 + sigma^2) of a
    schedule of alphas, and a step is that of DDIM between these levels. With eta 0 it is a step of Euler; up to the eta
    of ancestral sampling, and with scale 1, the noise has the share that the flow has at the next time.
    """

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x of the next time, and the predicted x_0, both `[n, ...]`."""
        live: Any = self
        # Not where times are set: pipelines look at the signature of that.
        if live.step_index is None:
            live._init_step_index(timestep)
            self.begin()
        now, after = (float(live.sigmas[live.step_index + ahead]) for ahead in (0, 1))
        live._step_index += 1
        # As diffusers does it, in float32: steps are small against what they are added to.
        latents, velocity = sample.float(), model_output.float()
        clean, direction = latents - now * velocity, latents + (1 - now) * velocity
        following = size_of(after) * self.next_sample(clean, direction, latents, level_of(now), level_of(after))
        return following.to(model_output.dtype), clean.to(model_output.dtype)


def size_of(sigma: float) -> float:
    """The standard deviation of latents of a flow, where pictures have that of noise."""
    return math.hypot(1 - sigma, sigma)


def level_of(sigma: float) -> float:
    """The share of the variance that is signal."""
    return ((1 - sigma) / size_of(sigma)) ** 2


def noisy_flow(scheduler: Any) -> Any:
    """A scheduler with the configuration, and so with the times, of a pipeline's own, whose steps are `NoisyFlow`'s."""
    own = type(scheduler)
    noisy: Any = type(f"Noisy{own.__name__}", (NoisyFlow, own), {})
    return noisy.from_config(scheduler.config)
