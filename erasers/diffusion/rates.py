"""Rates that hold for networks of every size: steps relative to what they change, not absolute ones.

A step of Adam moves every value by about its rate, however large a network is. All of these moves have one direction in
common, so what they do together grows with width and depth: with one rate, the first step of low-rank weights moves the
prediction of the embedded model by 6 % and that of a network of Stable Diffusion's size by 68 %. So a rate may be
"auto": then it follows from the change of the prediction that a step is to make, or from the size of token embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch

Rate: TypeAlias = float | Literal["auto"]
"""A learning rate, or "auto"."""

LOW_RANK_CHANGE = 0.05
"""What "auto" means for low-rank weights: their first step moves the prediction by this share of its norm."""

TOKEN_STEP = 0.25
"""What "auto" means for soft tokens: a step moves every coordinate by this share of a typical one of the token table.

With a table of .014, about that of CLIP ViT-L/14, that is .0035; textual inversion takes .0005 to .005.
"""

MEASUREMENTS = 4
"""Predictions that `rate_for_change` asks for."""

_START = 1e-4


def require_rate(name: str, value: Rate) -> None:
    """Refuse a rate that is neither above 0 nor "auto".

    Raises:
        ValueError: Names the field.
    """
    if not isinstance(value, str) and not 0 < value < float("inf"):
        raise ValueError(f"expected {name} above 0, got {value}")


def token_rate(rate: Rate, table: torch.Tensor) -> float:
    """The rate of soft tokens that start from rows of a token table `[vocabulary, d]`; a number is left as it is."""
    if isinstance(rate, str):
        return TOKEN_STEP * float(table.detach().float().square().mean().sqrt())
    return rate


@torch.no_grad()
def rate_for_change(
    output: Callable[[], torch.Tensor], weights: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor], change: float
) -> float:
    """The rate at which the first step of Adam changes an output by a share of its norm.

    That step is `-rate * sign(slope)` for every weight whose gradient is large against Adam's epsilon. The rate is
    found by trying: the change is nearly proportional to it. The weights are afterwards what they were.

    Args:
        output: Computes the output from the weights as they are; asked `MEASUREMENTS` times.
        weights: What is stepped.
        slopes: Their gradients, of any common scale.
        change: ||output after - output before|| / ||output before||.

    Raises:
        ValueError: The output does not change.
    """
    before, rate = output(), _START
    start = [weight.clone() for weight in weights]
    try:
        for _ in range(MEASUREMENTS - 1):
            for weight, value, slope in zip(weights, start, slopes, strict=True):
                weight.copy_(value - rate * slope.sign())
            share = float((output() - before).norm() / before.norm())
            if not 0 < share < float("inf"):
                raise ValueError(f"expected a step that changes the prediction, got a change of {share}; give a rate")
            rate *= change / share
    finally:
        for weight, value in zip(weights, start, strict=True):
            weight.copy_(value)
    return rate
