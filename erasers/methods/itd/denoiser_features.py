"""SAeUron: Cywinski and Deja, "SAeUron: Interpretable Concept Unlearning in Diffusion Models with Sparse Autoencoders",
ICML 2025, arXiv 2501.18052: which features of a block of the denoiser belong to a concept, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from erasers.diffusion.latent_bank import Way
from erasers.sae.autoencoder import SAE
from erasers.sae.denoiser_block import DenoiserBlock
from erasers.text.contexts import shuffled


class Means(NamedTuple):
    """Mean activity of features on the way to pictures.

    Args:
        times: That the denoiser is told, step by step.
        mu: `[steps, n]`.
    """

    times: list[float]
    mu: torch.Tensor


@dataclass(frozen=True)
class Measuring:
    """How activity is measured.

    Args:
        block: The block.
        sae: Its autoencoder.
        way: How pictures are drawn.
        pictures: At most so many, one for each prompt.
        generator: Source of every random number.
        advance: Told of every picture.
        clip_skip: As the pipeline takes it.
    """

    block: DenoiserBlock
    sae: SAE
    way: Way
    pictures: int
    generator: torch.Generator
    advance: Callable[[int], None]
    clip_skip: int | None = None

    @torch.no_grad()
    def means(self, prompts: Sequence[str]) -> Means:
        """Mean activity over pictures of prompts and their places, with the prompt."""
        drawn = shuffled(list(dict.fromkeys(prompts)), self.pictures, self.generator)
        times: dict[int, float] = {}
        totals: dict[int, torch.Tensor] = {}
        for start in range(0, len(drawn), self.way.batch):
            batch = drawn[start : start + self.way.batch]

            def see(step: int, time: float, rows: torch.Tensor, count: int = len(batch)) -> None:
                codes = self.sae.encode(rows[:count].flatten(0, 1))
                times[step], total = time, totals.setdefault(step, torch.zeros(self.sae.n))
                total.index_add_(0, codes.features, codes.values / rows.shape[1])

            self.block.walk(batch, self.way, self.generator, see, self.clip_skip)
            self.advance(len(batch))
        return Means(list(times.values()), torch.stack(list(totals.values())) / len(drawn))


def scores(asked: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Eq. 6, `[steps, n]`: the feature's share of all activity with the concept, minus its share without.

    Args:
        asked: mu of pictures of the concept, `[steps, n]`.
        kept: The same of other pictures.
    """
    return _share(asked) - _share(kept)


def chosen(score: torch.Tensor, count: int) -> torch.Tensor:
    """Boolean `[steps, n]`: the `count` features of each step with the largest scores above 0."""
    values, numbers = score.topk(min(count, score.shape[1]), dim=1)
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, numbers, values > 0)


def step_parts(
    measuring: Measuring, asked: Sequence[Sequence[str]], kept: Sequence[str], scale: float, count: int
) -> dict[str, torch.Tensor]:
    """The parts of the hook `StepFeatures`, or of one of its kin for rows.

    f_i becomes scale mu_i(t, concept) f_i where it is above the mean of mu_i(t, .) over pictures with and without the
    concept (eq. 8).

    Args:
        measuring: How activity is measured.
        asked: Prompts of each concept.
        kept: Prompts without any of them.
        scale: gamma.
        count: Features of each concept and step.

    Raises:
        ValueError: A concept during which no feature is more active than otherwise.
    """
    sae, (times, without) = measuring.sae, measuring.means(kept)
    gates = torch.full_like(without, float("inf"))
    scales = torch.ones_like(without)
    for prompts in asked:
        with_ = measuring.means(prompts).mu
        targets = chosen(scores(with_, without), count)
        if not targets.any():
            raise ValueError(
                f"expected features of {measuring.block.target} that fire more for {prompts[0]!r} than for kept "
                "prompts, got none; train the autoencoder on pictures of it (erase sae train)"
            )
        gates = torch.where(targets, torch.minimum(gates, (with_ + without) / 2), gates)
        scales = torch.where(targets, torch.minimum(scales, scale * with_), scales)
    numbers = (scales != 1).any(dim=0).nonzero().flatten()
    gates, scales = gates[:, numbers], scales[:, numbers]
    return {
        **sae.features_apart(numbers),
        "floor": sae.threshold.detach().expand(len(numbers)).clone(),
        "times": torch.tensor(times),
        "gate": torch.where(scales != 1, gates, torch.zeros_like(gates)),
        "scale": scales,
    }


def _share(means: torch.Tensor) -> torch.Tensor:
    return means / means.sum(dim=1, keepdim=True).clamp(min=1e-12)
