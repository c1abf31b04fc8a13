"""DDIM with any amount of fresh noise in every step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler

from erasers.files.hashing import raw_bytes


@dataclass(frozen=True)
class StepNoise:
    """Fresh noise in every step of the sampler, which is DDIM whatever the pipeline has.

    The noise follows from the seed and from the noise that a picture starts from, so that it depends neither on the
    batch nor on a generator.

    Args:
        eta: Noise of a step, in units of the standard deviation of ancestral sampling; 0 is deterministic.
        scale: Factor of the fresh noise alone, the rest of the step being as with 1.
        seed: Of the noise.
    """

    eta: float
    scale: float
    seed: int

    @contextmanager
    def placed(self, pipe: Any) -> Iterator[None]:
        """Inside, `pipe` draws with it."""
        before = pipe.scheduler
        pipe.scheduler = NoisyDDIM.from_config(before.config).with_noise(self)
        try:
            yield
        finally:
            pipe.scheduler = before

    def generators(self, start: torch.Tensor) -> list[torch.Generator]:
        """One for each picture that starts from noise `[n, c, h, w]`."""
        digests = [hashlib.sha256(f"{self.seed} ".encode() + bytes(raw_bytes(row.float()))) for row in start]
        return [torch.Generator().manual_seed(int.from_bytes(digest.digest()[:7], "big")) for digest in digests]


class NoisyDDIM(DDIMScheduler):  # type: ignore[misc]
    """A DDIM scheduler that adds `StepNoise`; it takes neither eta nor a generator."""

    _noise = StepNoise(0.0, 1.0, 0)
    _generators: list[torch.Generator] | None = None

    def with_noise(self, noise: StepNoise) -> NoisyDDIM:
        """The same scheduler with this noise."""
        self._noise = noise
        return self

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """See `DDIMScheduler.set_timesteps`; a new picture begins."""
        super().set_timesteps(*args, **kwargs)
        self._generators = None

    def step(
        self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, return_dict: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x of the next time step, and the predicted x_0, both `[n, c, h, w]`."""
        if self._generators is None:
            self._generators = self._noise.generators(sample)
        now, after = self._levels(int(timestep))
        clean, direction = _predictions(self.config.prediction_type, model_output, sample, now)
        fresh = torch.stack([torch.randn(sample.shape[1:], generator=own) for own in self._generators])
        fresh = fresh.to(sample.device, sample.dtype)
        return next_sample(clean, direction, fresh, now, after, self._noise.eta, self._noise.scale), clean

    def _levels(self, timestep: int) -> tuple[float, float]:
        """Signal levels (alphas_cumprod) of a time step and of the one that follows it."""
        following = timestep - self.config.num_train_timesteps // self.num_inference_steps
        after = self.alphas_cumprod[following] if following >= 0 else self.final_alpha_cumprod
        return float(self.alphas_cumprod[timestep]), float(after)


def next_sample(
    clean: torch.Tensor,
    direction: torch.Tensor,
    fresh: torch.Tensor,
    now: float,
    after: float,
    eta: float,
    scale: float,
) -> torch.Tensor:
    """One step.

    Args:
        clean: Predicted x_0.
        direction: Predicted noise.
        fresh: Noise of unit variance.
        now: Signal level of the present time step.
        after: That of the next one.
        eta: Noise in units of ancestral sampling.
        scale: Factor of the fresh noise.
    """
    # (1 - a') / (1 - a) (1 - a / a'), the variance of ancestral sampling: DDIM, arXiv 2010.02502, equation 16.
    variance = eta**2 * (1 - after) / (1 - now) * (1 - now / after)
    kept = max(0.0, 1 - after - variance)
    return math.sqrt(after) * clean + math.sqrt(kept) * direction + scale * math.sqrt(variance) * fresh


def _predictions(
    kind: str, output: torch.Tensor, sample: torch.Tensor, level: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The predicted x_0 and noise."""
    signal, spread = math.sqrt(level), math.sqrt(1 - level)
    if kind == "v_prediction":
        return signal * sample - spread * output, signal * output + spread * sample
    return (sample - spread * output) / signal, output
