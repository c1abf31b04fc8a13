"""The forms of a patch other than weights edited in place: files that stock diffusers loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from erasers import patch_file

if TYPE_CHECKING:
    from erasers.patch import Patch

LORA_FILE = "pytorch_lora_weights.safetensors"


def to_lora(patch: Patch, pipe: Any, folder: Path, *, force: bool = False) -> Path:
    """See `Patch.to_lora`."""
    base = patch.base_weights(pipe, force=force)
    factors: dict[str, torch.Tensor] = {}
    for name, edit in patch.changes.items():
        down, up = edit.factors(base[name])
        layer = name.removesuffix(".weight")
        factors[f"{layer}.lora_A.weight"] = down.float().cpu().clone()
        factors[f"{layer}.lora_B.weight"] = up.float().cpu().clone()
    if not folder.is_dir():
        folder.mkdir()
    # diffusers takes rank as alpha where there is none; it refuses `alpha` keys in this style for some families.
    patch_file.write_tensors(folder / LORA_FILE, factors, {"format": "pt"})
    return folder / LORA_FILE
