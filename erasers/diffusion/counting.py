"""What goes through the networks of a pipeline, counted or foretold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from erasers.diffusion.adaptors.table import denoisers_of, encoders_of
from erasers.models.families import UnsupportedPipeline


@dataclass(frozen=True)
class Calls:
    """Inputs that went through networks: a batch of eight counts as eight.

    Args:
        denoiser: Through the denoiser without gradients.
        gradients: Through the denoiser with gradients.
        texts: Through a text encoder.
    """

    denoiser: int = 0
    gradients: int = 0
    texts: int = 0

    def __str__(self) -> str:
        return f"{self.denoiser:,} denoiser calls, {self.gradients:,} with gradients, {self.texts:,} texts encoded"

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.denoiser + other.denoiser, self.gradients + other.gradients, self.texts + other.texts)

    def __sub__(self, other: Calls) -> Calls:
        return self + other * -1

    def __mul__(self, count: int) -> Calls:
        return Calls(self.denoiser * count, self.gradients * count, self.texts * count)


class Counter(AbstractContextManager["Counter"]):
    """Counts what goes through the denoisers and the text encoders of a pipeline inside its context.

    A text that several encoders read is one: those of the encoder that read most count. Of a family without an adaptor,
    which nothing here calls, it counts nothing.
    """

    def __init__(self, pipe: Any) -> None:
        self._calls, self._texts = Calls(), dict[str, int]()
        self._pipe, self._off, self._handles = pipe, False, ExitStack()

    @property
    def calls(self) -> Calls:
        """All that went through so far."""
        return replace(self._calls, texts=max(self._texts.values(), default=0))

    def __enter__(self) -> Counter:
        try:
            networks, encoders = denoisers_of(self._pipe), encoders_of(self._pipe)
        except UnsupportedPipeline:
            return self
        counts: list[tuple[Any, Any]] = [(module, self._denoised) for module in networks.values()]
        counts += [(module, partial(self._encoded, name)) for name, module in encoders.items()]
        for module, count in counts:
            self._handles.callback(module.register_forward_hook(count, with_kwargs=True).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._handles.close()

    def __deepcopy__(self, memo: object) -> Counter:
        return self  # a copy of the pipeline's modules counts here, too

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing counts."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def _denoised(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        samples = output[0] if isinstance(output, tuple) else output.sample
        # A tensor, or as many as there are samples.
        more = Calls(gradients=len(samples)) if samples[0].requires_grad else Calls(denoiser=len(samples))
        self._calls += more * (not self._off)

    def _encoded(self, name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        rows = len(args[0] if args else kwargs["input_ids"])
        self._texts[name] = self._texts.get(name, 0) + rows * (not self._off)
