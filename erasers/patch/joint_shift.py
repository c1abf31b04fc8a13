"""A hook that moves both things that a joint denoiser reads of a prompt: its tokens and its pooled vector."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.patch.hooks import Hook, on_device, precise, shape_or_type

_STATES, _POOLED = "encoder_hidden_states", "pooled_projections"
_SHIFT, _GATE = {"states", "pooled"}, {"probe", "gate"}


@dataclass(frozen=True, eq=False)
class JointShift(Hook):
    """What a denoiser reads of prompts is moved by fixed steps, one for each of m concepts: see `shifted`.

    It runs on the denoiser itself. Parts: states `[m, T, d]`, pooled `[m, p]`; probe `[m, p]` and gate `[m]` where only
    prompts that show a concept are moved.
    """

    kind = "joint_shift"

    def __post_init__(self) -> None:
        shapes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        states, pooled = shapes.get("states", ()), shapes.get("pooled", ())
        wanted = {"states": states, "pooled": pooled}
        wanted |= {"probe": pooled, "gate": pooled[:1]} if _GATE & set(shapes) else {}
        if shapes != wanted or len(states) != 3 or len(pooled) != 2 or states[0] != pooled[0] or 0 in states + pooled:
            raise PatchError(
                f"expected the parts states [m, T, d] and pooled [m, p] of {self.kind}, and probe [m, p] and gate [m] "
                f"or neither, got {shapes}"
            )
        if self.path:
            raise PatchError(f"expected {self.kind} on a denoiser, got one on {self.target}")

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        names, config = _arguments(module), getattr(module, "config", {})
        if not {_STATES, _POOLED} <= set(names):
            raise PatchError(
                f"expected {self.target} as a denoiser that reads {_STATES} and {_POOLED}, got {type(module).__name__}"
            )
        own = self.parts["states"].shape[-1], self.parts["pooled"].shape[-1]
        read = config.get("joint_attention_dim", own[0]), config.get("pooled_projection_dim", own[1])
        if own != read:
            raise PatchError(
                f"the patch is for another model: {self.target} reads rows of {read[0]} and a pooled vector of "
                f"{read[1]}, the hook needs {own[0]} and {own[1]}"
            )

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        return [module.register_forward_pre_hook(_JointShift(self, strength, _arguments(module)), with_kwargs=True)]


class _JointShift:
    """A joint shift as torch calls it; its tensors follow the text to another device."""

    def __init__(self, hook: JointShift, strength: float, names: list[str]) -> None:
        self.target, self.parts, self.strength, self.names = hook.target, dict(hook.parts), strength, names

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(self.names, args, strict=False)) | kwargs
        states, pooled = given.get(_STATES), given.get(_POOLED)
        widths = self.parts["states"].shape[-1], self.parts["pooled"].shape[-1]
        for value, name, width, dims in ((states, _STATES, widths[0], 3), (pooled, _POOLED, widths[1], 2)):
            if not isinstance(value, torch.Tensor) or value.shape[-1] != width or value.dim() != dims:
                shape = "[n, T, " if dims == 3 else "[n, "
                raise PatchError(f"expected {name} of {self.target} as {shape}{width}], got {shape_or_type(value)}")
        self.parts = on_device(self.parts, given[_STATES].device)
        given[_STATES], given[_POOLED] = shifted(given[_STATES], given[_POOLED], self.parts, self.strength)
        return (), given


def _arguments(module: nn.Module) -> list[str]:
    # Of the class: on the instance, offloading may have replaced `forward`.
    return list(inspect.signature(type(module).forward).parameters)[1:]


def shifted(
    states: torch.Tensor, pooled: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + s d_x, y + s d_y) of tokens x and pooled vectors y, in the prompts that show a concept; linear in s.

    A prompt shows a concept where <probe, y> > gate, or always where there is no gate; the others stay as they are, bit
    for bit. Of a prompt with several concepts all steps count. Tokens behind the T of the hook are not moved.

    Attacks differentiate through the gate as well, by a straight-through estimator (Bengio et al., arXiv 1308.3432):
    backwards the gate is <probe, y> in units of itself, so that a step can shut it.

    Args:
        states: x `[n, tokens, d]`.
        pooled: y `[n, p]`.
        parts: Those of a `JointShift`, on the device of the text.
        strength: s.

    Returns:
        Text of the same shapes and dtypes; computed in float32 or float64.
    """
    if strength == 0:
        return states, pooled
    x, cast = precise(states, parts)
    y = pooled.to(x.dtype)
    shown = torch.ones(len(y), len(cast["pooled"]), dtype=x.dtype, device=x.device)
    if "gate" in cast:
        score = y @ cast["probe"].T
        shown = (score > cast["gate"]).to(x.dtype)
        shown = shown + (score - score.detach()) / cast["gate"].abs().clamp(min=1e-6)
    step = functional.pad(cast["states"], (0, 0, 0, max(0, x.shape[1] - cast["states"].shape[1])))[:, : x.shape[1]]
    moved = shown.detach().any(dim=1)
    new = (x + strength * torch.einsum("nm,mtd->ntd", shown, step)).to(states.dtype)
    vector = (y + strength * shown @ cast["pooled"]).to(pooled.dtype)
    if not new.requires_grad and not vector.requires_grad:
        # Adding a shift of zero would already change the sign of a zero.
        return torch.where(moved[:, None, None], new, states), torch.where(moved[:, None], vector, pooled)
    return new, vector
