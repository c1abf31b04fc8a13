"""DDIM with any amount of fresh noise in every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import DDIMScheduler

from erasers.attacks.step_noise import Noisy


class NoisyDDIM(Noisy, DDIMScheduler):  # type: ignore[misc]
    """A DDIM scheduler that adds `StepNoise`."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """See `DDIMScheduler.set_timesteps`; new pictures begin."""
        super().set_timesteps(*args, **kwargs)
        self.begin()

    def step(
        self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, return_dict: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x of the next time step, and the predicted x_0, both `[n, c, h, w]`."""
        now, after = self._levels(int(timestep))
        clean, direction = _predictions(self.config.prediction_type, model_output, sample, now)
        return self.next_sample(clean, direction, sample, now, after), clean

    def _levels(self, timestep: int) -> tuple[float, float]:
        """Signal levels (alphas_cumprod) of a time step and of the one that follows it."""
        following = timestep - self.config.num_train_timesteps // self.num_inference_steps
        after = self.alphas_cumprod[following] if following >= 0 else self.final_alpha_cumprod
        return float(self.alphas_cumprod[timestep]), float(after)


def _predictions(
    kind: str, output: torch.Tensor, sample: torch.Tensor, level: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The predicted x_0 and noise."""
    signal, spread = math.sqrt(level), math.sqrt(1 - level)
    if kind == "v_prediction":
        return signal * sample - spread * output, signal * output + spread * sample
    return (sample - spread * output) / signal, output
