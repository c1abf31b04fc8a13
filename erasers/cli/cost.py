"""What a training will need, as `--dry-run` says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from erasers.cli.console import out
from erasers.eraser import Stack

if TYPE_CHECKING:
    from erasers.concept import Concept
    from erasers.eraser import Eraser

_MEASURED = 50_000_000
"""Weights of a denoiser up to which a dry run measures how long a call takes."""


def show_cost(eraser: Eraser, pipe: Any, concepts: Sequence[Concept], device: str, memory: int | None = None) -> None:
    """Print what a training will need, by counting: calls, what is trained, memory, work, and the time of all that.

    Args:
        eraser: The method.
        pipe: The pipeline; without weights, no call is timed.
        concepts: What would be erased.
        device: Where it would be trained.
        memory: Bytes that there are; what the device has where None.
    """
    if isinstance(eraser, Stack):
        for member in eraser.members:
            show_cost(member, pipe, concepts, device, memory)
        return
    if not eraser.trains:
        out.print(f"{eraser.name} trains nothing")
        return
    from erasers.diffusion.adaptors.table import denoiser_of
    from erasers.diffusion.memory import free_memory, gigabytes
    from erasers.training.foretelling import PASSES_OF_A_GRADIENT, REFERENCE
    from erasers.training.loop import TrainedEraser, seconds_a_pass

    if not isinstance(eraser, TrainedEraser):
        raise ValueError(f"expected {eraser.name} to foretell its cost, got a method that cannot")
    need = eraser.foretell(pipe, list(concepts))
    room = free_memory(pipe, device) if memory is None else memory
    split = need.split(room, checkpointing=eraser.gradient_checkpointing)
    out.print(f"{eraser.name}  {need.calls}")
    out.print(f"trains    {need.trained:,} numbers of {need.weights} weights")
    whole = need.memory(split.together, split.checkpointing)
    shares = {"model": need.model, "training": need.state, "latents": need.latents}
    shares["activations"] = whole - sum(shares.values())
    again = ", computed again in the backward pass" if split.checkpointing else ""
    out.print(
        f"memory    {gigabytes(whole)}: {', '.join(f'{name} {gigabytes(size)}' for name, size in shares.items())} with "
        f"{split.together} of {need.largest} latents at once{again}; one at once takes {gigabytes(need.memory(1))} in "
        f"all, {gigabytes(need.memory(1, True))} with gradient checkpointing"
    )
    hours = need.hours(split.checkpointing)
    out.print(f"work      {need.flops:.3g} floating-point operations; {hours:.2g} hours of {REFERENCE}")
    denoiser = denoiser_of(pipe)
    if denoiser.device.type == "meta" or sum(parameter.numel() for parameter in denoiser.parameters()) > _MEASURED:
        return
    seconds = seconds_a_pass(pipe)
    total = seconds * (need.calls.denoiser + PASSES_OF_A_GRADIENT * need.calls.gradients)
    out.print(f"estimate  {total / 60:.1f} minutes, {seconds * 1000:.3g} ms a denoiser call (measured, one at a time)")
