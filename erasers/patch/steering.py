"""A hook that turns what attention returns away from directions of concepts, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.models.denoiser_blocks import width_of
from erasers.patch.feature_hooks import Clock, StepCall, first_output
from erasers.patch.hooks import Hook, precise, shape_or_type
from erasers.patch.step_rows import refuse_left_out


@dataclass(frozen=True, eq=False)
class Steering(Hook):
    """What an attention layer returns of the picture loses the directions of k concepts: see `steered`.

    The directions are those of the nearest time step that the hook knows, which it reads from each call of the
    denoiser. Parts: away `[k, s, d]`, of length 1 each; times `[s]`; scale `[1]`.
    """

    kind = "steering"

    def __post_init__(self) -> None:
        sizes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        away = sizes.get("away", ())
        if sizes != {"away": away, "times": away[1:2], "scale": (1,)} or len(away) != 3 or 0 in away:
            raise PatchError(f"expected the parts away [k, s, d], times [s] and scale [1] of {self.kind}, got {sizes}")

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        own, width = self.parts["away"].shape[2], width_of(module)
        if width != own:
            got = f"rows of {width}" if width else type(module).__name__
            raise PatchError(
                f"the patch is for another model: expected {self.target} to return rows of {own}, got {got}"
            )
        refuse_left_out(self.target, module)

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        call = _Steering(self, strength)
        return [
            root.register_forward_pre_hook(Clock(self.target, root, call.tell), with_kwargs=True),
            module.register_forward_hook(call, prepend=True),
        ]


class _Steering(StepCall):
    """A steering as torch calls it."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        rows, width = first_output(output), self.parts["away"].shape[2]
        if not isinstance(rows, torch.Tensor) or rows.ndim != 3 or rows.shape[-1] != width:
            raise PatchError(f"expected {self.target} to return rows [n, tokens, {width}], got {shape_or_type(rows)}")
        edited = steered(rows, self.times(rows.device), self.parts, self.strength)
        return edited if rows is output else (edited, *output[1:])


def steered(
    rows: torch.Tensor, times: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float
) -> torch.Tensor:
    """v - s b max(<v, away_k>, 0) away_k for one concept after the other, at the length of v; where no product is above
    0, v as it is, bit for bit.

    With s b = 1 what is left is orthogonal to the direction; with 2 it is reflected (arXiv 2503.09630).

    Args:
        rows: v `[n, tokens, d]`.
        times: `[1]` or `[n]`.
        parts: Those of a `Steering`, b being its scale.
        strength: s.

    Returns:
        Rows of the same shape and dtype; computed in float32 or float64.
    """
    if strength == 0:
        return rows
    v, cast = precise(rows, parts)
    nearest = (times[:, None].to(v.dtype) - cast["times"]).abs().argmin(dim=1)
    left, turned = v, torch.zeros_like(v[..., :1], dtype=torch.bool)
    for away in cast["away"][:, nearest]:
        share = (left * away[:, None]).sum(dim=-1, keepdim=True)
        turned = turned | (share > 0)
        left = left - strength * cast["scale"] * share.clamp(min=0) * away[:, None]
    sizes = (rest.pow(2).sum(dim=-1, keepdim=True).clamp(min=1e-24).sqrt() for rest in (v, left))
    return torch.where(turned, (left * (next(sizes) / next(sizes))).to(rows.dtype), rows)
