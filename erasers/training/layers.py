"""Which modules of a model are trained, by (module, its path)."""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from typing import Any, TypeAlias

from torch import nn

from erasers.models.families import Family
from erasers.models.ports import Kind, find_family, groups_of
from erasers.training.student import names_of

Wanted: TypeAlias = Callable[[nn.Module, str], bool]
_ATTENTION = re.compile(r"\.(?:attn\d?|attention)\.")
_KEYS_AND_VALUES = re.compile(r"\.(?:to_k|to_v|add_k_proj|add_v_proj|to_qkv_mlp_proj)$")
_NORM = re.compile(r"\.norm\w*\.")


def denoiser_names(pipe: Any, which: str) -> list[str]:
    """Names of the parameters of layers of all denoisers of a pipeline; `which` as for `denoiser_layers`.

    Where text and picture are one sequence, text enters before it: through the layer that embeds its tokens, and
    through that of the pooled vector, which no attention reads. They are trained with `x`, `cross` and `x-strict`, as
    keys and values of cross-attention are where text enters by these.
    """
    family, denoisers = find_family(pipe)
    joint = family.kind != "cross"
    wanted = denoiser_layers(which, crosses=not joint)
    entered = which in ("x", "cross", "x-strict")
    names = []
    for part, denoiser in denoisers:
        entrances = _entrances(family, part, denoiser) if joint and which not in ("all", "attention") else set()

        def chosen(module: nn.Module, path: str, entrances: Set[str] = entrances) -> bool:
            return entered if path in entrances else wanted(module, path)

        names += names_of(pipe, part, chosen)
    return names


def _entrances(family: Family, part: str, denoiser: nn.Module) -> set[str]:
    """Paths of the layers of a denoiser that text enters through, be it as tokens or as one pooled vector."""
    kinds: tuple[Kind, ...] = ("text", "pooled")
    ports = [port for kind in kinds for group in groups_of(family, part, denoiser, kind) for port in group.ports]
    return {port.name.removeprefix(f"{part}.").removesuffix(".base_layer") for port in ports}


def crosses(pipe: Any) -> bool:
    """Whether text enters by attention of its own, and not in one sequence with the picture."""
    return find_family(pipe)[0].kind == "cross"


def denoiser_layers(which: str, *, crosses: bool = True) -> Wanted:
    """Linear layers and convolutions of a denoiser, never those of norms.

    Text and picture meet in cross-attention, or in all attention where they are one sequence. There, keys and values
    are those of the picture's half and of the text's; a layer that makes more than these in one product is one of them.

    Args:
        which: `all` of them, those of `attention`, those of the attention where text and picture meet alone (`cross`,
            which ESD calls `x`), its keys and values (`x-strict`), or all but `x` (`u`).
        crosses: Whether there is cross-attention.
    """

    def wanted(module: nn.Module, path: str) -> bool:
        steps = f".{path}."
        attention = bool(_ATTENTION.search(steps))
        x = ".attn2." in steps if crosses else attention
        strict = x and bool(_KEYS_AND_VALUES.search(path))
        kinds = {"all": True, "attention": attention, "cross": x, "x": x, "x-strict": strict, "u": not x}
        return isinstance(module, (nn.Linear, nn.Conv2d)) and not _NORM.search(steps) and kinds[which]

    return wanted
