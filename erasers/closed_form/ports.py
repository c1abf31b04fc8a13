"""What the closed forms need of the weights of ports: fingerprints, and their Gram matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from erasers.files.cache import cached
from erasers.models.fingerprints import weight_hashes
from erasers.models.ports import Group, Port

_BLOCKS = 4


def port_hashes(pipe: Any, groups: Sequence[Group]) -> dict[str, str]:
    """Fingerprint of every port's weight."""
    weights = {port.parameter: port.module.weight.data for group in groups for port in group.ports}
    return weight_hashes(pipe, weights)


def port_gram(
    ports: Sequence[Port], hashes: Mapping[str, str], width: int | None = None, *, cache: bool
) -> torch.Tensor:
    """H = sum_l W_l'W_l `[d, d]` in float64 over the ports, from the disk cache when these weights were seen before.

    Args:
        ports: All of one group.
        hashes: Fingerprints of their weights.
        width: d; only the first d columns of each W_l count. None: all.
        cache: Use the disk cache.
    """
    weights = [port.module.weight[:, :width] for port in ports]
    if not cache:
        return sum_of_grams(weights)
    # Fingerprints are the same in half precision, products are not.
    key = [*sorted(hashes[port.parameter] for port in ports), f"{weights[0].shape[1]} {weights[0].dtype}"]
    return cached("gram", key, lambda: {"gram": sum_of_grams(weights)})["gram"]


@torch.no_grad()
def sum_of_grams(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """sum_l W_l'W_l `[d, d]`: products in the precision of the weights (at least float32), summed in float64.

    Only blocks on and above the diagonal are multiplied; the sum is symmetric.
    """
    width = weights[0].shape[1]
    total = torch.zeros(width, width, dtype=torch.float64)
    step = -(-width // _BLOCKS)
    for weight in weights:
        exact = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        for start in range(0, width, step):
            block = exact[:, start : start + step].T @ exact[:, start:]
            total[start : start + step, start:] += block.to("cpu", torch.float64)
    return torch.triu(total) + torch.triu(total, diagonal=1).T
