"""AdvUnlearn: Zhang et al., "Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion
Models", NeurIPS 2024, arXiv 2405.15234."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.nn import functional

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.attacked import attacked_encoders
from erasers.diffusion.batches import Piece, Summands, errors_in_parts, mean_in_parts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import picks
from erasers.diffusion.gradients import LossScale
from erasers.diffusion.latent_bank import LatentBank, Way, calls_a_step, sample_bank
from erasers.diffusion.needs import Pass
from erasers.diffusion.rates import Rate, require_rate, token_rate
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.supported import check_drawable
from erasers.diffusion.tokens import token_table, tokenizer_of
from erasers.methods.esd import target
from erasers.models.encoder_blocks import in_block, is_behind
from erasers.models.feeding import Feed, feeds_of
from erasers.models.prompts import converted
from erasers.options import Auto, known, require_least
from erasers.text.contexts import kept_prompts, some_kept
from erasers.text.prompts import Templates, fill, require_templates, templates_for
from erasers.training.foretelling import Demand
from erasers.training.layers import Wanted
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.student import Student, names_of
from erasers.training.suiting import Kind, at_most

SOFT = "<soft>"
Place = Literal["prefix", "suffix", "replace"]
Placement = Literal[Place, "mixed"]
_DRAW = 53


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(TrainedEraser):
    """Train text encoders to unlearn a concept behind whatever soft tokens bring it back.

    An attack finds soft tokens d that make the student's prediction that of the frozen model, eps*, for the concept's
    prompt c; the student then unlearns the prompt with them, and keeps its predictions for other prompts r:

        d = argmin || eps(x_t, [d, c]) - eps*(x_t, c) ||^2
        L = || eps(x_t, [d, c]) - (eps*(x_t, "") - eta (eps*(x_t, c) - eps*(x_t, ""))) ||^2
            + gamma || eps(y_t, r) - eps*(y_t, r) ||^2

    Only the layers of the text encoder and its final norm are trained, with the projection of its summary where that is
    read; token and position embeddings stay. Several text encoders are trained and attacked together.

    Differs from the official code: latents and all that the frozen model says of them come from whole ways that are
    drawn once, in place of some thirty fresh parts of ways an iteration (see `published_calls`), and have the noise of
    the time that the denoiser is told; each step of the attack has its own gradient, and all of them count
    (`upstream_compat`); soft tokens push no word of the prompt out; `fast` takes steps of size `attack_lr` along the
    sign of the gradient, where that code hands the sign of a sum to Adam, so that all steps repeat the first; the
    empty prompt is kept, too.

    Args:
        layers: Train the first so many layers; 0 trains all of them and the final norm.
        eta: Negative guidance, as for ESD.
        toward: What stands in place of the concept in the target: the `empty` prompt, or the prompt with the `anchor`.
            With the anchor and eta 0 the concept's prompt becomes the anchor's.
        gamma: Weight of the kept prompts.
        kept: Kept prompts at most: those about neighbours and anchors, preserved ones, and the empty one.
        tokens: Soft tokens.
        placement: Where they are: in front of the prompt, behind it, or in place of the concept; `mixed` has one prompt
            after the other take these in turn.
        clean: Unlearn the prompt without soft tokens as well, in every iteration; otherwise only in the warm-up.
        attack_steps: Steps of the attack; 0 is ESD for the text encoder.
        attack_lr: Of its Adam; the paper has 1e-3, for Stable Diffusion 1.4. "auto" is a quarter of a typical
            coordinate of the token table (`diffusion.rates`).
        attack_init: Soft tokens start as `random` tokens, as the `latest` ones of that prompt, or as the concept's own
            `words`, said again and again.
        attack_batch: Latents for a step of the attack.
        fast: Steps of the attack along the sign of the gradient.
        warm_up: Iterations before the first attack.
        guidance: With which latents are drawn.
        steps: Of their sampler.
        pictures: Ways for each prompt of a concept; each kept prompt has one.
        batch: Latents an iteration for the concept, once with soft tokens and once without where both are unlearned.
        retain_batch: Latents an iteration for kept prompts.
        templates: Patterns with one `{}` for the concept, in turn; the paper has the bare name. "auto": those of its
            kind.
        aliases: Erase the concept's aliases, too.
        upstream_compat: Reproduce two errors of the official attack: gradients add up over its steps, and its result
            is that before the last step.
        encoders: Text encoders that are trained and attacked, such as `text_encoder,text_encoder_3`; none: all
            CLIP ones, or the first where the denoiser reads no CLIP.
    """

    name: ClassVar[str] = "adv_unlearn"
    paper: ClassVar[str] = "[AdvUnlearn](https://arxiv.org/abs/2405.15234)"
    family: ClassVar[str] = "trained, text encoder, against attacks"
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        "unet": {"size": None},
        "large unet": {"size": at_most(768)},
        "transformer": {"size": at_most(512)},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "adv_unlearn-fast": {"fast": True},
        "adv_unlearn-shapes": {
            "iterations": 200,
            "lr": 1e-3,
            "toward": "anchor",
            "eta": 0.0,
            "gamma": 5.0,
            "kept": 192,
            "placement": "mixed",
            "tokens": 8,
            "attack_init": "words",
            "clean": True,
            "attack_steps": 4,
            "attack_lr": 0.02,
            "attack_batch": 2,
            "warm_up": 20,
            "guidance": 4.0,
            "steps": 20,
            "pictures": 2,
            "batch": 4,
            "retain_batch": 12,
            "templates": "auto",
        },
    }
    strengths: ClassVar[str] = "holds against most prompts; neighbours mostly stay"
    limits: ClassVar[str] = "the concept's words again and again; the denoiser is untouched"

    size: int | Auto | None = "auto"
    layers: int = 0
    eta: float = 1.0
    toward: Literal["empty", "anchor"] = "empty"
    gamma: float = 0.3
    kept: int = 243
    tokens: int = 1
    placement: Placement = "prefix"
    clean: bool = False
    attack_steps: int = 30
    attack_lr: Rate = 1e-3
    attack_init: Literal["random", "latest", "words"] = "random"
    attack_batch: int = 1
    fast: bool = False
    warm_up: int = 200
    guidance: float = 3.0
    steps: int = 50
    pictures: int = 16
    batch: int = 1
    retain_batch: int = 5
    templates: Templates = ("{}",)
    aliases: bool = True
    upstream_compat: bool = False
    encoders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_templates("templates", self.templates)
        require_least(self, kept=1, tokens=1, attack_batch=1, steps=1, pictures=1, batch=1, retain_batch=1)
        require_least(self, layers=0, gamma=0, attack_steps=0, warm_up=0)
        require_rate("attack_lr", self.attack_lr)

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_drawable(pipe)
        attacked_encoders(pipe, self.encoders)

    def asks(self, concepts: Sequence[Concept]) -> list[Ask]:
        """The distinct prompts that are unlearned."""
        asks: dict[str, Ask] = {}
        places = itertools.cycle(get_args(Place) if self.placement == "mixed" else (self.placement,))
        for concept in concepts:
            for term in concept.terms(aliases=self.aliases):
                for pattern in templates_for(concept, self.templates):
                    text, anchor = fill(pattern, term).text, fill(pattern, concept.anchor).text
                    if text not in asks:
                        soft = attacked(text, fill(pattern, SOFT).text, next(places))
                        asks[text] = Ask(text, soft, anchor, term)
        return list(asks.values())

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        prepared = self.prepared(pipe, concepts)
        asks = len(self.asks(prepared))
        kept = min(self.kept, sum(map(len, kept_prompts(prepared)))) if self.gamma else 0
        anchors = asks if self.toward == "anchor" else 0
        drawn = calls_a_step(pipe, kept=True) * self.steps * (asks * self.pictures + kept)
        drawn += self.steps * self.pictures * anchors
        attacks = max(0, known(self.iterations) - self.warm_up) if self.attack_steps else 0
        both = attacks if self.clean else 0
        retain = self.retain_batch if self.gamma else 0
        student = Calls(gradients=self.batch + retain, texts=1 + retain) * known(self.iterations)
        student += Calls(gradients=self.batch, texts=1) * both
        attack = Calls(gradients=self.attack_batch, texts=1) * (self.attack_steps * attacks)
        return Calls(denoiser=drawn, texts=asks + kept + anchors + 1) + student + attack

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        prepared, names = self.prepared(pipe, concepts), self._names(pipe)
        both, retain = 1 + bool(self.clean and self.attack_steps), self.retain_batch if self.gamma else 0
        passes = [Pass(self.batch * both + retain, names, both + retain)]
        if self.attack_steps:
            passes.append(Pass(self.attack_batch, (), 1, encoders=self.encoders))
        kept = min(self.kept, sum(map(len, kept_prompts(prepared)))) if self.gamma else 0
        ways = len(self.asks(prepared)) * self.pictures + kept
        return Demand(names, passes, latents=3 * self.steps * ways)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        asks = self.asks(concepts)
        kept = self._kept(concepts, generator) if self.gamma else []
        empty, way = unprompted(pipe), Way(self.steps, self.guidance, size=known(self.size))
        with stage("drawing what is unlearned and kept", len(asks) * self.pictures + len(kept)) as advance:
            options: dict[str, Any] = {"generator": generator, "advance": advance}
            asked = conditions(pipe, [ask.text for ask in asks], self.clip_skip)
            bank = sample_bank(pipe, asked, empty, way, rounds=self.pictures, **options)
            held = None
            if kept:
                held = sample_bank(pipe, conditions(pipe, kept, self.clip_skip), empty, way, rounds=1, **options)
        if self.toward == "anchor":
            bank = instead(pipe, bank, conditions(pipe, [ask.anchor for ask in asks], self.clip_skip))
        student = Student(pipe, self._names(pipe), rank=known(self.rank), generator=generator)
        duel = Duel(self, pipe, student, asks, bank, kept, held, generator)
        return Training(
            student, duel.step, {"adam": duel.adam}, {"latest": duel.latest, "attack-scale": duel.scale.state}
        )

    def _names(self, pipe: Any) -> list[str]:
        """Parameters that are trained; layers that `clip_skip` leaves out are not read."""
        feeds = feeds_of(pipe, self.clip_skip)
        chosen = attacked_encoders(pipe, self.encoders)
        return [
            name for encoder in chosen for name in names_of(pipe, encoder, text_layers(self.layers, feeds[encoder]))
        ]

    def _kept(self, concepts: Sequence[Concept], generator: torch.Generator) -> list[str]:
        """At most `kept` prompts, up to half of them about neighbours and anchors, and the empty one."""
        return some_kept(concepts, "auto", self.kept, generator)


class Ask(NamedTuple):
    """A prompt with the concept, that under attack with `SOFT` in it, that with the anchor, and the concept's words."""

    text: str
    soft: str
    anchor: str
    term: str


class Duel:
    """The student against attacks, iteration by iteration.

    Args:
        options: The eraser.
        pipe: The pipeline.
        student: What is trained.
        asks: What is unlearned; these take turns.
        bank: Latents on the way to pictures of it.
        kept: What is kept.
        held: Latents on the way to pictures of that.
        generator: Source of every random number.
    """

    def __init__(
        self,
        options: AdvUnlearn,
        pipe: Any,
        student: Student,
        asks: Sequence[Ask],
        bank: LatentBank,
        kept: Sequence[str],
        held: LatentBank | None,
        generator: torch.Generator,
    ) -> None:
        self.options, self.pipe, self.student, self.held, self.generator = options, pipe, student, held, generator
        self.banks = [part(bank, number) for number in range(len(asks))]
        self.texts, self.kept = [ask.text for ask in asks], kept
        soft: dict[str, Any] = {"clip_skip": options.clip_skip, "encoders": options.encoders}
        self.soft = [SoftPrompt(pipe, ask.soft, {SOFT: options.tokens}, **soft) for ask in asks]
        self.encoders = attacked_encoders(pipe, options.encoders)
        self.tables = [token_table(pipe, name).float() for name in self.encoders]
        self.words = [[words_of(pipe, name, ask.term) for name in self.encoders] for ask in asks]
        self.attack_lr = min(token_rate(options.attack_lr, table) for table in self.tables)
        self.latest = torch.stack([self._random(number) for number in range(len(asks))])
        self.adam = torch.optim.Adam(student.parameters, lr=known(options.lr))
        self.scale = LossScale(pipe)

    def step(self, number: int) -> dict[str, float]:
        """One iteration: the attack on the student as it is, then a step of the student."""
        options, turn = self.options, number % len(self.banks)
        with self.student.placed():
            asked = []
            attacking = bool(options.attack_steps) and number >= options.warm_up
            if attacking:
                tokens = self.attack(turn)
                asked.append(self.soft[turn].condition({SOFT: tokens}))
            if options.clean or not attacking:
                asked.append(self.encoded([self.texts[turn]]))
            loss = Summands(self.pieces(self.banks[turn].draw(options.batch, self.generator), asked), self._total)
            self.student.backward(loss)
        self.adam.step()
        return loss.shown

    def _total(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if "erase" not in losses:
            return self.options.gamma * losses["retain"]
        return losses["erase"] + self.options.gamma * losses.get("retain", 0.0)

    def attack(self, turn: int) -> torch.Tensor:
        """Soft tokens `[k, d]` that bring back the concept of that prompt; inside `student.placed`."""
        options, prompt = self.options, self.soft[turn]

        def loss(tokens: torch.Tensor) -> Summands:
            latents = self.banks[turn].draw(options.attack_batch, self.generator)
            return self._distance(latents, prompt.condition({SOFT: tokens}), latents.conditional)

        start = self.latest[turn] if options.attack_init == "latest" else self._random(turn)
        kind: dict[str, Any] = {"fast": options.fast, "upstream": options.upstream_compat}
        soft = search(loss, start, options.attack_steps, self.attack_lr, scale=self.scale, **kind)
        self.latest[turn] = soft
        return soft

    def encoded(self, texts: Sequence[str]) -> Condition:
        """What the denoiser reads of prompts, of the text encoders as they are now."""
        return adaptor_of(self.pipe).encode(self.pipe, texts, self.options.clip_skip)

    def pieces(self, bank: LatentBank, asked: Sequence[Condition]) -> list[Piece]:
        """L_u of latents under each of some prompts, one row each, and L_r of kept ones, from one pass."""
        rows, count = [condition.expand(len(bank.times)) for condition in asked], len(asked)
        noisy, times = torch.cat([bank.latents] * count), bank.times.repeat(count)
        goals = {"erase": torch.cat([target(bank.empty, bank.conditional, self.options.eta)] * count)}
        if self.held is not None:
            keep = self.held.draw(self.options.retain_batch, self.generator)
            rows.append(self.encoded([self.kept[number] for number in keep.prompts.tolist()]))
            noisy, times = torch.cat([noisy, keep.latents]), torch.cat([times, keep.times])
            goals["retain"] = keep.conditional
        condition = cat(*rows)
        return errors_in_parts(goals, lambda part: predict(self.pipe, noisy[part], times[part], condition.part(part)))

    def _distance(self, bank: LatentBank, asked: Condition, goal: torch.Tensor) -> Summands:
        condition = asked.expand(len(bank.times))

        def error(rows: slice) -> torch.Tensor:
            guess = predict(self.pipe, bank.latents[rows], bank.times[rows], condition.part(rows))
            return functional.mse_loss(guess, goal[rows])

        return mean_in_parts(len(bank.times), error)

    def _random(self, turn: int) -> torch.Tensor:
        """Embeddings `[k, d]` of random tokens, or of the words of that prompt's concept from a random one on.

        Those of several text encoders lie side by side.
        """
        count, words = self.options.tokens, [torch.tensor(ids) for ids in self.words[turn]]
        if self.options.attack_init == "words":
            first = picks(len(words[0]), 1, self.generator)
            numbers = [ids[(first + torch.arange(count)) % len(ids)] for ids in words]
        else:
            numbers = [picks(len(table), count, self.generator) for table in self.tables]
        return torch.cat([table[ids.to(table.device)] for table, ids in zip(self.tables, numbers, strict=True)], dim=1)


def search(
    loss: Callable[[torch.Tensor], torch.Tensor | Summands],
    start: torch.Tensor,
    steps: int,
    lr: float,
    *,
    scale: LossScale,
    fast: bool = False,
    upstream: bool = False,
) -> torch.Tensor:
    """The attack: `steps` of Adam on `loss` from `start` `[k, d]`.

    Args:
        loss: Asked anew in every step.
        start: Left alone.
        steps: Number of gradients.
        lr: Size of the steps.
        scale: Of the loss.
        fast: x - lr sign(gradient) in place of Adam; with `upstream` Adam gets the sign of the gradients so far.
        upstream: Gradients add up, and the result is that before the last step.
    """
    tokens = nn.Parameter(start.detach().clone())
    plain = fast and not upstream
    optimizer = torch.optim.SGD([tokens], lr=lr) if plain else torch.optim.Adam([tokens], lr=lr)
    before = start
    for _ in range(steps):
        slopes = scale.slopes(loss(tokens), [tokens])
        if slopes is None:
            continue
        before, (slope,) = tokens.detach().clone(), slopes
        if upstream and tokens.grad is not None:
            slope = slope + tokens.grad
        tokens.grad = slope.sign() if fast else slope
        optimizer.step()
    return before if upstream else tokens.detach()


def words_of(pipe: Any, encoder: str, term: str) -> list[int]:
    """Token ids of a term for a text encoder, without the special ones."""
    tokenizer = tokenizer_of(pipe, encoder)
    ids: list[int] = tokenizer(converted(pipe, tokenizer, term), add_special_tokens=False).input_ids
    return ids


def attacked(text: str, replaced: str, place: Place) -> str:
    """The prompt with `SOFT` in front of it, behind it, or in the place of the concept, as `replaced` has it."""
    return {"prefix": f"{SOFT} {text}", "suffix": f"{text} {SOFT}", "replace": replaced}[place]


def part(bank: LatentBank, number: int) -> LatentBank:
    """The latents of one prompt."""
    index = torch.nonzero(bank.prompts == number)[:, 0]
    fields = ("latents", "times", "prompts", "conditional", "empty")
    return replace(bank, **{name: getattr(bank, name)[index] for name in fields})


@torch.no_grad()
def instead(pipe: Any, bank: LatentBank, anchors: Condition, batch: int = 8) -> LatentBank:
    """The bank with eps*(x_t, t, a) of each prompt's anchor in place of eps*(x_t, t, "")."""
    predictions = [
        predict(pipe, bank.latents[index], bank.times[index], anchors.rows(bank.prompts[index]))
        for index in torch.arange(len(bank)).split(batch)
    ]
    return replace(bank, empty=torch.cat(predictions))


def text_layers(layers: int, feed: Feed) -> Wanted:
    """Which modules of a text encoder are trained, by (module, path), of those that are read of it."""

    def wanted(module: nn.Module, path: str) -> bool:
        place = in_block(path)
        if place is None:
            return not layers and feed.normed and is_behind(path)
        return place.number < min(layers or feed.blocks, feed.blocks) and not isinstance(module, nn.Embedding)

    return wanted


def published_calls(attack_steps: int = 30, retain: int = 5) -> Calls:
    """What an iteration of the official code puts through the denoiser.

    Each latent is drawn anew by a part of 50 steps of DDIM with guidance, 53 calls on average. The frozen model is then
    asked once for each latent of the attack and of kept prompts, and twice for that which is unlearned.
    """
    draws = attack_steps + 1 + retain
    return Calls(denoiser=_DRAW * draws + draws + 1, gradients=draws)
