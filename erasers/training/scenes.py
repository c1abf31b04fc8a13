"""Pictures that the pipeline draws to learn from: of a concept or of what takes its place, and of what is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from erasers.concept import Concept, Concepts, as_concepts
from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.batches import Summands, errors_in_parts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import picks
from erasers.diffusion.latent_bank import Way, calls_a_step, draw_pictures
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import noise_again
from erasers.diffusion.supported import check_drawable
from erasers.options import Auto, known, require_least
from erasers.text.contexts import contexts, kept_prompts, shuffled
from erasers.text.prompts import Templates, require_templates
from erasers.training.foretelling import Demand
from erasers.training.layers import denoiser_names
from erasers.training.loop import Stage, TrainedEraser
from erasers.training.student import Student


class Scenes(NamedTuple):
    """Pictures and what they show.

    Args:
        pictures: x_0 `[n, c, h, w]`.
        prompts: Number of the prompt of each `[n]`.
        conditions: Of the prompts.
    """

    pictures: torch.Tensor
    prompts: torch.Tensor
    conditions: Condition

    def beside(self, other: Scenes) -> Scenes:
        """These and others."""
        return Scenes(
            torch.cat([self.pictures, other.pictures]),
            torch.cat([self.prompts, other.prompts + len(self.conditions.states)]),
            cat(self.conditions, other.conditions),
        )

    def picked(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Random ones `[count, c, h, w]`, and the numbers of their prompts."""
        index = picks(len(self.pictures), count, generator)
        return self.pictures[index], self.prompts[index]


class Noised(NamedTuple):
    """Noised pictures, what the student is told of them, and what it is to predict.

    Args:
        noisy: x_t `[n, c, h, w]`.
        times: t `[n]`.
        told: Conditions `[n]`.
        goal: `[n, c, h, w]`.
    """

    noisy: torch.Tensor
    times: torch.Tensor
    told: Condition
    goal: torch.Tensor


class Lesson(NamedTuple):
    """What a student learns from.

    Args:
        asked: Conditions of prompts with the concept.
        anchors: Those of the same prompts with the anchor, in the same order.
        drawn: Pictures of one of both; their numbers are those of the pairs.
        held: Pictures whose prompts are kept; None where there are none.
    """

    asked: Condition
    anchors: Condition
    drawn: Scenes
    held: Scenes | None


@dataclass(frozen=True, kw_only=True)
class SceneEraser(TrainedEraser):
    """A method that learns from noised pictures, which the pipeline itself draws: what to predict where the concept is
    asked for, and where others are, as ever.

    Args:
        batch: Pictures an iteration for each part of the loss.
        pictures: Drawn for each concept; prompts take turns.
        kept: Pictures of kept prompts (preserved ones, neighbours, anchors, the empty prompt).
        steps: Of the sampler that draws the pictures.
        guidance: With which they are drawn; "auto": 6, and a transformer's own.
        templates: Patterns with one `{}` for the concept; "auto" takes those of its kind.
        aliases: Erase the concept's aliases, too.
        teacher: Who says what is predicted for the anchor: the `frozen` model, or the `student` without gradients.
        prior: What is to be predicted where a prompt is kept: the `noise`, or what the `frozen` model says.
        prior_scale: Weight of that; 0 leaves it out.
        train_method: `x-strict` keys and values of cross-attention; `x` all of it; `all` layers. Where text and picture
            are one sequence, those of all attention, and the layers through which text enters.
    """

    draws: ClassVar[Literal["anchor", "concept"]]
    """Whose pictures are drawn beside those of what is kept; those of anchors are kept, too."""

    iterations: int | Auto = "auto"
    lr: float | Auto = "auto"
    rank: int | Auto = "auto"
    size: int | Auto | None = "auto"
    batch: int = 8
    pictures: int = 200
    kept: int = 200
    steps: int = 25
    guidance: float | Auto = "auto"
    templates: Templates = "auto"
    aliases: bool = True
    teacher: Literal["frozen", "student"] = "frozen"
    prior: Literal["noise", "frozen"] = "noise"
    prior_scale: float = 1.0
    train_method: Literal["auto", "x-strict", "x", "all"] = "x-strict"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, batch=1, pictures=1, kept=0, steps=1, prior_scale=0)
        require_templates("templates", self.templates)

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_drawable(pipe)

    def latents(self, concepts: Concepts) -> int:
        """How many pictures are drawn."""
        return self.pictures * len(as_concepts(concepts)) + self.kept

    def drawing(self, pipe: Any, concepts: Concepts) -> Calls:
        """What drawing costs, with the texts."""
        prepared = self.prepared(pipe, concepts)
        pairs, _ = pairs_of(prepared, self.templates, self.pictures, torch.Generator(), aliases=self.aliases)
        texts = 2 * len(pairs) + len(kept_of(prepared, self.templates, self.kept, torch.Generator())) + 1
        return Calls(calls_a_step(pipe, kept=False) * self.steps * self.latents(prepared), texts=texts)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        own = self.suited(pipe)
        names = denoiser_names(pipe, known(own.train_method))
        samples = self.batch * (1 + bool(self.prior_scale))
        return Demand(names, [Pass(samples, names, size=known(own.size))], latents=self.latents(concepts))

    def lesson(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Lesson:
        """Draw the pictures."""
        pairs, prompts = pairs_of(concepts, self.templates, self.pictures, generator, aliases=self.aliases)
        asked, anchors = (conditions(pipe, [pair[side] for pair in pairs], self.clip_skip) for side in (0, 1))
        kept = kept_of(concepts, self.templates, self.kept, generator)
        with stage("drawing pictures to learn from", self.latents(concepts)) as advance:
            draw = Drawing(pipe, Way(self.steps, known(self.guidance), size=known(self.size)), generator, advance)
            drawn = draw(asked if self.draws == "concept" else anchors, prompts)
            held = drawn if self.draws == "anchor" else None
            if kept:
                others = draw(conditions(pipe, kept, self.clip_skip), torch.arange(self.kept) % len(kept))
                held = others if held is None else held.beside(others)
        return Lesson(asked, anchors, drawn, held)

    def goal(self, pipe: Any, noised: Noised, anchors: Condition, student: Student) -> torch.Tensor:
        """What is to be predicted `[n, c, h, w]` where the concept is asked for: what is said of the anchor.

        Args:
            pipe: The pipeline, with its own weights.
            noised: Pictures, with what a perfect denoiser predicts as their goal.
            anchors: Of their prompts with the anchor.
            student: What is trained.
        """
        with torch.no_grad(), student.placed() if self.teacher == "student" else nullcontext():
            return predict(pipe, noised.noisy, noised.times, anchors)

    def batches(self, pipe: Any, lesson: Lesson, student: Student, generator: torch.Generator) -> dict[str, Noised]:
        """What an iteration learns from: `erase`, and `prior` where that counts."""
        pictures, rows = lesson.drawn.picked(self.batch, generator)
        erase = noised(pipe, pictures, lesson.asked.rows(rows), generator)
        batches = {"erase": erase._replace(goal=self.goal(pipe, erase, lesson.anchors.rows(rows), student))}
        if self.prior_scale and lesson.held is not None:
            pictures, rows = lesson.held.picked(self.batch, generator)
            prior = noised(pipe, pictures, lesson.held.conditions.rows(rows), generator)
            if self.prior == "frozen":
                with torch.no_grad():
                    prior = prior._replace(goal=predict(pipe, prior.noisy, prior.times, prior.told))
            batches["prior"] = prior
        return batches

    def loss(self, pipe: Any, batches: Mapping[str, Noised]) -> Summands:
        """L of batches that go through the denoiser as one; derived with the student placed."""
        several = list(batches.values())
        noisy, times = torch.cat([batch.noisy for batch in several]), torch.cat([batch.times for batch in several])
        told = cat(*(batch.told for batch in several))

        def guess(rows: slice) -> torch.Tensor:
            return predict(pipe, noisy[rows], times[rows], told.part(rows))

        pieces = errors_in_parts({name: batch.goal for name, batch in batches.items()}, guess)
        return Summands(pieces, partial(weighted, scale=self.prior_scale))


def weighted(losses: Mapping[str, torch.Tensor], scale: float) -> torch.Tensor:
    """L_erase + scale L_prior, of those that there are."""
    return torch.stack([loss * (scale if name == "prior" else 1.0) for name, loss in losses.items()]).sum()


def noised(pipe: Any, pictures: torch.Tensor, told: Condition, generator: torch.Generator) -> Noised:
    """Pictures at random times with fresh noise, whose goal is what a perfect denoiser predicts."""
    noisy, times, truth = noise_again(pipe, pictures, generator)
    return Noised(noisy, times, told, truth)


class Drawing:
    """How pictures are drawn: the pipeline, the way, the source of noise, and who is told of every picture."""

    def __init__(self, pipe: Any, way: Way, generator: torch.Generator, advance: Callable[[int], None]) -> None:
        self._pipe, self._way, self._generator, self._advance = pipe, way, generator, advance
        self._empty = unprompted(pipe)

    def __call__(self, condition: Condition, prompts: torch.Tensor) -> Scenes:
        """Pictures of these rows of a condition."""
        rows = condition.rows(prompts)
        drawn = draw_pictures(self._pipe, rows, self._empty, self._way, self._generator, self._advance)
        return Scenes(drawn, prompts, condition)


def pairs_of(
    concepts: Sequence[Concept],
    templates: Templates,
    pictures: int,
    generator: torch.Generator,
    *,
    aliases: bool = True,
) -> tuple[list[tuple[str, str]], torch.Tensor]:
    """(Prompt, the same with the anchor) of all concepts, and the number of the pair of each picture `[n]`."""
    pairs: list[tuple[str, str]] = []
    numbers = []
    for concept in concepts:
        chosen = shuffled(contexts(concept, templates, aliases=aliases), pictures, generator)
        numbers.append(torch.arange(pictures) % len(chosen) + len(pairs))
        pairs += chosen
    return pairs, torch.cat(numbers)


def kept_of(concepts: Sequence[Concept], templates: Templates, count: int, generator: torch.Generator) -> list[str]:
    """At most one kept prompt for each picture, up to half of them about neighbours and anchors."""
    near, others = kept_prompts(concepts, templates)
    chosen = shuffled(near, max(count // 2, count - len(others)), generator)
    return chosen + shuffled(others, count - len(chosen), generator)
