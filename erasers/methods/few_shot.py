"""Few-shot unlearning: Fuchi and Takagi, "Erasing Concepts from Text-to-Image Diffusion Models with Few-shot
Unlearning", BMVC 2024, arXiv 2405.07288."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from erasers.concept import Concept, Concepts, as_concepts
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.attacked import attacked_encoders
from erasers.diffusion.batches import Summands, mean_in_parts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import denoising_loss
from erasers.diffusion.draws import gaussian, picks
from erasers.diffusion.latent_bank import Way, calls_a_step, draw_pictures
from erasers.diffusion.latents import latent_shape, latents_of
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import random_times
from erasers.diffusion.supported import check_drawable
from erasers.models.encoder_blocks import in_block
from erasers.models.feeding import Feed, feeds_of
from erasers.options import Auto, known, require_above, require_least
from erasers.processes import largest
from erasers.text.contexts import kept_prompts, shuffled, some_kept
from erasers.text.prompts import Templates, fill, require_templates, templates_for
from erasers.training.foretelling import Demand
from erasers.training.layers import Wanted
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.pictures import picture
from erasers.training.student import Student, names_of
from erasers.training.suiting import Kind, at_most, by_encoders

DRIFT = 0.45
"""What `max_drift="auto"` means: the share of the mean distance between two prompts that a kept one may move."""
_ADAM: dict[str, Any] = {"betas": (0.9, 0.98), "eps": 1e-6}


@dataclass(frozen=True, kw_only=True)
class FewShot(TrainedEraser):
    """Train text encoders away from a few pictures of the concept.

    Gradient ascent on the denoising loss of textual inversion: with x_t a noised picture and p a prompt of the concept,

        L = - || eps - eps(x_t, t, tau(p)) ||^2

    Trained are the feed-forward parts of all layers of the text encoder tau and the self-attention of its last one; of
    several text encoders, those of each, as far as the denoiser reads their layers.

    The ascent has no end and moves every prompt alike, so it is bounded here. The drift of a kept prompt p is
    ||tau(p) - tau_0(p)|| / ||tau_0(p)||. When that of any of them exceeds `max_drift` after a step, up to `corrections`
    steps of Adam descend on its mean square; when they do not bring it back, the step is undone and training stops.
    On the embedded model, kept prompts draw what they drew before with a drift of 0.5, and do not with 1, which is
    about as far as one prompt is from another there (1.1). Text encoders differ in how far that is, so "auto" bounds
    the drift by 0.45 of the mean distance between two prompts, kept or unlearned, in the same measure. Each output of
    each trained encoder, states of tokens and summary of the prompt, has a drift and a bound of its own.

    Differs from the official code: that bound (`max_drift=none` leaves it out); the attention trained is that of the
    last layer whatever its number; iterations in place of epochs, each with a random part of the pictures, so that ten
    stand for five epochs of four pictures; pictures are the mean of the VAE's posterior, are not flipped, and are drawn
    by the model itself when a concept has none; the templates are this library's.

    Args:
        pictures: Drawn of each concept without `images`; those of a concept are all used.
        batch: Pictures an iteration.
        steps: Of the sampler that draws pictures.
        guidance: With which they are drawn.
        templates: Patterns with one `{}` for the concept; "auto": those of its kind.
        max_drift: How far a kept prompt may move, above 0, or "auto"; None has no bound, as published.
        corrections: Steps back after a step too far; 0 stops at once.
        kept: Prompts whose drift is measured: preserved ones, neighbours and anchors in templates, and the empty one.
        encoders: Text encoders that are trained, such as `text_encoder,text_encoder_3`; none: all CLIP ones, or the
            first where the denoiser reads no CLIP.
    """

    name: ClassVar[str] = "few_shot"
    paper: ClassVar[str] = "[Few-shot](https://arxiv.org/abs/2405.07288)"
    family: ClassVar[str] = "trained, text encoder"
    sees: ClassVar[bool] = True
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        "unet": {"lr": 1e-5, "rank": 0, "size": None},
        # Its second text encoder, which SD3 has, too, has eight times the weights of the first.
        "large unet": {"lr": 1e-4, "rank": 16, "size": at_most(768)},
        "transformer": {"lr": by_encoders(1e-5, 1e-4), "rank": by_encoders(0, 16), "size": at_most(512)},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "few_shot-shapes": {
            "rank": 0,
            "iterations": 60,
            "lr": 1e-3,
            "steps": 20,
            "guidance": 4.0,
            "max_drift": 0.15,
            "kept": 64,
        },
    }
    strengths: ClassVar[str] = "seconds, four pictures"
    limits: ClassVar[str] = "blunt: what stays depends on where it is stopped"

    iterations: int = 10
    lr: float | Auto = "auto"
    rank: int | Auto = "auto"
    size: int | Auto | None = "auto"
    pictures: int = 4
    batch: int = 2
    steps: int = 50
    guidance: float = 7.5
    templates: Templates = "auto"
    max_drift: float | Literal["auto"] | None = "auto"
    corrections: int = 10
    kept: int = 32
    encoders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, pictures=1, batch=1, steps=1, kept=1, corrections=0)
        if isinstance(self.max_drift, (int, float)):
            require_above("max_drift", self.max_drift, 0)
        require_templates("templates", self.templates)

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_drawable(pipe)
        attacked_encoders(pipe, self.encoders)

    def prompts(self, concept: Concept) -> list[str]:
        """The distinct prompts that are unlearned with the pictures of a concept."""
        patterns = templates_for(concept, self.templates)
        return list(dict.fromkeys(fill(pattern, term).text for pattern in patterns for term in concept.terms()))

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`; corrections come on top, each with twice the kept prompts."""
        prepared = self.prepared(pipe, concepts)
        drawn = [len(self._drawn_of(concept)) for concept in prepared if not concept.images]
        shown = sum(len(concept.images) or self.pictures for concept in prepared)
        kept = 0 if self.max_drift is None else self._measured(prepared)
        each = Calls(gradients=min(self.batch, shown), texts=min(self.batch, shown) + kept)
        ways = Calls(denoiser=calls_a_step(pipe, kept=False) * self.steps) * (self.pictures * len(drawn))
        if isinstance(self.max_drift, str):
            kept += kept + sum(len(self.prompts(concept)) for concept in prepared)
        return ways + each * known(self.iterations) + Calls(texts=sum(drawn) + len(drawn) + kept)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`; with the bound there are the weights before a step, and a second optimizer."""
        given, names = as_concepts(concepts), trained_names(pipe, self.clip_skip, self.encoders)
        shown = sum(len(concept.images) or self.pictures for concept in given)
        passes = [Pass(min(self.batch, shown), names, min(self.batch, shown))]
        if self.max_drift is not None:
            passes.append(Pass(0, names, self._measured(given)))
        return Demand(names, passes, copies=4 if self.max_drift is None else 7, latents=shown)

    def _measured(self, concepts: Sequence[Concept]) -> int:
        """How many kept prompts' drift is measured."""
        return min(self.kept, sum(map(len, kept_prompts(concepts, self.templates))))

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        count = self.pictures * sum(not concept.images for concept in concepts)
        with stage("drawing pictures of what is unlearned", count) as advance:
            shots = [
                Shots(self._latents(pipe, concept, generator, advance), self.prompts(concept)) for concept in concepts
            ]
        student = Student(
            pipe, trained_names(pipe, self.clip_skip, self.encoders), rank=known(self.rank), generator=generator
        )
        bound = self._bound(pipe, concepts, student, generator)
        adam = torch.optim.Adam(student.parameters, lr=known(self.lr), weight_decay=1e-8, **_ADAM)

        def step(number: int) -> dict[str, float]:
            before = [weight.detach().clone() for weight in student.parameters] if bound else []
            latents, prompts = draw(shots, self.batch, generator)
            with student.placed():
                loss = ascent_loss(pipe, latents, prompts, generator, self.clip_skip)
                student.backward(loss)
            adam.step()
            shown = loss.shown | (bound.hold(before) if bound else {})
            if bound and bound.why and not number:
                raise ValueError(
                    f"expected max_drift that one step keeps to, got {min(bound.most):.3g}; lower lr or raise it"
                )
            return shown

        optimizers = {"adam": adam} | ({"back": bound.adam} if bound else {})
        return Training(student, step, optimizers, stop=(lambda: bound.why) if bound else (lambda: ""))

    def _bound(
        self, pipe: Any, concepts: Sequence[Concept], student: Student, generator: torch.Generator
    ) -> Bound | None:
        if self.max_drift is None:
            return None
        kept, outputs = self._kept(concepts, generator), Outputs(pipe, student, self.clip_skip)
        if isinstance(self.max_drift, str):
            prompts = [*kept, *(text for concept in concepts for text in self.prompts(concept))]
            most = [DRIFT * distance for distance in apart(outputs, prompts)]
        else:
            most = [self.max_drift] * len(outputs)
        return Bound(outputs, student, kept, most, self.corrections, known(self.lr))

    def _drawn_of(self, concept: Concept) -> list[str]:
        """Prompts that pictures are drawn of, in turn."""
        return self.prompts(concept)[: self.pictures]

    def _latents(
        self, pipe: Any, concept: Concept, generator: torch.Generator, advance: Callable[[int], None]
    ) -> torch.Tensor:
        """x_0 `[n, c, h, w]` of the pictures of a concept."""
        if concept.images:
            return latents_of(pipe, [picture(image, side_of(pipe, known(self.size))) for image in concept.images])
        asked, empty = conditions(pipe, self._drawn_of(concept), self.clip_skip), unprompted(pipe)
        turns = torch.arange(self.pictures) % len(asked.states)
        return draw_pictures(
            pipe, asked.rows(turns), empty, Way(self.steps, self.guidance, size=known(self.size)), generator, advance
        )

    def _kept(self, concepts: Sequence[Concept], generator: torch.Generator) -> list[str]:
        """The empty prompt and others, up to half of all about neighbours and anchors."""
        *others, empty = some_kept(concepts, self.templates, self.kept, generator)
        return [empty, *others]


@dataclass(frozen=True)
class Shots:
    """Pictures of a concept: x_0 `[n, c, h, w]`, and its prompts."""

    latents: torch.Tensor
    prompts: Sequence[str]


@dataclass(frozen=True)
class Outputs:
    """What the denoiser reads of trained text encoders: states of tokens and summaries, each an output of its own.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        student: Trained weights of its text encoders.
        clip_skip: As for `diffusion.conditions.conditions`.
    """

    pipe: Any
    student: Student
    clip_skip: int | None = None

    def __len__(self) -> int:
        return sum((feed.tokens is not None) + feed.pooled for feed in self._feeds().values())

    def __call__(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """Each output of prompts, `[prompts, ...]` in float32, as the text encoders are now."""
        adaptor = adaptor_of(self.pipe)
        condition = adaptor.encode(self.pipe, texts, self.clip_skip)
        return [value.float() for name in self._feeds() for value in adaptor.written(self.pipe, condition, name)]

    def _feeds(self) -> dict[str, Feed]:
        trained = {name.partition(".")[0] for name in self.student.names}
        return {name: feed for name, feed in feeds_of(self.pipe).items() if name in trained}


@dataclass
class Bound:
    """Holds what kept prompts are read as.

    Args:
        outputs: What is read.
        student: Trained weights.
        kept: Prompts.
        most: The drift that they may have, in each output.
        corrections: Steps back before a step is undone.
        lr: Learning rate of those.
    """

    outputs: Outputs
    student: Student
    kept: Sequence[str]
    most: Sequence[float]
    corrections: int
    lr: float
    why: str = field(default="", init=False)
    """Why training has to stop, or ""."""

    def __post_init__(self) -> None:
        self.adam = torch.optim.Adam(self.student.parameters, lr=self.lr, **_ADAM)
        with torch.no_grad():
            self.before = self.outputs(self.kept)

    def hold(self, weights: Sequence[torch.Tensor]) -> dict[str, float]:
        """Go back until no kept prompt is too far, or to the weights before the step; the drift that is left."""
        drifts = self.worst()
        for _ in range(self.corrections):
            if self._allows(drifts):
                break
            with self.student.placed():
                self.student.backward(self.excess())
            self.adam.step()
            drifts = self.worst()
        if not self._allows(drifts):
            self.why = f"a kept prompt would drift by {self._nearest(drifts):.3g}"
            with torch.no_grad():
                for weight, value in zip(self.student.parameters, weights, strict=True):
                    weight.copy_(value)
            drifts = self.worst()
        return {"drift": self._nearest(drifts)}

    @torch.no_grad()
    def worst(self) -> list[float]:
        """The largest drift in each output, in any process."""
        with self.student.placed():
            return [
                largest(float(squares.max().sqrt()), before.device)
                for squares, before in zip(self.squares(), self.before, strict=True)
            ]

    def excess(self) -> torch.Tensor:
        """The mean square of all drifts, those with a wider bound in its measure."""
        shares = [min(self.most) / most for most in self.most]
        means = [squares.mean() * share**2 for squares, share in zip(self.squares(), shares, strict=True)]
        return torch.stack(means).mean()

    def squares(self) -> list[torch.Tensor]:
        """||tau(p) - tau_0(p)||^2 / ||tau_0(p)||^2 `[prompts]` in each output, as the text encoders are now."""
        pairs = zip(self.outputs(self.kept), self.before, strict=True)
        return [_squares(now - before) / _squares(before) for now, before in pairs]

    def _allows(self, drifts: Sequence[float]) -> bool:
        return all(drift <= most for drift, most in zip(drifts, self.most, strict=True))

    def _nearest(self, drifts: Sequence[float]) -> float:
        """The drift that is the largest for its bound."""
        return max(zip(drifts, self.most, strict=True), key=lambda pair: pair[0] / pair[1])[0]


def _squares(values: torch.Tensor) -> torch.Tensor:
    """||x||^2 `[n]` of `[n, ...]`."""
    return values.square().sum(dim=tuple(range(1, values.dim())))


@torch.no_grad()
def apart(outputs: Outputs, prompts: Sequence[str]) -> list[float]:
    """Mean of ||tau(p) - tau(q)|| / ||tau(p)|| over pairs of two of the distinct prompts, in each output.

    Raises:
        ValueError: Fewer than two prompts, or no distance between them.
    """
    texts = list(dict.fromkeys(prompts))
    columns = zip(*(outputs([text]) for text in texts), strict=True)
    means = []
    for values in columns:
        states = nn.utils.rnn.pad_sequence([value.flatten() for value in values], batch_first=True)
        shares = torch.cdist(states, states) / states.norm(dim=1, keepdim=True)
        mean = float(shares.sum()) / max(1, len(texts) * (len(texts) - 1))
        if not mean > 0:
            raise ValueError(f"expected two prompts that the text encoder tells apart, got {texts!r}; give max_drift")
        means.append(mean)
    return means


def ascent_loss(
    pipe: Any, latents: torch.Tensor, texts: Sequence[str], generator: torch.Generator, clip_skip: int | None = None
) -> Summands:
    """L at random times with fresh noise, of pictures `[n, c, h, w]` and as many prompts."""
    times = random_times(pipe, len(latents), generator).to(latents.device)
    noise, condition = gaussian(latents, generator), adaptor_of(pipe).encode(pipe, texts, clip_skip)

    def ascent(rows: slice) -> torch.Tensor:
        return -denoising_loss(pipe, latents[rows], times[rows], noise[rows], condition.part(rows))

    return mean_in_parts(len(latents), ascent)


def draw(shots: Sequence[Shots], count: int, generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
    """At most `count` different pictures `[n, c, h, w]`, and a random prompt of the concept of each."""
    every = [(shot, number) for shot in shots for number in range(len(shot.latents))]
    chosen = shuffled(every, count, generator)
    prompts = [shot.prompts[int(picks(len(shot.prompts), 1, generator))] for shot, _ in chosen]
    return torch.stack([shot.latents[number] for shot, number in chosen]), prompts


def trained_names(pipe: Any, clip_skip: int | None = None, encoders: Sequence[str] = ()) -> list[str]:
    """Parameters of the feed-forward parts of all layers that are read, and of the self-attention of the last one."""
    feeds = feeds_of(pipe, clip_skip)
    chosen = attacked_encoders(pipe, encoders)
    return [name for encoder in chosen for name in names_of(pipe, encoder, _wanted(feeds[encoder].blocks - 1))]


def _wanted(last: int) -> Wanted:
    """The layers that are trained of an encoder of which that block is the last one that is read."""

    def wanted(module: nn.Module, path: str) -> bool:
        place = in_block(path)
        if place is None or not isinstance(module, nn.Linear) or place.number > last:
            return False
        return place.part == "feed-forward" or (place.part == "attention" and place.number == last)

    return wanted


def side_of(pipe: Any, size: int | None = None) -> tuple[int, int]:
    """(width, height) of a picture of so many pixels; None: of the model's own size."""
    *_, height, width = latent_shape(pipe, size)
    return width * pipe.vae_scale_factor, height * pipe.vae_scale_factor
