"""A short sketch of a tensor, by which two loads of one checkpoint are known although one of them is in bfloat16.

Exact fingerprints (`hashing.py`) do not survive the rounding to bfloat16. A sketch holds a few entries of the tensor
and the sums of a few blocks of it. Rounding moves an entry by at most half a unit in its last place, and a sum of `n`
entries by about `sqrt(n / 12)` units; what moved further is another tensor. Small entries are the sensitive ones: their
bound is relative to themselves, while training moves all entries alike. Entries that bfloat16 holds exactly must not
move, and where neither side is rounded to bfloat16 nothing fits.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping

import torch

ENTRIES, SUMS = 24, 8
_STRUCT = f"<{ENTRIES + SUMS}f"
_GOLDEN = 0.6180339887498949
_DEVIATIONS = 6
# Half a unit in the last place of bfloat16, and of float16, in which some checkpoints were before.
_UNIT = (torch.finfo(torch.bfloat16).eps + torch.finfo(torch.float16).eps) / 2
# Half the distance of the smallest numbers of float16, below which its rounding is not relative any more.
_FLOOR = 2.0**-25


def make_sketch(tensor: torch.Tensor) -> str | None:
    """The sketch of a tensor as text; None where it is empty or not finite."""
    if not tensor.numel():
        return None
    values = [*_entries(tensor).tolist(), *(float(block.sum()) for block in _blocks(tensor))]
    if not all(math.isfinite(value) and abs(value) < 3e38 for value in values):
        return None
    return base64.b64encode(struct.pack(_STRUCT, *values)).decode()


def sketches(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The sketches of those tensors that have one, by name."""
    made = {name: make_sketch(tensor) for name, tensor in tensors.items()}
    return {name: text for name, text in made.items() if text is not None}


def is_sketch(text: object) -> bool:
    """Whether a text is a sketch of finite numbers."""
    try:
        return isinstance(text, str) and all(map(math.isfinite, _unpack(text)))
    except (binascii.Error, struct.error, ValueError):
        return False


def fits(text: str, tensor: torch.Tensor) -> bool:
    """Whether of a tensor and the one that was sketched one is the other, rounded to bfloat16.

    Args:
        text: From `make_sketch`.
        tensor: The live tensor.
    """
    known = torch.tensor(_unpack(text), dtype=torch.float64)
    entries, wanted = _entries(tensor), known[:ENTRIES]
    live_rounded, exact = bool(_is_exact(tensor.detach()).all()), _is_exact(wanted)
    if not live_rounded and not bool(exact.all()):
        return False
    bound = _UNIT * torch.maximum(entries.abs(), wanted.abs())
    if live_rounded:
        bound = bound.masked_fill(exact, 0.0)
    if not bool(((entries - wanted).abs() <= bound + 2 * _FLOOR).all()):
        return False
    sums = zip(_blocks(tensor), known[ENTRIES:].tolist(), strict=True)
    return all(abs(float(block.sum()) - value) <= _tolerance(block) for block, value in sums)


def _is_exact(tensor: torch.Tensor) -> torch.Tensor:
    """Which entries bfloat16 holds exactly."""
    return tensor.bfloat16().to(tensor.dtype) == tensor


def _tolerance(block: torch.Tensor) -> float:
    """How far rounding moves the sum of a block: those of distinct numbers are independent."""
    if not block.numel():
        return 0.0
    size = float(block.abs().sum())
    if float(block.max() - block.min()) <= 4 * _UNIT * float(block.abs().max()):
        moved = _UNIT * size
    else:
        moved = _DEVIATIONS * 2 * _UNIT / math.sqrt(12) * float(block.norm())
    return moved + 1e-6 * size + block.numel() * _FLOOR


def _entries(tensor: torch.Tensor) -> torch.Tensor:
    """Entries at positions that follow from the size alone, spread evenly; float64 on the CPU."""
    flat = tensor.detach().reshape(-1)
    positions = (torch.arange(1, ENTRIES + 1, dtype=torch.float64) * _GOLDEN % 1 * flat.numel()).long()
    return flat[positions.to(flat.device)].cpu().double()


def _blocks(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor in `SUMS` consecutive blocks, of which the last ones are empty where it is small."""
    flat = tensor.detach().reshape(-1)
    size = -(-flat.numel() // SUMS)
    return [flat[i * size : (i + 1) * size].cpu().double() for i in range(SUMS)]


def _unpack(text: str) -> tuple[float, ...]:
    return struct.unpack(_STRUCT, base64.b64decode(text, validate=True))
