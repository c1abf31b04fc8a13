"""A hook that takes directions of concepts out of what a linear map makes of text, where these are strong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.patch.hooks import Hook, on_device, precise, shape_or_type

_NOTHING = 1e-3
"""Share of a value's length below which what is left of it, less what kept ones span, is rounding."""


@dataclass(frozen=True, eq=False)
class ValueGate(Hook):
    """What a linear map returns loses the directions of k concepts where they stand out: see `without_values`.

    Parts: away `[k, d]`, orthonormal; gate `[k]`, each above 0. And where they are wanted: span `[r, d]`, orthonormal
    and orthogonal to away, which never changes; towards `[k, d]`, which takes the place; step `[3]`, the centre, slope
    and height of a sigmoid; both `[1]`, the opposite of a direction counts, too; first `[1]`, the first token that
    counts.
    """

    kind = "value_gate"

    def __post_init__(self) -> None:
        shapes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        away, span = shapes.get("away", ()), shapes.get("span", ())
        wanted = {"away": away, "gate": away[:1]}
        optional = {"span": (*span[:1], *away[1:]), "towards": away, "step": (3,), "both": (1,), "first": (1,)}
        wanted |= {part: shape for part, shape in optional.items() if part in shapes}
        if shapes != wanted or len(away) != 2 or 0 in away + span:
            raise PatchError(
                f"expected the parts away [k, d] and gate [k], and at most span [r, d], towards [k, d], step [3], both "
                f"[1] and first [1], of {self.kind}, got {shapes}"
            )
        if (self.parts["gate"] <= 0).any():
            raise PatchError(f"expected a gate above 0 for every concept of {self.kind}, got something else")

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        width, own = getattr(module, "out_features", None), self.parts["away"].shape[1]
        if width != own:
            got = f"rows of {width}" if width else type(module).__name__
            raise PatchError(
                f"the patch is for another model: expected {self.target} to return rows of {own}, got {got}"
            )

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        return [module.register_forward_hook(_ValueGate(self, strength), prepend=True)]


class _ValueGate:
    """A value gate as torch calls it; its tensors follow the values to another device."""

    def __init__(self, hook: ValueGate, strength: float) -> None:
        self.target, self.parts, self.strength = hook.target, dict(hook.parts), strength

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        width = self.parts["away"].shape[1]
        if not isinstance(output, torch.Tensor) or output.shape[-1] != width:
            raise PatchError(f"expected {self.target} to return rows of {width}, got {shape_or_type(output)}")
        self.parts = on_device(self.parts, output.device)
        return without_values(output, self.parts, self.strength)


def standing(values: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(t, x) `[..., k]`: how much values have of each direction, and the share of what kept values leave of them.

    w = (I - P) v, t = away w, x = t / |w|; where hardly anything is left of v, x is 0.

    Args:
        values: v `[..., d]`.
        parts: Those of a `ValueGate`, in the dtype of the values.
    """
    rest = values - values @ parts["span"].T @ parts["span"] if "span" in parts else values
    own = rest @ parts["away"].T
    length = rest.pow(2).sum(dim=-1, keepdim=True).clamp(min=1e-24).sqrt()
    whole = values.detach().norm(dim=-1, keepdim=True)
    share = torch.where(length.detach() > _NOTHING * whole, own / length, torch.zeros_like(own))
    return own, share.abs() if "both" in parts else share


def without_values(values: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float) -> torch.Tensor:
    """v - s sum_k g_k t_k (away_k - towards_k) in the rows where a share x_k reaches its gate; others bit for bit.

    g is 1, or height sigmoid(slope (x - centre)), where x reaches the gate, and 0 elsewhere.

    Attacks differentiate through the gate by a straight-through estimator, as through `feature_hooks.gated`.

    Args:
        values: v `[n, T, d]`, or `[n, d]` of pooled vectors.
        parts: Those of a `ValueGate`, on the device of the values.
        strength: s.

    Returns:
        Values of the same shape and dtype; computed in float32 or float64.
    """
    if strength == 0:
        return values
    v, cast = precise(values, parts)
    own, share = standing(v, cast)
    shown = share.detach() >= cast["gate"]
    if "first" in cast and values.ndim == 3:
        shown &= torch.arange(values.shape[1], device=values.device)[:, None] >= cast["first"]
    taken = torch.where(shown, _size(share, cast) * own, torch.zeros_like(own))
    steps = cast["away"] - cast["towards"] if "towards" in cast else cast["away"]
    changed = shown.any(dim=-1, keepdim=True)
    output = torch.where(changed, (v - strength * (taken @ steps)).to(values.dtype), values)
    if not output.requires_grad:
        return output
    nearest = torch.where(shown, share / cast["gate"], torch.zeros_like(share))
    pull = ((nearest - nearest.detach()) * taken.detach()) @ steps
    return output - (strength * pull).to(values.dtype)


def _size(share: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if "step" not in parts:
        return torch.ones_like(share)
    centre, slope, height = parts["step"]
    return torch.as_tensor(height * torch.sigmoid(slope * (share - centre)))
