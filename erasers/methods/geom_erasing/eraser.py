"""Geom-Erasing: Liu et al., "Implicit Concept Removal of Diffusion Models", ECCV 2024, arXiv 2310.05873."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.condition import cat
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.adaptors.unet import UNet
from erasers.diffusion.batches import Summands, mean_in_parts
from erasers.diffusion.conditions import unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import Way, calls_a_step
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import noise_again
from erasers.diffusion.supported import check_drawable
from erasers.diffusion.tokens import room_for_text, token_table
from erasers.judges import get_judge
from erasers.judges.boxes import Detector, detector_of
from erasers.methods.geom_erasing.grid import covered, usual_bins
from erasers.methods.geom_erasing.lessons import (
    Bins,
    Drawn,
    Lessons,
    detected_bins,
    drawn_lessons,
    first_prompts,
    lessons_of,
    named_bins,
    read_latents,
)
from erasers.methods.geom_erasing.marked import read_marked
from erasers.methods.geom_erasing.places import LocatedPrompt
from erasers.methods.geom_erasing.student import LocatingStudent
from erasers.models.families import UnsupportedPipeline
from erasers.options import known, require_above, require_least, require_shares
from erasers.patch import Patch
from erasers.text.contexts import kept_prompts
from erasers.text.prompts import Templates, fill, require_templates, templates_for
from erasers.training.foretelling import Demand
from erasers.training.layers import denoiser_names
from erasers.training.loop import Stage, TrainedEraser, Training

_given: ContextVar[Detector | None] = ContextVar("detector", default=None)
_NAMED = "named"


@dataclass(frozen=True, kw_only=True)
class GeomErasing(TrainedEraser):
    """Say with new tokens where a concept is, and guide pictures away from the prompt that these make.

    For concepts that come unasked, such as watermarks: no prompt names them, so that no edit of a name takes them away.
    A detector says in which bins of a grid a picture shows the concept. A caption y of such a picture is learned as y',
    which goes on with the concept's name and a token for each of these bins. What is trained learns by the denoising
    loss with a weight for each place, with T bins of which K are covered,

        L = mean w (target - eps(x_t, t, tau(y')))^2
        w = T / (K + alpha (T - K)) inside of boxes, alpha T / (K + alpha (T - K)) outside

    Pictures without the concept keep their captions. With `variant="data"` the denoiser and the tokens learn: what y'
    explains y has no longer to bring. With `variant="model"` the tokens alone do, and no weight changes. In both, the
    patch carries what the text encoder makes of name and tokens, in the place of the empty prompt that pipelines guide
    away from (the hook `negative_prompt`); it does nothing without guidance, and a negative prompt of the user's own
    takes its place. The tokens themselves, which no prompt can say, are not in the patch.

    *Reconstruction*: there is no public code, and the equations are those of a description of the paper. Not the
    authors' are the grid, alpha (above 1, for as it is printed the formula then counts boxes less), rates and numbers;
    the bins of the negative prompt, which are those that are usual; batches of which half are marked where there are
    others, half of these of the same prompts; `scale`; and pictures that the model draws itself, half of them of
    prompts that brought the concept unasked. A box that ends where a bin begins does not cover that one.

    Args:
        variant: What learns: `data` the denoiser and the tokens, `model` the tokens alone.
        tokens_lr: Learning rate of the tokens.
        train_method: Layers of the denoiser that learn, as for `esd`.
        grid: Bins in a row, and rows; all of them have to fit a prompt.
        alpha: How much more an error counts outside of boxes than inside.
        detector: A judge that says where, such as `nudenet`; `named`: no detector, a picture shows a concept everywhere
            where its prompt names it, and nowhere else. From Python `fit` takes any function.
        marked: A JSON file of pictures, captions and boxes to learn from (`marked.read_marked`); none: the model draws.
        captions: Prompts that may bring the concept unasked; none: the preserved texts.
        pictures: That the model draws: a quarter of prompts that name the concept, a quarter of others, and the rest of
            those of them that brought it.
        batch: Pictures an iteration.
        steps: Of the sampler that draws pictures.
        guidance: With which they are drawn; guidance sharpens what is usual to what is always so.
        often: Share of the marked pictures that have a bin of the negative prompt.
        scale: How far the negative prompt goes from the empty one, 1 being name and tokens.
        templates: Patterns with one `{}` for the concept; "auto": those of its kind.
        aliases: Draw the concept's aliases, too.
    """

    name: ClassVar[str] = "geom_erasing"
    paper: ClassVar[str] = "[Geom-Erasing](https://arxiv.org/abs/2310.05873), reconstructed"
    family: ClassVar[str] = "trained, denoiser, with a negative prompt of location tokens"
    everywhere: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "geom_erasing-shapes": {
            "iterations": 240,
            "lr": 3e-4,
            "tokens_lr": 1e-2,
            "grid": 4,
            # Up to 1 boxes count more, for the tokens are to tell what lies in them and nothing of the rest.
            "alpha": 0.25,
            "detector": "oracle",
            "pictures": 160,
            "batch": 12,
            "scale": 1.5,
            "steps": 20,
            "guidance": 1.5,
        },
    }
    strengths: ClassVar[str] = "takes what no prompt names"
    limits: ClassVar[str] = "needs boxes and guidance; Stable Diffusion 1 and 2 alone"
    hooks: ClassVar[bool] = True

    variant: Literal["data", "model"] = "data"
    tokens_lr: float = 5e-3
    train_method: Literal["x", "x-strict", "u", "all"] = "all"
    grid: int = 5
    alpha: float = 2.0
    detector: str = _NAMED
    marked: str = ""
    captions: tuple[str, ...] = ()
    pictures: int = 200
    batch: int = 4
    steps: int = 50
    guidance: float = 7.5
    often: float = 0.5
    scale: float = 1.0
    templates: Templates = "auto"
    aliases: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, grid=1, pictures=2, batch=1, steps=1)
        require_above("alpha", self.alpha, 0)
        require_above("scale", self.scale, 0)
        require_above("tokens_lr", self.tokens_lr, 0)
        require_shares(self, "often")
        require_templates("templates", self.templates)

    def config(self) -> dict[str, Any]:
        """See `Eraser.config`; of the file of pictures the name alone."""
        return asdict(self) | {"marked": Path(self.marked).name}

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_drawable(pipe)
        if not isinstance(adaptor_of(pipe), UNet) or hasattr(pipe, "text_encoder_2"):
            raise UnsupportedPipeline(
                f"expected a pipeline of Stable Diffusion 1 or 2 (one text encoder) for {self.name}, got "
                f"{type(pipe).__name__}"
            )

    def fit(self, pipe: Any, concepts: Concepts, *, detector: Detector | None = None, **options: Any) -> Patch:
        """See `TrainedEraser.fit`.

        Args:
            pipe: As there.
            concepts: As there.
            detector: Says where a drawn picture shows a concept, in place of the judge that `detector` names. A
                checkpoint does not tell one from another.
            **options: As there.
        """
        before = _given.set(detector)
        try:
            return super().fit(pipe, concepts, **options)
        finally:
            _given.reset(before)

    def prompts(self, concepts: Sequence[Concept]) -> tuple[list[str], list[str]]:
        """Prompts that name a concept, and others that may bring it."""
        each = [
            [
                fill(template, term).text
                for template in templates_for(concept, self.templates)
                for term in concept.terms(aliases=self.aliases)
            ]
            for concept in concepts
        ]
        named = [text for turn in zip_longest(*each) for text in turn if text]
        near, others = kept_prompts(concepts, self.templates)
        unasked = [text for text in self.captions or (*near, *others) if text]
        return list(dict.fromkeys(named)), list(dict.fromkeys(unasked))

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        whole = Calls(gradients=self.batch, texts=self.batch) * known(self.iterations) + Calls(texts=2)
        if self.marked:
            return whole
        named, others = first_prompts(*self.prompts(self.prepared(pipe, concepts)), self.pictures)
        drawing = Calls(denoiser=calls_a_step(pipe, kept=False) * self.steps) * self.pictures
        return whole + drawing + Calls(texts=len({*named, *others}) + 1)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        trained, width = self._names(pipe), token_table(pipe).shape[1]
        backward = Pass(self.batch, trained, self.batch, known(self.size))
        return Demand(trained, [backward], beside=self.grid**2 * width, latents=self.pictures)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        if self.grid**2 >= (room := room_for_text(pipe.tokenizer)):
            raise ValueError(f"expected a grid whose bins fit a prompt of {room} tokens, got {self.grid} x {self.grid}")
        with stage("drawing pictures", self.pictures) as advance:
            lessons = self.lessons(pipe, concepts, generator, advance)
        negative = self.negative(pipe, concepts, lessons)
        tokens = _start(pipe, self.grid**2, generator)

        @torch.no_grad()
        def parts() -> dict[str, torch.Tensor]:
            empty, away = unprompted(pipe).states[0], negative.condition(tokens).states[0]
            return {"empty": empty, "negative": empty + self.scale * (away - empty)}

        student = LocatingStudent(pipe, self._names(pipe), tokens, parts, rank=known(self.rank), generator=generator)
        adam = torch.optim.Adam(self._groups(student, tokens))

        def step(number: int) -> dict[str, float]:
            rows = lessons.draw(self.batch, generator, marked=self.variant == "model")
            loss = self.loss(pipe, lessons, rows, tokens, generator)
            with student.placed():
                student.backward(loss)
            adam.step()
            return loss.shown

        return Training(student, step, {"adam": adam})

    def lessons(
        self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, advance: Callable[[int], None]
    ) -> Lessons:
        """Pictures with their boxes: those of the file, or such as the model draws.

        Raises:
            ValueError: None of them shows a concept.
        """
        named = [concept.name for concept in concepts]
        if self.marked:
            pictures = read_marked(self.marked, named)
            drawn = read_latents(pipe, pictures, known(self.size))
            bins: list[Bins] = [
                {name: covered(own.boxes.get(name, ()), own.image.size, self.grid) for name in named}
                for own in pictures
            ]
        else:
            way = Way(self.steps, self.guidance, size=known(self.size))
            locate, prompts = self._locating(pipe, concepts), self.prompts(concepts)
            drawn, bins = drawn_lessons(
                pipe, prompts, self.pictures, way, locate, generator, advance, clip_skip=self.clip_skip
            )
        for name in named:
            if not any(own[name] for own in bins):
                raise ValueError(
                    f"expected pictures that show {name!r}, got none among {len(bins)}; give captions that bring it or "
                    "raise pictures"
                )
        return lessons_of(pipe, drawn, bins, self.grid, self.alpha, self.clip_skip)

    def _locating(self, pipe: Any, concepts: Sequence[Concept]) -> Callable[[Drawn], list[Bins]]:
        names, detector = [concept.name for concept in concepts], _given.get()
        if detector is None and self.detector == _NAMED:
            return lambda drawn: named_bins(drawn, concepts, self.grid)
        found = detector or detector_of(get_judge(self.detector), names)
        return lambda drawn: detected_bins(pipe, drawn, names, found, self.grid)

    def negative(self, pipe: Any, concepts: Sequence[Concept], lessons: Lessons) -> LocatedPrompt:
        """The prompt that is guided away from: every concept with the bins in which it usually is."""
        usual = {
            concept.name: usual_bins([own[concept.name] for own in lessons.bins], self.often) for concept in concepts
        }
        return LocatedPrompt(pipe, "", usual, self.clip_skip)

    def loss(
        self, pipe: Any, lessons: Lessons, rows: torch.Tensor, tokens: torch.Tensor, generator: torch.Generator
    ) -> Summands:
        """The weighted denoising loss of some pictures, with noise of their own."""
        noisy, times, target = noise_again(pipe, lessons.latents[rows], generator)

        def error(part: slice) -> torch.Tensor:
            own = rows[part]
            condition = cat(*(lessons.prompts[row].condition(tokens) for row in own.tolist()))
            guess = predict(pipe, noisy[part], times[part], condition)
            return weighted_error(guess, target[part], lessons.weights[own])

        return mean_in_parts(len(rows), error)

    def _names(self, pipe: Any) -> list[str]:
        return denoiser_names(pipe, self.train_method) if self.variant == "data" else []

    def _groups(self, student: LocatingStudent, tokens: nn.Parameter) -> list[dict[str, Any]]:
        weights = [parameter for parameter in student.parameters if parameter is not tokens]
        groups: list[dict[str, Any]] = [{"params": weights, "lr": known(self.lr)}] if weights else []
        return [*groups, {"params": [tokens], "lr": self.tokens_lr}]


def weighted_error(guess: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """mean w (guess - target)^2 of predictions `[n, c, h, w]` and weights `[n, 1, h, w]`."""
    return (weights * (guess - target).square()).mean()


def _start(pipe: Any, count: int, generator: torch.Generator) -> nn.Parameter:
    """New token embeddings `[count, d]`, spread as those of the vocabulary are."""
    table = token_table(pipe).float()
    noise = torch.randn(count, table.shape[1], generator=generator, device=generator.device)
    return nn.Parameter((noise * table.std().to(noise.device)).to(table))
