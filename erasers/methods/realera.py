"""RealEra: erasure by neighbour-concept mining (arXiv 2410.09140), a reconstruction of its closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.nn import functional

from erasers.closed_form import algebra as closed_form
from erasers.closed_form.pairs import stack_pairs
from erasers.closed_form.preserved import Preserved, states_for
from erasers.concept import Concept, names
from erasers.diffusion.tokens import decode, whole_words
from erasers.methods.text_maps import Task
from erasers.methods.uce import UCE
from erasers.models.ports import Group
from erasers.options import require_above, require_least
from erasers.text.encoding import Reader, text_parts
from erasers.text.prompts import Prompt, Templates, fill, templates_for
from erasers.text.states import Encoded, Rows

_DRAWS = 64
_ROUNDS = 200


@dataclass(frozen=True, kw_only=True)
class RealEra(UCE):
    """UCE that erases what lies around the concept as well, and holds what lies beyond.

    Neighbour-concept mining: around the last subject token e of each prompt of the concept, random e + eta are erased
    onto the anchor, too, where ||eta|| <= D1 ||e|| and cos(e, e + eta) is in [S1, S2]. Beyond-concept regularisation:
    random words of the vocabulary that are not in that neighbourhood keep what they are mapped to.

    Differs from the paper: this is a reconstruction from its description, since there is no official code; `mined`,
    D1, S1, S2, `beyond` and the weights are not the paper's but chosen on the embedded model. D1 is relative to the
    norm of e. What lies beyond are real words here, for random vectors around e do not keep any word in its place. The
    paper's second stage, which aligns the predicted noise with low-rank additions, is left out.

    Args:
        mined: Perturbations of each embedding; 0 leaves mining out.
        max_distance: D1, a share of the norm of e.
        min_cosine: S1.
        max_cosine: S2.
        mined_scale: Weight of what is mined, where an erased row weighs `erase_scale`.
        beyond: Random words that are held when they are outside of the neighbourhood; 0 leaves them out. They are put
            into `preserve_templates` in turn and weigh as preserved prompts do.
    """

    name: ClassVar[str] = "realera"
    paper: ClassVar[str] = "[RealEra](https://arxiv.org/abs/2410.09140), reconstructed"
    family: ClassVar[str] = "closed form, text maps"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    strengths: ClassVar[str] = "erases what lies around the concept"
    limits: ClassVar[str] = "as UCE; from the paper's description, without its LoRA stage"

    rows: Rows = "tail"
    templates: Templates = "auto"
    mined: int = 16
    max_distance: float = 0.5
    min_cosine: float = 0.9
    max_cosine: float = 0.99
    mined_scale: float = 1.0
    beyond: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, mined=0, beyond=0)
        for field in ("max_distance", "mined_scale"):
            require_above(field, getattr(self, field), 0)
        if not -1 <= self.min_cosine < self.max_cosine <= 1:
            raise ValueError(
                f"expected -1 <= min_cosine < max_cosine <= 1, got {self.min_cosine!r} and {self.max_cosine!r}"
            )

    def gather(
        self, pipe: Any, concepts: Sequence[Concept], groups: Sequence[Group], generator: torch.Generator | None = None
    ) -> list[Task]:
        """What UCE reads, what was mined around it, and what lies beyond; seed 0 draws when there is no generator."""
        generator = generator or torch.Generator().manual_seed(0)
        tasks = super().gather(pipe, concepts, groups, generator)
        pairs = self.prompt_pairs(concepts, self.templates)
        pooled = any(group.kind == "pooled" for group in groups)
        reader = Reader(pipe, self.preserve_rows, pooled, self.max_sequence_length, self.clip_skip)
        words = list(reader.encode(self.words(pipe, concepts, generator)).values())
        return [
            self.widened(task, *stack_pairs(task.group, task.encoded, pairs, "last"), words, generator)
            for task in tasks
        ]

    def words(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator) -> list[Prompt]:
        """Random words of the vocabulary in the templates of preserved concepts, without those that name a concept."""
        if not self.beyond:
            return []
        tokenizer = text_parts(pipe)[0][1]
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one
        known = whole_words(tokenizer)
        order = torch.randperm(len(known), generator=generator, device=generator.device).cpu()
        drawn = [decode(tokenizer, token[None]) for token in known[order[: self.beyond]]]
        terms = [term for concept in concepts for term in concept.terms(aliases=self.aliases)]
        patterns = templates_for(concepts[0], self.preserve_templates)
        kept = [word for word in drawn if not any(names(word, term) for term in terms)]
        return [fill(patterns[number % len(patterns)], word) for number, word in enumerate(kept)]

    def widened(
        self, task: Task, e: torch.Tensor, anchor: torch.Tensor, words: Sequence[Encoded], generator: torch.Generator
    ) -> Task:
        """The task with the mined rows among the erased ones, and the words beyond e `[k, d]` among the preserved."""
        e, anchor = e.double(), anchor.double()
        eta = perturbations(e, self.mined, self.max_distance, (self.min_cosine, self.max_cosine), generator)
        # A row weighs s when it and its anchor are multiplied by the square root of s.
        weight = (self.mined_scale / self.erase_scale) ** 0.5
        mined = weight * (e[:, None] + eta).flatten(0, 1)
        onto = weight * anchor.repeat_interleave(self.mined, dim=0)
        erase, anchors = torch.cat([task.erase.double(), mined]), torch.cat([task.anchor.double(), onto])
        return replace(task, erase=erase, anchor=anchors, preserve=self.beyond_words(task, e, words))

    def beyond_words(self, task: Task, e: torch.Tensor, words: Sequence[Encoded]) -> Preserved:
        """What is preserved, with the rows of those words that are not near any e `[k, d]`."""
        group = task.group
        rows = []
        for word in words:
            last = group.read(states_for(group, word, "last")).double()
            if not near(e, last, self.max_distance, self.min_cosine).any():
                rows.append(group.read(states_for(group, word, self.preserve_rows)))
        return joined(task.preserve, torch.cat(rows), len(rows)) if rows else task.preserve


def near(e: torch.Tensor, rows: torch.Tensor, max_distance: float, min_cosine: float) -> torch.Tensor:
    """Whether ||x - e|| <= D1 ||e|| and cos(e, x) >= S1, for rows x `[n, d]` against e `[k, d]`; `[k, n]`."""
    distance = torch.cdist(e, rows) / e.norm(dim=1, keepdim=True)
    cosine = functional.normalize(e, dim=1) @ functional.normalize(rows, dim=1).T
    inside: torch.Tensor = (distance <= max_distance) & (cosine >= min_cosine)
    return inside


def perturbations(
    e: torch.Tensor, count: int, max_distance: float, cosines: tuple[float, float], generator: torch.Generator
) -> torch.Tensor:
    """eta `[k, count, d]`: directions are uniform, lengths uniform up to D1 ||e||, and cos(e, e + eta) in [S1, S2].

    Args:
        e: `[k, d]`.
        count: Perturbations of each.
        max_distance: D1.
        cosines: S1 and S2.
        generator: Draws.

    Raises:
        ValueError: Hardly any perturbation meets the bounds.
    """
    return torch.stack([_around(row, count, max_distance, cosines, generator) for row in e])


def _around(
    e: torch.Tensor, count: int, max_distance: float, cosines: tuple[float, float], generator: torch.Generator
) -> torch.Tensor:
    """eta `[count, d]` of one e `[d]`, by rejection."""
    met = e.new_zeros(0, len(e))
    options: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.float64}
    for _ in range(_ROUNDS):
        if len(met) >= count:
            break
        direction = functional.normalize(torch.randn(_DRAWS, len(e), **options).to(e), dim=1)
        length = torch.rand(_DRAWS, 1, **options).to(e) * max_distance * e.norm()
        eta = length * direction
        cosine = functional.cosine_similarity(e + eta, e[None], dim=1)
        met = torch.cat([met, eta[(cosine >= cosines[0]) & (cosine <= cosines[1])]])
    if len(met) < count:
        raise ValueError(
            "expected max_distance, min_cosine and max_cosine that random perturbations meet, got "
            f"{max_distance}, {cosines[0]} and {cosines[1]}, which {len(met)} of {_DRAWS * _ROUNDS} do"
        )
    return met[:count]


def joined(preserve: Preserved, rows: torch.Tensor, texts: int) -> Preserved:
    """The preserved rows and some more `[m, d]`, of so many texts."""
    rows = rows.to(torch.float64).cpu()
    few = None if preserve.few is None else torch.cat([preserve.few, rows])
    many = None if preserve.many is None else preserve.many + closed_form.gram(rows)
    return Preserved(few, many, preserve.count + len(rows), preserve.texts + texts)
