"""Location tokens that are trained, alone or with weights of the denoiser, and the patch that they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from erasers.closed_form.ports import port_hashes
from erasers.concept import Concept
from erasers.models.ports import port_groups
from erasers.models.readers import text_readers
from erasers.patch import Patch
from erasers.patch.build import patch_meta
from erasers.patch.negative_prompt import NegativePrompt
from erasers.training.student import Student

if TYPE_CHECKING:
    from erasers.eraser import Eraser


class LocatingStudent(Student):
    """A student with location tokens beside its weights, whose patch has the negative prompt that they make.

    Args:
        pipe: A pipeline of one UNet.
        names: Parameters that are trained; may be none.
        tokens: The location tokens `[bins, d]`.
        negative: What the hook of the patch needs, by part, of the tokens as they are then.
        rank: As for `Student`.
        generator: As for `Student`.
    """

    def __init__(
        self,
        pipe: Any,
        names: Sequence[str],
        tokens: nn.Parameter,
        negative: Callable[[], Mapping[str, torch.Tensor]],
        *,
        rank: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(pipe, names, rank=rank, generator=generator, beside=[tokens])
        self._negative = negative
        groups = port_groups(pipe, ("text",))
        self._ports = {port.parameter: port.module.weight for group in groups for port in group.ports}
        self._hashes_of_ports = port_hashes(pipe, groups)

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each weight that the student started from, and of those that read the negative prompt."""
        return super().fingerprints() | self._hashes_of_ports

    def patch(self, eraser: Eraser, concepts: Sequence[Concept]) -> Patch:
        """The weights that were trained, and the negative prompt.

        Raises:
            ValueError: No weight of those that are trained has moved, or training has diverged.
        """
        parts = {name: value.detach().to("cpu", torch.float32) for name, value in self._negative().items()}
        if not all(torch.isfinite(value).all() for value in parts.values()):
            raise ValueError("training has diverged: the location tokens are not finite; lower tokens_lr")
        hook = {f"hook/unet/{NegativePrompt.kind}/{name}": value for name, value in parts.items()}
        if self.names:
            weights = super().patch(eraser, concepts)
            return Patch({**weights.tensors, **hook}, weights.meta)
        dtype, readers = next(iter(self._ports.values())).dtype, text_readers(self._pipe)
        more: dict[str, Any] = {"weights": self._ports, "readers": readers}
        return Patch(hook, patch_meta(eraser.name, eraser.config(), concepts, self._hashes_of_ports, dtype, **more))
