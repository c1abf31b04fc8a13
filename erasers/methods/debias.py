"""Debiasing, the third use of UCE (arXiv 2308.14761): pictures of a concept have attributes in the shares asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from PIL import Image

from erasers.closed_form.ports import port_hashes
from erasers.concept import Concept, Concepts
from erasers.judges import Judge
from erasers.methods.text_maps import Task
from erasers.methods.uce import UCE
from erasers.models.ports import port_groups
from erasers.models.readers import text_readers
from erasers.options import require_above, require_least
from erasers.patch import Patch
from erasers.patch.build import transform_patch
from erasers.text.prompts import Prompt, Templates, fill, templates_for

_BATCH = 8
Measure: TypeAlias = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[float]]
"""(pictures, attributes) -> the share of the pictures that shows each attribute."""


def balanced_rows(concepts: torch.Tensor, attributes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Where the rows of concepts go `[n, d]`: c + sum_i s_i a_i.

    Args:
        concepts: c `[n, d]`.
        attributes: a `[n, m, d]`.
        scales: s `[n, m]`.
    """
    return concepts.double() + torch.einsum("nm,nmd->nd", scales.double(), attributes.double())


def next_scales(scales: torch.Tensor, shares: torch.Tensor, measured: torch.Tensor, step: float) -> torch.Tensor:
    """s + step (r - m) `[n, m]`, of shares asked for r `[m]` and measured ones m `[n, m]`."""
    return scales + step * (shares - measured)


@dataclass(frozen=True, kw_only=True)
class Debias(UCE):
    """Draw a concept with attributes in given shares, in place of those that the model has learned.

    With c the row of a concept, a_i those of attributes, r_i the shares asked for and m_i those measured in pictures
    that are drawn anew in every round,

        s_i <- s_i + step (r_i - m_i),    c -> c + sum_i s_i a_i

    Shares are among the pictures that show one of the attributes, so that the scales have a sum of 0: a common part of
    the attributes is neither added nor taken away. Mixed words can draw something else, such as a third colour.

    and what is preserved stays, in UCE's closed form. The round that came nearest is kept.

    Differs from the official code: scales add up by `step`, where that code changes its targets in place and does not
    read its step; the nearest round is kept in place of the last; the attributes' own rows are preserved; all rounds
    draw from the same noise; pictures may be drawn by templates, and are measured by whatever the caller gives, where
    that code has CLIP choose among the attributes.

    Args:
        attributes: Texts, such as "male" and "female".
        shares: Those asked for, one for each, with a sum of 1; () asks for equal ones.
        pictures: Of each concept, a round.
        rounds: At most.
        step: How much a share that is off changes a scale.
        tolerance: How far from its share each attribute may be in the end.
        steps: Of the sampler.
        guidance: Of the sampler.
    """

    name: ClassVar[str] = "debias"

    attributes: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    pictures: int = 40
    rounds: int = 10
    step: float = 1.0
    tolerance: float = 0.05
    steps: int = 20
    guidance: float = 7.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.attributes)) < 2 or len(set(self.attributes)) != len(self.attributes):
            raise ValueError(f"expected two attributes or more, each once, got {', '.join(self.attributes) or 'none'}")
        if self.shares and len(self.shares) != len(self.attributes):
            raise ValueError(f"expected {len(self.attributes)} shares, one for each attribute, got {len(self.shares)}")
        if self.shares and (min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6):
            raise ValueError(f"expected shares of at least 0 with a sum of 1, got {self.shares}")
        if self.rows != "last":
            raise ValueError(f"expected rows last, in which attributes and concepts have one row each, got {self.rows}")
        if self.solver != "ridge":
            raise ValueError(f"expected the solver ridge, as directions do not say where rows go, got {self.solver}")
        require_least(self, pictures=1, rounds=1, steps=1, tolerance=0)
        require_above("step", self.step, 0)

    @property
    def wanted(self) -> torch.Tensor:
        """The shares asked for `[attributes]`."""
        count = len(self.attributes)
        return torch.tensor(self.shares or [1 / count] * count, dtype=torch.float64)

    def fit(
        self,
        pipe: Any,
        concepts: Concepts,
        *,
        measure: Measure | None = None,
        generator: torch.Generator | None = None,
        progress: bool = True,
    ) -> Patch:
        """Draw, measure and solve until the shares are those asked for; see `Eraser.fit`.

        Args:
            pipe: A stock diffusers pipeline.
            concepts: What is balanced, each in scales of its own; it is drawn by its name, in the templates in turn.
            measure: Says which share of some pictures shows each attribute.
            generator: Draws the noise; seed 0 when None.
            progress: Not used.

        Raises:
            ValueError: No `measure`, one that says other than shares, or what UCE refuses.
        """
        if measure is None:
            raise ValueError("expected measure, which says what share of some pictures shows each attribute, got none")
        prepared = self.prepared(pipe, concepts)
        generator = generator or torch.Generator().manual_seed(0)
        seeds = torch.randint(2**31, (self.pictures,), generator=generator).tolist()
        groups = port_groups(pipe, self.ports)
        hashes = port_hashes(pipe, groups)
        tasks = self.gather(pipe, prepared, groups, generator)
        # A concept that is balanced stays itself.
        recorded = [replace(concept, anchor=concept.name) for concept in prepared]
        scales = torch.zeros(len(prepared), len(self.attributes), dtype=torch.float64)
        rounds: list[tuple[float, torch.Tensor, Patch | None]] = []
        while len(rounds) < self.rounds and (not rounds or rounds[-1][0] > self.tolerance):
            if rounds:
                scales = next_scales(scales, self.wanted, rounds[-1][1], self.step)
                edits = [(task.group, *self.balance(task, scales)) for task in tasks]
                patch = transform_patch(self.name, self.config(), recorded, edits, hashes, text_readers(pipe))
            with patch.applied(pipe) if rounds else nullcontext():
                measured = torch.stack([self.measured(pipe, concept, seeds, measure) for concept in prepared])
            rounds.append((float((self.wanted - measured).abs().max()), measured, patch if rounds else None))
        off, measured, nearest = min(rounds, key=lambda round_: round_[0])
        if nearest is None:
            raise ValueError(f"expected shares to change, got none nearer than {self.said(measured)} of before")
        if off > self.tolerance:
            warnings.warn(f"{self.said(measured)} is the nearest of {len(rounds)} rounds", stacklevel=2)
        return nearest

    def balance(self, task: Task, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A `[r, d]` and B `[d, r]` that bring attributes into concepts, by the scales `[concepts, attributes]`."""
        owners = [
            number
            for number, concept in enumerate(task.concepts)
            for _ in concept.terms(aliases=self.aliases)
            for _ in templates_for(concept, self.templates)
        ]
        shape = (len(owners), len(self.attributes), -1, task.erase.shape[1])
        concepts, attributes = task.erase.view(shape)[:, 0], task.anchor.view(shape)
        count = concepts.shape[1]  # rows of a prompt: one for each text encoder behind one another
        rows = attributes.transpose(1, 2).flatten(0, 1)
        own = scales[torch.tensor(owners).repeat_interleave(count)]
        erase = concepts.flatten(0, 1)
        return self.solve(erase, balanced_rows(erase, rows, own), task.preserve)

    @torch.no_grad()
    def measured(self, pipe: Any, concept: Concept, seeds: Sequence[int], measure: Measure) -> torch.Tensor:
        """Shares of the attributes `[attributes]` among the pictures of a concept that show one of them."""
        texts = [fill(template, concept.name).text for template in templates_for(concept, self.templates)]
        prompts = [texts[number % len(texts)] for number in range(len(seeds))]
        pictures: list[Image.Image] = []
        for start in range(0, len(seeds), _BATCH):
            noise = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + _BATCH]]
            options = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "output_type": "pil"}
            options |= {} if self.clip_skip is None else {"clip_skip": self.clip_skip}
            pictures += pipe(prompt=prompts[start : start + _BATCH], generator=noise, **options).images
        shares = torch.as_tensor(measure(pictures, self.attributes), dtype=torch.float64)
        if shares.shape != self.wanted.shape or not bool(((shares >= 0) & (shares <= 1)).all()):
            raise ValueError(f"expected {len(self.attributes)} shares from 0 to 1 of measure, got {shares.tolist()}")
        if not shares.any():
            raise ValueError(
                f"expected pictures of {concept.name!r} with one of the attributes, got none in {len(seeds)}; raise "
                "pictures, or take attributes that the concept has"
            )
        return shares / shares.sum()

    def said(self, measured: torch.Tensor) -> str:
        """Shares `[concepts, attributes]` as text."""
        return "; ".join(
            ", ".join(f"{text} {share:.0%}" for text, share in zip(self.attributes, row.tolist(), strict=True))
            for row in measured
        )

    def prompt_pairs(self, concepts: Sequence[Concept], templates: Templates) -> list[tuple[Prompt, Prompt]]:
        """(prompt, that with an attribute in its place) for every name, alias, template and attribute."""
        return [
            (fill(template, term), fill(template, attribute))
            for concept in concepts
            for term in concept.terms(aliases=self.aliases)
            for template in templates_for(concept, templates)
            for attribute in self.attributes
        ]

    def preserved_prompts(self, concepts: Sequence[Concept]) -> list[Prompt]:
        """See `UCE.preserved_prompts`; and the attributes."""
        own = [fill(template, text) for template in self.templates_of(concepts) for text in self.attributes]
        return list(dict.fromkeys([*super().preserved_prompts(concepts), *own]))

    def templates_of(self, concepts: Sequence[Concept]) -> list[str]:
        """The distinct templates of preserved texts."""
        return list(
            dict.fromkeys(
                template for concept in concepts for template in templates_for(concept, self.preserve_templates)
            )
        )


def judged(judge: Judge, name: str) -> Measure:
    """A measure by a judge of one property, whose values are the attributes; pictures that it cannot score count not.

    Args:
        judge: Any judge, such as `get_judge("oracle/shapes")` or a `clip_zeroshot`.
        name: The property, e.g. "colour".
    """

    def measure(pictures: Sequence[Image.Image], attributes: Sequence[str]) -> list[float]:
        shares = []
        for attribute in attributes:
            asks = [_Ask({name: attribute})] * len(pictures)
            values = [verdict.value for verdict in judge.judge(pictures, asks) if verdict.value is not None]
            if not values:
                raise ValueError(f"expected {judge.name} to score pictures, got none scored")
            shares.append(sum(values) / len(values))
        return shares

    return measure


@dataclass(frozen=True)
class _Ask:
    wants: Mapping[str, str]
    text: str = ""
