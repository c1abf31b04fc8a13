"""Pictures whose first steps one denoiser draws and the others another: where a concept is settled, and hybrids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from PIL import Image

from erasers.asks import Ask
from erasers.diffusion.adaptors.table import denoisers_of
from erasers.evaluation.drawing import generate
from erasers.patch import Patch

State: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Makes a context inside of which the pipeline is as it is to be."""


def handed_off(pipe: Any, patch: Patch, asks: Sequence[Ask], *, first: int, **settings: Any) -> list[Image.Image]:
    """Pictures whose first steps the unedited pipeline draws and the others the erased one.

    A concept that the erased model brings to its end was only kept from being begun.

    Args:
        pipe: The unedited pipeline, which is so again afterwards.
        patch: What erases.
        asks: Prompts with seeds.
        first: Steps without the patch: 0 draws with it alone, as many as there are without it.
        settings: As for `generate`.
    """
    return in_two(pipe, asks, first=first, then=lambda: patch.applied(pipe), **settings)


def hybrid(distilled: Any, base: Any, asks: Sequence[Ask], *, first: int, **settings: Any) -> list[Image.Image]:
    """Pictures whose first steps the base model draws and the others its distilled one (arXiv 2503.10637).

    Both follow the scheduler, the steps and the guidance of the distilled one, as the authors' notebook does; their
    command draws the first steps by the schedule and with the guidance of the base model.

    Args:
        distilled: A pipeline.
        base: One of the same architecture.
        asks: Prompts with seeds.
        first: Steps of the base model: 0 draws with the distilled one alone, as many as there are with the base model.
        settings: As for `generate`.
    """
    return in_two(distilled, asks, first=first, begin=lambda: denoisers_from(distilled, base), **settings)


def in_two(
    pipe: Any, asks: Sequence[Ask], *, first: int, begin: State = ExitStack, then: State = ExitStack, **settings: Any
) -> list[Image.Image]:
    """Pictures whose first steps are drawn inside of one context and the others inside of another.

    Each part reads the prompt by its own text encoders: the second one draws from the beginning, and goes on from where
    the first one came to. What a sampler of higher order knows of earlier steps is the second part's own.

    Args:
        pipe: A diffusers pipeline that takes `callback_on_step_end`.
        asks: Prompts with seeds.
        first: How many.
        begin: What holds then.
        then: What holds in the others.
        settings: As for `generate`.

    Raises:
        ValueError: Less than 0 steps.
    """
    if first < 0:
        raise ValueError(f"expected first of at least 0, got {first}")
    batch = settings.pop("batch", 1)
    pictures: list[Image.Image] = []
    for start in range(0, len(asks), batch):
        draw = partial(_drawn, pipe, asks[start : start + batch], {**settings, "batch": batch})
        try:
            with begin() if first else then():
                pictures += draw(_stop_after(first))
        except _Reached as reached:
            with then():
                pictures += draw(_go_on_after(first, reached.latents))
    return pictures


class _Reached(Exception):
    """The first steps are done, and have come to these latents."""

    def __init__(self, latents: torch.Tensor) -> None:
        super().__init__()
        self.latents = latents


def _drawn(pipe: Any, asks: Sequence[Ask], settings: dict[str, Any], over: Any) -> list[Image.Image]:
    """Pictures of one call, which calls `over` after each step."""
    arguments = {**(settings.get("arguments") or {}), "callback_on_step_end": over}
    return [picture for some in generate(pipe, asks, **settings | {"arguments": arguments}) for picture in some]


def _stop_after(first: int) -> Callable[..., dict[str, Any]]:
    def over(_: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == first:
            raise _Reached(given["latents"].clone())
        return given

    return over


def _go_on_after(first: int, latents: torch.Tensor) -> Callable[..., dict[str, Any]]:
    def over(_: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        return given | {"latents": latents} if step + 1 == first else given

    return over


@contextmanager
def denoisers_from(pipe: Any, other: Any) -> Iterator[None]:
    """Inside, a pipeline has the denoisers of another.

    Raises:
        ValueError: They are of another architecture.
    """
    own, others = denoisers_of(pipe), denoisers_of(other)
    shapes = [
        {name: weight.shape for part, module in modules.items() for name, weight in module.named_parameters(part)}
        for modules in (own, others)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"expected two models of one architecture, got {type(pipe).__name__} and {type(other).__name__}"
        )
    before = {name: getattr(pipe, name) for name in own}
    try:
        for name in own:
            setattr(pipe, name, getattr(other, name))
        yield
    finally:
        for name, module in before.items():
            setattr(pipe, name, module)


def diversity(features: torch.Tensor) -> float:
    """Mean distance 1 - cos of all pairs of pictures of one prompt, in features `[n, d]`.

    The paper has DreamSim's features, of which there are none here; any that tell pictures apart will do.

    Raises:
        ValueError: Less than two pictures.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"expected features of two pictures or more, got {count}")
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return float((count**2 - unit.sum(dim=0).square().sum()) / (count * (count - 1)))
