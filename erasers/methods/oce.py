"""OCE: orthogonal concept erasure (arXiv 2605.28902): the values that text becomes are turned by an orthogonal map."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch.nn import functional

from erasers.closed_form.algebra import leading_directions
from erasers.closed_form.layers import layer_patch, low_rank, value_ports, weight_of
from erasers.closed_form.pairs import stack_pairs
from erasers.closed_form.ports import port_hashes
from erasers.concept import Concept
from erasers.methods.text_maps import Task, TextMaps
from erasers.models.families import Family
from erasers.models.ports import Port, find_family
from erasers.models.readers import text_readers
from erasers.options import Auto, known, require_above, require_least
from erasers.patch import Patch
from erasers.text.prompts import Prompt


class Scales(NamedTuple):
    """Weights of the terms of the objective: e, p_g, p_c, lambda."""

    erase: float
    captions: float
    preserve: float
    stay: float


MANY = 50
"""From so many concepts on the paper's scales for many hold."""
_OBJECTS = Scales(2000, 10, 0, 10)
_KINDS = {"style": Scales(500, 10, 1, 10), "unsafe": Scales(3000, 20, 0, 10), "identity": Scales(3500, 50, 5, 10)}
_MANY = Scales(800, 70, 2, 10)
_EMBEDDERS = Scales(1000, 10, 5, 10)


@dataclass(frozen=True, kw_only=True)
class OCE(TextMaps):
    """Turn what the text of a concept becomes, by one orthogonal map from the left for each layer: W <- P W.

    An orthogonal map changes no length and no angle between what two prompts become. With orthonormal bases E of the
    targets W c and G of the guides W g, R = E E' and R* = G G', the second moment C of kept token states, and kept p,

        M = -e (I - R*) R + p_c W p p' W' + p_g W C W' + lambda W W' = U S V',    P = U V'

    P is the orthogonal map that has the most of M (Procrustes). At the paper's scales it is close to a reflection: the
    values of a concept are negated more than removed, and a warning says so with their cosine. Each layer is its own,
    not one map of the text: the patch has low-rank additions with a stated error, or the weight where that is less.

    *Corrected*: M has the transpose that the paper's objective has, where the code has R (I - R*); and a P of negative
    determinant stays, as a reflection is orthogonal as well, where the code negates its last row, one neuron of the
    layer. `oce-official` has both. The second moment is that of the preserved captions, in the place of 30,000 of COCO.

    Args: those of `TextMaps`, and
        erase_scale: e; "auto" takes the paper's scales for the kind and number of concepts, or for an embedder.
        caption_scale: p_g.
        preserve_scale: p_c, of neighbours one by one.
        stay_scale: lambda, which is in the code alone.
        error: What the low-rank form may leave out of each change, as a share of it.
        upstream_compat: The transpose and the determinant as the official code has them.
    """

    name: ClassVar[str] = "oce"
    paper: ClassVar[str] = "[OCE](https://arxiv.org/abs/2605.28902)"
    family: ClassVar[str] = "closed form, text values"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "oce-official": {"aliases": False, "upstream_compat": True},
    }
    strengths: ClassVar[str] = "lengths and angles of what text becomes stay"
    limits: ClassVar[str] = "at the paper's scales the concept is negated, not removed"

    erase_scale: float | Auto = "auto"
    caption_scale: float | Auto = "auto"
    preserve_scale: float | Auto = "auto"
    stay_scale: float | Auto = "auto"
    error: float = 0.01
    upstream_compat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, caption_scale=0, preserve_scale=0, erase_scale=0)
        for field in ("stay_scale", "error"):
            if getattr(self, field) != "auto":
                require_above(field, getattr(self, field), 0)

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """One Procrustes problem for each layer; the patch says which scales were taken."""
        eraser = self.scaled(concepts, find_family(pipe)[0])
        groups = eraser.groups(pipe)
        chosen = [replace(group, ports=tuple(ports)) for group, ports in value_ports(groups)]
        hashes = port_hashes(pipe, chosen)
        turns = [turn for task in eraser.gather(pipe, concepts, chosen) for turn in eraser.turns(task)]
        kept = sum(cosine for *_, cosine in turns) / len(turns)
        if kept < 0:
            warnings.warn(
                f"the values of {', '.join(concept.name for concept in concepts)} are turned to a cosine of {kept:.2f} "
                "with themselves: negated, not removed; a smaller erase_scale turns them less",
                stacklevel=3,
            )
        edits = [(port, a, b) for port, a, b, _ in turns]
        return layer_patch(eraser.name, eraser.config(), concepts, edits, hashes, text_readers(pipe))

    def scaled(self, concepts: Sequence[Concept], family: Family) -> OCE:
        """The same eraser with the paper's scales where they are "auto"."""
        usual = _MANY if len(concepts) >= MANY else _KINDS.get(concepts[0].kind, _OBJECTS)
        usual = usual if family.kind == "cross" else _EMBEDDERS
        given = (self.erase_scale, self.caption_scale, self.preserve_scale, self.stay_scale)
        scales = Scales(*(paper if value == "auto" else value for paper, value in zip(usual, given, strict=True)))
        return replace(
            self,
            erase_scale=scales.erase,
            caption_scale=scales.captions,
            preserve_scale=scales.preserve,
            stay_scale=scales.stay,
        )

    def turns(self, task: Task) -> list[tuple[Port, torch.Tensor, torch.Tensor, float]]:
        """(port, A, B, mean cosine of what concepts become with what they became) of each port of a group."""
        kept = self.kept_rows(task)
        moment = known(self.caption_scale) * task.preserve.covariance() + known(self.preserve_scale) * kept.T @ kept
        moment += known(self.stay_scale) * torch.eye(len(moment), dtype=moment.dtype)
        return [self.turn(task, port, moment) for port in task.group.ports]

    def turn(self, task: Task, port: Port, moment: torch.Tensor) -> tuple[Port, torch.Tensor, torch.Tensor, float]:
        """The turn of one port, where p_g C + p_c p p' + lambda is known `[d, d]`.

        A weight W = Q R that is taller than wide is turned inside of its span: R <- P R.
        """
        weight, span = weight_of(port, len(moment)), None
        if len(weight) > len(moment) and not self.upstream_compat:
            span, weight = torch.linalg.qr(weight)
        targets, guides = (weight @ rows.double().T for rows in (task.erase, task.anchor))
        kept, bases = weight @ moment @ weight.T, (basis_of(targets), basis_of(guides))
        objective = procrustes(kept, *bases, known(self.erase_scale), transposed=self.upstream_compat)
        delta = turn_of(objective, upstream_compat=self.upstream_compat) @ weight - weight
        a, b = low_rank(delta, self.error) or (torch.eye(delta.shape[1], dtype=delta.dtype), delta)
        after = targets + b @ (a @ task.erase.double().T)
        cosine = float(functional.cosine_similarity(after, targets, dim=0).mean())
        return port, a, b if span is None else span @ b, cosine

    def pairs_to_encode(self, concepts: Sequence[Concept]) -> list[tuple[Prompt, Prompt]]:
        """Pairs of concept and anchor, and the neighbours."""
        return super().pairs_to_encode(concepts) + self.neighbour_pairs(concepts)

    def kept_rows(self, task: Task) -> torch.Tensor:
        """p: the rows of neighbours `[k, d]`, k may be 0."""
        pairs = self.neighbour_pairs(task.concepts)
        if not pairs:
            return torch.zeros(0, task.erase.shape[1], dtype=torch.float64)
        return stack_pairs(task.group, task.encoded, pairs, self.rows)[0].double()


def basis_of(columns: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis `[out, r]` of the span of vectors `[out, n]`, each of which counts alike."""
    return leading_directions(functional.normalize(columns, dim=0).T, columns.shape[1])


def procrustes(
    kept: torch.Tensor, targets: torch.Tensor, guides: torch.Tensor, erase_scale: float, *, transposed: bool = False
) -> torch.Tensor:
    """M = -e (I - R*) R + K `[out, out]`, of which the orthogonal P with the largest tr(P'M) is sought.

    Args:
        kept: K, what pulls towards no change.
        targets: E with orthonormal columns `[out, n]`, R = E E'.
        guides: G `[out, m]` likewise, R* = G G'.
        erase_scale: e.
        transposed: -e R (I - R*), as in the official code.
    """
    away = (targets - guides @ (guides.T @ targets)) @ targets.T
    return kept - erase_scale * (away.T if transposed else away)


def turn_of(objective: torch.Tensor, *, upstream_compat: bool = False) -> torch.Tensor:
    """P = U V' of M = U S V': the orthogonal matrix with the largest tr(P'M).

    Args:
        objective: M `[out, out]`.
        upstream_compat: Negate the last row of a P of negative determinant.
    """
    left, _, right = torch.linalg.svd(objective)
    turn: torch.Tensor = left @ right
    if upstream_compat:
        turn[-1] *= torch.linalg.det(turn).sign()
    return turn
