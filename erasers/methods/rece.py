"""RECE: reliable and efficient concept erasure (arXiv 2407.12383): UCE, then rounds that erase what brings it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from erasers.closed_form.algebra import adversarial_rows, compose, compress, transform_of
from erasers.closed_form.pairs import stack_pairs
from erasers.closed_form.ports import port_gram
from erasers.concept import Concept, preset_options
from erasers.methods.text_maps import BARE, Task
from erasers.methods.uce import UCE
from erasers.options import require_above, require_least
from erasers.patch import Patch
from erasers.text.prompts import Prompt, Templates, require_templates
from erasers.text.states import Rows

_ROUNDS = 3
_REG = 0.1


class Round(NamedTuple):
    """One round: the derived rows x `[n, d]`, and A `[r, d]`, B `[d, r]` of the whole edit after it."""

    derived: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class RECE(UCE):
    """UCE, then rounds of deriving the embedding that undoes the edit, and erasing that too.

    All of it is d x d algebra on H = sum_l W_l'W_l: no layer and no text encoder is run again.

    Differs from the official code: rounds are not selected by generating and judging pictures; the defaults start from
    those of `UCE`, solve from the original weights, and weigh derived rows a tenth, since they disturb what is
    preserved most. `rece-official` is the released script.

    Args:
        rounds: Rounds after UCE; None takes the paper's number for a concept preset, else 3.
        reg: What keeps the derived embedding from undoing the whole edit; None takes the paper's value, else 0.1.
        round_rows: Rows of the concept that each round starts from.
        round_templates: Prompt patterns of the rounds.
        round_ridge: `ridge` of the rounds.
        round_erase_scale: `erase_scale` of the rounds.
        round_preserve_scale: `preserve_scale` of the rounds.
        anchor_policy: `current` edits the edited weights again, as the official code does, so that drift adds up;
            `original` solves anew from the original weights, for the concept and all derived rows so far together.
        upstream_compat: Preserve the empty prompt once for every erased concept when nothing else is preserved.
    """

    name: ClassVar[str] = "rece"
    paper: ClassVar[str] = "[RECE](https://arxiv.org/abs/2407.12383)"
    family: ClassVar[str] = "closed form, text maps"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "rece-official": {
            **UCE.presets["uce-v1"],
            "round_rows": "all",
            "round_templates": BARE,
            "round_erase_scale": 1.0,
            "anchor_policy": "current",
            "upstream_compat": True,
        },
    }
    strengths: ClassVar[str] = "as UCE, with rounds against what undoes it"
    limits: ClassVar[str] = "as UCE"

    rounds: int | None = None
    reg: float | None = None
    round_rows: Rows = "last"
    round_templates: Templates = BARE
    round_ridge: float = 0.1
    round_erase_scale: float = 0.1
    round_preserve_scale: float = 0.1
    anchor_policy: Literal["original", "current"] = "original"
    upstream_compat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, rounds=0, round_preserve_scale=0)
        if self.reg is not None:
            require_above("reg", self.reg, 0)
        for field in ("round_ridge", "round_erase_scale"):
            require_above(field, getattr(self, field), 0)
        require_templates("round_templates", self.round_templates)
        if self.solver == "oblique" and self.anchor_policy == "current":
            raise ValueError("expected anchor_policy='original' with solver='oblique', got 'current'")

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """As `UCE._fit`; the patch says which numbers were taken."""
        return super(RECE, self.resolved(concepts))._fit(pipe, concepts, generator, progress)

    def edit(self, task: Task, hashes: Mapping[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
        """UCE's edit, carried on through the rounds."""
        a, b = super().edit(task, hashes)
        if self.rounds:
            gram = port_gram(task.group.ports, hashes, task.erase.shape[1], cache=self.cache)
            *_, (_, a, b) = self.iterate(task, (a, b), gram)
        return a, b

    def resolved(self, concepts: Sequence[Concept]) -> RECE:
        """The same eraser with `rounds` and `reg` filled in: the paper's where all concepts agree on it."""
        options = [preset_options(concept.name, self.name) for concept in concepts]
        agreed = options[0] if all(option == options[0] for option in options) else {}
        rounds = self.rounds if self.rounds is not None else agreed.get("rounds", _ROUNDS)
        reg = self.reg if self.reg is not None else agreed.get("reg", _REG)
        return replace(self, rounds=rounds, reg=reg)

    def rows_to_encode(self) -> Rows:
        """The policy that encodes enough for UCE and for the rounds."""
        return "last" if self.rows == self.round_rows == "last" else "all"

    def pairs_to_encode(self, concepts: Sequence[Concept]) -> list[tuple[Prompt, Prompt]]:
        """Every (erased prompt, anchor prompt) of UCE and of the rounds."""
        return self.prompt_pairs(concepts, self.templates) + self.prompt_pairs(concepts, self.round_templates)

    def iterate(self, task: Task, start: tuple[torch.Tensor, torch.Tensor], gram: torch.Tensor) -> Iterator[Round]:
        """The rounds (arXiv 2407.12383, algorithm 1).

        Args:
            task: What UCE erased and preserved.
            start: A, B of UCE.
            gram: H `[d, d]`.
        """
        # c, the original embeddings of the concept, and what each embedding derived from them becomes.
        pairs = self.prompt_pairs(task.concepts, self.round_templates)
        rows, anchors = stack_pairs(task.group, task.encoded, pairs, self.round_rows)
        a, b = compress(*start)
        erase, anchor = [task.erase.double()], [task.anchor.double()]
        # A row weighs s when it and its anchor are multiplied by the square root of s.
        weight = (self.round_erase_scale / self.erase_scale) ** 0.5
        for _ in range(self.rounds if self.rounds is not None else _ROUNDS):
            reg = self.reg if self.reg is not None else _REG
            derived = adversarial_rows(gram, transform_of(a, b), rows, reg=reg)
            if self.anchor_policy == "current":
                a, b = compress(*compose((a, b), self._step(task, derived, anchors)))
            else:
                erase.append(weight * derived)
                anchor.append(weight * anchors.double())
                a, b = self.solve(torch.cat(erase), torch.cat(anchor), task.preserve)
            yield Round(derived, a, b)

    def _step(self, task: Task, derived: torch.Tensor, anchors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        only_empty = self.preserve_empty and task.preserve.texts == 1
        terms = sum(len(concept.terms(aliases=self.aliases)) for concept in task.concepts)
        repeats = terms if self.upstream_compat and only_empty else 1
        return task.preserve.ridge_edit(
            derived,
            anchors,
            ridge=self.round_ridge,
            erase_scale=self.round_erase_scale,
            preserve_scale=self.round_preserve_scale * repeats,
        )
