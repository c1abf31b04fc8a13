"""Few-shot unlearning: Fuchi and Takagi, "Erasing Concepts from Text-to-Image Diffusion Models with Few-shot
Unlearning", BMVC 2024, arXiv 2405.07288."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from erasers.concept import Concept, Concepts, as_concepts
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.batches import Summands, mean_in_parts
from erasers.diffusion.clip import encode
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import denoising_loss
from erasers.diffusion.draws import gaussian, picks
from erasers.diffusion.latent_bank import Way, draw_pictures
from erasers.diffusion.latents import latent_shape, latents_of
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import random_times
from erasers.diffusion.supported import check_supported, layers_read
from erasers.diffusion.tokens import tokenise
from erasers.options import require_above, require_least
from erasers.processes import largest
from erasers.text.contexts import kept_prompts, shuffled, some_kept
from erasers.text.prompts import Templates, fill, require_templates, templates_for
from erasers.training.foretelling import Demand
from erasers.training.layers import encoder_layer
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.pictures import picture
from erasers.training.student import Student, names_of

_PROJECTION = re.compile(r"\.(mlp\.fc[12]|self_attn\.\w+)$")
DRIFT = 0.45
"""What `max_drift="auto"` means: the share of the mean distance between two prompts that a kept one may move."""
_ADAM: dict[str, Any] = {"betas": (0.9, 0.98), "eps": 1e-6}


@dataclass(frozen=True, kw_only=True)
class FewShot(TrainedEraser):
    """Train the text encoder away from a few pictures of the concept.

    Gradient ascent on the denoising loss of textual inversion: with x_t a noised picture and p a prompt of the concept,

        L = - || eps - eps(x_t, t, tau(p)) ||^2

    Trained are the feed-forward parts of all layers of the text encoder tau and the self-attention of its last one.

    The ascent has no end and moves every prompt alike, so it is bounded here. The drift of a kept prompt p is
    ||tau(p) - tau_0(p)|| / ||tau_0(p)||. When that of any of them exceeds `max_drift` after a step, up to `corrections`
    steps of Adam descend on its mean square; when they do not bring it back, the step is undone and training stops.
    On the embedded model, kept prompts draw what they drew before with a drift of 0.5, and do not with 1, which is
    about as far as one prompt is from another there (1.1). Text encoders differ in how far that is, so "auto" bounds
    the drift by 0.45 of the mean distance between two prompts, kept or unlearned, in the same measure.

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
    """

    name: ClassVar[str] = "few_shot"
    paper: ClassVar[str] = "[Few-shot](https://arxiv.org/abs/2405.07288)"
    family: ClassVar[str] = "trained, text encoder"
    sees: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "few_shot-shapes": {
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
    pictures: int = 4
    batch: int = 2
    steps: int = 50
    guidance: float = 7.5
    templates: Templates = "auto"
    max_drift: float | Literal["auto"] | None = "auto"
    corrections: int = 10
    kept: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, pictures=1, batch=1, steps=1, kept=1, corrections=0)
        if isinstance(self.max_drift, (int, float)):
            require_above("max_drift", self.max_drift, 0)
        require_templates("templates", self.templates)

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_supported(pipe)

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
        ways = Calls(denoiser=2 * self.steps) * (self.pictures * len(drawn))
        if isinstance(self.max_drift, str):
            kept += kept + sum(len(self.prompts(concept)) for concept in prepared)
        return ways + each * self.iterations + Calls(texts=sum(drawn) + len(drawn) + kept)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`; with the bound there are the weights before a step, and a second optimizer."""
        given, names = as_concepts(concepts), trained_names(pipe, self.clip_skip)
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
                Shots(self._latents(pipe, concept, generator, advance), tokenise(pipe, self.prompts(concept)))
                for concept in concepts
            ]
        student = Student(pipe, trained_names(pipe, self.clip_skip), rank=self.rank, generator=generator)
        bound = None
        if self.max_drift is not None:
            kept, most = self._kept(concepts, generator), self.max_drift
            if isinstance(most, str):
                prompts = [*kept, *(text for one in concepts for text in self.prompts(one))]
                most = DRIFT * apart(pipe, prompts, self.clip_skip)
            bound = Bound(pipe, student, kept, most, self.corrections, self.lr, self.clip_skip)
        adam = torch.optim.Adam(student.parameters, lr=self.lr, weight_decay=1e-8, **_ADAM)

        def step(number: int) -> dict[str, float]:
            before = [weight.detach().clone() for weight in student.parameters] if bound else []
            latents, ids = draw(shots, self.batch, generator)
            with student.placed():
                loss = ascent_loss(pipe, latents, ids, generator, self.clip_skip)
                student.backward(loss)
            adam.step()
            shown = loss.shown | (bound.hold(before) if bound else {})
            if bound and bound.why and not number:
                raise ValueError(
                    f"expected max_drift that one step keeps to, got {bound.most:.3g}; lower lr or raise it"
                )
            return shown

        optimizers = {"adam": adam} | ({"back": bound.adam} if bound else {})
        return Training(student, step, optimizers, stop=(lambda: bound.why) if bound else (lambda: ""))

    def _drawn_of(self, concept: Concept) -> list[str]:
        """Prompts that pictures are drawn of, in turn."""
        return self.prompts(concept)[: self.pictures]

    def _latents(
        self, pipe: Any, concept: Concept, generator: torch.Generator, advance: Callable[[int], None]
    ) -> torch.Tensor:
        """x_0 `[n, c, h, w]` of the pictures of a concept."""
        if concept.images:
            return latents_of(pipe, [picture(image, side_of(pipe)) for image in concept.images])
        asked, empty = conditions(pipe, self._drawn_of(concept), self.clip_skip), unprompted(pipe)
        turns = torch.arange(self.pictures) % len(asked.states)
        return draw_pictures(pipe, asked.rows(turns), empty, Way(self.steps, self.guidance), generator, advance)

    def _kept(self, concepts: Sequence[Concept], generator: torch.Generator) -> list[str]:
        """The empty prompt and others, up to half of all about neighbours and anchors."""
        *others, empty = some_kept(concepts, self.templates, self.kept, generator)
        return [empty, *others]


@dataclass(frozen=True)
class Shots:
    """Pictures of a concept: x_0 `[n, c, h, w]`, and the token ids `[p, tokens]` of its prompts."""

    latents: torch.Tensor
    ids: torch.Tensor


@dataclass
class Bound:
    """Holds what kept prompts are read as.

    Args:
        pipe: A Stable Diffusion 1 or 2 pipeline.
        student: Trained weights of its text encoder.
        kept: Prompts.
        most: The drift that they may have.
        corrections: Steps back before a step is undone.
        lr: Learning rate of those.
        clip_skip: As for `diffusion.conditions.encode`.
    """

    pipe: Any
    student: Student
    kept: Sequence[str]
    most: float
    corrections: int
    lr: float
    clip_skip: int | None = None
    why: str = field(default="", init=False)
    """Why training has to stop, or ""."""

    def __post_init__(self) -> None:
        self.adam = torch.optim.Adam(self.student.parameters, lr=self.lr, **_ADAM)
        self.ids = tokenise(self.pipe, self.kept)
        with torch.no_grad():
            self.before = encode(self.pipe, self.ids, self.clip_skip).float()

    def hold(self, weights: Sequence[torch.Tensor]) -> dict[str, float]:
        """Go back until no kept prompt is too far, or to the weights before the step; the drift that is left."""
        drift = self.worst()
        for _ in range(self.corrections):
            if drift <= self.most:
                break
            with self.student.placed():
                self.student.backward(self.squares().mean())
            self.adam.step()
            drift = self.worst()
        if not drift <= self.most:
            self.why = f"a kept prompt would drift by {drift:.3g}"
            with torch.no_grad():
                for weight, value in zip(self.student.parameters, weights, strict=True):
                    weight.copy_(value)
            drift = self.worst()
        return {"drift": drift}

    @torch.no_grad()
    def worst(self) -> float:
        """The largest drift, in any process."""
        with self.student.placed():
            return largest(float(self.squares().max().sqrt()), self.before.device)

    def squares(self) -> torch.Tensor:
        """||tau(p) - tau_0(p)||^2 / ||tau_0(p)||^2 `[prompts]`, as the text encoder is now."""
        moved = encode(self.pipe, self.ids, self.clip_skip).float() - self.before
        return moved.square().sum(dim=(1, 2)) / self.before.square().sum(dim=(1, 2))


@torch.no_grad()
def apart(pipe: Any, prompts: Sequence[str], clip_skip: int | None = None) -> float:
    """Mean of ||tau(p) - tau(q)|| / ||tau(p)|| over pairs of two of the distinct prompts.

    Raises:
        ValueError: Fewer than two prompts, or no distance between them.
    """
    texts = list(dict.fromkeys(prompts))
    states = torch.cat([encode(pipe, tokenise(pipe, text), clip_skip).float().flatten(1) for text in texts])
    shares = torch.cdist(states, states) / states.norm(dim=1, keepdim=True)
    mean = float(shares.sum()) / max(1, len(texts) * (len(texts) - 1))
    if not mean > 0:
        raise ValueError(f"expected two prompts that the text encoder tells apart, got {texts!r}; give max_drift")
    return mean


def ascent_loss(
    pipe: Any, latents: torch.Tensor, ids: torch.Tensor, generator: torch.Generator, clip_skip: int | None = None
) -> Summands:
    """L at random times with fresh noise, of pictures `[n, c, h, w]` and token ids `[n, tokens]`."""
    times = random_times(pipe, len(latents), generator).to(latents.device)
    noise, states = gaussian(latents, generator), encode(pipe, ids, clip_skip)

    def ascent(rows: slice) -> torch.Tensor:
        return -denoising_loss(pipe, latents[rows], times[rows], noise[rows], Condition(states[rows]))

    return mean_in_parts(len(latents), ascent)


def draw(shots: Sequence[Shots], count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `count` different pictures, and a random prompt of the concept of each: `[n, c, h, w]`, `[n, tokens]`."""
    every = [(shot, number) for shot in shots for number in range(len(shot.latents))]
    chosen = shuffled(every, count, generator)
    ids = [shot.ids[int(picks(len(shot.ids), 1, generator))] for shot, _ in chosen]
    return torch.stack([shot.latents[number] for shot, number in chosen]), torch.stack(ids)


def trained_names(pipe: Any, clip_skip: int | None = None) -> list[str]:
    """Parameters of the feed-forward parts of all layers that are read, and of the self-attention of the last one."""
    last = layers_read(pipe, clip_skip=clip_skip) - 1

    def wanted(module: nn.Module, path: str) -> bool:
        layer, projection = encoder_layer(path), _PROJECTION.search(path)
        if layer is None or projection is None or not isinstance(module, nn.Linear) or layer > last:
            return False
        return projection[1].startswith("mlp") or layer == last

    return names_of(pipe, "text_encoder", wanted)


def side_of(pipe: Any) -> tuple[int, int]:
    """(width, height) of a picture of the model's own size."""
    *_, height, width = latent_shape(pipe)
    return width * pipe.vae_scale_factor, height * pipe.vae_scale_factor
