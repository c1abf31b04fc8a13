"""ESD: Gandikota et al., "Erasing Concepts from Diffusion Models", ICCV 2023, arXiv 2303.07345."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional

from erasers.concept import Concept, Concepts, as_concepts
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.batches import mean_in_parts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import LatentBank, Way, ask_again, calls_a_step, sample_bank
from erasers.diffusion.needs import Pass
from erasers.diffusion.supported import check_drawable
from erasers.options import Auto, known, require_least
from erasers.text.prompts import Templates, fill, require_templates, templates_for
from erasers.training.foretelling import Demand
from erasers.training.layers import denoiser_names
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.student import Student
from erasers.training.suiting import Kind, at_most, kind_of, own_guidance

Method = Literal["auto", "x", "x-strict", "u", "all"]
_PAPER = {"iterations": 1000, "lr": 1e-5, "rank": 0, "size": None, "steps": 50, "guidance": 3.0}


@dataclass(frozen=True, kw_only=True)
class ESD(TrainedEraser):
    """Train the denoiser to predict the opposite of the concept where it is asked for it.

    The student's prediction with the concept's prompt goes to eps*("") - eta (eps*(c) - eps*("")) of the frozen model,
    on latents that are on their way to pictures of the concept. Along a flow the predictions are velocities; models
    that read a guidance scale are asked at 1, and draw at their own.

    Differs from the official code: `eta` is the paper's (the option `negative_guidance` of the diffusers code is
    eta + 1 for Stable Diffusion, and its default for SDXL trains toward eps*("") alone); latents have the noise of the
    time that the denoiser is told, under any scheduler; pictures have the model's own size; a whole way is drawn every
    `refresh` iterations and learned from in all of them, in place of a part of a fresh way every iteration.

    Transformers get low-rank weights, as in EraseAnything (arXiv 2412.20413), on pictures of 512 pixels; the UNet of
    SDXL gets some, too.

    Args:
        train_method: `x` cross-attention, or all attention where text and picture are one sequence; `x-strict` its keys
            and values, of both; `u` everything else, `all` both; norms are never trained. "auto" is `x` for styles,
            identities and transformers, and `u` if any concept is of another kind.
        eta: Negative guidance, as in the paper.
        drawn_by: Who draws the latents: the `student` as in the paper, or the `frozen` model as in the diffusers code.
        refresh: Iterations after which latents are drawn anew; those of `pictures` ways only by the student.
        guidance: With which the latents are drawn; "auto": 3 as in the paper, and a transformer's own.
        steps: Of their sampler; "auto": 50 as in the paper, and 28 for transformers.
        pictures: Ways for each name of a concept at a time; 0: one for each latent of an iteration, names taking turns.
        batch: Latents an iteration; the paper has 1.
        templates: Patterns with one `{}` for the concept; the paper has the bare name. "auto": those of its kind.
        aliases: Erase the concept's aliases, too.
        from_concept: Erase the concept from this alone, as a hat from a cowboy: its prediction f, on the way to its
            pictures, goes to eps*(f) - eta (eps*(c) - eps*("")). None erases the concept itself.
    """

    name: ClassVar[str] = "esd"
    paper: ClassVar[str] = "[ESD](https://arxiv.org/abs/2303.07345)"
    family: ClassVar[str] = "trained, denoiser"
    keeps: ClassVar[bool] = False
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        "unet": _PAPER,
        "large unet": _PAPER | {"iterations": 500, "lr": 2e-4, "rank": 8},
        "transformer": {
            "iterations": 200,
            "lr": 1e-3,
            "rank": 8,
            "size": at_most(512),
            "steps": 28,
            "guidance": own_guidance,
        },
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "esd-x": {"train_method": "x"},
        "esd-u": {"train_method": "u"},
        "esd-shapes": {
            "iterations": 200,
            "lr": 3e-4,
            "rank": 0,
            "guidance": 3.0,
            "steps": 20,
            "batch": 8,
            "pictures": 4,
            "refresh": 50,
            "templates": "auto",
            # Latents of the student soon wander off, and take what is kept with them.
            "train_method": "x",
            "drawn_by": "frozen",
        },
    }
    strengths: ClassVar[str] = "no pictures needed"
    limits: ClassVar[str] = "the style stays; found by attacks it was not trained on"

    iterations: int | Auto = "auto"
    lr: float | Auto = "auto"
    rank: int | Auto = "auto"
    size: int | Auto | None = "auto"
    train_method: Method = "auto"
    eta: float = 1.0
    drawn_by: Literal["student", "frozen"] = "student"
    refresh: int = 10
    guidance: float | Auto = "auto"
    steps: int | Auto = "auto"
    pictures: int = 0
    batch: int = 1
    templates: Templates = ("{}",)
    aliases: bool = True
    from_concept: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, refresh=1, steps=1, pictures=0, batch=1)
        require_templates("templates", self.templates)
        if self.from_concept is not None and not self.from_concept.strip():
            raise ValueError("expected from_concept as text with at least one letter, got none")

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_drawable(pipe)

    def prompts(self, concepts: Sequence[Concept]) -> list[str]:
        """The prompts that are unlearned."""
        prompts = [
            fill(template, term).text
            for concept in concepts
            for term in concept.terms(aliases=self.aliases)
            for template in templates_for(concept, self.templates)
        ]
        return list(dict.fromkeys(prompts))

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        own = self.suited(pipe)
        prompts, iterations = len(own.prompts(own.prepared(pipe, concepts))), known(own.iterations)
        draws = 1 + (iterations - 1) // own.refresh if own._draws_anew else 1
        way = Calls(denoiser=calls_a_step(pipe, kept=True) * known(own.steps))
        ways = way * (draws * (prompts * own.pictures or own.batch))
        asked = max(0, iterations - own.refresh) if own.drawn_by == "student" else 0
        each = Calls(gradients=own.batch) * iterations
        also = Calls(denoiser=own.batch * iterations, texts=1) if own.from_concept else Calls()
        return ways + each + also + Calls(denoiser=2 * own.batch * asked, texts=prompts + 1)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        own, given = self.suited(pipe), as_concepts(concepts)
        names = denoiser_names(pipe, own.method_for(pipe, given))
        latents = 3 * known(own.steps) * len(own._turn(len(own.prompts(given)), 0))
        return Demand(names, [Pass(own.batch, names, size=known(own.size))], latents=latents)

    @property
    def _draws_anew(self) -> bool:
        return self.drawn_by == "student" or not self.pictures

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        prompts = self.prompts(concepts)
        asked, empty = conditions(pipe, prompts, self.clip_skip), unprompted(pipe)
        drawn = asked
        if self.from_concept:
            only = conditions(pipe, [self.from_concept], self.clip_skip)
            drawn = only.rows(torch.zeros(len(prompts), dtype=torch.long))
        with stage("drawing what is unlearned", len(self._turn(len(prompts), 0))) as advance:
            bank = self._draw(pipe, drawn, empty, 0, generator, advance)
        names = denoiser_names(pipe, self.method_for(pipe, concepts))
        student = Student(pipe, names, rank=known(self.rank), generator=generator)
        adam = torch.optim.Adam(student.parameters, lr=known(self.lr))

        def step(number: int) -> dict[str, float]:
            by_student = self.drawn_by == "student" and number >= self.refresh
            if self._draws_anew and number and number % self.refresh == 0:
                with student.placed() if by_student else nullcontext():
                    bank.take(self._draw(pipe, drawn, empty, number // self.refresh, generator))
            latents = bank.draw(self.batch, generator)
            if by_student:
                latents = ask_again(pipe, latents, drawn, empty)
            if self.from_concept:
                with torch.no_grad():
                    named = predict(pipe, latents.latents, latents.times, asked.rows(latents.prompts))
                goal = target_from(latents.conditional, latents.empty, named, self.eta)
            else:
                goal = target(latents.empty, latents.conditional, self.eta)

            def error(rows: slice) -> torch.Tensor:
                condition = drawn.rows(latents.prompts[rows])
                return functional.mse_loss(
                    predict(pipe, latents.latents[rows], latents.times[rows], condition), goal[rows]
                )

            loss = mean_in_parts(self.batch, error)
            with student.placed():
                student.backward(loss)
            adam.step()
            return loss.shown

        return Training(student, step, {"adam": adam}, bank.tensors() if self._draws_anew else {})

    def _turn(self, prompts: int, number: int) -> torch.Tensor:
        """The prompts `[n]` of whose ways the latents of a draw are, by its number."""
        if self.pictures:
            return torch.arange(prompts).repeat(self.pictures)
        return torch.arange(number * self.batch, (number + 1) * self.batch) % prompts

    def _draw(
        self,
        pipe: Any,
        asked: Condition,
        empty: Condition,
        number: int,
        generator: torch.Generator,
        advance: Callable[[int], None] = lambda count: None,
    ) -> LatentBank:
        """Latents of whole ways, drawn by the pipeline as it now is."""
        turn = self._turn(len(asked.states), number)
        options: dict[str, Any] = {"rounds": 1, "generator": generator, "advance": advance}
        way = Way(known(self.steps), known(self.guidance), size=known(self.size))
        bank = sample_bank(pipe, asked.rows(turn), empty, way, **options)
        return replace(bank, prompts=turn[bank.prompts], prompts_of_pictures=turn)

    def method_for(self, pipe: Any, concepts: Sequence[Concept]) -> str:
        """`train_method`, with "auto" worked out."""
        if self.train_method != "auto":
            return self.train_method
        paints = all(concept.kind in ("style", "identity") for concept in concepts)
        return "x" if paints or kind_of(pipe) == "transformer" else "u"


def target(empty: torch.Tensor, conditional: torch.Tensor, eta: float) -> torch.Tensor:
    """eps*("") - eta (eps*(c) - eps*("")), equation 7 of the paper."""
    return empty - eta * (conditional - empty)


def target_from(whole: torch.Tensor, empty: torch.Tensor, conditional: torch.Tensor, eta: float) -> torch.Tensor:
    """eps*(f) - eta (eps*(c) - eps*("")), the official code's form for a concept c that is erased from f."""
    return whole - eta * (conditional - empty)
