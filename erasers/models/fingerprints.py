"""Fingerprints of a live pipeline's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from erasers.files.hashing import tensor_hashes
from erasers.models.components import component


def weight_hashes(pipe: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Fingerprint of each weight, remembered on the component that its full name begins with."""
    hashes: dict[str, str] = {}
    for owner in dict.fromkeys(name.partition(".")[0] for name in weights):
        own = {name: weight for name, weight in weights.items() if name.partition(".")[0] == owner}
        hashes |= tensor_hashes(own, owner=component(pipe, owner))
    return hashes
