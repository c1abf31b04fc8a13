"""Low-rank weights that live through a training and bring back what is unlearned."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from erasers.attacks.relearning import low_rank_rate
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.denoiser import predict
from erasers.diffusion.gradients import LossScale
from erasers.diffusion.low_rank import added, fresh_factors
from erasers.diffusion.rates import Rate
from erasers.methods.robust_ablation.pool import Pool, distance_from_truth


class Relearner:
    """The attack `relearning` while the student is trained: it learns the concept anew, the student unlearns it again.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        rank: Of the weights beside every projection of the attention layers.
        lr: Of its AdamW; "auto" waits for `measure`.
        generator: Draws one of the two factors of each; the other begins with zeros.
    """

    def __init__(self, pipe: Any, rank: int, lr: Rate, generator: torch.Generator) -> None:
        self._pipe, self._rank, self.scale = pipe, rank, LossScale(pipe)
        self.factors = fresh_factors(pipe, rank, generator)
        self.optimizer = torch.optim.AdamW(self._parts(), lr=0.0 if isinstance(lr, str) else lr, weight_decay=0.0)

    def added(self) -> AbstractContextManager[None]:
        """Inside, the denoiser has the weights."""
        return added(self._pipe, self.factors)

    def measure(self, pool: Pool, condition: Condition) -> None:
        """Take the rate at which the first step moves the prediction by 5 % of its norm; before anything is learned."""
        rows = torch.arange(len(pool.times)).split(1)

        def guess(row: torch.Tensor) -> torch.Tensor:
            return predict(self._pipe, pool.noisy[row], pool.times[row], condition.rows(row))

        def loss(row: torch.Tensor) -> torch.Tensor:
            return functional.mse_loss(guess(row), pool.truth[row])

        with self.added():
            losses = [partial(loss, row) for row in rows]
            rate = low_rank_rate(self._pipe, self.factors, losses, lambda: torch.cat([guess(row) for row in rows]))
        self.optimizer.param_groups[0]["lr"] = rate

    def learn(self, pool: Pool, condition: Condition, steps: int) -> None:
        """Steps on || eps(x_t, c) - noise ||^2, or of v, with the student where it is placed."""
        with self.added():
            for _ in range(steps):
                self.scale.set(distance_from_truth(self._pipe, pool, condition), self._parts())
                self.optimizer.step()

    @torch.no_grad()
    def restart(self, generator: torch.Generator) -> None:
        """Forget what was learned."""
        fresh = fresh_factors(self._pipe, self._rank, generator)
        for name, pair in self.factors.items():
            for factor, new in zip(pair, fresh[name], strict=True):
                factor.copy_(new)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All values by name, for a checkpoint."""
        values = {
            f"{name}/{number}": factor.data for name, pair in self.factors.items() for number, factor in enumerate(pair)
        }
        return values | {"relearner-scale": self.scale.state}

    def _parts(self) -> list[torch.nn.Parameter]:
        return [factor for pair in self.factors.values() for factor in pair]
