"""Concept Sliders: Gandikota et al., ECCV 2024, arXiv 2311.12092, as an eraser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from erasers.concept import Concept, Concepts, as_concepts
from erasers.diffusion.counting import Calls
from erasers.diffusion.supported import check_drawable
from erasers.methods.leco.eraser import LECO
from erasers.methods.leco.pair import Pair
from erasers.options import Auto, known, require_above, require_least
from erasers.text.prompts import Templates, fill, require_templates, templates_for
from erasers.training.foretelling import Demand
from erasers.training.layers import crosses
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.suiting import Kind, at_most, own_guidance

Layers = Literal["auto", "uncrossed", "attention", "cross", "blocks"]
_UNET = {"size": None, "steps": 50, "guidance": 3.0}


@dataclass(frozen=True, kw_only=True)
class ConceptSlider(TrainedEraser):
    """Train one low-rank direction that takes the concept away at strength 1, and brings more of it at -1.

    With d the direction, the student's prediction with the concept's prompt c goes to

        eps_{+d}(c) -> eps*(u) - eta (eps*(c) - eps*(u))        eps_{-d}(c) -> eps*(u) + eta (eps*(c) - eps*(u))

    of the frozen model, on latents that the slider itself draws at that strength; u is the empty prompt, or an
    attribute that is to stay. The slider's own scale is the strength with its sign turned round: a negative scale
    erases. `LECO` trains it; the pairs are these.

    A patch of low rank fits every model of one architecture: `Patch.apply(other, force=True)` puts a slider of a base
    model on a distilled one.

    Differs from the official code: both signs are trained, in turns, where that code trains one and trusts that the
    other follows (`both_signs=False`); it is of linear layers alone, so not of convolutions; pictures are guided away
    from u; and what LECO does otherwise.

    Args:
        eta: How far beyond u the prediction goes.
        attributes: Texts that stay, such as "red" for red stars: a pair for each, whose u is that text.
        both_signs: Train strength -1, too.
        layers: Of blocks with attention: `uncrossed` all but cross-attention, as in the paper, `attention` all of it,
            `cross` that with the text, `blocks` all. "auto" is `uncrossed`, and `attention` where text and picture are
            one sequence.
        alpha: What is added to a weight is alpha / rank B A.
        batch: Latents an iteration.
        drawn_by: Who draws the latents: the `student` as in the paper, or the `frozen` model.
        refresh: Iterations after which latents of one pair are drawn anew.
        steps: Of the sampler; "auto": 50, and 28 for transformers.
        guidance: With which the latents are drawn; "auto": 3, and a transformer's own.
        templates: Patterns with one `{}` for the concept; the paper has the bare name. "auto": those of its kind.
        aliases: Erase the concept's aliases, too.
    """

    name: ClassVar[str] = "concept_slider"
    paper: ClassVar[str] = "[Concept Sliders](https://arxiv.org/abs/2311.12092)"
    family: ClassVar[str] = "trained, denoiser, low rank"
    keeps: ClassVar[bool] = False
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        "unet": _UNET,
        "large unet": _UNET,
        "transformer": {"size": at_most(512), "steps": 28, "guidance": own_guidance},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "concept_slider-shapes": {
            "eta": 3.0,
            "layers": "blocks",
            "iterations": 360,
            "lr": 5e-3,
            "alpha": 4.0,
            "batch": 4,
            "templates": "auto",
            "steps": 20,
            "guidance": 3.0,
            "drawn_by": "frozen",
            "refresh": 1000,
        },
    }
    strengths: ClassVar[str] = "a scale with two ends; goes on to distilled models"
    limits: ClassVar[str] = "moves what looks alike, too"

    iterations: int = 1000
    lr: float = 2e-4
    rank: int = 4
    size: int | Auto | None = "auto"
    eta: float = 1.0
    attributes: tuple[str, ...] = ()
    both_signs: bool = True
    layers: Layers = "auto"
    alpha: float = 1.0
    batch: int = 1
    drawn_by: Literal["student", "frozen"] = "student"
    refresh: int = 10
    steps: int | Auto = "auto"
    guidance: float | Auto = "auto"
    templates: Templates = ("{}",)
    aliases: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, rank=1, batch=1, refresh=1, steps=1)
        require_above("alpha", self.alpha, 0)
        require_above("eta", self.eta, 0)
        require_templates("templates", self.templates)

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_drawable(pipe)
        self.suited(pipe).training(pipe, as_concepts(self.name)).check_pipe(pipe)

    def pairs(self, concepts: Sequence[Concept]) -> Iterator[Pair]:
        """What is learned from: every name in every template with every attribute, at strength 1 and at -1."""
        for concept in concepts:
            for term in concept.terms(aliases=self.aliases):
                for template in templates_for(concept, self.templates):
                    for attribute in self.attributes or ("",):
                        target = fill(template, f"{attribute} {term}".strip()).text
                        shared: dict[str, Any] = {"guidance_scale": self.eta, "batch": self.batch}
                        yield Pair(target=target, unconditional=attribute, **shared)
                        if self.both_signs:
                            yield Pair(
                                target=target, unconditional=attribute, action="enhance", multiplier=-1.0, **shared
                            )

    def training(self, pipe: Any, concepts: Sequence[Concept]) -> LECO:
        """What trains these pairs, of one who has what suits the pipeline."""
        layers = self.layers
        if layers == "auto":
            layers = "uncrossed" if crosses(pipe) else "attention"
        same = ("iterations", "lr", "rank", "alpha", "drawn_by", "refresh", "patience", "clip_skip")
        return LECO(
            pairs=tuple(self.pairs(concepts)),
            layers=layers,
            steps=known(self.steps),
            guidance=known(self.guidance),
            size=known(self.size),
            max_sequence_length=self.max_sequence_length,
            **{name: getattr(self, name) for name in same},
        )

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        own = self.suited(pipe)
        given = own.prepared(pipe, concepts)
        return own.training(pipe, given).cost(pipe, given)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        own, given = self.suited(pipe), as_concepts(concepts)
        return own.training(pipe, given).demand(pipe, given)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        return self.training(pipe, concepts).prepare(pipe, concepts, generator, stage)
