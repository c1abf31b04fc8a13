"""Relearning: a few steps of fine-tuning on pictures of the concept, to see how much of it is still in the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from erasers.attacks.attack import Attack, Draw
from erasers.attacks.budget import Budget, Preparation
from erasers.attacks.candidate import Candidate
from erasers.attacks.examples import examples
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import denoising_in_parts, denoising_loss, predict
from erasers.diffusion.draws import gaussian, picks
from erasers.diffusion.gradients import LossScale, frozen
from erasers.diffusion.low_rank import Factors, added, attention_layers, fresh_factors
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import noised, random_times
from erasers.diffusion.rates import LOW_RANK_CHANGE, MEASUREMENTS, Rate, rate_for_change, require_rate
from erasers.diffusion.supported import check_drawable
from erasers.models.components import find_parameter
from erasers.models.fingerprints import weight_hashes
from erasers.options import Bound
from erasers.patch import Patch
from erasers.patch.build import patch_meta

if TYPE_CHECKING:
    from erasers.asks import Ask

_MEASURED = 4
"""Pictures on which a rate is measured."""


@dataclass(frozen=True)
class Prepared:
    """Pictures of the concept, drawn by the unedited model.

    Args:
        latents: `[n, c, h, w]`.
        texts: The prompt of each.
        lr: Learning rate.
    """

    latents: torch.Tensor
    texts: tuple[str, ...]
    lr: float


@dataclass(frozen=True, kw_only=True)
class Relearning(Attack):
    """Fine-tune low-rank weights of the edited denoiser on pictures of the concept, and ask for it by the prompt.

    Every projection of its attention layers learns B A of rank `rank` from `||noise - eps(z_t, t, p)||^2`, or from
    `||noise - z_0 - v(z_t, t, p)||^2` along a flow; the result is a patch on top of those that the model has. The
    weights are learned anew for each prompt, with other draws of pictures, times and noise. A model that never saw the
    concept learns it, too: read the success against that of one retrained without it.

    The pictures are those that the unedited model draws of the attacked prompts, each with fresh noise.

    Args:
        steps: Steps of AdamW, without weight decay.
        batch: Pictures a step.
        rank: Of the learned weights.
        lr: Learning rate. "auto" is that at which the first step moves the prediction of the unedited model by 5 %: the
            same for every model that is attacked, and right for networks of every size.
        pictures: Pictures of the concept to learn from.
    """

    name = "relearning"
    space = "weights"
    encoder = "attacked"
    bounds = (Bound("steps batch rank pictures", 1),)

    steps: int = 30
    batch: int = 8
    rank: int = 8
    lr: Rate = "auto"
    pictures: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rate("lr", self.lr)

    def passes(self, pipe: Any) -> Sequence[Pass]:
        """See `Attack.passes`."""
        return [Pass(self.batch, [f"{name}.weight" for name in attention_layers(pipe)])]

    def budget(self) -> Budget:
        """See `Attack.budget`."""
        return Budget(self.steps * self.batch, self.pictures, 2)

    def preparation(self, prompts: int) -> Preparation:
        """See `Attack.preparation`."""
        measured = min(_MEASURED, self.pictures) if isinstance(self.lr, str) else 0
        return Preparation(images=self.pictures, passes=MEASUREMENTS * measured, gradients=measured)

    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> Prepared:
        """See `Attack.prepare`."""
        check_drawable(pipe)
        texts, latents = examples(pipe, asks, self.pictures, draw=draw, generator=generator)
        lr = self._measured(pipe, latents, texts, generator) if isinstance(self.lr, str) else self.lr
        return Prepared(latents, texts, lr)

    def run(self, pipe: Any, ask: Ask, prepared: Prepared, *, generator: torch.Generator) -> Iterator[Candidate]:
        """See `Attack.run`.

        Raises:
            ValueError: Weights that cannot be edited (quantised, wrapped, offloaded).
        """
        check_drawable(pipe)
        factors = fresh_factors(pipe, self.rank, generator)
        # With the factors, still zero, as a patch: so they act on what they will act on when the result is drawn.
        with frozen(pipe), low_rank_patch(self, pipe, factors).applied(pipe), added(pipe, factors):
            self._train(pipe, factors, prepared, generator)
        yield Candidate(ask.text, patch=low_rank_patch(self, pipe, factors))

    def _measured(self, pipe: Any, latents: torch.Tensor, texts: Sequence[str], generator: torch.Generator) -> float:
        """The rate that "auto" stands for, measured on some of the pictures."""
        latents = latents[:_MEASURED]
        condition = conditions(pipe, texts[: len(latents)])
        noise = gaussian(latents, generator)
        times = random_times(pipe, len(latents), generator, tuple(latents.shape[1:])).to(latents.device)
        rows = torch.arange(len(latents)).split(1)

        def loss(row: torch.Tensor) -> torch.Tensor:
            return denoising_loss(pipe, latents[row], times[row], noise[row], condition.rows(row))

        def output() -> torch.Tensor:
            noisy = noised(pipe, latents, times, noise)
            return torch.cat([predict(pipe, noisy[row], times[row], condition.rows(row)) for row in rows])

        factors = fresh_factors(pipe, self.rank, generator)
        with frozen(pipe), added(pipe, factors):
            return low_rank_rate(pipe, factors, [partial(loss, row) for row in rows], output)

    @torch.enable_grad()
    def _train(self, pipe: Any, factors: Mapping[str, Factors], prepared: Prepared, generator: torch.Generator) -> None:
        condition = conditions(pipe, prepared.texts)
        trained = [factor for pair in factors.values() for factor in pair]
        optimizer, scale = torch.optim.AdamW(trained, lr=prepared.lr, weight_decay=0.0), LossScale(pipe)
        for _ in range(self.steps):
            rows = picks(len(prepared.texts), self.batch, generator)
            latents = prepared.latents[rows]
            times = random_times(pipe, self.batch, generator, tuple(latents.shape[1:]))
            loss = denoising_in_parts(
                pipe,
                latents,
                times.to(latents.device),
                gaussian(latents, generator),
                condition.rows(rows),
            )
            scale.set(loss, trained)
            optimizer.step()


@torch.enable_grad()
def low_rank_rate(
    pipe: Any,
    factors: Mapping[str, Factors],
    losses: Sequence[Callable[[], torch.Tensor]],
    output: Callable[[], torch.Tensor],
) -> float:
    """The rate at which the first step of fresh factors moves the output by `LOW_RANK_CHANGE` of its norm.

    Args:
        pipe: The pipeline.
        factors: As `fresh_factors` makes them, with B zero; inside `added`.
        losses: Whose sum is learned; one at a time, for little memory.
        output: As for `rate_for_change`.
    """
    # A has no gradient where B is zero.
    ups = [up for _, up in factors.values()]
    slopes, scale = [torch.zeros_like(up) for up in ups], LossScale(pipe)
    for loss in losses:
        while (fresh := scale.slopes(loss(), ups)) is None:
            pass
        for total, slope in zip(slopes, fresh, strict=True):
            total += slope
    return rate_for_change(output, ups, slopes, LOW_RANK_CHANGE)


def low_rank_patch(attack: Relearning, pipe: Any, factors: Mapping[str, Factors]) -> Patch:
    """The factors as a patch on top of the weights that the pipeline has now."""
    live = {f"{name}.weight": find_parameter(pipe, f"{name}.weight", linear=True) for name in factors}
    tensors = {
        f"lowrank/{name}/{letter}": value.detach().float().cpu().clone()
        for name, pair in factors.items()
        for letter, value in zip("AB", pair, strict=True)
    }
    base = weight_hashes(pipe, {name: parameter.data for name, parameter in live.items()})
    dtype = next(iter(live.values())).dtype
    return Patch(tensors, patch_meta(attack.name, attack.config(), [], base, dtype))
