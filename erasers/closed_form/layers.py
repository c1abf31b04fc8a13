"""Edits of one layer each, for closed forms that do not act on what all layers read: their least form, and a patch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from erasers.concept import Concept
from erasers.models.ports import Group, Port
from erasers.patch import Patch
from erasers.patch.build import patch_meta

_FIRST_RANK = 8


def value_ports(groups: Sequence[Group]) -> list[tuple[Group, list[Port]]]:
    """Of each group of ports the values of cross-attention; all of a group that has none, as embedders."""
    chosen = []
    for group in groups:
        values = [port for port in group.ports if port.name.endswith(".to_v")]
        chosen.append((group, values or list(group.ports)))
    return chosen


def weight_of(port: Port, width: int) -> torch.Tensor:
    """The first `width` columns of the weight `[out, d]` of a port, in float64 on the CPU."""
    return port.module.weight[:, :width].detach().to("cpu", torch.float64)


def low_rank(delta: torch.Tensor, error: float) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Factors A `[r, d]` and B `[out, r]` with ||delta - B A|| <= error ||delta||, of the least rank that does it.

    By subspace iteration from a fixed start, in blocks that double.

    Args:
        delta: `[out, d]`.
        error: Share of the Frobenius norm, above 0.

    Returns:
        The factors; None where they have as many numbers as delta, or more.
    """
    out, width = delta.shape
    most = math.ceil(out * width / (out + width)) - 1
    allowed, rank = float(delta.norm() * error) ** 2, min(_FIRST_RANK, most)
    while rank > 0:
        basis = torch.randn(width, rank, generator=torch.Generator().manual_seed(0), dtype=delta.dtype)
        for _ in range(3):
            basis = torch.linalg.qr(delta.T @ torch.linalg.qr(delta @ basis).Q).Q
        left, values, right = torch.linalg.svd(delta @ basis, full_matrices=False)
        rest = float(delta.norm()) ** 2 - values.square().cumsum(0)
        if bool((rest <= allowed).any()):
            count = int((rest > allowed).sum()) + 1
            return right[:count] @ basis.T, left[:, :count] * values[:count]
        if rank == most:
            break
        rank = min(2 * rank, most)
    return None


def layer_patch(
    method: str,
    config: Mapping[str, Any],
    concepts: Sequence[Concept],
    deltas: Sequence[tuple[Port, torch.Tensor, torch.Tensor]],
    hashes: Mapping[str, str],
    readers: Mapping[str, str] | None = None,
) -> Patch:
    """The patch of one edit W + B A for each port.

    Args:
        method: Its name, for the metadata.
        config: Its hyper-parameters, likewise.
        concepts: What was erased.
        deltas: (port, A `[r, d]`, B `[out, r]`); d may be less than the input width of the port.
        hashes: Fingerprint of each port's weight by parameter name.
        readers: What read the text, as `text_readers` gives it.

    Raises:
        PatchError: The factors do not fit the ports, or are not finite.
    """
    tensors: dict[str, torch.Tensor] = {}
    for port, a, b in deltas:
        layer = port.module
        dtype = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
        a = torch.nn.functional.pad(a, (0, layer.in_features - a.shape[1]))
        if a.shape[0] * (layer.in_features + layer.out_features) < layer.weight.numel():
            edit = {f"lowrank/{port.name}/{name}": factor for name, factor in (("A", a), ("B", b))}
        else:
            edit = {f"dense/{port.parameter}": layer.weight.detach().to("cpu", torch.float64) + b @ a}
        tensors |= {name: tensor.to("cpu", dtype).contiguous() for name, tensor in edit.items()}
    weights = {port.parameter: port.module.weight for port, _, _ in deltas}
    base = {name: hashes[name] for name in weights}
    dtype = next(iter(weights.values())).dtype
    return Patch(tensors, patch_meta(method, config, concepts, base, dtype, weights=weights, readers=readers))
