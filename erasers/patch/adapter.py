"""A hook that adds what a small network makes of what a module returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.patch.feature_hooks import first_output
from erasers.patch.hooks import Hook, on_device, precise, shape_or_type


@dataclass(frozen=True, eq=False)
class Adapter(Hook):
    """What a module returns, rows of width d, gets an adapter added: see `adapted`.

    It acts on the first thing that the module returns, in the form in which it got it. Parts: down `[r, d]`, inner
    `[r]`, up `[d, r]`, outer `[d]`.
    """

    kind = "adapter"

    def __post_init__(self) -> None:
        shapes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        size = shapes.get("down", ())
        wanted = {"down": size, "inner": size[:1], "up": size[::-1], "outer": size[1:]}
        if shapes != wanted or len(size) != 2 or 0 in size:
            raise PatchError(
                f"expected the parts down [r, d], inner [r], up [d, r] and outer [d] of {self.kind}, got {shapes}"
            )

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        layers = [layer for path, layer in module.named_modules() if path.rpartition(".")[0].endswith("to_out")]
        width = next((layer.out_features for layer in layers if hasattr(layer, "out_features")), None)
        if width not in (None, self.parts["down"].shape[1]):
            raise PatchError(
                f"the patch is for another model: {self.target} returns rows of {width}, the hook needs "
                f"{self.parts['down'].shape[1]}"
            )

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        return [module.register_forward_hook(_Adapter(self, strength))]


class _Adapter:
    """An adapter as torch calls it; its tensors follow the rows to another device."""

    def __init__(self, hook: Adapter, strength: float) -> None:
        self.target, self.parts, self.strength = hook.target, dict(hook.parts), strength

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        rows, width = first_output(output), self.parts["down"].shape[1]
        if not isinstance(rows, torch.Tensor) or rows.shape[-1] != width:
            raise PatchError(f"expected {self.target} to return rows [..., {width}], got {shape_or_type(rows)}")
        self.parts = on_device(self.parts, rows.device)
        edited = adapted(rows, self.parts, self.strength)
        return edited if rows is output else (edited, *output[1:])


def adapted(rows: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float) -> torch.Tensor:
    """a + s (up GELU(down a + inner) + outer), of rows a `[..., d]`; arguments and result as for `transform_rows`."""
    if strength == 0:
        return rows
    x, cast = precise(rows, parts)
    hidden = functional.gelu(functional.linear(x, cast["down"], cast["inner"]))
    return (x + strength * functional.linear(hidden, cast["up"], cast["outer"])).to(rows.dtype)
