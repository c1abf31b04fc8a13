"""Hooks that turn down features of a sparse autoencoder in the tokens that a block of a transformer returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.models.denoiser_blocks import Half, halves_of, width_of
from erasers.patch.feature_hooks import Clock, StepCall, StepFeatures, edited_rows
from erasers.patch.hooks import shape_or_type

# What of diffusers leaves blocks out: what a hook does to one of them would be done to the rows of another, or be lost.
_LEAVE_OUT = ("fbc_", "mag_cache_", "sea_cache_", "layer_skip_")


@dataclass(frozen=True, eq=False)
class StepRows(StepFeatures):
    """`StepFeatures` of rows `[n, tokens, d]`: where they are in what the block returns, its class and the kind say."""

    half: ClassVar[Half]

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        if self.half not in halves_of(module):
            raise PatchError(
                f"expected {self.target} as a block that returns tokens of the {self.half}, got "
                f"{type(module).__name__}; the patch is for another model"
            )
        width, own = width_of(module), self.parts["encoder"].shape[1]
        if width not in (None, own):
            raise PatchError(
                f"the patch is for another model: {self.target} returns rows of {width}, the hook needs {own}"
            )
        refuse_left_out(self.target, module)

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        call = _StepRows(self, strength, halves_of(module)[self.half])
        return [
            root.register_forward_pre_hook(Clock(self.target, root, call.tell), with_kwargs=True),
            module.register_forward_hook(call, prepend=True),
        ]


@dataclass(frozen=True, eq=False)
class StepPictureRows(StepRows):
    """`StepRows` of the tokens of the picture."""

    kind = "step_picture_rows"
    half = "picture"


@dataclass(frozen=True, eq=False)
class StepTextRows(StepRows):
    """`StepRows` of the tokens of the text."""

    kind = "step_text_rows"
    half = "text"


class _StepRows(StepCall):
    """Step features of rows as torch calls them."""

    def __init__(self, hook: StepRows, strength: float, place: int) -> None:
        super().__init__(hook, strength)
        self.place = place

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        refuse_left_out(self.target, module)
        outputs = list(output) if isinstance(output, (tuple, list)) else [output]
        rows, width = outputs[self.place], self.parts["encoder"].shape[1]
        if not isinstance(rows, torch.Tensor) or rows.ndim != 3 or rows.shape[-1] != width:
            raise PatchError(f"expected {self.target} to return rows [n, tokens, {width}], got {shape_or_type(rows)}")
        outputs[self.place] = stepped_rows(rows, self.times(rows.device), self.parts, self.strength)
        return tuple(outputs) if isinstance(output, (tuple, list)) else outputs[0]


def stepped_rows(
    rows: torch.Tensor, times: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float
) -> torch.Tensor:
    """What `stepped` makes of rows x `[n, tokens, d]` in place of a map; arguments as there."""
    if strength == 0:
        return rows
    edited, changed = edited_rows(rows, times, parts, strength)
    return torch.where(changed, edited, rows)


def refuse_left_out(target: str, module: nn.Module) -> None:
    """Refuse a module that diffusers leaves out of some calls.

    Raises:
        PatchError: Names the cache.
    """
    hooks = getattr(module.__dict__.get("_diffusers_hook"), "hooks", ())
    names = [name for name in hooks if name.startswith(_LEAVE_OUT)]
    if names:
        raise PatchError(
            f"{target} is under diffusers' {names[0]}, which leaves blocks out, and with them what a hook does to one; "
            "disable_cache() first"
        )
