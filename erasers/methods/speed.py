"""SPEED: scalable, precise and efficient concept erasure (ICLR 2026, arXiv 2503.07392): edits in a null space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from erasers.closed_form.algebra import gram
from erasers.closed_form.layers import layer_patch, value_ports, weight_of
from erasers.closed_form.ports import port_hashes
from erasers.concept import Concept
from erasers.methods.text_maps import Task, TextMaps
from erasers.models.ports import Group, Port
from erasers.models.readers import text_readers
from erasers.options import Auto, known, require_above, require_least
from erasers.patch import Patch
from erasers.text.encoding import Reader
from erasers.text.prompts import whole
from erasers.text.states import Rows

# What the published threshold of 0.1 is for the states of Stable Diffusion 1, which are 28 long.
_FREE_SHARE = 1.3e-4
_ROUNDS = 100


@dataclass(frozen=True, kw_only=True)
class SPEED(TextMaps):
    """Move the values of a concept onto those of its anchor in the null space of what is retained, layer by layer.

    With C the rows of concepts and C* those of anchors (means over rows), P the projection onto directions in which
    retained rows have hardly anything, and K the rows of the empty prompt,

        dW = W (C* - C)' C P (I - M K' (K P M K' + lambda I)^-1 K P) M,    M = (C'C P + s I)^-1

    which has rank n, so that the patch is exact. Retained rows are chosen for each layer: those that an edit without
    them would move more than the mean (IPF), each with copies moved along the right singular vector that the layer
    reads least (DPA), and of these again those that would move more than the mean.

    *Corrected*: the k-means of the rows of the empty prompt starts from the farthest rows, on any device; aliases are
    erased; retained texts are those that do not name a concept; a direction is free by its share of the length of
    retained rows, not by a number for CLIP. `speed-official` has the published settings for one concept.

    Args: those of `TextMaps`, and
        threshold: Eigenvalues of the mean of r r' of retained rows r below this are free; "auto" is the share of their
            mean squared length that 0.1 is in Stable Diffusion 1.
        retain_scale: s, above 0.
        invariance: lambda; 0 holds the empty prompt exactly.
        filtered: Choose retained rows by what the edit would move (IPF).
        augmented: Copies of each chosen row (DPA).
        layers: The values alone, or keys and values.
    """

    name: ClassVar[str] = "speed"
    paper: ClassVar[str] = "[SPEED](https://arxiv.org/abs/2503.07392)"
    family: ClassVar[str] = "closed form, text values"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "speed-official": {"everyday": False, "aliases": False, "preserve_empty": False, "threshold": 0.1},
    }
    strengths: ClassVar[str] = "many concepts; what is retained and the empty prompt hardly move"
    limits: ClassVar[str] = "as UCE; keys still say the concept"
    most_kept: ClassVar[float] = 1e5

    preserve_rows: Rows = "last"
    threshold: float | Auto = "auto"
    retain_scale: float = 1.0
    invariance: float = 0.0
    filtered: bool = True
    augmented: int = 10
    layers: Literal["v", "kv"] = "v"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, threshold=0, invariance=0, augmented=0)
        require_above("retain_scale", self.retain_scale, 0)

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """One edit for each layer; DPA draws from the generator."""
        groups = self.groups(pipe)
        if self.layers == "v":
            groups = [replace(group, ports=tuple(ports)) for group, ports in value_ports(groups)]
        hashes = port_hashes(pipe, groups)
        edits = []
        for task in self.gather(pipe, concepts, groups):
            fixed = self.empty_rows(pipe, task.group)
            edits += [(port, *self.edit_of(task, port, fixed, generator)) for port in task.group.ports]
        return layer_patch(self.name, self.config(), concepts, edits, hashes, text_readers(pipe))

    def empty_rows(self, pipe: Any, group: Group) -> torch.Tensor:
        """K: the first row of the empty prompt and three centres of the others; its vector alone for pooled ports."""
        pooled = group.kind == "pooled"
        reader = Reader(pipe, "all", pooled, self.max_sequence_length, self.clip_skip)
        (encoded,) = reader.encode([whole("")]).values()
        if pooled:
            return group.read(torch.as_tensor(encoded.pooled)[None]).double()
        rows = group.read(encoded.rows("all")).double()
        return torch.cat([rows[:1], centres(rows[1:], 3)])

    def edit_of(
        self, task: Task, port: Port, fixed: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A `[n, d]` and B `[out, n]` of the edit of one port."""
        erase, anchor = (rows.double() / len(rows) ** 0.5 for rows in (task.erase, task.anchor))
        weight = weight_of(port, erase.shape[1])
        b = weight @ (anchor - erase).T
        retained = torch.as_tensor(task.preserve.few).double()
        if self.filtered:
            retained = most_moved(erase, b, retained)
        span = retained
        if self.augmented and len(retained):
            direction = least_read(weight)
            span = torch.cat([retained, direction[None]])
            retained = beside(retained, direction, self.augmented, generator)
            retained = most_moved(erase, b, retained) if self.filtered else retained
        held = held_directions(retained, span, self.threshold)
        return null_space_edit(erase, held, fixed, self.retain_scale, self.invariance), b


def null_space_edit(
    erase: torch.Tensor, held: torch.Tensor, fixed: torch.Tensor, retain_scale: float, invariance: float
) -> torch.Tensor:
    """A `[n, d]` = C P (I - M K' (K P M K' + lambda I)^-1 K P) M with M = (C'C P + s I)^-1, by matrices of size n.

    Args:
        erase: C `[n, d]`.
        held: Orthonormal columns `[d, k]`, P = I - V V'.
        fixed: K `[q, d]`.
        retain_scale: s.
        invariance: lambda; with 0 what is fixed does not move.
    """
    free = erase - (erase @ held) @ held.T
    small = retain_scale * torch.eye(len(erase), dtype=erase.dtype) + free @ erase.T

    def times_m(rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = (rows - (rows @ erase.T) @ torch.linalg.solve(small, free)) / retain_scale
        return product

    open_fixed = fixed - (fixed @ held) @ held.T
    inner = times_m(open_fixed) @ fixed.T + invariance * torch.eye(len(fixed), dtype=erase.dtype)
    shift = times_m(free) @ fixed.T @ torch.linalg.pinv(inner, rtol=1e-12)
    result: torch.Tensor = times_m(free - shift @ open_fixed)
    return result


def held_directions(retained: torch.Tensor, span: torch.Tensor, threshold: float | Auto) -> torch.Tensor:
    """The directions `[d, k]` in which the mean of r r' of retained rows has at least the threshold.

    Args:
        retained: r `[m, d]`.
        span: Rows `[l, d]` of which all of them are combinations, to be few where they are many.
        threshold: Of eigenvalues.
    """
    if not len(retained):
        return retained.new_zeros(retained.shape[1], 0)
    squares = float(retained.square().sum()) / len(retained)
    least = _FREE_SHARE * squares if threshold == "auto" else known(threshold)
    basis = torch.linalg.qr(span.T).Q
    values, vectors = torch.linalg.eigh(gram(retained @ basis) / len(retained))
    held: torch.Tensor = basis @ vectors[:, values >= max(least, 1e-13 * squares)]
    return held


def most_moved(erase: torch.Tensor, b: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows that the edit without retained ones, W (C* - C)' C (I + C'C)^-1, moves more than the mean (IPF)."""
    if not len(rows):
        return rows
    plain = torch.linalg.solve(torch.eye(len(erase), dtype=erase.dtype) + erase @ erase.T, erase)
    moved = (b @ (plain @ rows.T)).norm(dim=0)
    return rows[moved > moved.mean()] if bool((moved > moved.mean()).any()) else rows


def least_read(weight: torch.Tensor) -> torch.Tensor:
    """The right singular vector `[d]` of a weight `[out, d]` with the smallest singular value."""
    out, width = weight.shape
    if out >= width:
        vector: torch.Tensor = torch.linalg.eigh(weight.T @ weight)[1][:, 0]
        return vector
    # Any vector that the weight does not read at all.
    span = torch.linalg.qr(weight.T).Q
    start = torch.randn(width, 1, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)
    for _ in range(2):
        start = start - span @ (span.T @ start)
    return torch.nn.functional.normalize(start, dim=0)[:, 0]


def beside(rows: torch.Tensor, direction: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Rows `[m, d]` with `count` copies of each, moved by normal noise along one direction `[d]` (DPA)."""
    steps = torch.randn(len(rows) * count, 1, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.cat([rows, rows.repeat_interleave(count, dim=0) + steps.to(rows) * direction])


def centres(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Centres `[k, d]` of k-means on rows `[m, d]`, from the first row and then the farthest; k at most m."""
    chosen = rows[:1]
    while 0 < len(chosen) < min(count, len(rows)):
        distance = _distances(rows, chosen).amin(dim=1)
        if not bool(distance.max() > 0):
            break
        chosen = torch.cat([chosen, rows[distance.argmax()][None]])
    for _ in range(_ROUNDS if len(chosen) > 1 else 0):
        nearest = _distances(rows, chosen).argmin(dim=1)
        own = [rows[nearest == number] for number in range(len(chosen))]
        moved = torch.stack([mine.mean(dim=0) if len(mine) else old for mine, old in zip(own, chosen, strict=True)])
        if torch.equal(moved, chosen):
            break
        chosen = moved
    return chosen


def _distances(rows: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    # By products, equal rows would not be 0 apart.
    return torch.cdist(rows, chosen, compute_mode="donot_use_mm_for_euclid_dist")
