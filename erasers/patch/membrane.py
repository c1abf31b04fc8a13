"""A hook that adds a low-rank layer beside a layer, as far as the prompt lets it through."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.patch.hooks import Hook, on_device, precise, shape_or_type


@dataclass(frozen=True, eq=False)
class Membrane(Hook):
    """What a linear layer of a denoiser returns gets a low-rank part added, times how open the prompt makes it: see
    `through` and `openness`.

    The prompt is what the denoiser is called with as `encoder_hidden_states`; each picture of a call has its own.
    Parts: down `[r, in]`, up `[out, r]`, probe `[m, d]`, shut `[m]`, open `[m]`.
    """

    kind = "membrane"

    def __post_init__(self) -> None:
        shapes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        down, up, probe = (shapes.get(name, ()) for name in ("down", "up", "probe"))
        fits = len(down) == len(up) == len(probe) == 2 and 0 not in (*down, *up, *probe) and down[0] == up[1]
        sizes = {"down": down, "up": up, "probe": probe} | dict.fromkeys(("shut", "open"), probe[:1])
        if not fits or shapes != sizes:
            raise PatchError(
                f"expected the parts down [r, in], up [out, r], probe [m, d], shut and open [m] of {self.kind}, got "
                f"{shapes}"
            )
        if not (self.parts["open"] > self.parts["shut"]).all():
            raise PatchError(f"expected open above shut in every row of {self.kind}, got something else")

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        own = self.parts["up"].shape[0], self.parts["down"].shape[1]
        size = getattr(module, "out_features", None), getattr(module, "in_features", None)
        if size != own:
            raise PatchError(f"the patch is for another model: {self.target} has {size}, the hook needs {own}")

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        names = list(inspect.signature(type(root).forward).parameters)[1:]
        if "encoder_hidden_states" not in names:
            got = type(root).__name__
            raise PatchError(f"expected {self.target} in a denoiser that reads encoder_hidden_states, got one in {got}")
        call = _Membrane(self, strength, names.index("encoder_hidden_states"))
        return [
            root.register_forward_pre_hook(call.read, with_kwargs=True),
            module.register_forward_hook(call),
        ]


class _Membrane:
    """A membrane as torch calls it; its tensors follow what it reads to another device."""

    def __init__(self, hook: Membrane, strength: float, index: int) -> None:
        self.target, self.parts, self.strength, self.index = hook.target, dict(hook.parts), strength, index
        self.text: Any = None

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the prompts of the call of the denoiser that begins."""
        given = args[self.index] if len(args) > self.index else None
        self.text = kwargs.get("encoder_hidden_states", given)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        width = self.parts["probe"].shape[1]
        if not isinstance(self.text, torch.Tensor) or self.text.dim() != 3 or self.text.shape[-1] != width:
            got = shape_or_type(self.text)
            raise PatchError(f"expected {self.target} in a denoiser that reads text [n, T, {width}], got {got}")
        if len(output) != len(self.text):
            raise PatchError(f"expected {self.target} to return a row for each of {len(self.text)} prompts, got others")
        self.parts = on_device(self.parts, output.device)
        gate = openness(self.text.to(output.device), self.parts)
        return through(args[0], output, gate, self.parts, self.strength)


def openness(text: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """How open each prompt makes a membrane `[n]`, from 0 to 1.

    The likeness of a prompt to concept i is that of its likest token, max_j <probe_i, x_j>; 0 up to `shut`, 1 from
    `open` on, linear between, and the largest over concepts counts.
    """
    x, cast = precise(text, parts)
    likeness = (x @ cast["probe"].T).amax(dim=1)
    return ((likeness - cast["shut"]) / (cast["open"] - cast["shut"])).clamp(0, 1).amax(dim=1)


def through(
    rows: torch.Tensor,
    output: torch.Tensor,
    gate: torch.Tensor,
    parts: Mapping[str, torch.Tensor],
    strength: float,
) -> torch.Tensor:
    """y + s g up down x, of what a layer reads, x `[n, ..., in]`, and returns, y `[n, ..., out]`, with g `[n]`.

    Where g is 0, y stays as it is, bit for bit.
    """
    if strength == 0:
        return output
    x, cast = precise(rows, parts)
    g = gate.view(-1, *[1] * (output.dim() - 1))
    edited = (output.to(x.dtype) + strength * g * (x @ cast["down"].T @ cast["up"].T)).to(output.dtype)
    # Adding zero would already change the sign of a zero.
    return edited if edited.requires_grad else torch.where(g > 0, edited, output)
