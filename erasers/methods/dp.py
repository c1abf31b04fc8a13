"""Double Projections (CVPR 2026): a concept goes to its anchor, along what no preserved state has."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from erasers.closed_form.algebra import compose, double_projection, free_share, norm_of
from erasers.closed_form.pairs import stack_pairs
from erasers.closed_form.preserved import Preserved
from erasers.concept import Concept
from erasers.methods.text_maps import Task, TextMaps
from erasers.options import Auto, require_least
from erasers.text.prompts import Prompt
from erasers.text.states import Rows

# A concept with less of its length than this outside of what is held has no way out of it.
_LEAST_FREE = 1e-3
_CANDIDATES = 32


@dataclass(frozen=True, kw_only=True)
class DP(TextMaps):
    """Map the token embeddings of a concept onto those of its anchor, and move what is preserved not at all.

    Rows are projected twice: onto the span of safe states, which says where they go, and out of the span of preserved
    ones, which says along what (`algebra.double_projection`). One d x d matrix of rank n serves all layers. It is exact
    while preserved rows are fewer than d (768 in Stable Diffusion 1, 2048 in SDXL, 4096 in Stable Diffusion 3 and
    FLUX.1), so each preserved prompt gives one row, its last token. Otherwise the k leading directions of what is
    preserved are held, and a warning says how far the rest can move: by ||M|| sigma_(k+1).

    *Corrected*, and from a description of the paper, since there is no public code. All rows are solved for at once:
    the paper's formula is for one, and applied to one after another it leaves a rest of all but the last. Concepts go
    to their anchors; `target=projection` is the paper's proxy.

    Args: those of `TextMaps`, and
        keep: k, directions of what is preserved that are held; "auto" holds all where the concept then has a way out,
            else as many as give the smallest bound.
        target: Where rows go: to their `anchor`, or to their `projection` onto the span of anchor and neighbours.
        joint: Solve for all rows at once; False takes one after another.
    """

    name: ClassVar[str] = "dp"
    paper: ClassVar[str] = "Double Projections (CVPR 2026), from its description"
    family: ClassVar[str] = "closed form, text maps"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dp-official": {
            "everyday": False,
            "aliases": False,
            "preserve_empty": False,
            "target": "projection",
            "joint": False,
        },
    }
    strengths: ClassVar[str] = "what is preserved does not move at all while it is few"
    limits: ClassVar[str] = "as UCE; exact for fewer preserved prompts than the text is wide"
    most_kept: ClassVar[float] = 1.0

    preserve_rows: Rows = "last"
    keep: int | Auto = "auto"
    target: Literal["anchor", "projection"] = "anchor"
    joint: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, keep=0)

    def edit(self, task: Task, hashes: Mapping[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TextMaps.edit`.

        Raises:
            ValueError: Rows of a concept lie within what is held.
        """
        erase, anchor = self.proxies(task) if self.target == "projection" else (task.erase, task.anchor)
        values, directions = task.preserve.spectrum()
        count = self.count(erase, anchor, values, directions)
        held = directions[:, :count]
        if free_share(erase, held) < _LEAST_FREE:
            raise ValueError(
                "expected concepts that are not among what is preserved, got one whose states are within the "
                f"{count} directions that are held; preserve less, or take a smaller keep"
            )
        if count < len(values):
            _warn_of_rest(task.preserve, values, count, double_projection(erase, anchor, held))
        return solved(erase, anchor, held, joint=self.joint)

    def count(self, erase: torch.Tensor, anchor: torch.Tensor, values: torch.Tensor, directions: torch.Tensor) -> int:
        """k: directions that are held, of all that preserved rows have `[d, r]` with their singular values `[r]`."""
        if self.keep != "auto":
            return min(self.keep, len(values))
        if free_share(erase, directions) >= _LEAST_FREE:
            return len(values)
        bounds: dict[int, float] = {}
        for count in torch.linspace(0, len(values) - 1, min(len(values), _CANDIDATES)).int().tolist():
            if free_share(erase, directions[:, :count]) >= _LEAST_FREE:
                edit = double_projection(erase, anchor, directions[:, :count])
                bounds[count] = float(values[count]) * norm_of(*edit)
        return min(bounds, key=lambda count: bounds[count])

    def pairs_to_encode(self, concepts: Sequence[Concept]) -> list[tuple[Prompt, Prompt]]:
        """Pairs of concept and anchor, and what else is safe."""
        pairs = super().pairs_to_encode(concepts)
        return pairs + (self.neighbour_pairs(concepts) if self.target == "projection" else [])

    def proxies(self, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
        """C `[n, d]` and C*, its projection onto the span of the states of anchor and neighbours, by concept."""
        erased, targets = [], []
        for concept in task.concepts:
            pairs = self.prompt_pairs([concept], self.templates)
            rows, safe = stack_pairs(task.group, task.encoded, pairs, self.rows)
            if near := self.neighbour_pairs([concept]):
                safe = torch.cat([safe, stack_pairs(task.group, task.encoded, near, self.rows)[0]])
            erased.append(rows.double())
            targets.append(projection(rows, safe))
        return torch.cat(erased), torch.cat(targets)


def projection(rows: torch.Tensor, safe: torch.Tensor) -> torch.Tensor:
    """S (S'S)^+ S' c of rows c `[n, d]` onto the span of safe rows `[k, d]`; in float64."""
    safe = safe.double()
    projected: torch.Tensor = rows.double() @ torch.linalg.pinv(safe, rtol=1e-10) @ safe
    return projected


def solved(
    erase: torch.Tensor, anchor: torch.Tensor, held: torch.Tensor, *, joint: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of the edit for all rows at once, or by the formula for one row, in turn on weights already edited."""
    if joint:
        return double_projection(erase, anchor, held)
    a, b = double_projection(erase[:1], anchor[:1], held)
    for row in range(1, len(erase)):
        a, b = compose((a, b), double_projection(erase[row : row + 1], anchor[row : row + 1], held))
    return a, b


def _warn_of_rest(
    preserve: Preserved, values: torch.Tensor, count: int, edit: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Say how far preserved rows move of which the `count` leading directions are held."""
    a, b = edit
    covariance = preserve.covariance()
    length, moved = float(covariance.trace().sqrt()), float((b @ (a @ covariance @ a.T) @ b.T).trace().sqrt())
    bound = float(values[count]) * norm_of(a, b)
    warnings.warn(
        f"preserved states have {len(values)} of {a.shape[1]} directions, and {count} of them are held: they move by "
        f"{moved / length:.1%} of their length, none by more than {bound:.2g}, where they are {length:.2g} long; "
        "preserve fewer texts, and they stay",
        stacklevel=6,
    )
