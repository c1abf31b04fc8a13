"""Edits that run during generation, for models whose weights cannot hold them.

A kind is a frozen class. It checks its tensors and the module they go to, says what happens to what the module reads or
returns, and installs that as a hook of torch. Hooks of torch run before whatever replaces `forward` (offloading by
accelerate, the caches of diffusers), which is why they outlive it, and a deep copy of the module has its own.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError

# Where denoisers keep the width of `encoder_hidden_states`; one that has several reads them in this order.
_WIDTHS = ("encoder_hid_dim", "caption_channels", "joint_attention_dim", "cross_attention_dim")
_KEYED_BY_ADDRESS = "text_kv_cache_transformer"


@dataclass(frozen=True, eq=False)
class Hook(ABC):
    """One edit of what one module does.

    Args:
        target: The module: `<component>` or `<component>.<module path>`.
        parts: Tensors by the last part of their name; floating point and finite.

    Raises:
        PatchError: Parts of other names or shapes.
    """

    kind: ClassVar[str]
    bakes: ClassVar[bool] = False
    """Whether the same parts as an edit `transform/` do the same to every weight that reads the module's input."""

    target: str
    parts: Mapping[str, torch.Tensor]

    @property
    def component(self) -> str:
        """Name of the component."""
        return self.target.partition(".")[0]

    @property
    def path(self) -> str:
        """Path of the module inside of the component; empty for the component itself."""
        return self.target.partition(".")[2]

    @abstractmethod
    def __post_init__(self) -> None: ...

    @abstractmethod
    def check(self, module: nn.Module) -> None:
        """Refuse a live module on which the hook could not run.

        Raises:
            PatchError: Names the module and what is wrong.
        """

    @abstractmethod
    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """Make the hook run on a module of the component `root`, after the hooks that it has."""


@dataclass(frozen=True, eq=False)
class PromptTransform(Hook):
    """The text that enters a module is transformed, row by row: see `transform_rows`.

    On a component itself, the denoiser, that is its argument `encoder_hidden_states`; on a module inside of a component
    it is the first argument. Parts: A `[r, d]` and B `[d, r]`, or T `[d, d]`.
    """

    kind = "prompt_transform"
    bakes = True

    def __post_init__(self) -> None:
        shapes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        first, second = shapes.get("A", shapes.get("T", ())), shapes.get("B", shapes.get("T", ()))
        if set(shapes) not in ({"A", "B"}, {"T"}) or len(first) != 2 or 0 in first or first != second[::-1]:
            raise PatchError(f"expected the parts A [r, d] and B [d, r], or T [d, d], of {self.kind}, got {shapes}")

    @property
    def width(self) -> int:
        """d."""
        return next(tensor.shape[1] for part, tensor in self.parts.items() if part != "B")

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        text_argument(self, module)
        width = getattr(module, "in_features", None) if self.path else text_width(module)
        if width not in (None, self.width):
            raise PatchError(
                f"the patch is for another model: {self.target} reads rows of {width}, the hook needs {self.width}"
            )
        refuse_address_cache(self.target, module)

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        call = _PromptTransform(self, strength, *text_argument(self, module))
        return [module.register_forward_pre_hook(call, with_kwargs=True)]


class TextCall(ABC):
    """A hook on what a module reads as torch calls it; its tensors follow the text to another device."""

    def __init__(self, hook: Hook, strength: float, argument: str, index: int) -> None:
        self.target, self.parts, self.strength = hook.target, dict(hook.parts), strength
        self.argument, self.index = argument, index

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        refuse_address_cache(self.target, module)
        if self.argument in kwargs:
            return args, {**kwargs, self.argument: self._transform(kwargs[self.argument])}
        if len(args) <= self.index:
            return args, kwargs
        return (*args[: self.index], self._transform(args[self.index]), *args[self.index + 1 :]), kwargs

    def _transform(self, rows: Any) -> Any:
        if rows is None:  # a call without text
            return None
        if shape := self.wanted(rows):
            raise PatchError(
                f"expected {self.argument} of {self.target} as a tensor {shape}, got {shape_or_type(rows)}"
            )
        self.parts = on_device(self.parts, rows.device)
        return self.changed(rows)

    @abstractmethod
    def wanted(self, rows: Any) -> str:
        """The shape of the text where these rows are something else; "" where they fit."""

    @abstractmethod
    def changed(self, rows: torch.Tensor) -> torch.Tensor:
        """What the module reads in the place of these rows."""


class _PromptTransform(TextCall):
    def wanted(self, rows: Any) -> str:
        width = next(part.shape[1] for name, part in self.parts.items() if name != "B")
        return "" if isinstance(rows, torch.Tensor) and rows.shape[-1] == width else f"[..., {width}]"

    def changed(self, rows: torch.Tensor) -> torch.Tensor:
        return transform_rows(rows, self.parts, self.strength)


def shape_or_type(value: Any) -> Any:
    """What an error says of something that should have been a tensor of another shape."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def on_device(parts: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors of a hook on a device; the same dict when they are there."""
    if next(iter(parts.values())).device == device:
        return parts
    return {name: part.to(device) for name, part in parts.items()}


def precise(x: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What is read and the tensors of a hook in the dtype in which hooks compute: float64 for that, else float32."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to(dtype), {name: part.to(dtype) for name, part in parts.items()}


def transform_rows(rows: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float) -> torch.Tensor:
    """x + s (x A') B', or x + s (x T' - x): what W + s W B A, or W + s W (T - I), makes of x when W reads it.

    Args:
        rows: x `[..., d]`.
        parts: A `[r, d]` and B `[d, r]`, or T `[d, d]`, on the device of the rows.
        strength: s.

    Returns:
        Rows of the same shape and dtype; computed in float32 or float64.
    """
    if strength == 0:
        return rows
    x, cast = precise(rows, parts)
    shift = x @ cast["T"].T - x if "T" in cast else x @ cast["A"].T @ cast["B"].T
    return (x + strength * shift).to(rows.dtype)


def text_argument(hook: Hook, module: nn.Module) -> tuple[str, int]:
    """Name and position of the argument that holds the text."""
    # Of the class: on the instance, offloading may have replaced `forward`.
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    name = names[0] if hook.path and names else "encoder_hidden_states"
    if name not in names:
        raise PatchError(
            f"expected {hook.target} as a denoiser that reads encoder_hidden_states, got {type(module).__name__}"
        )
    return name, names.index(name)


def text_width(denoiser: nn.Module) -> int | None:
    """Width of `encoder_hidden_states`, where the configuration tells."""
    config = getattr(denoiser, "config", None)
    width = next((value for value in (getattr(config, name, None) for name in _WIDTHS) if value is not None), None)
    return width if isinstance(width, int) else None


def refuse_address_cache(target: str, module: nn.Module) -> None:
    # This cache of diffusers knows a prompt by its address in memory, and what a hook makes of it is new in every call.
    if _KEYED_BY_ADDRESS in getattr(module.__dict__.get("_diffusers_hook"), "hooks", ()):
        raise PatchError(
            f"{target} is under diffusers' text_kv_cache, which takes one prompt for another when a hook transforms "
            "them; disable_cache() first"
        )
