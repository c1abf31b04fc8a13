"""Robust ablation: an eraser of this library's own, trained against attacks that live as long as the training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional

from erasers.concept import Concept, Concepts, as_concepts
from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.batches import Piece, Summands, errors_in_parts, parts, together
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import picks
from erasers.diffusion.gradients import unmixed
from erasers.diffusion.latent_bank import Way, calls_a_step
from erasers.diffusion.low_rank import attention_layers
from erasers.diffusion.needs import Pass
from erasers.diffusion.rates import MEASUREMENTS, Rate, require_rate
from erasers.diffusion.supported import check_drawable
from erasers.methods.robust_ablation.pool import Maker, Pool, distance_from_truth
from erasers.methods.robust_ablation.relearner import Relearner
from erasers.methods.robust_ablation.soft_bank import SoftBank
from erasers.methods.uce import UCE
from erasers.options import Auto, known, require_least
from erasers.text.contexts import contexts, shuffled, some_kept
from erasers.text.prompts import Templates
from erasers.training.foretelling import Demand
from erasers.training.layers import denoiser_names
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.student import Student
from erasers.training.suiting import Kind, at_most, own_guidance

_BATCH = 16
_WARM = 20
_MULTIPLIER_RATE = 0.05
_MULTIPLIERS = (0.1, 100.0)


@dataclass(frozen=True, kw_only=True)
class RobustAblation(TrainedEraser):
    """Train the denoiser to draw the anchor where it would draw the concept, whatever words ask for it.

    Pictures of the concept are drawn by the pipeline itself and noised. On them the student eps learns, with eps* the
    frozen model, c a prompt of the concept, a the same prompt with the anchor, and s soft tokens of a bank:

        L = (|| eps(x_t, c) - eps*(x_t, a) ||^2 + || eps(x_t, s) - eps*(x_t, a) ||^2) / S  +  lambda L_keep / S
        L_keep = || eps(y_t, p) - eps*(y_t, p) ||^2 on pictures y of prompts p that are kept, and of them without p,
        S = mean || eps*(x_t, c) - eps*(x_t, a) ||^2

    The bank attacks the student all the while: in every iteration its soft tokens take steps of Adam on
    || eps(x_t, s) - noise ||^2, which is textual inversion, and a part of it starts anew from random words every
    `restart` iterations. With `relearn_scale` low-rank weights attack, too: they learn the concept anew from its own
    prompts, start anew every `relearn_restart` iterations, and beside them the student learns eps*(x_t, a) as well.
    L_keep / S is held at `drift` by its multiplier lambda: a constraint, not a weight.

    Args:
        pictures: Drawn of each concept; prompts take turns.
        kept: Pictures of kept prompts: preserved ones, neighbours and anchors in templates, and the empty prompt.
        noises: Times and noises of each picture, for which the frozen model is asked once.
        steps: Of the sampler that draws the pictures.
        guidance: With which they are drawn; "auto": 5, and a transformer's own.
        batch: Noised pictures of concepts an iteration, once with their prompts and once with soft tokens.
        kept_batch: Noised pictures of kept prompts an iteration.
        drift: Where L_keep / S is held.
        erase_scale: Weight of the prompts' part of the loss.
        attack_scale: Weight of the soft tokens' part; 0 trains without attacks.
        bank: Soft prompts that live.
        tokens: Numbers of soft tokens; the soft prompts take turns.
        encoders: Text encoders that soft tokens are in; none: all of CLIP, or the first where none is of CLIP.
        attack_steps: Steps of the bank an iteration.
        attack_lr: Of its Adam; "auto" is a quarter of a typical coordinate of the token table (`diffusion.rates`).
        restart: Iterations after which a half of the bank starts anew.
        relearn_scale: Weight of the part of the loss with relearned weights; 0 trains without.
        relearn_steps: Their steps an iteration.
        relearn_lr: Of their AdamW; "auto" is that at which the first step moves the prediction by 5 %
            (`diffusion.rates`).
        relearn_rank: Of them.
        relearn_restart: Iterations after which they start anew.
        train: `all` layers, `attention` or `cross` attention, which is all attention where text and picture are one
            sequence; "auto": `all` of a UNet as small as that of Stable Diffusion 1, `attention` of others.
        start: `uce` starts from that edit instead of the unedited weights; only with rank 0.
        templates: Patterns with one `{}` for the concept; "auto" takes those of its kind.
    """

    name: ClassVar[str] = "robust_ablation"
    paper: ClassVar[str] = "of this library"
    family: ClassVar[str] = "trained, denoiser, against attacks"
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        "unet": {"size": None, "guidance": 5.0, "train": "all"},
        # All layers of these, added up in float32 with their gradients, fit no usual GPU.
        "large unet": {"size": None, "guidance": 5.0, "train": "attention"},
        "transformer": {"size": at_most(512), "guidance": own_guidance, "train": "attention"},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "robust_ablation-shapes": {
            "iterations": 300,
            "lr": 2e-3,
            "steps": 20,
            "guidance": 4.0,
            "kept_batch": 20,
            "attack_lr": 0.02,
            "relearn_lr": 5e-3,
            "train": "all",
        },
    }
    strengths: ClassVar[str] = "the denoiser forgets how to draw it"
    limits: ClassVar[str] = "minutes; fine-tuning brings some of it back"

    iterations: int = 500
    lr: float = 2e-4
    rank: int = 16
    size: int | Auto | None = "auto"
    pictures: int = 48
    kept: int = 192
    noises: int = 8
    steps: int = 30
    guidance: float | Auto = "auto"
    batch: int = 6
    kept_batch: int = 16
    drift: float = 0.002
    erase_scale: float = 1.0
    attack_scale: float = 1.0
    bank: int = 8
    tokens: tuple[int, ...] = (1, 2, 4)
    encoders: tuple[str, ...] = ()
    attack_steps: int = 2
    attack_lr: Rate = "auto"
    restart: int = 60
    relearn_scale: float = 1.0
    relearn_steps: int = 2
    relearn_lr: Rate = "auto"
    relearn_rank: int = 8
    relearn_restart: int = 15
    train: Literal["auto", "all", "attention", "cross"] = "auto"
    start: Literal["none", "uce"] = "none"
    templates: Templates = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, pictures=1, kept=1, noises=1, steps=1, batch=1, kept_batch=1, bank=1, restart=1)
        require_least(self, relearn_rank=1, relearn_restart=1)
        for name in ("attack_lr", "relearn_lr"):
            require_rate(name, getattr(self, name))
        if not self.tokens or min(self.tokens) < 1:
            raise ValueError(f"expected tokens of at least 1, got {self.tokens}")
        if self.start != "none" and self.rank:
            raise ValueError(f"expected rank 0 to start from {self.start}, got rank {self.rank}")

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_drawable(pipe)

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        prepared = self.prepared(pipe, concepts)
        drawn = self.pictures * len(prepared) + self.kept
        asked = sum(min(self.pictures, len(contexts(concept, self.templates))) for concept in prepared)
        texts = 2 * asked + len(self._kept(prepared, torch.Generator())) + 1
        attacks = self.batch * (self.attack_steps + 1) if self.attack_scale else 0
        relearned = self.batch * (self.relearn_steps + 1) if self.relearn_scale else 0
        each = Calls(gradients=self.batch + self.kept_batch + attacks + relearned, texts=attacks)
        shift = Calls(denoiser=4 * _BATCH)
        if self.measures:
            shift += Calls(denoiser=MEASUREMENTS * self.batch, gradients=self.batch)
        return (
            Calls(denoiser=drawn * (calls_a_step(pipe, kept=False) * self.steps + self.noises), texts=texts)
            + shift
            + each * self.iterations
        )

    @property
    def measures(self) -> bool:
        """Whether the rate of relearned weights is measured before training."""
        return bool(self.relearn_scale) and isinstance(self.relearn_lr, str)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        names = denoiser_names(pipe, known(self.train))
        layers: dict[str, Any] = attention_layers(pipe)
        attention = [f"{name}.weight" for name in layers]
        size = sum(layer.in_features + layer.out_features for layer in layers.values()) * self.relearn_rank
        # What the student learns at once: both parts of a batch, what is kept, and the part with relearned weights.
        samples = self.batch * (1 + bool(self.attack_scale)) + self.kept_batch
        pixels = known(self.suited(pipe).size)
        passes = [Pass(samples + self.batch * bool(self.relearn_scale), {*names, *attention}, size=pixels)]
        if self.attack_scale:
            passes.append(Pass(self.batch, (), self.batch, pixels, self.encoders))
        latents = 3 * self.noises * (self.pictures * len(as_concepts(concepts)) + self.kept)
        return Demand(names, passes, beside=size, latents=latents)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        pairs, owners = self._pairs(concepts, generator)
        kept = self._kept(concepts, generator)
        asked, anchors = (conditions(pipe, [pair[side] for pair in pairs], self.clip_skip) for side in (0, 1))
        held, empty = conditions(pipe, kept, self.clip_skip), unprompted(pipe)
        count = len(concepts) * self.pictures
        with stage("drawing pictures to learn from", (count + self.kept) * (self.noises + 1)) as advance:
            way = Way(self.steps, known(self.guidance), _BATCH, known(self.size))
            maker = Maker(pipe, empty, way, self.noises, generator, advance)
            bad, good = maker.make(asked, anchors, count), maker.make(held, held, self.kept, blank=kept.index(""))
        student = Student(pipe, denoiser_names(pipe, known(self.train)), rank=self.rank, generator=generator)
        if self.start == "uce":
            start_from_uce(student, pipe, concepts, self.clip_skip)
        soft = SoftBank(pipe, self.bank, self.tokens, generator, clip_skip=self.clip_skip, encoders=self.encoders)
        groups = [torch.nonzero(owners[bad.prompts] == number)[:, 0] for number in range(len(concepts))]
        fight = Fight(self, pipe, student, soft, bad, good, asked, held, groups, generator)
        tensors = {"soft": soft.vectors.data, "soft-scale": soft.scale.state, "multiplier": fight.multiplier}
        tensors |= fight.relearner.tensors()
        optimizers = {"adam": fight.defender, "attacker": fight.attacker, "relearner": fight.relearner.optimizer}
        return Training(student, fight.step, optimizers, tensors)

    def _pairs(
        self, concepts: Sequence[Concept], generator: torch.Generator
    ) -> tuple[list[tuple[str, str]], torch.Tensor]:
        """(prompt, anchor prompt) of all concepts, at most one for each picture, and the concept of each `[n]`."""
        pairs: list[tuple[str, str]] = []
        owners: list[int] = []
        for number, concept in enumerate(concepts):
            chosen = shuffled(contexts(concept, self.templates), self.pictures, generator)
            pairs += chosen
            owners += [number] * len(chosen)
        return pairs, torch.tensor(owners)

    def _kept(self, concepts: Sequence[Concept], generator: torch.Generator) -> list[str]:
        """At most one kept prompt for each picture, up to half of them about neighbours and anchors, and ""."""
        return some_kept(concepts, self.templates, self.kept, generator)


class Fight:
    """The student against the bank, iteration by iteration.

    Args:
        options: The eraser.
        pipe: The pipeline.
        student: What is trained.
        soft: What attacks it.
        bad: Pictures of the concepts, with the anchors' predictions.
        good: Pictures of kept prompts, with their own.
        asked: Conditions of the prompts of `bad`.
        held: Conditions of the prompts of `good`.
        groups: Rows of `bad` of each concept; these take turns.
        generator: Source of every random number.
    """

    def __init__(
        self,
        options: RobustAblation,
        pipe: Any,
        student: Student,
        soft: SoftBank,
        bad: Pool,
        good: Pool,
        asked: Condition,
        held: Condition,
        groups: Sequence[torch.Tensor],
        generator: torch.Generator,
    ) -> None:
        self.options, self.pipe, self.student, self.soft = options, pipe, student, soft
        self.bad, self.good, self.asked, self.held = bad, good, asked, held
        self.groups, self.generator = groups, generator
        self.multiplier = torch.tensor(_MULTIPLIERS[0] / max(options.drift, 1e-3))
        self.defender = torch.optim.Adam(student.parameters, lr=options.lr)
        self.attacker = torch.optim.Adam([soft.vectors], lr=soft.rate(options.attack_lr))
        self.relearner = Relearner(pipe, options.relearn_rank, options.relearn_lr, generator)
        if options.measures:
            pool = bad.rows(torch.arange(min(options.batch, len(bad.times))))
            self.relearner.measure(pool, asked.rows(pool.prompts))
        self.shift = self._shift()

    @torch.no_grad()
    def _shift(self) -> float:
        """S: how far the prompts of a part of the pictures are from their anchors."""
        pool = self.bad.rows(picks(len(self.bad.times), 4 * _BATCH, self.generator))
        asked = self.asked.rows(pool.prompts)
        guesses = [
            predict(self.pipe, pool.noisy[rows], pool.times[rows], asked.part(rows)) for rows in parts(len(pool.times))
        ]
        return float(functional.mse_loss(torch.cat(guesses), pool.goal))

    def step(self, number: int) -> dict[str, float]:
        """One iteration: the bank attacks, the student learns, the multiplier follows."""
        options = self.options
        if number and number % options.restart == 0:
            self.soft.restart(self.attacker, number // options.restart, self.generator)
        if number and number % options.relearn_restart == 0:
            self.relearner.restart(self.generator)
        bad = self.bad.rows(self._draw(options.batch))
        keep = self.good.rows(picks(len(self.good.times), options.kept_batch, self.generator))
        rows = self.soft.turn(number, options.batch)
        with self.student.placed():
            if options.attack_scale:
                self._attack(bad, rows)
            if options.relearn_scale:
                self.relearner.learn(bad, self.asked.rows(bad.prompts), options.relearn_steps)
            loss = Summands(self._pieces(bad, keep, rows), self._total)
            self.student.backward(loss, clip=1.0)
        self.defender.param_groups[0]["lr"] = options.lr * schedule(number, options.iterations)
        self.defender.step()
        excess = max(-1.0, min(1.0, loss.shown["drift"] / options.drift - 1))
        self.multiplier.mul_(math.exp(_MULTIPLIER_RATE * excess)).clamp_(*_MULTIPLIERS)
        return loss.shown

    def _total(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        options = self.options
        weights = {"erase": options.erase_scale, "attack": options.attack_scale, "relearn": options.relearn_scale}
        return torch.stack([weights.get(name, self.multiplier) * loss for name, loss in losses.items()]).sum()

    def _draw(self, count: int) -> torch.Tensor:
        """Rows of pictures of the concepts in turn `[count]`."""
        turns = [self.groups[number % len(self.groups)] for number in range(count)]
        return torch.stack([group[int(picks(len(group), 1, self.generator))] for group in turns])

    def _attack(self, bad: Pool, rows: torch.Tensor) -> None:
        """Steps of the bank on || eps(x_t, s) - noise ||^2."""
        for _ in range(self.options.attack_steps):
            loss = distance_from_truth(self.pipe, bad, self.soft.condition(rows))
            self.soft.scale.set(loss, [self.soft.vectors])
            self.attacker.step()

    def _pieces(self, bad: Pool, keep: Pool, rows: torch.Tensor) -> list[Piece]:
        """The parts of the loss over S, all of them from one piece where they may go through the denoiser together."""
        own = self._own(bad, keep, rows)
        if not self.options.relearn_scale:
            return own
        with_relearned = self._with_relearned(bad)
        if not together(self.options.batch * (2 + bool(self.options.attack_scale)) + len(keep.times)):
            return [*own, *with_relearned]
        return [lambda: {**own[0](), **with_relearned[0]()}]

    def _with_relearned(self, bad: Pool) -> list[Piece]:
        """The loss of the prompts with relearned weights beside the student."""
        asked = self.asked.rows(bad.prompts)

        def guess(rows: slice) -> torch.Tensor:
            with self.relearner.added():
                return predict(self.pipe, bad.noisy[rows], bad.times[rows], asked.part(rows))

        return self._over_shift(errors_in_parts({"relearn": bad.goal}, guess))

    def _own(self, bad: Pool, keep: Pool, rows: torch.Tensor) -> list[Piece]:
        """The other parts, from one pass of the denoiser."""
        batches = {"erase": (bad, self.asked.rows(bad.prompts))}
        if self.options.attack_scale:
            with torch.no_grad():
                batches["attack"] = bad, self.soft.condition(rows)
        batches["drift"] = keep, self.held.rows(keep.prompts)
        pools = [pool for pool, _ in batches.values()]
        noisy, times = torch.cat([pool.noisy for pool in pools]), torch.cat([pool.times for pool in pools])
        condition = cat(*(condition for _, condition in batches.values()))

        def guess(rows: slice) -> torch.Tensor:
            return predict(self.pipe, noisy[rows], times[rows], condition.part(rows))

        return self._over_shift(errors_in_parts({name: pool.goal for name, (pool, _) in batches.items()}, guess))

    def _over_shift(self, pieces: Sequence[Piece]) -> list[Piece]:
        def divided(piece: Piece) -> dict[str, torch.Tensor]:
            return {name: loss / self.shift for name, loss in piece().items()}

        return [partial(divided, piece) for piece in pieces]


def schedule(number: int, iterations: int) -> float:
    """Share of the learning rate in an iteration: it rises for twenty, and falls like a cosine."""
    return min(1.0, (number + 1) / _WARM) * 0.5 * (1 + math.cos(math.pi * number / iterations))


@torch.no_grad()
def start_from_uce(student: Student, pipe: Any, concepts: Sequence[Concept], clip_skip: int | None = None) -> None:
    """Give the student the weights of UCE's edit of the same concepts."""
    trained = student.tensors()
    with unmixed(student.parameters[0]):
        uce = UCE(rows="tail", templates="auto", clip_skip=clip_skip)
        for name, edit in uce.fit(pipe, list(concepts)).changes.items():
            if f"{name}/0" in trained:
                trained[f"{name}/0"].copy_(edit.apply(trained[f"{name}/0"], 1.0))
