"""What a denoiser reads of prompts in one call: their tokens and, in some families, a pooled vector beside them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import nn

from erasers.files.tensors import PatchError
from erasers.patch.hooks import Hook, on_device, refuse_address_cache, shape_or_type, text_width

STATES, POOLED = "encoder_hidden_states", "pooled_projections"
# Where the denoiser of SDXL has its pooled vector.
_ADDED, _EMBEDS = "added_cond_kwargs", "text_embeds"


class Text(NamedTuple):
    """Text of n prompts as a denoiser reads it.

    Args:
        states: `[n, T, d]`.
        pooled: `[n, p]`, where the family has it.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None


def arguments(module: nn.Module) -> list[str]:
    """Names of what a module is called with."""
    # Of the class: on the instance, offloading may have replaced `forward`.
    return list(inspect.signature(type(module).forward).parameters)[1:]


def check_whole_text(hook: Hook, module: nn.Module, states: int, pooled: int | None) -> None:
    """Refuse a hook whose text is not that of a denoiser.

    Args:
        hook: On the denoiser itself.
        module: The denoiser.
        states: Width of the hook's states.
        pooled: Width of its pooled vectors; None: it has none.

    Raises:
        PatchError: Names the widths.
    """
    names, config = arguments(module), getattr(module, "config", {})
    summarises = POOLED in names or _ADDED in names and config.get("addition_embed_type") == "text_time"
    if STATES not in names or pooled is not None and not summarises:
        beside = "" if pooled is None else " and a pooled vector"
        raise PatchError(
            f"expected {hook.target} as a denoiser that reads {STATES}{beside}, got {type(module).__name__}"
        )
    read = text_width(module), config.get("pooled_projection_dim")
    for own, wanted, what in ((states, read[0], "rows"), (pooled, read[1], "pooled vectors")):
        if own is not None and wanted not in (None, own):
            raise PatchError(
                f"the patch is for another model: {hook.target} reads {what} of {wanted}, the hook needs {own}"
            )
    refuse_address_cache(hook.target, module)


class WholeTextCall(ABC):
    """A hook on a denoiser that reads tokens and pooled vectors of prompts together; its tensors follow them.

    Args:
        hook: The hook.
        strength: Scale of what it does.
        module: The denoiser.
        states: Width of the hook's states.
        pooled: Width of its pooled vectors; None: those of a call stay as they are.
    """

    def __init__(self, hook: Hook, strength: float, module: nn.Module, states: int, pooled: int | None) -> None:
        self.target, self.parts, self.strength = hook.target, dict(hook.parts), strength
        self.names, self.states, self.pooled = arguments(module), states, pooled

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        refuse_address_cache(self.target, module)
        given = dict(zip(self.names, args, strict=False)) | kwargs
        states, pooled = given.get(STATES), None if self.pooled is None else _pooled(given)
        if states is None and self.pooled is None:  # a call without text
            return args, kwargs
        self._check(states, STATES, self.states, 3)
        if self.pooled is not None:
            self._check(pooled, "the pooled text", self.pooled, 2)
        self.parts = on_device(self.parts, states.device)  # type: ignore[union-attr]
        text = self.changed(Text(states, pooled))  # type: ignore[arg-type]
        given[STATES] = text.states
        return (), given if text.pooled is None else _with_pooled(given, text.pooled)

    def _check(self, value: Any, name: str, width: int, dims: int) -> None:
        if not isinstance(value, torch.Tensor) or value.shape[-1] != width or value.dim() != dims:
            shape = "[n, T, " if dims == 3 else "[n, "
            raise PatchError(f"expected {name} of {self.target} as {shape}{width}], got {shape_or_type(value)}")

    @abstractmethod
    def changed(self, text: Text) -> Text:
        """What the denoiser reads in the place of this text."""


def _pooled(given: dict[str, Any]) -> Any:
    return given[POOLED] if POOLED in given else (given.get(_ADDED) or {}).get(_EMBEDS)


def _with_pooled(given: dict[str, Any], pooled: torch.Tensor) -> dict[str, Any]:
    if POOLED in given:
        return given | {POOLED: pooled}
    return given | {_ADDED: given[_ADDED] | {_EMBEDS: pooled}}
