"""Semi-nonnegative matrix factorisation of rows: Ding, Li and Jordan, "Convex and Semi-Nonnegative Matrix
Factorizations", IEEE TPAMI 32 (2010); its factors as features of a network: Shafran et al., arXiv 2506.10920.

    X ~ Y F      X [N, d] and F [n, d] of any sign, Y [N, n] >= 0

F is solved for, Y is multiplied; neither raises |X - Y F|^2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from erasers.sae.autoencoder import SAE, assembled
from erasers.sae.codebook import codebook

_STEPS = 60
_START = 0.2
"""Added to the clusters that the codes start from, as published: what is 0 stays 0."""
_RIDGE = 1e-9
_READING = 1e-6
_TINY = 1e-12


class Factors(NamedTuple):
    """A factorisation.

    Args:
        codes: Y `[N, n]`.
        features: F `[n, d]`.
        losses: |X - Y F|^2 after every step.
    """

    codes: torch.Tensor
    features: torch.Tensor
    losses: list[float]


def semi_nmf(x: torch.Tensor, n: int, generator: torch.Generator, *, steps: int = _STEPS) -> Factors:
    """Factors of rows x `[N, d]`, from the clusters of a codebook on."""
    nearest = (x @ codebook(x, n, generator).codes.T).argmax(dim=1)
    codes = functional.one_hot(nearest, n).to(x) + _START
    features, losses = solved_features(x, codes), []
    for _ in range(steps):
        codes = multiplied_codes(x, codes, features)
        features = solved_features(x, codes)
        losses.append(float((x - codes @ features).pow(2).sum()))
    return Factors(codes, features, losses)


def solved_features(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """F `[n, d]` with the least |X - Y F|^2, of rows x `[N, d]` and codes `[N, n]`."""
    gram, towards = codes.T @ codes, codes.T @ x
    solution: torch.Tensor = torch.linalg.solve(_with_ridge(gram.double(), _RIDGE), towards.double())
    return solution.to(x)


def multiplied_codes(x: torch.Tensor, codes: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Y sqrt(([X F']+ + Y [F F']-) / ([X F']- + Y [F F']+)), `[N, n]`, of Y and F."""
    towards, among = x @ features.T, features @ features.T
    up = towards.clamp(min=0) - codes @ among.clamp(max=0)
    down = codes @ among.clamp(min=0) - towards.clamp(max=0)
    return codes * (up / down.clamp(min=_TINY)).sqrt()


def semi_nmf_sae(rows: torch.Tensor, n: int, generator: torch.Generator) -> SAE:
    """The factors of rows `[N, d]` around their mean, in the form of a sparse autoencoder with n features.

    What another row's code is would take a problem of least squares with Y >= 0. It is read by one layer and a ReLU
    instead, as everything is that a patch has features of: the linear map that comes nearest to Y on these rows.
    """
    mean = rows.mean(dim=0)
    x = rows - mean
    factors = semi_nmf(x, n, generator)
    lengths = factors.features.norm(dim=1).clamp(min=_TINY)
    seen = torch.cat([x, x.new_ones(len(x), 1)], dim=1).double()
    codes = (factors.codes * lengths).double()
    reading = torch.linalg.solve(_with_ridge(seen.T @ seen, _READING), seen.T @ codes).T
    tensors = {
        "encoder": reading[:, :-1],
        "decoder": factors.features / lengths[:, None],
        "b_pre": mean,
        "b_lat": reading[:, -1],
        "threshold": torch.zeros(1),
    }
    return assembled(tensors, n, "batchtopk")


def _with_ridge(gram: torch.Tensor, share: float) -> torch.Tensor:
    return gram + share * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
