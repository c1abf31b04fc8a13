"""Which modules of a model are trained, by (module, its path)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from torch import nn

Wanted: TypeAlias = Callable[[nn.Module, str], bool]
_KEYS_AND_VALUES = re.compile(r"\.attn2\.(to_k|to_v)$")


def denoiser_layers(which: str) -> Wanted:
    """Linear layers and convolutions of a UNet.

    Args:
        which: `all` of them, those of `attention`, those of `cross` attention alone, which ESD calls `x`, its keys and
            values (`x-strict`), or all others (`u`).
    """

    def wanted(module: nn.Module, path: str) -> bool:
        steps = f".{path}."
        cross, strict = ".attn2." in steps, bool(_KEYS_AND_VALUES.search(path))
        attention = cross or ".attn1." in steps
        kinds = {"all": True, "attention": attention, "cross": cross, "x": cross, "x-strict": strict, "u": not cross}
        return isinstance(module, (nn.Linear, nn.Conv2d)) and kinds[which]

    return wanted
