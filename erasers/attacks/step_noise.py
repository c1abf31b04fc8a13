"""Any amount of fresh noise in every step of a sampler."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from erasers.files.hashing import raw_bytes


@dataclass(frozen=True)
class StepNoise:
    """Fresh noise in every step.

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

    def generator(self, start: torch.Tensor) -> torch.Generator:
        """That of a picture that starts from noise `[...]`."""
        digest = hashlib.sha256(f"{self.seed} ".encode() + bytes(raw_bytes(start.float())))
        return torch.Generator().manual_seed(int.from_bytes(digest.digest()[:7], "big"))


class Noisy:
    """What schedulers share that add `StepNoise`; they take neither eta nor a generator. It stands before theirs."""

    _noises: Sequence[StepNoise] = ()
    _begun: int = 0
    _rows: list[tuple[StepNoise, torch.Generator]] | None = None

    def with_noise(self, noises: Sequence[StepNoise]) -> Self:
        """The same scheduler with these noises, one a picture; after the last comes the first again."""
        self._noises, self._begun = noises, 0
        return self

    def begin(self) -> None:
        """New pictures begin."""
        self._rows = None

    def next_sample(
        self, clean: torch.Tensor, direction: torch.Tensor, sample: torch.Tensor, now: float, after: float
    ) -> torch.Tensor:
        """`next_sample` with fresh noise for each row of `sample` `[n, ...]`."""
        if self._rows is None:
            noises = [self._noises[(self._begun + row) % len(self._noises)] for row in range(len(sample))]
            self._rows = [(noise, noise.generator(start)) for noise, start in zip(noises, sample, strict=True)]
            self._begun += len(sample)
        following = []
        for row, (noise, generator) in enumerate(self._rows):
            fresh = torch.randn(sample.shape[1:], generator=generator).to(sample.device, sample.dtype)
            following.append(next_sample(clean[row], direction[row], fresh, now, after, noise.eta, noise.scale))
        return torch.stack(following)


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
