"""STEREO: Srivatsan et al., "STEREO: A Two-Stage Framework for Adversarially Robust Concept Erasing from Text-to-Image
Diffusion Models", CVPR 2025, arXiv 2408.16807."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.attacked import attacked_encoders, vocabulary
from erasers.diffusion.batches import Summands, mean_in_parts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import denoising_in_parts, predict
from erasers.diffusion.draws import gaussian, picks
from erasers.diffusion.gradients import LossScale
from erasers.diffusion.latent_bank import LatentBank, Way, calls_a_step, sample_bank
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import random_times
from erasers.diffusion.rates import Rate, require_rate, token_rate
from erasers.diffusion.soft import SoftPrompt
from erasers.methods.adv_unlearn import SOFT, search
from erasers.methods.esd import target
from erasers.options import known, require_least
from erasers.training.foretelling import Demand
from erasers.training.layers import denoiser_names
from erasers.training.loop import Stage
from erasers.training.student import Student
from erasers.training.ways import SMALL, Heard, WayEraser

_PATTERN = "a picture of a {}"


@dataclass(frozen=True, kw_only=True)
class Stereo(WayEraser):
    """Search for words that bring the concept back, one after another, and erase them all at once.

    Stage one: a student that is thrown away unlearns the prompt c of the concept, as with ESD, and all words found so
    far; then textual inversion on it finds one more, s = argmin || eps(x_t, s) - noise ||^2 on pictures of the concept;
    `rounds` times. Stage two starts from the original denoiser. With P the concept's prompt and all words found, a the
    prompt with the anchor and g*(p) = eps*(p) - eps*("") the guidance of the frozen model,

        L = || eps(x_t, p) - (eps*("") + toward g*(a) - eta mean_{q in P} g*(q)) ||^2      for p in P

    *Reconstruction*: the official code had not appeared when this was written; this follows the abstract and what a
    re-implementation by others does. There the weights are 1 and 3, as a sign is folded into them, guidance is
    normalised, and stage two goes on from the weights of stage one; here it starts from the original ones, as the paper
    has it. Latents come from whole ways (see `esd`).

    Args:
        eta: Negative guidance.
        toward: Guidance of the anchor.
        rounds: Words that are searched for each concept; 0 leaves stage one out.
        search_iterations: Of the student of stage one, before each search.
        tokens: Soft tokens of a word.
        attack_steps: Steps of a search.
        attack_lr: Of its Adam; "auto" is a quarter of a typical coordinate of the token table (`diffusion.rates`).
        attack_batch: Pictures for a step of it.
        encoders: Text encoders that the words are in; none: all of CLIP, or the first where none is of CLIP.
    """

    name: ClassVar[str] = "stereo"
    paper: ClassVar[str] = "[STEREO](https://arxiv.org/abs/2408.16807), reconstructed"
    family: ClassVar[str] = "trained, denoiser, against attacks"
    keeps: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "stereo-shapes": {
            **SMALL,
            "iterations": 240,
            "eta": 2.0,
            "rounds": 3,
            "search_iterations": 40,
            "attack_steps": 40,
            "attack_lr": 0.02,
            "attack_batch": 4,
            "tokens": 2,
            "batch": 4,
        },
    }
    strengths: ClassVar[str] = "words found by attacks are erased along"
    limits: ClassVar[str] = "twice the training; keeps nothing but the empty prompt's place"

    eta: float = 1.0
    toward: float = 1.0
    rounds: int = 4
    search_iterations: int = 200
    tokens: int = 1
    attack_steps: int = 3000
    attack_lr: Rate = "auto"
    attack_batch: int = 1
    pictures: int = 8
    drawn_by: Literal["student", "frozen"] = "frozen"
    encoders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(
            self, pictures=1, rounds=0, search_iterations=1, tokens=1, attack_steps=1, attack_batch=1, toward=0
        )
        require_rate("attack_lr", self.attack_lr)

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        super().check_pipe(pipe)
        attacked_encoders(pipe, self.encoders)

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        own, prepared = self.suited(pipe), self.prepared(pipe, concepts)
        pairs, iterations, rounds = own.prompt_pairs(prepared), known(own.iterations), own.rounds
        # Of each of a concept: a way for each prompt, a student that unlearns, and a search.
        way = calls_a_step(pipe, kept=True) * known(own.steps) * len(pairs) * own.pictures
        hunts = len(prepared) * rounds
        learnt = own.batch * own.search_iterations * rounds
        searched = Calls(gradients=own.attack_batch, texts=1) * own.attack_steps + Calls(texts=1)
        first = Calls(denoiser=way * bool(rounds), gradients=learnt) + searched * hunts
        each = Calls(denoiser=own.batch * (3 + rounds), gradients=own.batch)
        return own.ways(pipe, concepts) + first + each * iterations + Calls(texts=2 * len(pairs) + 1)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`; the student of stage one is gone before stage two."""
        own, demand = self.suited(pipe), super().demand(pipe, concepts)
        if not own.rounds:
            return demand
        search = Pass(own.attack_batch, (), 1, known(own.size), own.encoders)
        return replace(demand, passes=[*demand.passes, search], latents=2 * demand.latents)

    def hear(self, pipe: Any, concepts: Sequence[Concept]) -> Heard:
        """See `WayEraser.hear`."""
        pairs = self.prompt_pairs(concepts)
        named, anchors = (conditions(pipe, list(texts), self.clip_skip) for texts in (pairs, pairs.values()))
        return Heard(named, anchors, named, unprompted(pipe))

    def beside(
        self, pipe: Any, concepts: Sequence[Concept], heard: Heard, generator: torch.Generator, stage: Stage
    ) -> Found:
        """See `WayEraser.beside`: stage one."""
        prompts = list(self.prompt_pairs(concepts))
        owners = torch.tensor([_owner(concepts, text, self) for text in prompts])
        found = Found(owners, [])
        if not self.rounds:
            return found
        way = Way(known(self.steps), known(self.guidance), size=known(self.size))
        with stage("drawing what is searched for", len(prompts) * self.pictures) as advance:
            options: dict[str, Any] = {"rounds": self.pictures, "generator": generator, "advance": advance}
            bank = sample_bank(pipe, heard.named, heard.empty, way, **options)
        names = denoiser_names(pipe, self.method_for(pipe, concepts))
        student = Student(pipe, names, rank=known(self.rank), generator=generator)
        adam = torch.optim.Adam(student.parameters, lr=known(self.lr))
        with stage("searching for words that bring it back", self.rounds * len(concepts)) as advance:
            for _ in range(self.rounds):
                for _ in range(self.search_iterations):
                    self._unlearn(pipe, heard, bank, student, found, generator)
                    adam.step()
                with student.placed():
                    words = [self._search(pipe, bank, owners, number, generator) for number in range(len(concepts))]
                found.words.append(cat(*words))
                advance(len(concepts))
        return found

    def _unlearn(
        self, pipe: Any, heard: Heard, bank: LatentBank, student: Student, found: Found, generator: torch.Generator
    ) -> None:
        """A gradient of ESD on one of the prompts and words of each latent."""
        latents = bank.draw(self.batch, generator)
        told = found.told(heard.named, latents.prompts, picks(1 + len(found.words), self.batch, generator))
        goal = target(latents.empty, latents.conditional, self.eta)
        with student.placed():
            student.backward(errors(pipe, latents, told, goal))

    def _search(
        self, pipe: Any, bank: LatentBank, owners: torch.Tensor, number: int, generator: torch.Generator
    ) -> Condition:
        """What the denoiser reads `[1]` of a word by which it draws a concept as it now is."""
        encoders = attacked_encoders(pipe, self.encoders)
        prompt = SoftPrompt(
            pipe, _PATTERN.format(SOFT), {SOFT: self.tokens}, clip_skip=self.clip_skip, encoders=self.encoders
        )
        table = vocabulary(pipe, encoders).table(pipe)
        start = table[picks(len(table), self.tokens, generator).to(table.device)]
        pictures = bank.pictures[torch.nonzero(owners[bank.prompts_of_pictures] == number)[:, 0]]

        def loss(tokens: torch.Tensor) -> Summands:
            shown = pictures[picks(len(pictures), self.attack_batch, generator)]
            times = random_times(pipe, len(shown), generator, tuple(shown.shape[1:])).to(shown.device)
            told = prompt.condition({SOFT: tokens}).expand(len(shown))
            return denoising_in_parts(pipe, shown, times, gaussian(shown, generator), told)

        rate = token_rate(self.attack_lr, table)
        soft = search(loss, start, self.attack_steps, rate, scale=LossScale(pipe))
        with torch.no_grad():
            return prompt.condition({SOFT: soft})

    def learn(
        self, pipe: Any, heard: Heard, latents: LatentBank, student: Student, beside: Any, number: int
    ) -> Mapping[str, float]:
        """See `WayEraser.learn`: stage two, toward one goal from the prompt and from every word."""
        count = 1 + len(beside.words)
        with torch.no_grad():
            said = []
            for turn in range(count):
                told = beside.told(heard.named, latents.prompts, torch.full((self.batch,), turn))
                said.append(predict(pipe, latents.latents, latents.times, told))
        # What `latents` has as asked is of the anchors.
        goal = joint_target(latents.empty, latents.conditional, torch.stack(said), self.toward, self.eta)
        told = beside.told(heard.named, latents.prompts, (torch.arange(self.batch) + number) % count)
        loss = errors(pipe, latents, told, goal)
        with student.placed():
            student.backward(loss)
        return loss.shown


@dataclass(frozen=True)
class Found:
    """The words that a search has found.

    Args:
        owners: Number of the concept of each prompt.
        words: For each round, what the denoiser reads of a word `[concepts]`.
    """

    owners: torch.Tensor
    words: list[Condition]

    def told(self, named: Condition, prompts: torch.Tensor, turns: torch.Tensor) -> Condition:
        """Rows `[n]`: the prompt itself where the turn is 0, else the word of that round, of the prompt's concept."""
        rows = []
        for prompt, turn in zip(prompts.tolist(), turns.tolist(), strict=True):
            source, row = (named, prompt) if not turn else (self.words[turn - 1], int(self.owners[prompt]))
            rows.append(source.part(slice(row, row + 1)))
        return cat(*rows)


def joint_target(
    empty: torch.Tensor, anchor: torch.Tensor, said: torch.Tensor, toward: float, eta: float
) -> torch.Tensor:
    """eps*("") + toward (eps*(a) - eps*("")) - eta mean_q (eps*(q) - eps*("")).

    Args:
        empty: `[n, ...]`.
        anchor: `[n, ...]`.
        said: Of the prompt and of each word `[words, n, ...]`.
        toward: Guidance of the anchor.
        eta: Negative guidance.
    """
    return empty + toward * (anchor - empty) - eta * (said.mean(dim=0) - empty)


def errors(pipe: Any, latents: LatentBank, told: Condition, goal: torch.Tensor) -> Summands:
    """|| eps(x_t, p) - goal ||^2 of rows `[n]`, derived with the student placed."""

    def error(rows: slice) -> torch.Tensor:
        guess = predict(pipe, latents.latents[rows], latents.times[rows], told.part(rows))
        return functional.mse_loss(guess, goal[rows])

    return mean_in_parts(len(latents.times), error)


def _owner(concepts: Sequence[Concept], text: str, eraser: Stereo) -> int:
    """The number of the first concept that a prompt is of."""
    return next(number for number, concept in enumerate(concepts) if text in eraser.prompts([concept]))
