"""Batches in parts: as many latents together as were said to fit, and a loss in summands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch.nn import functional

_together: ContextVar[int | None] = ContextVar("together", default=None)


@contextmanager
def at_most(samples: int | None) -> Iterator[None]:
    """Inside, at most so many samples go through the denoiser together where gradients are taken; None: all of them."""
    token = _together.set(samples)
    try:
        yield
    finally:
        _together.reset(token)


def together(count: int) -> bool:
    """Whether so many samples may go through the denoiser together."""
    most = _together.get()
    return most is None or count <= most


def parts(count: int) -> list[slice]:
    """The rows of a batch in parts of what may go through the denoiser together."""
    size = _together.get() or count
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


Piece = Callable[[], Mapping[str, torch.Tensor]]
"""Makes the named losses of a part of a batch, each times the share of its rows that the part has."""


class Summands:
    """A loss in summands, each of which is made, and derived, when the one before is gone.

    Args:
        pieces: Make them.
        total: Named losses of a piece -> the loss of it.
    """

    def __init__(self, pieces: Sequence[Piece], total: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]) -> None:
        self._pieces, self._total = pieces, total
        self.shown: dict[str, float] = {}
        """The named losses of the whole batch, once all pieces were made."""

    def __len__(self) -> int:
        return len(self._pieces)

    def make(self, number: int) -> torch.Tensor:
        """The loss of a piece."""
        losses = self._pieces[number]()
        for name, value in losses.items():
            self.shown[name] = self.shown.get(name, 0.0) + float(value.detach())
        return self._total(losses)


def mean_in_parts(count: int, loss: Callable[[slice], torch.Tensor]) -> Summands:
    """A mean over a batch, in summands.

    Args:
        count: Rows of the batch.
        loss: The mean over some of them.
    """

    def piece(rows: slice) -> dict[str, torch.Tensor]:
        return {"loss": loss(rows) * ((rows.stop - rows.start) / count)}

    return Summands([partial(piece, rows) for rows in parts(count)], lambda losses: losses["loss"])


def errors_in_parts(goals: Mapping[str, torch.Tensor], guess: Callable[[slice], torch.Tensor]) -> list[Piece]:
    """Mean squared errors of groups that go through the denoiser as one batch, in pieces.

    Args:
        goals: Name of a group -> what is to be predicted of it `[n, ...]`; the batch has the groups in that order.
        guess: What is predicted of some rows of the batch.
    """

    def piece(rows: slice) -> dict[str, torch.Tensor]:
        guessed, losses, start = guess(rows), {}, 0
        for name, goal in goals.items():
            low, high = max(start, rows.start) - start, min(start + len(goal), rows.stop) - start
            if low < high:
                own = guessed[low + start - rows.start : high + start - rows.start]
                losses[name] = functional.mse_loss(own, goal[low:high]) * ((high - low) / len(goal))
            start += len(goal)
        return losses

    return [partial(piece, rows) for rows in parts(sum(map(len, goals.values())))]
