"""Rows that sparse autoencoders learn from: of a text encoder, or of a denoiser on its way to pictures."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from erasers.diffusion.latent_bank import Way
from erasers.sae.denoiser_block import DenoiserBlock
from erasers.sae.text_blocks import Block

_FOR_THE_MEDIAN = 500
_HELD_OUT = 20
"""One prompt of so many is not trained on, but measured."""
_MEASURED_DRAWINGS = 4
_PLACES = 256
"""At most so many of a picture and step, which is all that the published block has."""


@dataclass
class Rows(ABC):
    """Where rows `[N, d]` come from; a step has the same rows whenever it is asked for.

    Args:
        block: What makes them.
        prompts: Distinct prompts.
        size: Prompts a batch.
        seed: Of their order.

    Raises:
        ValueError: Fewer than two prompts.
    """

    block: Any
    prompts: Sequence[str]
    size: int
    seed: int

    def __post_init__(self) -> None:
        self._kept, self._held = split(self.prompts)

    @property
    def target(self) -> str:
        """The module that makes them, `<component>.<module path>`."""
        return str(self.block.target)

    @property
    def device(self) -> torch.device:
        """Where the model is; rows themselves are on the CPU."""
        device: torch.device = next(self.block.module.parameters()).device
        return device

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of weights that make them, by parameter name."""
        hashes: dict[str, str] = self.block.fingerprints()
        return hashes

    def identity(self) -> list[Any]:
        """JSON-able: all that they depend on beside these weights."""
        return [list(self.prompts), self.size, self.seed]

    def about(self) -> dict[str, Any]:
        """JSON-able: what an autoencoder says of them beside the settings of its training."""
        return {}

    @abstractmethod
    def first(self) -> torch.Tensor:
        """Rows from which a training starts."""

    @abstractmethod
    def step(self, number: int) -> torch.Tensor:
        """Rows of a step."""

    @abstractmethod
    def held(self) -> Iterator[torch.Tensor]:
        """Rows of prompts that are in no step."""


@dataclass
class TextRows(Rows):
    """Tokens of prompts behind a block of a text encoder, without a first one that is the same in every prompt.

    Args:
        padding: With those behind the end of a prompt, which are most of all and say no more than the end does.
    """

    block: Block
    padding: bool = False

    def identity(self) -> list[Any]:
        """See `Rows`."""
        return [*super().identity(), self.padding]

    def about(self) -> dict[str, Any]:
        """See `Rows`."""
        return {} if self.padding else {"padding": False}

    def first(self) -> torch.Tensor:
        """See `Rows`."""
        prompts = self._kept[:_FOR_THE_MEDIAN]
        return self._wanted(self.block.outputs(prompts), prompts)

    def step(self, number: int) -> torch.Tensor:
        """See `Rows`."""
        prompts = turn(self._kept, number, self.size, self.seed)
        return self._wanted(self.block.outputs(prompts), prompts)

    def held(self) -> Iterator[torch.Tensor]:
        """See `Rows`."""
        for start in range(0, len(self._held), self.size):
            prompts = self._held[start : start + self.size]
            yield self._wanted(self.block.outputs(prompts), prompts)

    def _wanted(self, outputs: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Rows `[N, d]` of outputs `[prompts, T, d]`."""
        rows = self.block.counted(outputs)
        return rows.flatten(0, 1) if self.padding else rows[self.block.counted(self.block.tokens(prompts)[1]).bool()]


@dataclass
class DenoiserRows(Rows):
    """Places of what a block of a denoiser returns, with a prompt and without, at all steps of drawings.

    A drawing of `size` pictures lasts for as many steps of training as it has of sampling, its rows shuffled over all
    of them; the seed is that of its noise, too.

    Args:
        way: How pictures are drawn.
    """

    block: DenoiserBlock
    way: Way
    _last: tuple[int, torch.Tensor] | None = field(default=None, init=False, repr=False)

    def identity(self) -> list[Any]:
        """See `Rows`."""
        return [*super().identity(), asdict(self.way)]

    def first(self) -> torch.Tensor:
        """See `Rows`."""
        return self.step(0)

    def step(self, number: int) -> torch.Tensor:
        """See `Rows`."""
        drawing, chunk = divmod(number, self.way.steps)
        if self._last is None or self._last[0] != drawing:
            generator = torch.Generator().manual_seed(self.seed + drawing)
            rows = self._rows(turn(self._kept, drawing, self.size, self.seed), generator)
            self._last = drawing, rows[torch.randperm(len(rows), generator=generator)]
        return self._last[1].chunk(self.way.steps)[chunk]

    def held(self) -> Iterator[torch.Tensor]:
        """See `Rows`; of a few drawings."""
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, min(len(self._held), _MEASURED_DRAWINGS * self.size), self.size):
            yield self._rows(self._held[start : start + self.size], generator)

    def _rows(self, prompts: Sequence[str], generator: torch.Generator) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def see(_: int, __: float, rows: torch.Tensor) -> None:
            chosen = slice(None) if rows.shape[1] <= _PLACES else torch.randperm(rows.shape[1], generator=generator)
            seen.append(rows[:, chosen][:, :_PLACES].flatten(0, 1))

        self.block.walk(prompts, self.way, generator, see)
        return torch.cat(seen)


def split(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The distinct prompts that are trained on, and those that are measured.

    Raises:
        ValueError: Fewer than two.
    """
    distinct = list(dict.fromkeys(prompts))
    if len(distinct) < 2:
        raise ValueError(f"expected at least two prompts to train on and to measure, got {len(distinct)}")
    held = distinct[::_HELD_OUT]
    measured = set(held)
    return [prompt for prompt in distinct if prompt not in measured], held


def turn(prompts: Sequence[str], number: int, size: int, seed: int) -> list[str]:
    """The prompts of a batch, by its number; a new shuffle whenever all were seen."""
    batch = []
    for position in range(number * size, (number + 1) * size):
        round_, index = divmod(position, len(prompts))
        batch.append(prompts[_shuffled(len(prompts), seed, round_)[index]])
    return batch


_SHUFFLES: dict[tuple[int, int, int], list[int]] = {}


def _shuffled(count: int, seed: int, round_: int) -> list[int]:
    key = (count, seed, round_)
    if key not in _SHUFFLES:
        _SHUFFLES.clear()
        _SHUFFLES[key] = random.Random(f"{seed}/{round_}").sample(range(count), count)
    return _SHUFFLES[key]
