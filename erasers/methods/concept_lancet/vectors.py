"""The vectors of a prompt that are decomposed, and where a denoiser reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from erasers.models.components import component
from erasers.models.ports import Group, find_family
from erasers.patch.targets import text_weights
from erasers.text.states import Encoded, Rows

Vectors = Literal["token", "prompt"]


@dataclass(frozen=True)
class Text:
    """Text that ports of one group read.

    Args:
        group: The ports.
        targets: Where hooks find it: the denoiser, what lies before the ports, or each of these.
        early: It is found before what the states pass on their way to the ports.
        whole: All states of a prompt are one vector.
    """

    group: Group
    targets: tuple[str, ...]
    early: bool
    whole: bool

    def vectors(self, encoded: Encoded, rows: Rows = "all") -> torch.Tensor:
        """`[n, v]` of one prompt, in float64."""
        if self.group.kind == "pooled":
            states = torch.as_tensor(encoded.pooled)[None]
        else:
            states = encoded.rows("all" if self.whole else rows)
        read = states if self.early else self.group.read(states)
        return (read.flatten()[None] if self.whole else read).double()

    def padding(self, width: int) -> torch.Tensor:
        """What stands in the place of missing tokens whatever the prompt, `[n, v]`; none where vectors are prompts."""
        if self.whole or self.group.kind != "text":
            return torch.zeros(0, width, dtype=torch.float64)
        rows = torch.zeros(1, width) if self.early or self.group.padding is None else self.group.padding
        return rows.double().reshape(-1, width)


def texts_of(pipe: Any, groups: Sequence[Group], vectors: Vectors) -> list[Text]:
    """The texts that these groups of ports read."""
    family = find_family(pipe)[0]
    mixed = any(source.through for source in family.sources)
    texts = []
    for group in groups:
        names = [port.name for port in group.ports]
        root = names[0].partition(".")[0]
        if {port.parameter for port in group.ports} == text_weights(pipe, root):
            targets, early = [root], True
        elif group.kind != "joint" and group.through and not mixed:
            paths = {module: path for path, module in component(pipe, root).named_modules()}
            targets, early = [f"{root}.{paths[group.through[0]]}"], True
        else:
            targets, early = names, False
        texts.append(Text(group, tuple(targets), early, vectors == "prompt" and group.kind != "pooled"))
    return texts
