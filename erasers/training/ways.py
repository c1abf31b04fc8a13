"""What trained erasers share that learn from latents on the way to pictures of what they unlearn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from erasers.concept import Concept, Concepts, as_concepts
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.batches import Summands
from erasers.diffusion.counting import Calls
from erasers.diffusion.latent_bank import LatentBank, Way, ask_again, calls_a_step, sample_bank
from erasers.diffusion.needs import Pass
from erasers.diffusion.supported import check_drawable
from erasers.options import Auto, known, require_least
from erasers.text.contexts import anchored
from erasers.text.prompts import Templates, require_templates
from erasers.training.foretelling import Demand
from erasers.training.layers import denoiser_names
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.student import Student
from erasers.training.suiting import Kind, at_most, kind_of, own_guidance

Method = Literal["auto", "x", "x-strict", "u", "all"]
_PAPER = {"iterations": 1000, "lr": 1e-5, "rank": 0, "size": None, "steps": 50, "guidance": 3.0}
SMALL: Mapping[str, Any] = {
    "iterations": 200,
    "lr": 3e-4,
    "rank": 0,
    "guidance": 3.0,
    "steps": 20,
    "batch": 8,
    "pictures": 4,
    "templates": "auto",
    # Latents of the student soon wander off, and take what is kept with them.
    "train_method": "x",
    "drawn_by": "frozen",
}
"""What suits embedded models."""


class Heard(NamedTuple):
    """What the denoiser reads of prompts, a row for each that is unlearned.

    Args:
        drawn: Of the prompts on the way to whose pictures latents are.
        asked: Of those that the frozen model is asked for again where the student draws.
        named: Of the prompts with the concept.
        empty: Where nothing is asked for, one row.
    """

    drawn: Condition
    asked: Condition
    named: Condition
    empty: Condition


@dataclass(frozen=True, kw_only=True)
class WayEraser(TrainedEraser):
    """A method whose denoiser learns on latents that are on their way to pictures of the concept.

    Args:
        train_method: `x` cross-attention, or, where text and picture are one sequence, all attention and the layers
            through which text enters; `x-strict` keys and values of it, of both, and these layers; `u` everything else,
            `all` both; norms are never trained. "auto" is `x` for styles, identities and transformers, and `u` if any
            concept is of another kind.
        drawn_by: Who draws the latents: the `student` as it learns, or the `frozen` model.
        refresh: Iterations after which latents are drawn anew; those of `pictures` ways only by the student.
        guidance: With which the latents are drawn; "auto": 3, and a transformer's own.
        steps: Of their sampler; "auto": 50, and 28 for transformers.
        pictures: Ways for each name of a concept at a time; 0: one for each latent of an iteration, names taking turns.
        batch: Latents an iteration.
        templates: Patterns with one `{}` for the concept. "auto": those of its kind.
        aliases: Erase the concept's aliases, too.
    """

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

    iterations: int | Auto = "auto"
    lr: float | Auto = "auto"
    rank: int | Auto = "auto"
    size: int | Auto | None = "auto"
    train_method: Method = "auto"
    drawn_by: Literal["student", "frozen"] = "student"
    refresh: int = 10
    guidance: float | Auto = "auto"
    steps: int | Auto = "auto"
    pictures: int = 0
    batch: int = 1
    templates: Templates = ("{}",)
    aliases: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, refresh=1, steps=1, pictures=0, batch=1)
        require_templates("templates", self.templates)

    @abstractmethod
    def hear(self, pipe: Any, concepts: Sequence[Concept]) -> Heard:
        """What the denoiser reads of `prompts` and of what goes with them."""

    def loss(self, pipe: Any, heard: Heard, latents: LatentBank, student: Student) -> Summands:
        """The loss of one iteration, which is derived with the student placed; the frozen model is asked now.

        Args:
            pipe: The pipeline, with its own weights.
            heard: As `hear` gives it.
            latents: Of this iteration, with what the frozen model says of them: `conditional` as asked for, `empty`.
            student: What is trained.
        """
        raise NotImplementedError(f"expected {type(self).__name__} with a loss, or a learn, of its own, got none")

    def beside(
        self, pipe: Any, concepts: Sequence[Concept], heard: Heard, generator: torch.Generator, stage: Stage
    ) -> Any:
        """What `learn` takes beside latents, made once."""
        return None

    def student(self, pipe: Any, concepts: Sequence[Concept], beside: Any, generator: torch.Generator) -> Student:
        """What is trained; `beside` is what the method of that name gave."""
        names = denoiser_names(pipe, self.method_for(pipe, concepts))
        return Student(pipe, names, rank=known(self.rank), generator=generator)

    def lasting(self, beside: Any) -> tuple[dict[str, torch.optim.Optimizer], dict[str, torch.Tensor]]:
        """Optimizers and tensors of what `beside` gave that live through the training, for a checkpoint."""
        return {}, {}

    def learn(
        self, pipe: Any, heard: Heard, latents: LatentBank, student: Student, beside: Any, number: int
    ) -> Mapping[str, float]:
        """Derive the loss of an iteration, whose losses are returned; arguments as for `loss`.

        Args:
            pipe: The pipeline.
            heard: See `loss`.
            latents: See `loss`.
            student: See `loss`.
            beside: As `beside` gives it.
            number: Of the iteration.
        """
        loss = self.loss(pipe, heard, latents, student)
        with student.placed():
            student.backward(loss)
        return loss.shown

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_drawable(pipe)

    def prompts(self, concepts: Sequence[Concept]) -> list[str]:
        """The prompts that are unlearned."""
        return list(self.prompt_pairs(concepts))

    def prompt_pairs(self, concepts: Sequence[Concept]) -> dict[str, str]:
        """Each prompt that is unlearned, and the same with the anchor: for every name, alias and template."""
        return anchored(concepts, self.templates, aliases=self.aliases)

    def method_for(self, pipe: Any, concepts: Sequence[Concept]) -> str:
        """`train_method`, with "auto" worked out."""
        if self.train_method != "auto":
            return self.train_method
        paints = all(concept.kind in ("style", "identity") for concept in concepts)
        return "x" if paints or kind_of(pipe) == "transformer" else "u"

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        own, given = self.suited(pipe), as_concepts(concepts)
        names = denoiser_names(pipe, own.method_for(pipe, given))
        latents = 3 * known(own.steps) * len(own.turn(len(own.prompts(given)), 0))
        return Demand(names, [Pass(own.batch, names, size=known(own.size))], latents=latents)

    def ways(self, pipe: Any, concepts: Concepts) -> Calls:
        """What drawing costs, of one who has what suits the pipeline; texts are not counted."""
        count, iterations = len(self.prompts(self.prepared(pipe, concepts))), known(self.iterations)
        draws = 1 + (iterations - 1) // self.refresh if self.draws_anew else 1
        way = Calls(denoiser=calls_a_step(pipe, kept=True) * known(self.steps))
        return way * (draws * (count * self.pictures or self.batch))

    @property
    def draws_anew(self) -> bool:
        """Whether latents are drawn more than once."""
        return self.drawn_by == "student" or not self.pictures

    def turn(self, prompts: int, number: int) -> torch.Tensor:
        """The prompts `[n]` of whose ways the latents of a draw are, by its number."""
        if self.pictures:
            return torch.arange(prompts).repeat(self.pictures)
        return torch.arange(number * self.batch, (number + 1) * self.batch) % prompts

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        prompts = self.prompts(concepts)
        heard = self.hear(pipe, concepts)
        with stage("drawing what is unlearned", len(self.turn(len(prompts), 0))) as advance:
            bank = self._draw(pipe, heard, 0, generator, advance)
        beside = self.beside(pipe, concepts, heard, generator, stage)
        student = self.student(pipe, concepts, beside, generator)
        adam = torch.optim.Adam(student.parameters, lr=known(self.lr))

        def step(number: int) -> Mapping[str, float]:
            by_student = self.drawn_by == "student" and number >= self.refresh
            if self.draws_anew and number and number % self.refresh == 0:
                with student.placed() if by_student else nullcontext():
                    bank.take(self._draw(pipe, heard, number // self.refresh, generator))
            latents = bank.draw(self.batch, generator)
            if by_student or heard.asked is not heard.drawn:
                latents = ask_again(pipe, latents, heard.asked, heard.empty)
            shown = self.learn(pipe, heard, latents, student, beside, number)
            adam.step()
            return shown

        optimizers, tensors = self.lasting(beside)
        tensors |= bank.tensors() if self.draws_anew else {}
        return Training(student, step, {"adam": adam} | optimizers, tensors)

    def _draw(
        self,
        pipe: Any,
        heard: Heard,
        number: int,
        generator: torch.Generator,
        advance: Callable[[int], None] = lambda count: None,
    ) -> LatentBank:
        """Latents of whole ways, drawn by the pipeline as it now is."""
        turn = self.turn(len(heard.drawn.states), number)
        options: dict[str, Any] = {"rounds": 1, "generator": generator, "advance": advance}
        way = Way(known(self.steps), known(self.guidance), size=known(self.size))
        bank = sample_bank(pipe, heard.drawn.rows(turn), heard.empty, way, **options)
        return replace(bank, prompts=turn[bank.prompts], prompts_of_pictures=turn)
