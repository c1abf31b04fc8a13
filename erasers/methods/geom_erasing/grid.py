"""The grid of places: which bins boxes cover, and what an error counts in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional

from erasers.judges.boxes import Box


def covered(boxes: Iterable[Box], size: tuple[int, int], grid: int) -> tuple[int, ...]:
    """Numbers of the bins that boxes cover, row by row, each once.

    With W the width of a bin, a box from a1 to a2 covers the columns floor(a1 / W) to ceil(a2 / W) - 1, and rows alike:
    a box that ends where a bin begins does not cover that one.

    Args:
        boxes: In pixels.
        size: Width and height of the picture.
        grid: Bins in a row, and rows.
    """
    bins: set[int] = set()
    for left, top, right, bottom in boxes:
        columns, rows = _span(left, right, size[0], grid), _span(top, bottom, size[1], grid)
        bins |= {row * grid + column for row in rows for column in columns}
    return tuple(sorted(bins))


def _span(low: float, high: float, length: int, grid: int) -> range:
    first, last = math.floor(low * grid / length), math.ceil(high * grid / length) - 1
    return range(max(0, first), min(grid - 1, max(first, last)) + 1)


def bin_weights(bins: Sequence[int], grid: int, alpha: float) -> torch.Tensor:
    """What an error counts in each bin `[grid, grid]`: 1 in the mean, and 1 / alpha of the outside inside of boxes.

    With T bins, K of them covered: T / (K + alpha (T - K)) inside and alpha T / (K + alpha (T - K)) outside.

    Args:
        bins: The covered ones.
        grid: Bins in a row, and rows.
        alpha: Above 1 boxes count less.
    """
    outside = torch.ones(grid * grid, dtype=torch.bool)
    outside[list(bins)] = False
    weights = torch.where(outside, alpha, 1.0)
    return (weights / weights.mean()).view(grid, grid)


def latent_weights(weights: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The weights `[n, grid, grid]` of places in latents `[n, 1, height, width]`, 1 in the mean of each."""
    resized = functional.interpolate(weights[:, None], size=tuple(size), mode="area")
    return resized / resized.mean(dim=(-2, -1), keepdim=True)


def usual_bins(marks: Iterable[Sequence[int]], often: float) -> tuple[int, ...]:
    """The bins that at least the share `often` of the marked pictures cover, or else those that most of them do."""
    shown = [bins for bins in marks if bins]
    counts = {bin_: sum(bin_ in bins for bins in shown) for bin_ in sorted({bin_ for bins in shown for bin_ in bins})}
    least = min(often * len(shown), max(counts.values(), default=0))
    return tuple(bin_ for bin_, count in counts.items() if count >= least)
