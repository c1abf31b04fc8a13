"""Where the hooks of a patch go in a live pipeline, and which weights read what they make."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.models.components import below_adapters, component, refuse_fused, submodule
from erasers.models.ports import text_ports
from erasers.patch.hooks import Hook


class Target:
    """A module to which a hook can go.

    Raises:
        PatchError: There is no such module, or it would not be called.
    """

    def __init__(self, pipe: Any, hook: Hook, strength: float) -> None:
        self.hook, self.strength, self.module = hook, strength, find_target(pipe, hook)
        self.root = component(pipe, hook.component)
        # Layers of attention may be fused with their neighbours, now or later; then they are not called.
        parent = submodule(self.root, hook.path.rpartition(".")[0])
        self.attention = parent if hook.path and hasattr(parent, "fuse_projections") else None
        if self.attention is not None:
            _RefuseFused(hook.target)(self.attention, ())

    def install(self) -> list[RemovableHandle]:
        """Make the hook run."""
        handles = self.hook.install(self.module, self.strength, self.root)
        if self.attention is not None:
            handles.append(self.attention.register_forward_pre_hook(_RefuseFused(self.hook.target)))
        return handles


def find_target(pipe: Any, hook: Hook) -> nn.Module:
    """The module that a hook goes to; below an adapter, as an edit of its weights would be.

    Raises:
        PatchError: The pipeline has no such module.
    """
    try:
        module = below_adapters(submodule(component(pipe, hook.component), hook.path))
    except ValueError as error:
        raise PatchError(str(error)) from None
    if module is None:
        raise PatchError(
            f"expected {type(pipe).__name__} with {hook.target}, got a {hook.component} without it; "
            "is it the model that it was fitted on?"
        )
    return module


def weights_behind(pipe: Any, hook: Hook) -> set[str]:
    """Names of the parameters that could hold what a hook does; none where that is not known."""
    if not hook.bakes:
        return set()
    if not hook.path:
        return text_weights(pipe, hook.component)
    return {f"{hook.target}.weight"} if isinstance(find_target(pipe, hook), nn.Linear) else set()


def text_weights(pipe: Any, name: str) -> set[str]:
    """The weights that read `encoder_hidden_states` of a component as they are: what transforms these, they can hold.

    Returns:
        Names of parameters; none where something lies in between, or where this is not known.

    Raises:
        PatchError: A UNet in a state in which its weights cannot be edited.
    """
    if not any(cls.__name__ == "UNet2DConditionModel" for cls in type(component(pipe, name)).__mro__):
        return set()
    try:
        return {port.parameter for port in text_ports(pipe)}
    except (TypeError, ValueError) as error:
        raise PatchError(str(error)) from None


class _RefuseFused:
    """Runs before an attention module that has a layer with a hook."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        try:
            refuse_fused(self.target, module)
        except ValueError as error:
            raise PatchError(f"the hook would not run: {error}") from None
