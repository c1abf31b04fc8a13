"""Fingerprints of weights, by which a patch knows its base model and the disk cache its key.

The canonical form of a tensor is its values rounded to float16, so that one checkpoint loaded in float32 or in float16
has one fingerprint. Two tensors that differ by less than that rounding therefore count as equal: far below what an
edit, a fused LoRA or another checkpoint changes. A checkpoint loaded in bfloat16 has lost more bits than that and has
a fingerprint of its own; patches know it by a sketch (`sketch.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

_MEMO = "_erasers_hashes"
_SAMPLES = 61


def tensor_hash(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's shape and of its values rounded to float16."""
    digest = hashlib.sha256(repr(tuple(tensor.shape)).encode())
    digest.update(raw_bytes(tensor.detach().to(torch.float16)))
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def raw_bytes(tensor: torch.Tensor) -> Any:
    """The bytes of a tensor as a buffer, copied only when it is not contiguous on the CPU."""
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()


def tensor_hashes(tensors: Mapping[str, torch.Tensor], owner: nn.Module | None = None) -> dict[str, str]:
    """Fingerprint of every tensor, in threads (hashlib releases the interpreter lock).

    Args:
        tensors: Tensors by name.
        owner: A module on which to remember the fingerprints between calls.
    """
    memo: dict[str, tuple[object, str]] = {} if owner is None else owner.__dict__.setdefault(_MEMO, {})
    marks = {name: _mark(tensor) for name, tensor in tensors.items()} if owner is not None else {}
    missing = [name for name in tensors if name not in memo or memo[name][0] != marks.get(name)]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        fresh = dict(zip(missing, pool.map(lambda name: tensor_hash(tensors[name]), missing), strict=True))
    if owner is not None:
        memo.update({name: (marks[name], value) for name, value in fresh.items()})
    return {name: fresh[name] if name in fresh else memo[name][1] for name in tensors}


def forget_hashes(owner: nn.Module) -> None:
    """Forget the fingerprints that are remembered on a module."""
    owner.__dict__.pop(_MEMO, None)


def module_hash(module: nn.Module) -> str:
    """One fingerprint for all parameters and buffers of a module."""
    tensors = dict(module.state_dict(keep_vars=True))
    hashes = tensor_hashes(tensors, owner=module)
    return hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()


def can_hash(module: nn.Module) -> bool:
    """Whether all tensors of a module are in memory and plain ones, which those of offloaded and quantised are not."""
    tensors = module.state_dict(keep_vars=True).values()
    return all(type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta for tensor in tensors)


def _mark(tensor: torch.Tensor) -> object:
    """Cheap sign that a tensor is still the one that was hashed.

    The address and version miss `weight.data += ...`, which is how adapters are fused, so a few values count as well.
    """
    flat = tensor.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLES)].to(torch.float64).cpu()
    return tensor.data_ptr(), tensor._version, str(tensor.dtype), tuple(tensor.shape), sample.numpy().tobytes()
