"""AdaVD: "Precise, Fast, and Low-cost Concept Erasure in Value Space", CVPR 2025, arXiv 2412.06143, and GenErase, CVPR
2026, which keeps a space beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch.nn import functional

from erasers.closed_form.hooked import hook_patch
from erasers.concept import Concept
from erasers.methods.run_time import RunTime
from erasers.models.ports import Group, Port, port_groups
from erasers.options import require_least, require_shares
from erasers.patch import Patch
from erasers.patch.value_gate import ValueGate, standing
from erasers.text.alarms import gates
from erasers.text.contexts import kept_prompts
from erasers.text.encoding import Reader
from erasers.text.prompts import Templates, require_templates, whole
from erasers.text.states import Encoded, Rows

_STEP = (0.93, 100.0, 2.0)
"""Centre, slope and height of the published shift factor."""
_SMALL = 0.85
"""Share below which the published shift factor is less than a thousandth."""
_ROUNDING = 1e-9
"""Share of the largest energy below which a direction is rounding."""
_LEFT = 1e-2
"""Least share of a concept's value that kept values have to leave of it."""
_LEAST = 1e-3
"""Least tau that is found."""
_SAME = 1e-3
_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class AdaVD(RunTime):
    """Take the concept's direction out of the values of cross-attention, token by token, where it stands out.

    For each layer, with v the value of a token and t that of the concept's last token,

        u = (I - P) t / |(I - P) t|        x = u'v / |(I - P) v|        v <- v - g(x) u'v (u - beta a)   where x >= tau

    so that a value with less than tau of the concept stays bit for bit. Of several names the u are orthonormal. Where
    there is no cross-attention, v is what the embedder makes of a token of the text, and of the pooled vector beside
    it. P projects on what values of kept prompts span (`keep`), and such values never change; a is the value of the
    anchor, made orthogonal to P and to u.

    *Corrected*: g is 1, where AdaVD's reaches 2, which turns the concept round; tau is found, as so small that at most
    `false_alarms` of the kept prompts are touched in any layer, and the empty prompt in none. There is no P, as in
    AdaVD: what it keeps of the concept stays drawn.

    `adavd-official` is AdaVD: g(x) = 2 / (1 + exp(-100 (x - .93))), which is cut off where it is below a thousandth,
    and the first token of CLIP stays. `adavd-generase` is GenErase as it is described, for there is no public code: P
    from the last tokens of kept prompts, tau = .1 of either sign, beta = .5; P holds nine tenths of their energy, for
    the tokens of a few hundred prompts span all of a narrow layer.

    Args:
        tau: Least share x, above 0; "auto": found on kept prompts.
        false_alarms: With "auto", the share of kept prompts that may be touched.
        keep: Share of the energy of kept values that P holds; 0: there is no P.
        rows: Of kept prompts, whose values P holds; see `text/states.py`.
        both: The opposite of u is taken out, too.
        soft: g is the published shift factor.
        beta: How much of the anchor takes the place.
        templates: Patterns with one `{}` for the anchor and neighbours; "auto": those of the concept's kind.
    """

    name: ClassVar[str] = "adavd"
    paper: ClassVar[str] = "[AdaVD](https://arxiv.org/abs/2412.06143)"
    family: ClassVar[str] = "runtime hook, values of text"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "adavd-official": {"tau": _SMALL, "soft": True},
        "adavd-shapes-sd3": {"keep": 0.9},
        "adavd-generase": {"tau": 0.1, "keep": 0.9, "rows": "last", "both": True, "beta": 0.5},
    }
    strengths: ClassVar[str] = "no training; other prompts stay bit for bit"
    limits: ClassVar[str] = "can be switched off; needs this library to load"

    tau: float | Literal["auto"] = "auto"
    false_alarms: float = 0.01
    keep: float = 0.0
    rows: Rows = "all"
    both: bool = False
    soft: bool = False
    beta: float = 0.0
    templates: Templates = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, beta=0)
        require_shares(self, "keep")
        require_shares(self, "false_alarms", whole=False)
        require_templates("templates", self.templates)
        if self.tau != "auto" and not 0 < self.tau <= 1:
            raise ValueError(f"expected tau above 0 and at most 1, got {self.tau}")

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """Nothing is random, and nothing takes long enough to show progress."""
        hooks = {(name, ValueGate.kind): parts for name, parts in self.fitted(pipe, concepts).items()}
        return hook_patch(self.name, self.config(), pipe, concepts, hooks)

    def fitted(self, pipe: Any, concepts: Sequence[Concept]) -> dict[str, dict[str, torch.Tensor]]:
        """The parts of the hook of each layer, by its name, in float64."""
        layers = self.layers(pipe, concepts)
        parts = {layer.port.name: self.directions(layer) for layer in layers}
        if self.tau == "auto":
            scores = [layer.scores(parts[layer.port.name]) for layer in layers]
            kept, never = (torch.cat(columns, dim=1) for columns in zip(*scores, strict=True))
            found = gates(kept, never, self.false_alarms).clamp(min=_LEAST)
            for layer, gate in zip(layers, found.split([own.shape[1] for own, _ in scores]), strict=True):
                parts[layer.port.name]["gate"] = gate
        return parts

    def layers(self, pipe: Any, concepts: Sequence[Concept]) -> list[Layer]:
        """The maps that make values of text, with all that they read of prompts; every prompt is encoded once."""
        groups = port_groups(pipe)
        pairs = [
            (whole(term), whole(concept.anchor)) for concept in concepts for term in concept.terms(aliases=self.aliases)
        ]
        near, others = kept_prompts(concepts, self.templates)
        kept = [whole(text) for text in dict.fromkeys([*near, *others])]
        pooled = any(group.kind == "pooled" for group in groups)
        reader = Reader(pipe, "tail", pooled, self.max_sequence_length, self.clip_skip)
        encoded = reader.encode([*(prompt for pair in pairs for prompt in pair), *kept])
        layers = []
        for group in groups:
            targets, anchors = (
                torch.cat([read(group, encoded[prompt], "last") for prompt in prompts])
                for prompts in zip(*pairs, strict=True)
            )
            every = [read(group, encoded[prompt], "all") for prompt in kept]
            span = torch.cat([read(group, encoded[prompt], self.rows) for prompt in kept])
            always = torch.zeros(1, span.shape[1]) if group.padding is None else group.padding.float()
            texts = Texts(targets, anchors, span, every, torch.cat([always.reshape(-1, span.shape[1]), every[-1]]))
            layers += [Layer(port, texts, factor_of(span)) for port in values_of(group)]
        return layers

    def directions(self, layer: Layer) -> dict[str, torch.Tensor]:
        """The parts of the hook of one layer, without a gate where that is to be found.

        Raises:
            ValueError: A concept of which kept values leave nothing.
        """
        span = layer.span(self.keep)
        targets, anchors = layer.values(layer.texts.targets), layer.values(layer.texts.anchors)
        numbers, away = orthonormal(targets, span)
        if not len(away):
            raise ValueError(
                f"expected values of the concept at {layer.port.name} outside of what kept prompts span, "
                f"{len(span)} of {span.shape[1]} dimensions, got none; lower keep below {self.keep:g}, or keep "
                "fewer prompts"
            )
        parts = {"away": away} | ({"span": span} if len(span) else {})
        if self.beta:
            parts["towards"] = self.beta * functional.normalize(without(anchors[numbers], span, away), dim=1)
        if self.soft:
            parts["step"] = torch.tensor(_STEP, dtype=torch.float64)
        if self.both:
            parts["both"] = torch.ones(1, dtype=torch.float64)
        if self.tau != "auto":
            parts["gate"] = torch.full((len(away),), float(self.tau), dtype=torch.float64)
            parts["first"] = torch.tensor([float(layer.first())], dtype=torch.float64)
        return parts


class Texts(NamedTuple):
    """What the maps of one group read.

    Args:
        targets: Of the last token of each name `[k, in]`.
        anchors: Of their anchors `[k, in]`.
        span: Of kept prompts, those rows that P holds `[n, in]`.
        kept: All rows of each kept prompt, the last of which is the empty one.
        never: Rows that may not be touched: the empty prompt, and what stands where there is no token.
    """

    targets: torch.Tensor
    anchors: torch.Tensor
    span: torch.Tensor
    kept: list[torch.Tensor]
    never: torch.Tensor


@dataclass(frozen=True)
class Layer:
    """One map that makes values of text.

    Args:
        port: The map.
        texts: What it reads.
        factor: F `[m, in + 1]`, with F'F the Gram matrix of the rows of the span, each with a one behind.
    """

    port: Port
    texts: Texts
    factor: torch.Tensor

    @torch.no_grad()
    def values(self, rows: torch.Tensor) -> torch.Tensor:
        """v `[n, d]` of rows, in float64."""
        weight, bias = self._weights()
        return torch.as_tensor(rows.double() @ weight.T + bias)

    def _weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight = self.port.module.weight.detach().double().cpu()
        bias = self.port.module.bias
        return weight, torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.detach().double().cpu()

    def span(self, keep: float) -> torch.Tensor:
        """P' `[r, d]`: the leading directions of kept values, with that share of their energy."""
        weight, bias = self._weights()
        _, sizes, directions = torch.linalg.svd(self.factor @ torch.cat([weight.T, bias[None]]), full_matrices=False)
        return torch.as_tensor(directions[: leading(sizes, keep)])

    def scores(self, parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest share of each direction in kept prompts `[n, k]`, and in the rows `Texts.never` `[1, k]`."""
        single = {name: part.float() for name, part in parts.items()}
        sizes = [len(rows) for rows in self.texts.kept]
        weight, bias = (value.float() for value in self._weights())
        shares = [
            standing(rows.float() @ weight.T + bias, single)[1]
            for rows in (*torch.cat(self.texts.kept).split(_ROWS), self.texts.never)
        ]
        kept = torch.cat(shares[:-1]).split(sizes)
        return torch.stack([own.amax(dim=0) for own in kept]), shares[-1].amax(dim=0, keepdim=True)

    def first(self) -> int:
        """The first token that counts: 1 where all prompts begin with the same one, as those of CLIP do."""
        first, second = (self.texts.kept[number][0] for number in (0, -1))
        return int(len(self.texts.kept[0]) > 1 and bool((first - second).norm() < _SAME * first.norm()))


def values_of(group: Group) -> list[Port]:
    """The ports of a group whose output is a value: all of an embedder, of cross-attention those of values."""
    values = [port for port in group.ports if port.name.endswith("to_v")]
    return values or list(group.ports)


def read(group: Group, encoded: Encoded, rows: Rows) -> torch.Tensor:
    """What the ports of a group read of a prompt `[n, in]`."""
    states = encoded.rows(rows) if group.kind != "pooled" else torch.as_tensor(encoded.pooled)[None]
    return group.read(states).float()


def factor_of(rows: torch.Tensor) -> torch.Tensor:
    """F `[m, in + 1]` with F'F the Gram matrix of rows `[n, in]`, each with a one behind; m is as small as can be."""
    whole_rows = functional.pad(rows.double(), (0, 1), value=1.0)
    if len(whole_rows) <= whole_rows.shape[1]:
        return whole_rows
    values, vectors = torch.linalg.eigh(whole_rows.T @ whole_rows)
    held = values > _ROUNDING * values[-1]
    return torch.as_tensor(values[held].sqrt()[:, None] * vectors[:, held].T)


def leading(sizes: torch.Tensor, keep: float) -> int:
    """How many of the singular values, largest first, hold that share of the sum of squares."""
    energy = sizes.square()
    if keep == 0 or not energy.sum():
        return 0
    numerical = int((energy > _ROUNDING * energy[0]).sum())
    return min(numerical, int((energy.cumsum(0) / energy.sum() < keep).sum()) + 1)


def without(rows: torch.Tensor, *spaces: torch.Tensor) -> torch.Tensor:
    """Rows `[n, d]` less what lies in spaces of orthonormal rows that are orthogonal to each other."""
    for space in (*spaces, *spaces):  # twice, for what rounding leaves
        rows = rows - rows @ space.T @ space
    return rows


def orthonormal(targets: torch.Tensor, span: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """Numbers of those targets of which a space and earlier targets leave something, and what they leave `[k, d]`,
    normalised."""
    numbers: list[int] = []
    away = targets[:0]
    for number, target in enumerate(targets):
        rest = without(target[None], span, away)
        if rest.norm() > _LEFT * target.norm():
            numbers.append(number)
            away = torch.cat([away, functional.normalize(rest, dim=1)])
    return numbers, away
