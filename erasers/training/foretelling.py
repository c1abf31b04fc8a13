"""What a training will need, by counting: memory, passes through the networks, and time on a named device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from erasers.diffusion.adaptors.table import denoiser_of
from erasers.diffusion.counting import Calls
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.memory import gigabytes
from erasers.diffusion.needs import Need, Pass, denoiser_flops, need_of, text_flops
from erasers.models.components import parameters_of

PASSES_OF_A_GRADIENT = 3
"""A backward pass takes as long as two forward passes of the denoiser."""
REFERENCE = "one A100 at 40 TFLOP/s"
FLOPS_A_SECOND = 40e12
"""About what an A100 of 312 TFLOP/s (16 bit) does with batches of one or two latents of 64 x 64; larger batches and
larger models are faster."""
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Demand:
    """What a training holds.

    Args:
        names: Parameters that are trained.
        passes: Its backward passes.
        copies: Numbers in float32 for each that is trained: itself, its gradient, what the optimizer remembers.
        beside: Numbers that are trained beside those; four copies of each.
        latents: Latents in float32 that are learned from.
    """

    names: Sequence[str]
    passes: Sequence[Pass]
    copies: int = 4
    beside: int = 0
    latents: int = 0


@dataclass(frozen=True)
class Split:
    """How a training fits the memory there is.

    Args:
        together: The most latents that go through the denoiser together where gradients are taken.
        checkpointing: Whether activations of the denoiser are computed again.
    """

    together: int
    checkpointing: bool


@dataclass(frozen=True)
class Foretold:
    """What a training will need.

    Args:
        calls: What goes through the networks.
        trained: Numbers that are trained: of weights, or, where no weight is, of what stands beside them.
        weights: Parameters that they belong to.
        model: Bytes of the pipeline.
        state: Bytes of what is trained, its gradients and what optimizers remember.
        latents: Bytes of the latents that are learned from.
        needs: Of each backward pass.
        flops: Floating-point operations in all.
        again: Those that gradient checkpointing adds.
    """

    calls: Calls
    trained: int
    weights: int
    model: int
    state: int
    latents: int
    needs: Sequence[Need]
    flops: float
    again: float = 0.0

    @property
    def largest(self) -> int:
        """The most latents that go through the denoiser together."""
        return max(need.samples for need in self.needs)

    def memory(self, batch: int, checkpointing: bool = False) -> int:
        """Bytes in all with at most so many latents together; what kernels and the allocator take comes on top."""
        needs = max(need.nbytes(batch, checkpointing) for need in self.needs)
        return self.model + self.state + self.latents + needs

    def split(self, budget: int | None, *, checkpointing: bool = False) -> Split:
        """The most latents together that a budget in bytes allows, computing activations again where it has to be.

        Args:
            budget: For all; None has no bounds.
            checkpointing: Compute them again in any case.

        Raises:
            ValueError: It does not allow one.
        """
        if budget is None:
            return Split(max(1, self.largest), checkpointing)
        for again in (True,) if checkpointing else (False, True):
            fits = [batch for batch in range(1, max(1, self.largest) + 1) if self.memory(batch, again) <= budget]
            if fits:
                return Split(fits[-1], again)
        raise ValueError(
            f"expected memory of at least {gigabytes(self.memory(1, True))}, got {gigabytes(budget)}; use a rank above "
            "0 or fewer trained weights"
        )

    def hours(self, checkpointing: bool = False) -> float:
        """Hours of `REFERENCE`."""
        return (self.flops + checkpointing * self.again) / FLOPS_A_SECOND / 3600


def foretell(pipe: Any, calls: Calls, demand: Demand, *, rank: int = 0, size: int | None = None) -> Foretold:
    """What a training needs.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`; its weights may be on the meta device.
        calls: What goes through the networks.
        demand: What the method holds.
        rank: Of low-rank additions; 0 trains the weights themselves.
        size: Of pictures in pixels; None: the model's own.
    """
    names = set(demand.names)
    weights = {name: parameter for name, parameter in parameters_of(pipe) if name in names}
    if rank:
        weights = {name: value for name, value in weights.items() if name.endswith(".weight") and value.dim() == 2}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    trained = sum(min(rank, *shape) * sum(shape) if rank else _count(shape) for shape in shapes.values())
    # Low-rank weights are added up to whole ones while they are placed, in the model's precision, whose gradients are
    # there before those of the factors; autocast keeps its casts of what is trained in float32.
    casts = 2 * (denoiser_of(pipe).dtype in _HALF) * trained
    placed = 2 * sum(value.nbytes for value in weights.values()) if rank else casts
    texts = calls.texts * (PASSES_OF_A_GRADIENT if any(backward.texts for backward in demand.passes) else 1)
    passes = calls.denoiser + PASSES_OF_A_GRADIENT * calls.gradients
    needs = [need_of(pipe, replace(backward, size=size)) for backward in demand.passes]
    flops = max(need.flops for need in needs) or denoiser_flops(pipe, size)
    return Foretold(
        calls=calls,
        trained=trained or demand.beside,
        weights=len(weights),
        model=sum(parameter.nbytes for _, parameter in parameters_of(pipe)),
        state=4 * demand.copies * trained + 16 * demand.beside + placed,
        latents=4 * demand.latents * _count(latent_shape(pipe, size)),
        needs=needs,
        flops=flops * passes + text_flops(pipe) * texts,
        again=flops * calls.gradients,
    )


def _count(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
