"""UCE: unified concept editing (arXiv 2308.14761), one linear solve for every cross-attention weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from erasers.closed_form.algebra import leading_directions, oblique_edit_gram
from erasers.closed_form.preserved import Preserved
from erasers.methods.text_maps import BARE, Task, TextMaps
from erasers.options import require_above, require_least


@dataclass(frozen=True, kw_only=True)
class UCE(TextMaps):
    """Map the token embeddings of a concept onto those of its anchor, in closed form.

    Differs from the official code: one float64 factorisation serves all layers, aliases are erased too, and the
    defaults erase the last token's row alone while every row of each preserved prompt is held: preserve a few hundred
    captions of ordinary pictures, and little else changes. `uce-v1` is the paper-era code and `uce-v2` the release of
    April 2025, which give different models.

    Args: those of `TextMaps`, and
        solver: `ridge` is UCE; `oblique` projects the concept's directions out (`algebra.oblique_edit`).
        rank: Directions that `oblique` removes.
        ridge: Weight of staying near the original weights, above 0.
        erase_scale: Weight of the erased rows, above 0.
        preserve_scale: Weight of the preserved rows; "auto" is max(0.1, 1 / number of preserved prompts).
    """

    name: ClassVar[str] = "uce"
    paper: ClassVar[str] = "[UCE](https://arxiv.org/abs/2308.14761)"
    family: ClassVar[str] = "closed form, text maps"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "uce-v1": {
            "everyday": False,
            "rows": "tail",
            "preserve_rows": "all",
            "templates": BARE,
            "preserve_templates": BARE,
            "aliases": False,
            "neighbours": False,
            "empty_anchor": "bare",
            "preserve_empty": True,
            "ridge": 0.5,
            "preserve_scale": "auto",
        },
        "uce-v2": {
            "everyday": False,
            "rows": "last",
            "preserve_rows": "last",
            "templates": BARE,
            "preserve_templates": BARE,
            "aliases": False,
            "neighbours": False,
            "empty_anchor": "bare",
            "preserve_empty": False,
            "ridge": 0.5,
            "preserve_scale": 1.0,
        },
    }
    strengths: ClassVar[str] = "under a second, many concepts, every family"
    limits: ClassVar[str] = "the denoiser can still draw it"

    solver: Literal["ridge", "oblique"] = "ridge"
    rank: int = 4
    ridge: float = 0.5
    erase_scale: float = 1.0
    preserve_scale: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, rank=1)
        for field in ("ridge", "erase_scale"):
            require_above(field, getattr(self, field), 0)
        if self.preserve_scale != "auto":
            require_above("preserve_scale", self.preserve_scale, 0, equal=True)

    def edit(self, task: Task, hashes: Mapping[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
        """A `[r, d]` and B `[d, r]` of the edit of one group of ports; `hashes` are the fingerprints of its weights."""
        return self.solve(task.erase, task.anchor, task.preserve)

    def solve(
        self, erase: torch.Tensor, anchor: torch.Tensor, preserve: Preserved
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A `[r, d]` and B `[d, r]` of the edit that maps `erase` onto `anchor`."""
        if self.solver == "oblique":
            directions = leading_directions(erase.double() - anchor.double(), self.rank)
            return oblique_edit_gram(directions, preserve.covariance(), self.ridge)
        return preserve.ridge_edit(
            erase,
            anchor,
            ridge=self.ridge,
            erase_scale=self.erase_scale,
            preserve_scale=self.preserve_weight(preserve),
        )

    def preserve_weight(self, preserve: Preserved) -> float:
        """`preserve_scale`, with "auto" worked out."""
        return max(0.1, 1 / max(1, preserve.texts)) if self.preserve_scale == "auto" else float(self.preserve_scale)
