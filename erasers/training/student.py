"""Weights that are trained beside the frozen ones of a pipeline, and the patch that they become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from erasers.concept import Concept
from erasers.diffusion.batches import Summands
from erasers.diffusion.gradients import LossScale, unmixed
from erasers.models.components import below_adapters, component, find_parameter, submodule
from erasers.models.fingerprints import weight_hashes
from erasers.models.readers import text_readers
from erasers.patch import Patch
from erasers.patch.build import patch_meta
from erasers.processes import anywhere

if TYPE_CHECKING:
    from erasers.eraser import Eraser


class Student:
    """Trained copies of some weights of a pipeline, in float32 at least; the pipeline keeps its own.

    Low-rank factors are in float32 at least, too; what they add up to has the precision of the pipeline.

    The frozen teacher is the pipeline itself, so that there is no second copy of any other weight. Inside `placed` the
    pipeline computes with the trained weights; a backward pass has to happen inside, too, when gradients are
    checkpointed.

    Args:
        pipe: A diffusers pipeline.
        names: Full names of parameters, `<component>.<path>`.
        rank: 0 trains the parameters themselves. Otherwise each weight of a linear layer among them gets B A of that
            rank added, A random and B zero, and the others are left alone.
        generator: Draws A.
        alpha: What is added is alpha / rank B A; None: B A.
        beside: What else is trained, and is no weight of the pipeline; with it there may be no weights.
        exact: Whether the patch has whole weights in the precision of the pipeline, so that the values of a weight
            that did not learn stay bit for bit; otherwise it is rounded to float16.

    Raises:
        ValueError: Nothing to train, or weights that are quantised, wrapped or offloaded.
    """

    def __init__(
        self,
        pipe: Any,
        names: Sequence[str],
        *,
        rank: int = 0,
        generator: torch.Generator,
        alpha: float | None = None,
        beside: Sequence[nn.Parameter] = (),
        exact: bool = False,
    ) -> None:
        self._slots = {name: _slot(pipe, name) for name in names}
        if rank:
            self._slots = {name: slot for name, slot in self._slots.items() if _is_linear(slot[0], name)}
        if not self._slots and not beside:
            raise ValueError(f"expected weights to train in {type(pipe).__name__}, got none by these names")
        self._pipe, self.rank, self.scale, self._beside = pipe, rank, LossScale(pipe), list(beside)
        self._exact = exact
        self._share = 1.0 if alpha is None else alpha / rank
        self.base = {name: module._parameters[leaf] for name, (module, leaf) in self._slots.items()}
        self._trained = {
            name: _factors(weight, rank, generator) if rank else (_copy(weight),)
            for name, weight in self.base.items()
            if weight is not None
        }

    @property
    def names(self) -> list[str]:
        """Names of the parameters that are trained."""
        return list(self._trained)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer steps."""
        return [tensor for parts in self._trained.values() for tensor in parts] + self._beside

    @contextmanager
    def placed(self, strength: float = 1.0) -> Iterator[None]:
        """Inside, the pipeline has the trained weights; gradients reach `parameters`.

        Args:
            strength: Of low-rank weights, of which so many times what they add is added.
        """
        for name, (module, leaf) in self._slots.items():
            module._parameters[leaf] = self._weight(name, strength)  # type: ignore[assignment]
        try:
            yield
        finally:
            for name, (module, leaf) in self._slots.items():
                module._parameters[leaf] = self.base[name]

    def backward(self, loss: torch.Tensor | Summands, *, clip: float = 0.0) -> bool:
        """Set the gradients of all parameters to those of the loss, with their norm cut to `clip` unless that is 0.

        Returns:
            Whether there are gradients: where float16 had no room for them, no parameter has one, and a step of an
            optimizer moves nothing.
        """
        whole = self.scale.set(loss, self.parameters, agree=lambda bad: anywhere(bad, self.parameters[0].device))
        if whole and clip:
            nn.utils.clip_grad_norm_(self.parameters, clip)
        return whole

    def tensors(self) -> dict[str, torch.Tensor]:
        """The trained values by name, for a checkpoint; changed in place they change the student."""
        return {
            f"{name}/{number}": tensor.data
            for name, parts in self._trained.items()
            for number, tensor in enumerate(parts)
        } | {f"beside/{number}": tensor.data for number, tensor in enumerate(self._beside)}

    def patch(self, eraser: Eraser, concepts: Sequence[Concept]) -> Patch:
        """What was trained, in float16, in which checkpoints are shipped, or exact; weights that did not move are left.

        Raises:
            ValueError: No weight has moved, or training has diverged.
        """
        tensors: dict[str, torch.Tensor] = {}
        edited = []
        for name, parts in self._trained.items():
            forms = self._low_rank(name, parts) if self.rank else {f"dense/{name}": parts[0].detach()}
            shipped = {key: self._rounded(name, value) for key, value in forms.items()}
            if not all(torch.isfinite(value).all() for value in shipped.values()):
                raise ValueError(f"training has diverged: {name} is not finite; lower lr")
            if self._moved(name, shipped):
                edited.append(name)
                tensors |= shipped
        if not tensors:
            raise ValueError("expected training to change the weights, got none that moved; raise lr or iterations")
        base = self._hashes(edited)
        weights = {name: self._base(name).data for name in base}
        dtype, readers = weights[edited[0]].dtype, text_readers(self._pipe)
        meta = patch_meta(eraser.name, eraser.config(), concepts, base, dtype, weights=weights, readers=readers)
        return Patch(tensors, meta)

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each weight that the student started from."""
        return self._hashes(self.names)

    def _hashes(self, names: Sequence[str]) -> dict[str, str]:
        return weight_hashes(self._pipe, {name: self._base(name).data for name in names})

    def _base(self, name: str) -> nn.Parameter:
        return cast(nn.Parameter, self.base[name])

    def _weight(self, name: str, strength: float) -> torch.Tensor:
        parts = self._trained[name]
        if not self.rank:
            return parts[0]
        down, up = parts[0], parts[-1]
        base = self._base(name)
        with unmixed(up):
            whole = torch.addmm(base.to(up.dtype), up, down, alpha=strength * self._share)
        # Of half the bytes in half precision, in which autocast computes with it anyway; so has its gradient.
        return whole.to(base.dtype)

    def _low_rank(self, name: str, parts: Sequence[nn.Parameter]) -> dict[str, torch.Tensor]:
        """A and B of one size, so that neither loses more than the other when they are rounded."""
        down, up = parts[0].detach(), self._share * parts[1].detach()
        scale = (up.norm() / down.norm()).sqrt()
        if not scale > 0:
            scale = torch.ones_like(scale)
        target = name.removesuffix(".weight")
        return {f"lowrank/{target}/A": down * scale, f"lowrank/{target}/B": up / scale}

    def _moved(self, name: str, shipped: Mapping[str, torch.Tensor]) -> bool:
        if self.rank:
            return bool(shipped[f"lowrank/{name.removesuffix('.weight')}/B"].any())
        return not torch.equal(shipped[f"dense/{name}"], self._rounded(name, self._base(name).detach()))

    def _rounded(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value.to("cpu", self._base(name).dtype) if self._exact else rounded(value)


def names_of(pipe: Any, part: str, wanted: Callable[[nn.Module, str], bool]) -> list[str]:
    """Names of parameters of a component of a pipeline, in module order.

    Adapters and their processors have weights of their own under names much like those of the model; they are left
    out.

    Args:
        pipe: A diffusers pipeline.
        part: The component, such as `unet`.
        wanted: (module, its path without `base_layer`) -> whether its parameters are meant.
    """
    names = []
    for path, module in component(pipe, part).named_modules():
        steps = path.split(".")
        if any(step in ("processor", "parametrizations") or step.startswith("lora_") for step in steps):
            continue
        plain = ".".join(step for step in steps if step not in ("base_layer", "_orig_mod"))
        if wanted(module, plain):
            names += [
                ".".join(filter(None, (part, plain, leaf)))
                for leaf in module._parameters
                if module._parameters[leaf] is not None
            ]
    return names


def _slot(pipe: Any, name: str) -> tuple[nn.Module, str]:
    find_parameter(pipe, name, linear=False)
    part, _, path = name.partition(".")
    owner, _, leaf = path.rpartition(".")
    module = below_adapters(submodule(component(pipe, part), owner))
    if module is None:
        raise ValueError(f"expected {type(pipe).__name__} with {name}, got none")
    return module, leaf


def _is_linear(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and name.endswith(".weight")


def _copy(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().to(_precise(weight)).clone())


def _factors(weight: torch.Tensor, rank: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    out, width = weight.shape
    rank = min(rank, out, width)
    down = torch.randn(rank, width, generator=generator, device=generator.device) / width**0.5
    up = torch.zeros(out, rank, device=weight.device, dtype=_precise(weight))
    return nn.Parameter(down.to(up)), nn.Parameter(up)


def _precise(weight: torch.Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def rounded(value: torch.Tensor) -> torch.Tensor:
    """Float16 on the CPU, or float32 where that does not reach."""
    half = value.to("cpu", torch.float16)
    return half if torch.isfinite(half).all() or not torch.isfinite(value).all() else value.to("cpu", torch.float32)
