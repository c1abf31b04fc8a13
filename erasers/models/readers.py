"""What reads the prompt beside the weights that a patch knows: which text encoders there are, and what switches them.

The weights of a text encoder do not say what it returns: adapters can be on or off, and hooks can change its states.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
PLAIN, ADAPTERS, HOOKS = "plain", "adapters", "hooks"
# Hooks that move or record what passes, and those of patches, which are stacked in their own way.
_HARMLESS = ("transformers.", "accelerate.", "diffusers.", "erasers.")


def text_readers(pipe: Any) -> dict[str, str]:
    """The state of every text encoder of a pipeline, by the name of the component."""
    encoders = {name: getattr(pipe, name, None) for name in ENCODERS}
    return {name: state_of(encoder) for name, encoder in encoders.items() if isinstance(encoder, nn.Module)}


def state_of(module: nn.Module) -> str:
    """`plain`, or what changes its output beside its own weights: `adapters` that are on, or foreign `hooks`."""
    layers = list(module.modules())
    if any(_is_on(layer) for layer in layers if hasattr(layer, "base_layer")):
        return ADAPTERS
    owners = (_owner(hook) for layer in layers for hook in _hooks(layer))
    return HOOKS if any(not owner.startswith(_HARMLESS) for owner in owners) else PLAIN


def is_bare(module: nn.Module) -> bool:
    """Whether its weights alone say what a module returns: no adapters, on or off, and no hooks but recording ones."""
    layers = list(module.modules())
    owners = (_owner(hook) for layer in layers for hook in _hooks(layer))
    wrapped = any(hasattr(layer, "base_layer") or "forward" in layer.__dict__ for layer in layers)
    return not wrapped and all(owner.startswith("transformers.") for owner in owners)


def warn_of_other_text(fitted: Mapping[str, str] | None, pipe: Any, *, stacklevel: int = 3) -> None:
    """Warn where text reaches the denoiser in another way than when a patch was fitted.

    Args:
        fitted: What `text_readers` gave then; None for patches that do not say.
        pipe: The pipeline that gets the patch.
        stacklevel: As for `warnings.warn`.
    """
    if fitted is None:
        return
    for name, state in text_readers(pipe).items():
        if name not in fitted:
            what = f"without pipe.{name}, which reads the prompt here; what comes through it is not erased"
        elif fitted[name] != state:
            what = f"with pipe.{name} {_words(fitted[name])}, which is {_words(state)} here; it may erase less"
        else:
            continue
        warnings.warn(f"the patch was fitted {what}; fit it anew on this pipeline", UserWarning, stacklevel=stacklevel)


def _is_on(layer: nn.Module) -> bool:
    return bool(getattr(layer, "active_adapters", True)) and not getattr(layer, "disable_adapters", False)


def _hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _owner(hook: Any) -> str:
    """The module that a hook is written in, also where some of its arguments are given already."""
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", ""))


def _words(state: str) -> str:
    return {PLAIN: "as loaded", ADAPTERS: "with adapters that are on", HOOKS: "with hooks of others"}.get(state, state)
