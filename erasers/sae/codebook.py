"""Vector quantisation of rows: Tamkin et al., "Codebook Features: Sparse and Discrete Interpretability for Neural
Networks", arXiv 2310.17230; codes by spherical k-means (Dhillon and Modha, Machine Learning 42, 2001).

A row's code is the unit vector that is nearest to it in direction, its value the row's length along it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from erasers.sae.autoencoder import SAE, assembled

_STEPS = 20
_TINY = 1e-9


class Codebook(NamedTuple):
    """Codes, and how they came about.

    Args:
        codes: Unit vectors `[n, d]`.
        likeness: Mean cosine of rows and their codes, before every step.
    """

    codes: torch.Tensor
    likeness: list[float]


def codebook(x: torch.Tensor, n: int, generator: torch.Generator, *, steps: int = _STEPS) -> Codebook:
    """Codes of rows x `[N, d]`; rows are never less like their codes after a step than before it.

    Raises:
        ValueError: Fewer rows than codes.
    """
    if len(x) < n:
        raise ValueError(f"expected at least {n} rows for as many codes, got {len(x)}")
    units = functional.normalize(x, dim=1)
    codes, likeness = units[_spread(units, n, generator)], []
    for _ in range(steps):
        alike, own = (units @ codes.T).max(dim=1)
        likeness.append(float(alike.mean()))
        sums = torch.zeros_like(codes).index_add_(0, own, units)
        empty = torch.bincount(own, minlength=n) == 0
        codes = torch.where(empty[:, None], codes, functional.normalize(sums, dim=1))
    return Codebook(codes, likeness)


def codebook_sae(rows: torch.Tensor, n: int, generator: torch.Generator) -> SAE:
    """A codebook of rows `[N, d]` around their mean, in the form of a sparse autoencoder with one active feature.

    A code is a fixed point: encoded and decoded it is itself.
    """
    mean = rows.mean(dim=0)
    codes = codebook(rows - mean, n, generator).codes
    tensors = {"encoder": codes, "decoder": codes, "b_pre": mean}
    return assembled(tensors | {"b_lat": torch.zeros(n), "threshold": torch.zeros(1)}, 1, "topk")


def _spread(units: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Numbers of rows to start from, each drawn by how little it is like those before it (k-means++)."""
    numbers = torch.randint(len(units), (1,), generator=generator)
    alike = units @ units[numbers[0]]
    while len(numbers) < n:
        number = torch.multinomial((1 - alike).clamp(min=_TINY), 1, generator=generator)
        numbers, alike = torch.cat([numbers, number]), torch.maximum(alike, units @ units[number[0]])
    return numbers
