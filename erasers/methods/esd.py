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
from erasers.diffusion.latent_bank import LatentBank, Way, ask_again, sample_bank
from erasers.diffusion.needs import Pass
from erasers.diffusion.supported import check_drawable
from erasers.options import require_least
from erasers.text.prompts import Templates, fill, require_templates, templates_for
from erasers.training.foretelling import Demand
from erasers.training.layers import denoiser_layers
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.student import Student, names_of

Method = Literal["auto", "x", "x-strict", "u", "all"]


@dataclass(frozen=True, kw_only=True)
class ESD(TrainedEraser):
    """Train the denoiser to predict the opposite of the concept where it is asked for it.

    The student's prediction with the concept's prompt goes to eps*("") - eta (eps*(c) - eps*("")) of the frozen model,
    on latents that are on their way to pictures of the concept.

    Differs from the official code: `eta` is the paper's (the option `negative_guidance` of the diffusers code is
    eta + 1 for Stable Diffusion, and its default for SDXL trains toward eps*("") alone); latents have the noise of the
    time that the denoiser is told, under any scheduler; pictures have the model's own size; a whole way is drawn every
    `refresh` iterations and learned from in all of them, in place of a part of a fresh way every iteration.

    Args:
        train_method: `x` cross-attention, `x-strict` its keys and values, `u` everything else, `all` both; norms are
            never trained. "auto" is `x` for styles and identities, and `u` if any concept is of another kind.
        eta: Negative guidance, as in the paper.
        drawn_by: Who draws the latents: the `student` as in the paper, or the `frozen` model as in the diffusers code.
        refresh: Iterations after which latents are drawn anew; those of `pictures` ways only by the student.
        guidance: With which the latents are drawn.
        steps: Of their sampler.
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
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "esd-x": {"train_method": "x"},
        "esd-u": {"train_method": "u"},
        "esd-shapes": {
            "iterations": 200,
            "lr": 3e-4,
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

    train_method: Method = "auto"
    eta: float = 1.0
    drawn_by: Literal["student", "frozen"] = "student"
    refresh: int = 10
    guidance: float = 3.0
    steps: int = 50
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
        prompts = len(self.prompts(self.prepared(pipe, concepts)))
        draws = 1 + (self.iterations - 1) // self.refresh if self._draws_anew else 1
        ways = Calls(denoiser=2 * self.steps) * (draws * (prompts * self.pictures or self.batch))
        asked = max(0, self.iterations - self.refresh) if self.drawn_by == "student" else 0
        each = Calls(gradients=self.batch) * self.iterations
        also = Calls(denoiser=self.batch * self.iterations, texts=1) if self.from_concept else Calls()
        return ways + each + also + Calls(denoiser=2 * self.batch * asked, texts=prompts + 1)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        given = as_concepts(concepts)
        names = names_of(pipe, "unet", denoiser_layers(self.method_for(given)))
        latents = 3 * self.steps * len(self._turn(len(self.prompts(given)), 0))
        return Demand(names, [Pass(self.batch, names)], latents=latents)

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
        student = Student(
            pipe,
            names_of(pipe, "unet", denoiser_layers(self.method_for(concepts))),
            rank=self.rank,
            generator=generator,
        )
        adam = torch.optim.Adam(student.parameters, lr=self.lr)

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
        bank = sample_bank(pipe, asked.rows(turn), empty, Way(self.steps, self.guidance), **options)
        return replace(bank, prompts=turn[bank.prompts], prompts_of_pictures=turn)

    def method_for(self, concepts: Sequence[Concept]) -> str:
        """`train_method`, with "auto" worked out."""
        if self.train_method != "auto":
            return self.train_method
        return "x" if all(concept.kind in ("style", "identity") for concept in concepts) else "u"


def target(empty: torch.Tensor, conditional: torch.Tensor, eta: float) -> torch.Tensor:
    """eps*("") - eta (eps*(c) - eps*("")), equation 7 of the paper."""
    return empty - eta * (conditional - empty)


def target_from(whole: torch.Tensor, empty: torch.Tensor, conditional: torch.Tensor, eta: float) -> torch.Tensor:
    """eps*(f) - eta (eps*(c) - eps*("")), the official code's form for a concept c that is erased from f."""
    return whole - eta * (conditional - empty)
