"""LECO: ESD as a LoRA of pairs of prompts, as https://github.com/p1atdev/LECO (Apache-2.0) describes it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch.nn import functional

from erasers.concept import Concept, Concepts, as_concepts
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.batches import Piece, Summands, parts
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import picks
from erasers.diffusion.latent_bank import Way, calls_a_step, sample_bank
from erasers.diffusion.needs import Pass
from erasers.diffusion.supported import check_drawable
from erasers.methods.leco.pair import Pair, goal
from erasers.options import known, require_above, require_least
from erasers.training.foretelling import Demand
from erasers.training.layers import crosses, denoiser_names
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.student import Student

Layers = Literal["attention", "cross", "self", "blocks", "uncrossed"]
Schedule = Literal["constant", "cosine"]
_BLOCKS = re.compile(r"\.(attentions|\w*transformer_blocks|blocks|layers|\w+_refiner)\.")
_LEAST_RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class LECO(TrainedEraser):
    """Train a LoRA of the denoiser on pairs of prompts, each of which says what a prediction is to become.

    The prediction with the target goes to eps*(neutral) -+ s (eps*(positive) - eps*(unconditional)) of the frozen
    model, on latents that are on their way to pictures of the target.

    Differs from the official code: pairs take turns, in place of one at random; latents have the noise of the time that
    the denoiser is told; a whole way is drawn every `refresh` iterations, for one pair after the other, and learned
    from in all of them, in place of a part of a fresh way every iteration; A starts with variance 1 / width, not a
    third of that; a LoRA is of linear layers alone.

    Args:
        pairs: Those that stand `beside` another make one iteration with it.
        alpha: What is added to a weight is alpha / rank B A.
        layers: `attention` all of it, `cross` or `self` of denoisers with both, `blocks` all of the blocks in which
            attention is but norms, much as kohya and ai-toolkit train, `uncrossed` of these all but cross-attention.
        optimizer: Adam, or AdamW with a decay of 0.01.
        schedule: Of the rate; `cosine` ends at a hundredth.
        clip: Largest norm of the gradients; 0 leaves them.
        drawn_by: Who draws the latents.
        refresh: Iterations after which latents are drawn anew.
        steps: Of the sampler.
        guidance: With which the latents are drawn.
    """

    name: ClassVar[str] = "leco"
    paper: ClassVar[str] = "[LECO](https://github.com/p1atdev/LECO)"
    family: ClassVar[str] = "trained, denoiser"
    keeps: ClassVar[bool] = False
    strengths: ClassVar[str] = "reads the recipes that users have"
    limits: ClassVar[str] = "as good as its prompts"

    pairs: tuple[Pair, ...]
    iterations: int = 500
    lr: float = 1e-4
    rank: int = 4
    alpha: float = 1.0
    layers: Layers = "attention"
    optimizer: Literal["adam", "adamw"] = "adamw"
    schedule: Schedule = "constant"
    clip: float = 0.0
    drawn_by: Literal["student", "frozen"] = "student"
    refresh: int = 10
    steps: int = 50
    guidance: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, rank=1, clip=0, refresh=1, steps=1)
        require_above("alpha", self.alpha, 0)
        if not self.pairs or self.pairs[0].beside:
            raise ValueError(
                "expected pairs of which the first stands beside none, got " + ("none" if not self.pairs else "others")
            )
        for group in self.groups:
            if len({(pair.multiplier, pair.size, pair.batch) for pair in group}) > 1:
                raise ValueError("expected pairs beside each other with one multiplier, size and batch, got several")

    @property
    def groups(self) -> list[list[Pair]]:
        """The pairs of an iteration each, in their turn."""
        groups: list[list[Pair]] = []
        for pair in self.pairs:
            if pair.beside:
                groups[-1].append(pair)
            else:
                groups.append([pair])
        return groups

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_drawable(pipe)
        if self.layers in ("cross", "self", "uncrossed") and not crosses(pipe):
            raise ValueError(
                f"expected layers attention or blocks, got {self.layers}: in {type(pipe).__name__} text and picture "
                "are one sequence, without attention of its own for either"
            )

    def prepared(self, pipe: Any, concepts: Concepts) -> tuple[Concept, ...]:
        """See `Eraser.prepared`: concepts are names here, pairs have all prompts."""
        return as_concepts(concepts)

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        groups, calls = self.groups, Calls(texts=len(self._texts))
        step = calls_a_step(pipe, kept=True)
        for number in [
            *range(len(groups)),
            *(turn % len(groups) for turn in range((self.iterations - 1) // self.refresh)),
        ]:
            calls += Calls(denoiser=step * self.steps * groups[number][0].batch)
        for number, group in enumerate(groups):
            turns = len(range(number, self.iterations, len(groups)))
            each = [Calls(denoiser=len(set(pair.asked)), gradients=1) * (pair.batch * turns) for pair in group]
            calls = sum(each, calls)
        return calls

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        names = self.names(pipe)
        largest = max(self.pairs, key=lambda pair: (self._size(pair) or 0, pair.batch))
        latents = self.steps * sum(group[0].batch for group in self.groups)
        return Demand(names, [Pass(largest.batch, names, size=self._size(largest))], latents=latents)

    def names(self, pipe: Any) -> list[str]:
        """Names of the weights that are trained, where they are those of linear layers."""
        if self.layers in ("blocks", "uncrossed"):
            which = "all" if self.layers == "blocks" else "u"
            return [name for name in denoiser_names(pipe, which) if _BLOCKS.search(name)]
        names = denoiser_names(pipe, "cross" if self.layers == "cross" else "attention")
        return [name for name in names if self.layers != "self" or ".attn2." not in name]

    def suited(self, pipe: Any) -> Self:
        """See `TrainedEraser.suited`: the size is that of pairs that all have one."""
        sizes = [pair.size for pair in self.pairs if pair.size is not None]
        own = super().suited(pipe)
        return replace(own, size=max(sizes)) if len(sizes) == len(self.pairs) else own

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        groups, texts = self.groups, self._texts
        rows = conditions(pipe, texts, self.clip_skip)

        def of(text: str) -> Condition:
            return rows.rows(torch.tensor([texts.index(text)]))

        with stage("drawing what is learned from", len(groups)) as advance:
            banks = [self._draw(pipe, group[0], of, generator, advance) for group in groups]
        student = Student(pipe, self.names(pipe), rank=self.rank, generator=generator, alpha=self.alpha)
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimizer = kinds[self.optimizer](student.parameters, lr=self.lr)

        def step(number: int) -> dict[str, float]:
            if number and number % self.refresh == 0:
                turn = (number // self.refresh - 1) % len(groups)
                pair = groups[turn][0]
                with student.placed(pair.multiplier) if self.drawn_by == "student" else nullcontext():
                    fresh = self._draw(pipe, pair, of, generator)
                for name, value in fresh.items():
                    banks[turn][name].copy_(value)
            turn = number % len(groups)
            index = picks(len(banks[turn]["times"]), groups[turn][0].batch, generator)
            noisy, times = banks[turn]["latents"][index], banks[turn]["times"][index]
            loss = self._loss(pipe, groups[turn], of, noisy, times)
            for values in optimizer.param_groups:
                values["lr"] = self.lr * rate(number, self.iterations, self.schedule)
            with student.placed(groups[turn][0].multiplier):
                student.backward(loss, clip=self.clip)
            optimizer.step()
            return loss.shown

        tensors = {f"{turn}/{name}": value for turn, bank in enumerate(banks) for name, value in bank.items()}
        return Training(student, step, {self.optimizer: optimizer}, tensors)

    def _size(self, pair: Pair) -> int | None:
        return known(self.size) if pair.size is None else pair.size

    @property
    def _texts(self) -> list[str]:
        return list(
            dict.fromkeys(text for pair in self.pairs for text in (pair.target, *pair.asked, pair.unconditional))
        )

    def _draw(
        self,
        pipe: Any,
        pair: Pair,
        of: Callable[[str], Condition],
        generator: torch.Generator,
        advance: Callable[[int], None] = lambda count: None,
    ) -> dict[str, torch.Tensor]:
        """Latents of whole ways to pictures of the target, drawn by the pipeline as it now is, and their times."""
        asked = of(pair.target).rows(torch.zeros(pair.batch, dtype=torch.long))
        way = Way(self.steps, self.guidance, batch=pair.batch, size=self._size(pair))
        bank = sample_bank(pipe, asked, of(pair.unconditional), way, rounds=1, generator=generator)
        advance(1)
        return {"latents": bank.latents, "times": bank.times}

    def _loss(
        self,
        pipe: Any,
        group: Sequence[Pair],
        of: Callable[[str], Condition],
        noisy: torch.Tensor,
        times: torch.Tensor,
    ) -> Summands:
        """The sum of the losses of the pairs of an iteration; the frozen model is asked now."""
        pieces: list[Piece] = []
        for pair in group:
            wanted = self._goal(pipe, pair, of, noisy, times)

            def piece(rows: slice, pair: Pair = pair, wanted: torch.Tensor = wanted) -> Mapping[str, torch.Tensor]:
                guess = predict(pipe, noisy[rows], times[rows], of(pair.target))
                share = pair.weight * (rows.stop - rows.start) / len(noisy)
                return {"loss": functional.mse_loss(guess, wanted[rows]) * share}

            pieces += [partial(piece, rows) for rows in parts(len(noisy))]
        return Summands(pieces, lambda losses: losses["loss"])

    @torch.no_grad()
    def _goal(
        self, pipe: Any, pair: Pair, of: Callable[[str], Condition], noisy: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        said = {text: predict(pipe, noisy, times, of(text)) for text in dict.fromkeys(pair.asked)}
        if len(pair.asked) == 1:
            return said[pair.asked[0]]
        neutral, positive, unconditional = (said[text] for text in pair.asked)
        return goal(neutral, positive, unconditional, pair.shift)


def rate(number: int, iterations: int, schedule: Schedule) -> float:
    """The share of the learning rate that an iteration has."""
    if schedule == "constant":
        return 1.0
    return _LEAST_RATE + (1 - _LEAST_RATE) * (1 + math.cos(math.pi * number / iterations)) / 2
