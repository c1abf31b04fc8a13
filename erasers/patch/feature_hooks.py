"""Hooks that turn down features of a sparse autoencoder, in a text encoder or in a denoiser."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.patch.hooks import Hook, on_device, precise, shape_or_type


@dataclass(frozen=True, eq=False)
class FeatureGate(Hook):
    """Features of a sparse autoencoder are scaled in what a block returns, in prompts that show one of them: `gated`.

    Of the autoencoder the hook has the selected features alone, m of them. It acts on the first thing that the block
    returns, `[prompts, T, d]`, in the form in which it got it. Parts: encoder `[m, d]`, bias `[m]`, decoder `[m, d]`,
    floor `[m]`, gate `[m]`, scale `[1]`; first `[1]` where it is another token than that behind the first one, from
    which on tokens count.
    """

    kind = "feature_gate"

    def __post_init__(self) -> None:
        shapes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        size = shapes.get("encoder", ())
        wanted = {"encoder": size, "decoder": size, "scale": (1,)} | dict.fromkeys(("bias", "floor", "gate"), size[:1])
        wanted |= {"first": (1,)} if "first" in shapes else {}
        if shapes != wanted or len(size) != 2 or 0 in size:
            raise PatchError(
                f"expected the parts encoder, decoder [m, d], bias, floor, gate [m] and scale [1] of {self.kind}, got "
                f"{shapes}"
            )
        if (self.parts["floor"] < 0).any() or (self.parts["gate"] < self.parts["floor"]).any():
            raise PatchError(f"expected 0 <= floor <= gate for every feature of {self.kind}, got something else")

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        width = next((parameter.shape[-1] for parameter in module.parameters() if parameter.ndim == 1), None)
        norm = next((layer for layer in module.modules() if isinstance(layer, nn.LayerNorm)), None)
        width = norm.normalized_shape[0] if norm is not None else width
        if width not in (None, self.parts["encoder"].shape[1]):
            raise PatchError(
                f"the patch is for another model: {self.target} returns rows of {width}, the hook needs "
                f"{self.parts['encoder'].shape[1]}"
            )

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`; it runs before what records the states of a block, as transformers does for SDXL."""
        return [module.register_forward_hook(_FeatureGate(self, strength), prepend=True)]


class _FeatureGate:
    """A feature gate as torch calls it; its tensors follow the rows to another device."""

    def __init__(self, hook: FeatureGate, strength: float) -> None:
        self.target, self.parts, self.strength = hook.target, dict(hook.parts), strength

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        rows = first_output(output)
        width = self.parts["encoder"].shape[1]
        if not isinstance(rows, torch.Tensor) or rows.ndim != 3 or rows.shape[-1] != width:
            got = shape_or_type(rows)
            raise PatchError(f"expected {self.target} to return a tensor [prompts, T, {width}], got {got}")
        self.parts = on_device(self.parts, rows.device)
        edited = gated(rows, self.parts, self.strength)
        return edited if rows is output else (edited, *output[1:])


def first_output(output: Any) -> Any:
    """What a block returns, or the first of it when that is several things."""
    return output[0] if isinstance(output, (tuple, list)) else output


def gated(rows: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float) -> torch.Tensor:
    """x + s (D(z') - D(z)) in the prompts that the gate takes for the concept; every other one as it is, bit for bit.

    a = ReLU(W_e x + bias); z is a where a > floor, and z' is scale z. A prompt is taken for the concept when a > gate
    for one feature of one token. A first token that is the same in every prompt, as CLIP has it, counts for nothing and
    is never edited; the part `first` says from which token on they count.

    Attacks differentiate through the gate as well, by a straight-through estimator (Bengio et al., arXiv 1308.3432):
    backwards the gate is the largest a / gate, so that a step can shut it.

    The rows are x `[prompts, T, d]`, the parts those of a `FeatureGate`, the strength s, all as for `transform_rows`.
    """
    if strength == 0:
        return rows
    x, cast = precise(rows, parts)
    a = torch.relu(x @ cast["encoder"].T + cast["bias"])
    counted = torch.arange(rows.shape[1], device=rows.device)[:, None] >= cast.get("first", 1)
    shown = ((a > cast["gate"]) & counted).flatten(1).any(dim=1)[:, None, None]
    z = torch.where((a > cast["floor"]) & counted, a, torch.zeros_like(a))
    shift = ((cast["scale"] - 1) * z) @ cast["decoder"]
    edited = (x + strength * shift).to(rows.dtype)
    # Adding a shift of zero would already change the sign of a zero.
    output = torch.where(shown & counted, edited, rows)
    if not output.requires_grad:
        return output
    nearest = (a * counted / cast["gate"].clamp(min=1e-6)).flatten(1).amax(dim=1)[:, None, None]
    return output + ((nearest - nearest.detach()) * (strength * shift).detach()).to(rows.dtype)


@dataclass(frozen=True, eq=False)
class StepFeatures(Hook):
    """Features of a sparse autoencoder are scaled in the map that a block of a denoiser returns: see `stepped`.

    Which ones, and from what activity on, depends on the time step, which the hook reads from each call of the
    denoiser; it counts no calls, so that pictures, samplers and step numbers may follow each other in any order. Of the
    autoencoder it has the features alone that are turned down at some step, m of them. Parts: encoder `[m, d]`, bias
    `[m]`, decoder `[m, d]`, floor `[m]`, times `[s]`, gate `[s, m]`, scale `[s, m]`; scale 1 leaves a feature alone.
    """

    kind = "step_features"

    def __post_init__(self) -> None:
        shapes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        size, times = shapes.get("encoder", ()), shapes.get("times", ())
        wanted = {"encoder": size, "decoder": size, "times": times} | dict.fromkeys(("bias", "floor"), size[:1])
        wanted |= dict.fromkeys(("gate", "scale"), (*times, *size[:1]))
        if shapes != wanted or len(size) != 2 or len(times) != 1 or 0 in (*size, *times):
            raise PatchError(
                f"expected the parts encoder, decoder [m, d], bias, floor [m], times [s], gate and scale [s, m] of "
                f"{self.kind}, got {shapes}"
            )
        if (self.parts["floor"] < 0).any() or (self.parts["gate"] < 0).any():
            raise PatchError(f"expected floor and gate of at least 0 for every feature of {self.kind}, got less")

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        width, own = getattr(module, "out_channels", None), self.parts["encoder"].shape[1]
        if width not in (None, own):
            raise PatchError(
                f"the patch is for another model: {self.target} returns maps of {width} channels, the hook needs {own}"
            )

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        call = StepCall(self, strength)
        return [
            root.register_forward_pre_hook(Clock(self.target, root, call.tell), with_kwargs=True),
            module.register_forward_hook(call, prepend=True),
        ]


class StepCall:
    """Step features as torch calls them; their tensors follow the map to another device."""

    def __init__(self, hook: Hook, strength: float) -> None:
        self.target, self.parts, self.strength = hook.target, dict(hook.parts), strength
        self.time: Any = None

    def tell(self, time: Any) -> None:
        """Take the time step of the call of the denoiser that begins."""
        self.time = time

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        maps, width = first_output(output), self.parts["encoder"].shape[1]
        if not isinstance(maps, torch.Tensor) or maps.ndim != 4 or maps.shape[1] != width:
            raise PatchError(f"expected {self.target} to return a map [n, {width}, h, w], got {shape_or_type(maps)}")
        edited = stepped(maps, self.times(maps.device), self.parts, self.strength)
        return edited if maps is output else (edited, *output[1:])

    def times(self, device: torch.device) -> torch.Tensor:
        """The times of this call of the denoiser, `[1]` or `[n]`, where from now on the parts are, too."""
        if self.time is None:
            raise PatchError(f"expected {self.target} to run inside of its denoiser, got a call without a time step")
        self.parts = on_device(self.parts, device)
        return torch.as_tensor(self.time, device=device).reshape(-1)


class Clock:
    """Tells the time step of each call of a denoiser, as it is told that itself.

    Raises:
        PatchError: The denoiser reads none.
    """

    def __init__(self, target: str, root: nn.Module, tell: Callable[[Any], None]) -> None:
        names = list(inspect.signature(type(root).forward).parameters)[1:]
        if "timestep" not in names:
            raise PatchError(f"expected {target} in a denoiser that reads timestep, got one in {type(root).__name__}")
        self.index, self.tell = names.index("timestep"), tell

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tell(kwargs["timestep"] if "timestep" in kwargs else args[self.index])


def stepped(
    maps: torch.Tensor, times: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float
) -> torch.Tensor:
    """x + s (D(f') - D(f)) at the places of a map where a feature passes its gate, the others as they are, bit for bit.

    a = ReLU(W_e x + bias) and f is a where a > floor. At time t, f'_i = scale_i(t) f_i where f_i > gate_i(t) and f_i
    elsewhere, with gates and scales of the nearest time that the hook knows (arXiv 2501.18052, eq. 8, with the sign of
    the error put right: what the features do not explain of x stays as it is).

    The maps are x `[n, d, h, w]`, the times t `[1]` or `[n]`; the parts, those of `StepFeatures`, the strength s and
    what is returned are as for `transform_rows`.
    """
    if strength == 0:
        return maps
    edited, changed = edited_rows(maps.movedim(1, -1), times, parts, strength)
    return torch.where(changed.movedim(-1, 1), edited.movedim(-1, 1), maps)


def edited_rows(
    rows: torch.Tensor, times: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `stepped` makes of rows `[n, ..., d]`, in their dtype, and which of them it changes `[n, ..., 1]`."""
    x, cast = precise(rows, parts)
    nearest = (times[:, None].to(x.dtype) - cast["times"]).abs().argmin(dim=1)
    beside = (len(nearest), *[1] * (x.ndim - 2), -1)
    gate, scale = (cast[name][nearest].view(beside) for name in ("gate", "scale"))
    a = torch.relu(x @ cast["encoder"].T + cast["bias"])
    passed = (a > cast["floor"]) & (a > gate) & (scale != 1)
    shift = torch.where(passed, (scale - 1) * a, torch.zeros_like(a)) @ cast["decoder"]
    return (x + strength * shift).to(rows.dtype), passed.any(dim=-1, keepdim=True)
