"""DoCo: Wu et al., "Unlearning Concepts in Diffusion Model via Concept Domain Correction and Concept Preserving
Gradient", AAAI 2025, arXiv 2405.15304."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional

from erasers.concept import Concept, Concepts, as_concepts
from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.adaptors.table import denoiser_of
from erasers.diffusion.batches import Summands, mean_in_parts
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import picks
from erasers.diffusion.latent_bank import Way, calls_a_step
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import clean, noise_again
from erasers.diffusion.supported import check_drawable
from erasers.methods.doco.discriminator import Discriminator, fooling_loss, telling_loss
from erasers.options import Auto, known, require_above, require_least
from erasers.text.prompts import Templates
from erasers.training.foretelling import Demand
from erasers.training.layers import denoiser_names
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.scenes import Drawing, Scenes, kept_of, pairs_of
from erasers.training.start_token import start_token_held, starts_alike
from erasers.training.student import Student
from erasers.training.suiting import Kind, at_most, own_guidance

_CLIP = 1.0
_SMALL: Mapping[str, Any] = {
    "iterations": 260,
    "warm_up": 60,
    "lr": 4e-4,
    "rank": 0,
    "discriminator_lr": 5e-4,
    "pictures": 64,
    "steps": 10,
    "guidance": 4.0,
    "kept": 48,
    "prior": "frozen",
    "prior_scale": 30.0,
    "width": 32,
}


@dataclass(frozen=True, kw_only=True)
class DoCo(TrainedEraser):
    """Train cross-attention until a discriminator cannot tell the concept's pictures from the anchor's.

    Pictures of the anchor are noised. From the same x_t, the student predicts x0 with the concept's prompt and the
    frozen model with the anchor's. A discriminator learns to tell the two apart, the student to be taken for the
    frozen model; that gradient loses what would undo the prediction of noise for the anchor's own prompts:

        L_D = BCE(D(x0*(x_t, a)), 0) + BCE(D(x0(x_t, c)), 1)
        g_a = grad BCE(D(x0(x_t, c)), 0)        g_b = grad || eps(x_t, a) - noise ||^2
        g   = g_a - lambda <g_a, g_b> / || g_b ||^2  g_b    for each weight with <g_a, g_b> < 0

    Keys and values of cross-attention are trained, or, where text and picture are one sequence, those of all attention
    and the layers through which text enters. The gradient through keys and values of the start token is stopped, as it
    stands in all prompts; some text encoders have none.
    Transformers get low-rank weights, and so does the UNet of SDXL.

    Differs from the official code: the surgery is a projection (the code subtracts a vector of the length of the
    cosine, whatever the length of g_a) and L_adv has no part in the gradient of the discriminator; `upstream_compat`
    brings both back. The discriminator has group norms in place of batch norms, and fewer strides for small latents.
    The prior loss covers v-prediction; `kept` adds pictures of kept prompts to it, `prior` takes the frozen model's
    prediction for the noise, and `prior_scale` adds its gradient to g. Captions come from templates and from preserved
    captions that name the anchor, in place of a search engine and a language model; there are no zoomed copies. As in
    the paper, x0 is what goes with a prediction at any time, and so is noisier where 1 / sqrt(alpha_bar_t) is large.

    Args:
        iterations: With those of `warm_up`.
        warm_up: Iterations in which the discriminator alone learns.
        discriminator_lr: The paper has 5e-4 for styles.
        weight_decay: Of the student's AdamW.
        batch: Pictures an iteration for each of the two losses.
        pictures: Of the anchor, for each concept; captions take turns.
        kept: Pictures of kept prompts (preserved ones, neighbours, anchors, the empty prompt); the paper has 0.
        steps: Of the sampler that draws the pictures.
        guidance: With which they are drawn; "auto": 6 as in the paper, and a transformer's own.
        captions: Patterns with one `{}` for the concept; none stands for the templates of its kind.
        aliases: Erase the concept's aliases, too.
        surgery: lambda; 0 leaves g_a as it is.
        prior: What the prior loss compares a prediction with: the `noise` as in the paper, or what the `frozen` model
            predicts. Then g_b is 0 for the unedited weights, and all of it is against drift.
        prior_scale: Weight of g_b, added after the surgery; the paper has 0, or 0.1 in place of the surgery.
        width: Of the discriminator.
        upstream_compat: Reproduce both errors of the official code.
    """

    name: ClassVar[str] = "doco"
    paper: ClassVar[str] = "[DoCo](https://arxiv.org/abs/2405.15304)"
    family: ClassVar[str] = "trained, text maps, with a discriminator"
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        "unet": {"lr": 4.8e-5, "rank": 0, "size": None, "guidance": 6.0},
        "large unet": {"lr": 4.8e-4, "rank": 8, "size": None, "guidance": 6.0},
        "transformer": {"lr": 4.8e-4, "rank": 8, "size": at_most(512), "guidance": own_guidance},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "doco-official": {"kept": 0, "everyday": False},
        "doco-shapes": _SMALL,
        "doco-shapes-sd3": {**_SMALL, "rank": 16, "lr": 2e-3},
    }
    strengths: ClassVar[str] = "the anchor takes the concept's place"
    limits: ClassVar[str] = "settings for each concept"

    iterations: int = 2000
    lr: float | Auto = "auto"
    rank: int | Auto = "auto"
    size: int | Auto | None = "auto"
    warm_up: int = 1000
    discriminator_lr: float = 1e-4
    weight_decay: float = 1e-2
    batch: int = 8
    pictures: int = 1000
    kept: int = 200
    steps: int = 25
    guidance: float | Auto = "auto"
    captions: tuple[str, ...] = ()
    aliases: bool = True
    surgery: float = 1.0
    prior: Literal["noise", "frozen"] = "noise"
    prior_scale: float = 0.0
    width: int = 64
    upstream_compat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, warm_up=0, batch=1, pictures=1, kept=0, steps=1, width=4)
        if self.warm_up >= self.iterations:
            raise ValueError(f"expected warm_up below {self.iterations} iterations, got {self.warm_up}")
        require_above("discriminator_lr", self.discriminator_lr, 0)
        if self.width % 4:
            raise ValueError(f"expected width as a multiple of 4, got {self.width}")
        if self.patience:
            raise ValueError(f"expected patience 0, as adversarial losses need not fall, got {self.patience}")
        for caption in self.captions:
            if caption.count("{}") != 1:
                raise ValueError(f"expected captions with one {{}}, got {caption!r}")

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_drawable(pipe)

    @property
    def _templates(self) -> Templates:
        return self.captions or "auto"

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        prepared = self.prepared(pipe, concepts)
        pairs, _ = pairs_of(prepared, self._templates, self.pictures, torch.Generator(), aliases=self.aliases)
        texts = 2 * len(pairs) + len(kept_of(prepared, self._templates, self.kept, torch.Generator())) + 1
        drawn = self.pictures * len(prepared) + self.kept
        learns = self.iterations - self.warm_up
        seen = self.iterations + self.warm_up + (learns if self.prior == "frozen" else 0)
        drawing = calls_a_step(pipe, kept=False) * self.steps * drawn
        return Calls(drawing + self.batch * seen, 2 * self.batch * learns, texts)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`; there are two gradients and what the surgery makes of them."""
        names, size = denoiser_names(pipe, "x-strict"), known(self.suited(pipe).size)
        with torch.device("meta"):
            judge = Discriminator(latent_shape(pipe, size), self.width, torch.Generator())
        beside = sum(parameter.numel() for parameter in judge.parameters())
        latents = self.pictures * len(as_concepts(concepts)) + self.kept
        return Demand(names, [Pass(self.batch, names, size=size)], copies=6, beside=beside, latents=latents)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        pairs, prompts = pairs_of(concepts, self._templates, self.pictures, generator, aliases=self.aliases)
        asked, anchors = (conditions(pipe, [pair[side] for pair in pairs], self.clip_skip) for side in (0, 1))
        kept = kept_of(concepts, self._templates, self.kept, generator)
        way = Way(self.steps, known(self.guidance), size=known(self.size))
        with stage("drawing pictures to learn from", len(prompts) + self.kept) as advance:
            draw = Drawing(pipe, way, generator, advance)
            bad = good = draw(anchors, prompts)
            if kept:
                held = conditions(pipe, kept, self.clip_skip)
                good = bad.beside(draw(held, torch.arange(self.kept) % len(kept)))
        student = Student(pipe, denoiser_names(pipe, "x-strict"), rank=known(self.rank), generator=generator)
        judge = Discriminator(latent_shape(pipe, way.size), self.width, generator).to(denoiser_of(pipe).device)
        contest = Contest(self, pipe, student, judge, bad, good, asked, generator)
        optimizers = {"student": contest.adamw, "discriminator": contest.adam}
        return Training(
            student, contest.step, optimizers, {name: weight.data for name, weight in judge.named_parameters()}
        )


class Contest:
    """The student against the discriminator, iteration by iteration.

    Args:
        options: The eraser.
        pipe: The pipeline.
        student: What is trained.
        judge: The discriminator.
        bad: Pictures of anchors, with the anchors' prompts.
        good: Pictures of the prior loss, with their own prompts.
        asked: Conditions of the concepts' prompts, in the order of those of `bad`.
        generator: Source of every random number.
    """

    def __init__(
        self,
        options: DoCo,
        pipe: Any,
        student: Student,
        judge: Discriminator,
        bad: Scenes,
        good: Scenes,
        asked: Condition,
        generator: torch.Generator,
    ) -> None:
        self.options, self.pipe, self.student, self.judge = options, pipe, student, judge
        self.bad, self.good, self.asked, self.generator = bad, good, asked, generator
        self.alike = starts_alike(cat(asked, bad.conditions, good.conditions))
        decay = options.weight_decay
        self.adamw = torch.optim.AdamW(student.parameters, lr=known(options.lr), weight_decay=decay)
        self.adam = torch.optim.Adam(judge.parameters(), lr=options.discriminator_lr, betas=(0.5, 0.999))

    def step(self, number: int) -> dict[str, float]:
        """One iteration: the student learns after the warm-up, the discriminator always."""
        learns = number >= self.options.warm_up
        index = picks(len(self.bad.pictures), self.options.batch, self.generator)
        noisy, times, _ = noise_again(self.pipe, self.bad.pictures[index], self.generator)
        shown: dict[str, float] = {}
        asked = self.asked.rows(self.bad.prompts[index])
        with self.student.placed(), self.start_held():
            if learns:
                shown["adversarial"], erases, target = self._erase(noisy, times, asked)
            else:
                target = self.picture(noisy, times, asked)
        if learns:
            shown["prior"], preserves = self._preserve()
            self._learn(erases, preserves)
        anchor = self.picture(noisy, times, self.bad.conditions.rows(self.bad.prompts[index]))
        return shown | {"discriminator": self._tell(anchor, target, leak=learns)}

    def start_held(self) -> AbstractContextManager[None]:
        """`start_token_held` where the prompts start alike."""
        return start_token_held(self.pipe) if self.alike else nullcontext()

    def picture(
        self, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, *, gradients: bool = False
    ) -> torch.Tensor:
        """x0 `[n, c, h, w]` that the pipeline, as it now is, predicts."""
        with torch.set_grad_enabled(gradients):
            return clean(self.pipe, noisy, times, predict(self.pipe, noisy, times, condition))

    def _erase(
        self, noisy: torch.Tensor, times: torch.Tensor, asked: Condition
    ) -> tuple[float, list[torch.Tensor], torch.Tensor]:
        """The adversarial loss, its gradients, and x0 `[n, c, h, w]` that the student predicts."""
        seen: list[torch.Tensor] = []

        def fooling(rows: slice) -> torch.Tensor:
            picture = self.picture(noisy[rows], times[rows], asked.part(rows), gradients=True)
            seen.append(picture.detach())
            return fooling_loss(self.judge(picture))

        value, slopes = self._slopes(mean_in_parts(len(noisy), fooling))
        return value, slopes, torch.cat(seen)

    def _slopes(self, loss: Summands) -> tuple[float, list[torch.Tensor]]:
        """The loss, and its gradients for the student with their norm cut; none where they overflowed."""
        self.student.backward(loss, clip=_CLIP)
        return loss.shown["loss"], [weight.grad for weight in self.student.parameters if weight.grad is not None]

    def _learn(self, erases: Sequence[torch.Tensor], preserves: Sequence[torch.Tensor]) -> None:
        """A step of the student, unless gradients are missing."""
        options = self.options
        if not erases or not preserves:
            return
        for weight, g_a, g_b in zip(self.student.parameters, erases, preserves, strict=True):
            g = corrected(g_a, g_b, options.surgery, published=options.upstream_compat)
            weight.grad = g + options.prior_scale * g_b
        self.adamw.step()

    def _preserve(self) -> tuple[float, list[torch.Tensor]]:
        """The prior loss of some pictures of prompts that are kept, and its gradients."""
        index = picks(len(self.good.pictures), self.options.batch, self.generator)
        pictures, rows = self.good.pictures[index], self.good.conditions.rows(self.good.prompts[index])
        noisy, times, truth = noise_again(self.pipe, pictures, self.generator)
        goal = self.goal(truth, noisy, times, rows)

        def error(batch: slice) -> torch.Tensor:
            return functional.mse_loss(predict(self.pipe, noisy[batch], times[batch], rows.part(batch)), goal[batch])

        with self.student.placed(), self.start_held():
            return self._slopes(mean_in_parts(len(noisy), error))

    @torch.no_grad()
    def goal(self, truth: torch.Tensor, noisy: torch.Tensor, times: torch.Tensor, rows: Condition) -> torch.Tensor:
        """What is to be predicted `[n, c, h, w]` where a prompt is kept."""
        return predict(self.pipe, noisy, times, rows) if self.options.prior == "frozen" else truth

    def _tell(self, anchor: torch.Tensor, target: torch.Tensor, *, leak: bool) -> float:
        """A step of the discriminator."""
        leak = leak and self.options.upstream_compat
        loss = telling_loss(self.judge(anchor), self.judge(target), leak=leak)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return float(loss.detach())


def corrected(g_a: torch.Tensor, g_b: torch.Tensor, scale: float = 1.0, *, published: bool = False) -> torch.Tensor:
    """g_a - lambda <g_a, g_b> / ||g_b||^2 g_b where <g_a, g_b> < 0, else g_a, of one weight.

    Args:
        g_a: Gradient that erases.
        g_b: Gradient that preserves, of the same shape.
        scale: lambda.
        published: Subtract lambda cos(g_a, g_b) g_b / ||g_b||, as the official code does; the same where ||g_a|| is 1.
    """
    inner = (g_a * g_b).sum()
    if inner >= 0:
        return g_a
    length = g_a.norm() if published else 1.0
    return g_a - scale * inner / (length * g_b.square().sum()) * g_b
