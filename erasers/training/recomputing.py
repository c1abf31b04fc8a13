"""Activations that are computed again in the backward pass, as they were in the forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_Hooks = Sequence[tuple[nn.Module, dict[str, Any]]]


def recomputed(block: nn.Module, *inputs: Any) -> Any:
    """What a block makes of its inputs; the backward pass runs it again with the hooks that it has now."""
    hooks = [(module, {name: getattr(module, name).copy() for name in _HOOKS}) for module in block.modules()]

    def run(*given: Any) -> Any:
        with _hooked(hooks):
            return block(*given)

    return checkpoint(run, *inputs, use_reentrant=False)


@contextmanager
def checkpointed(denoiser: Any) -> Iterator[None]:
    """Inside, a denoiser keeps few activations and computes the others again."""
    denoiser.enable_gradient_checkpointing(gradient_checkpointing_func=recomputed)
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()


@contextmanager
def _hooked(hooks: _Hooks) -> Iterator[None]:
    """Inside, modules have these hooks and no others."""
    before = [(module, {name: getattr(module, name) for name in _HOOKS}) for module, _ in hooks]
    _put(hooks)
    try:
        yield
    finally:
        _put(before)


def _put(hooks: _Hooks) -> None:
    for module, kinds in hooks:
        for name, values in kinds.items():
            setattr(module, name, values)
