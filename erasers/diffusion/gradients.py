"""Gradients: which weights ask for them, and how half precision takes them.

float16 has no room for small ones, so that the loss is scaled before they are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from erasers.diffusion.adaptors.table import denoiser_of
from erasers.diffusion.batches import Summands
from erasers.models.components import parameters_of

_START = 2.0**16
_GROWS_AFTER = 500
_MOST_IN_A_ROW = 40


class LossScale:
    """The scale of a loss, which finds its size: halved where a gradient overflows, doubled after 500 that do not.

    With a pipeline that has no float16 it does nothing at all: bfloat16 has the exponents of float32.

    Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, arXiv 1710.03740, section 3.2.

    Args:
        pipe: The pipeline whose gradients are taken.
    """

    def __init__(self, pipe: Any) -> None:
        self.on = half_of(pipe) == torch.float16
        # In one tensor, so that a checkpoint has it: the scale, gradients since it changed, overflows, those in a row.
        self.state = torch.tensor([_START, 0.0, 0.0, 0.0], dtype=torch.float64)

    @property
    def value(self) -> float:
        """What the loss is multiplied by."""
        return float(self.state[0]) if self.on else 1.0

    @property
    def skipped(self) -> int:
        """How many gradients overflowed so far."""
        return int(self.state[2])

    def slopes(
        self, loss: torch.Tensor | Summands, inputs: Sequence[torch.Tensor], *, agree: Callable[[bool], bool] = bool
    ) -> list[torch.Tensor] | None:
        """The gradient of the loss, not scaled, for each input; zeros where the loss does not depend on it.

        Args:
            loss: Not scaled; its summands may have parts of their graphs in common.
            inputs: What it is derived by.
            agree: (whether it overflowed here) -> whether it did in any process.

        Returns:
            None where one is not finite: the step is to be left out.

        Raises:
            ValueError: Whatever the scale, gradients are not finite.
        """
        whole = self._whole(loss, list(inputs))
        if not self.on:
            return whole
        bad = agree(not all(bool(torch.isfinite(slope).all()) for slope in whole))
        whole = [slope / self.value for slope in whole]
        self._follow(bad)
        return None if bad else whole

    def set(
        self, loss: torch.Tensor | Summands, parameters: Sequence[nn.Parameter], *, agree: Callable[[bool], bool] = bool
    ) -> bool:
        """Put the gradients into the parameters, or none where they overflowed, so that an optimizer moves nothing.

        Returns:
            Whether there are gradients.
        """
        slopes = self.slopes(loss, parameters, agree=agree)
        for number, parameter in enumerate(parameters):
            parameter.grad = None if slopes is None else slopes[number]
        return slopes is not None

    def _whole(self, loss: torch.Tensor | Summands, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """The scaled gradient for each input."""
        if isinstance(loss, torch.Tensor):
            return self._derived(loss, inputs)
        whole: list[torch.Tensor] = []
        for number in range(len(loss)):
            slopes = self._derived(loss.make(number), inputs, keep=number + 1 < len(loss))
            whole = [total + slope for total, slope in zip(whole, slopes, strict=True)] if whole else slopes
        return whole

    def _derived(self, loss: torch.Tensor, inputs: list[torch.Tensor], *, keep: bool = False) -> list[torch.Tensor]:
        """The scaled gradient of one loss; with `keep` parts of its graph are derived again."""
        scaled = loss * self.value if self.on else loss
        slopes = torch.autograd.grad(scaled, inputs, allow_unused=True, retain_graph=keep)
        pairs = zip(inputs, slopes, strict=True)
        return [torch.zeros_like(value) if slope is None else slope for value, slope in pairs]

    def _follow(self, bad: bool) -> None:
        scale, since, skipped, row = self.state.tolist()
        if bad and row + 1 >= _MOST_IN_A_ROW:
            raise ValueError(
                f"expected finite gradients in float16, got none in {_MOST_IN_A_ROW} tries down to a loss scale of "
                f"{scale:g}; take bfloat16 or float32"
            )
        if bad:
            values = [scale / 2, 0.0, skipped + 1, row + 1]
        else:
            grows = since + 1 >= _GROWS_AFTER
            values = [scale * 2 if grows else scale, 0.0 if grows else since + 1, skipped, 0.0]
        self.state.copy_(torch.tensor(values, dtype=torch.float64))


def half_of(pipe: Any) -> torch.dtype | None:
    """The half precision that a module of a pipeline has, float16 first; None where all are whole."""
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    kinds = {module.dtype for module in modules if hasattr(module, "dtype")}
    return next((kind for kind in (torch.float16, torch.bfloat16) if kind in kinds), None)


def mixed(pipe: Any, network: Any = None) -> AbstractContextManager[Any]:
    """Mixed precision where the pipeline has half precision; what is trained stays in float32.

    Weights are cast anew in every pass: a cache of casts that outlives a step of an optimizer hides that step.

    Args:
        pipe: The pipeline.
        network: What is trained or differentiated through; the denoiser when None.
    """
    kind = half_of(pipe)
    if kind is None:
        return nullcontext()
    device = (denoiser_of(pipe) if network is None else network).device
    return torch.autocast(device.type, dtype=kind, cache_enabled=False)


def unmixed(like: torch.Tensor) -> AbstractContextManager[Any]:
    """Inside, products on the device of a tensor have the precision of their factors."""
    return torch.autocast(like.device.type, enabled=False)


@contextmanager
def frozen(pipe: Any) -> Iterator[None]:
    """Inside, no parameter of the pipeline asks for a gradient; afterwards those do that did."""
    trained = [parameter for _, parameter in parameters_of(pipe) if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
