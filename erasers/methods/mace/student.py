"""One addition of rank 1 for each concept on the refined weights, trained one at a time and shipped as one edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from erasers.closed_form.layers import layer_patch, weight_of
from erasers.closed_form.ports import port_hashes
from erasers.concept import Concept
from erasers.diffusion.draws import gaussian
from erasers.diffusion.gradients import unmixed
from erasers.methods.mace.fusion import brought_back, fuse
from erasers.models.ports import Group
from erasers.models.readers import text_readers
from erasers.patch import Patch
from erasers.training.student import Student

if TYPE_CHECKING:
    from erasers.eraser import Eraser


@dataclass(frozen=True)
class Stage1:
    """What stage 1 made, and what fusion needs of it.

    Args:
        group: Keys and values.
        a: A `[r, d]`; refined weights are W (I + B A).
        b: B `[d, r]`.
        rows: E_i `[m, d]` of each concept, divided by the square root of the number of all.
        held: H `[d, d]`, of what is preserved.
        ridge: See `fuse`.
        original: Whether fusion holds to the weights of the pipeline, not to the refined ones.
    """

    group: Group
    a: torch.Tensor
    b: torch.Tensor
    rows: Sequence[torch.Tensor]
    held: torch.Tensor
    ridge: float
    original: bool


class Additions(Student):
    """The additions B_i A_i of all concepts, of which one is placed at a time, on the weights of stage 1.

    Args:
        pipe: A diffusers pipeline.
        stage: Of its keys and values.
        generator: Draws A_i; B_i is zero.
    """

    def __init__(self, pipe: Any, stage: Stage1, *, generator: torch.Generator) -> None:
        ports = stage.group.ports
        super().__init__(pipe, [port.parameter for port in ports], rank=1, generator=generator)
        self._stage, self._number, self._refined = stage, 0, {}
        for port in ports:
            down, up = self._trained[port.parameter][0], self._trained[port.parameter][-1]
            weight, count = weight_of(port, port.module.in_features), len(stage.rows)
            self._refined[port.parameter] = (weight + (weight @ stage.b) @ stage.a).to(up)
            drawn = gaussian(down.new_empty(count, down.shape[1]), generator) / down.shape[1] ** 0.5
            self._trained[port.parameter] = (nn.Parameter(drawn), nn.Parameter(up.new_zeros(len(up), count)))

    def place(self, number: int) -> None:
        """Inside of `placed`: the pipeline computes with the addition of this concept."""
        self._number = number
        for name, (module, leaf) in self._slots.items():
            module._parameters[leaf] = self._weight(name, 1.0)  # type: ignore[assignment]

    def patch(self, eraser: Eraser, concepts: Sequence[Concept]) -> Patch:
        """Stage 1 and the fused additions as one low-rank edit for each layer.

        Raises:
            ValueError: Training has diverged.
        """
        stage, ports = self._stage, self._stage.group.ports
        pairs = [[part.detach().to("cpu", torch.float64) for part in self._trained[port.parameter]] for port in ports]
        for port, pair in zip(ports, pairs, strict=True):
            if not all(torch.isfinite(part).all() for part in pair):
                raise ValueError(f"training has diverged: {port.name} is not finite; lower lr")
        fused = fuse(stage.rows, torch.stack([down for down, _ in pairs], dim=1), stage.held, stage.ridge)
        a = brought_back(stage.a, stage.rows, stage.held, stage.ridge) if stage.original else stage.a
        edits = []
        for number, (port, (_, up)) in enumerate(zip(ports, pairs, strict=True)):
            b = weight_of(port, port.module.in_features) @ stage.b
            edits.append((port, torch.cat([a, fused[:, number]]), torch.cat([b, up], dim=1)))
        hashes, readers = port_hashes(self._pipe, [stage.group]), text_readers(self._pipe)
        return layer_patch(eraser.name, eraser.config(), concepts, edits, hashes, readers)

    def _weight(self, name: str, strength: float) -> torch.Tensor:
        down, up = self._trained[name][0], self._trained[name][-1]
        own = slice(self._number, self._number + 1)
        with unmixed(up):
            whole = torch.addmm(self._refined[name], up[:, own], down[own], alpha=strength)
        return whole.to(self._base(name).dtype)
