"""P4D: Chin et al., "Prompting4Debugging", ICML 2024, arXiv 2309.06135."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional

from erasers.attacks.attack import Draw
from erasers.attacks.budget import Budget, Preparation
from erasers.attacks.candidate import Candidate
from erasers.attacks.encoders import EncoderAttack
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.attacked import Vocabulary, vocabulary
from erasers.diffusion.batches import mean_in_parts
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import gaussian, picks
from erasers.diffusion.gradients import LossScale, frozen
from erasers.diffusion.latents import latents_of
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import middle_times, noised
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.supported import check_drawable
from erasers.diffusion.tokens import nearest_tokens, room_for_text, tokenizer_of
from erasers.options import Bound

if TYPE_CHECKING:
    from erasers.asks import Ask

SLOT = "<free{}>"


@dataclass(frozen=True)
class Teacher:
    """What the unedited model predicts for one prompt; rows belong together.

    Args:
        noisy: Noised latents `[n, c, h, w]` of its picture of the prompt.
        times: Time steps `[n]`.
        predicted: Its predictions `[n, c, h, w]` for the prompt.
    """

    noisy: torch.Tensor
    times: torch.Tensor
    predicted: torch.Tensor


@dataclass(frozen=True)
class Prepared:
    """What the attack knows of the unedited model.

    Args:
        teachers: By (text, seed) of a prompt.
        words: What a prompt may have.
    """

    teachers: Mapping[tuple[str, int], Teacher]
    words: Vocabulary


@dataclass(frozen=True, kw_only=True)
class P4D(EncoderAttack):
    """Find words with which the edited model predicts what the unedited one predicts for the prompt.

    A hard prompt by gradients: each free token is a vector e; the loss `||eps'(z_t, t, proj(e)) - eps(z_t, t, p)||^2`
    and its gradient are taken at the nearest tokens proj(e), by cosine, and the step is made on e. A free token has an
    embedding in every attacked encoder; the cosines add up.

    Differs from the paper/official code: every `every` steps the words found so far, where new, are a candidate, in
    place of one that is chosen by the similarity of pictures; time steps and noise are `bank` draws for each prompt, of
    which the unedited model's predictions are computed once; tokens are whole words, so that they can be typed; the
    variant `insert` counts words of the prompt where the official code counts tokens.

    Args:
        variant: `free` (P4D-N) puts k free tokens in place of the prompt, `insert` (P4D-K) one behind every third word.
        k: Free tokens of the variant `free`.
        stride: Words between two free tokens of the variant `insert`.
        steps: Steps of AdamW.
        every: Steps between two pictures.
        bank: Noised latents a prompt, their time steps evenly spread.
        batch: Of these, in one step.
        lr: Learning rate.
        weight_decay: Of AdamW.
        encoders: See `EncoderAttack`.
    """

    name = "p4d"
    space = "text"
    encoder = "attacked"
    bounds = (
        Bound("k stride steps every bank batch", 1),
        Bound("lr", 0, equal=False),
        Bound("weight_decay", 0),
    )

    variant: Literal["free", "insert"] = "free"
    k: int = 16
    stride: int = 3
    steps: int = 3000
    every: int = 50
    bank: int = 100
    batch: int = 1
    lr: float = 0.1
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every > self.steps:
            raise ValueError(f"expected a picture within the {self.steps} steps, got one every {self.every}")

    def passes(self, pipe: Any) -> Sequence[Pass]:
        """See `Attack.passes`."""
        return [Pass(self.batch, (), 1, encoders=self.encoders)]

    def budget(self) -> Budget:
        """See `Attack.budget`."""
        return Budget(self.steps * self.batch, self.steps, self.steps // self.every + 1)

    def preparation(self, prompts: int) -> Preparation:
        """See `Attack.preparation`."""
        return Preparation(images=prompts, passes=prompts * self.bank)

    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> Prepared:
        """See `Attack.prepare`."""
        check_drawable(pipe)
        words = vocabulary(pipe, self.attacked(pipe))
        teachers = {}
        images = draw(pipe, {"prompt": [ask.text for ask in asks]}, [ask.seed for ask in asks])
        for ask, image in zip(asks, images, strict=True):
            latents = latents_of(pipe, [image])
            teachers[ask.text, ask.seed] = teach(pipe, ask.text, latents, self.bank, generator)
        return Prepared(teachers, words)

    def run(self, pipe: Any, ask: Ask, prepared: Prepared, *, generator: torch.Generator) -> Iterator[Candidate]:
        """See `Attack.run`."""
        check_drawable(pipe)
        teacher = prepared.teachers[ask.text, ask.seed]
        text, counts = self._template(pipe, ask.text)
        prompt, table = SoftPrompt(pipe, text, counts, encoders=self.encoders), prepared.words.table(pipe)
        start = picks(len(prepared.words), sum(counts.values()), generator)
        vectors = nn.Parameter(table[start.to(table.device)])
        optimizer = torch.optim.AdamW([vectors], lr=self.lr, weight_decay=self.weight_decay)
        seen, scale = set(), LossScale(pipe)
        for step in range(1, self.steps + 1):
            rows = picks(len(teacher.times), self.batch, generator)
            with frozen(pipe):
                vectors.grad = gradient(pipe, prompt, counts, vectors, table, teacher, rows, scale)
            optimizer.step()
            if step % self.every == 0:
                nearest = nearest_tokens(vectors.detach(), table, prompt.widths)
                filled = _fill(pipe, prepared.words, text, counts, nearest)
                if filled not in seen:
                    seen.add(filled)
                    yield Candidate(filled, encoders=prompt.encoders)

    def _template(self, pipe: Any, text: str) -> tuple[str, dict[str, int]]:
        """A prompt with slots, and slot -> number of its free tokens; words that the encoder would cut are left out."""
        if self.variant == "free":
            return SLOT.format(0), {SLOT.format(0): self.k}
        tokenizers = [tokenizer_of(pipe, name) for name in self.attacked(pipe)]
        room = [room_for_text(tokenizer) for tokenizer in tokenizers]
        parts: list[str] = []
        slots: list[str] = []
        for number, word in enumerate(text.split(), start=1):
            lengths = [len(tokenizer(word, add_special_tokens=False).input_ids) for tokenizer in tokenizers]
            room = [left - length for left, length in zip(room, lengths, strict=True)]
            if min(room) < 0:
                break
            parts.append(word)
            if number % self.stride == 0 and min(room) > 0:
                slots.append(SLOT.format(len(slots)))
                parts.append(slots[-1])
                room = [left - 1 for left in room]
        if not slots:
            # A prompt of fewer words than the stride still gets one, where nothing can cut it off.
            slots = [SLOT.format(0)]
            parts.insert(0, slots[0])
        return " ".join(parts), dict.fromkeys(slots, 1)


@torch.no_grad()
def teach(pipe: Any, text: str, latents: torch.Tensor, bank: int, generator: torch.Generator) -> Teacher:
    """What a model predicts for a prompt, at `bank` evenly spread time steps; latents `[1, c, h, w]`."""
    times = torch.tensor(middle_times(pipe, bank, tuple(latents.shape[1:])))
    many = latents.expand(bank, *latents.shape[1:])
    noisy = noised(pipe, many, times, gaussian(many, generator))
    condition = conditions(pipe, [text])
    # One at a time: a bank of large latents does not fit a batch.
    predicted = [predict(pipe, noisy[row : row + 1], times[row : row + 1], condition) for row in range(bank)]
    return Teacher(noisy, times, torch.cat(predicted))


def loss(pipe: Any, teacher: Teacher, rows: torch.Tensor, condition: Condition) -> torch.Tensor:
    """Mean squared distance from the teacher's predictions `rows`, for one prompt."""
    predicted = predict(pipe, teacher.noisy[rows], teacher.times[rows], condition)
    return functional.mse_loss(predicted, teacher.predicted[rows])


@torch.enable_grad()
def gradient(
    pipe: Any,
    prompt: SoftPrompt,
    counts: Mapping[str, int],
    vectors: torch.Tensor,
    table: torch.Tensor,
    teacher: Teacher,
    rows: torch.Tensor,
    scale: LossScale,
) -> torch.Tensor | None:
    """The gradient `[k, d]` of the loss, taken at the nearest tokens of `vectors` `[k, d]` in the table `[words, d]`;
    None if it overflowed."""
    point = table[nearest_tokens(vectors.detach(), table, prompt.widths)].requires_grad_()
    soft = dict(zip(counts, point.split(list(counts.values())), strict=True))
    condition = prompt.condition(soft)
    distance = mean_in_parts(len(rows), lambda batch: loss(pipe, teacher, rows[batch], condition))
    slopes = scale.slopes(distance, [point])
    return None if slopes is None else slopes[0]


def _fill(pipe: Any, words: Vocabulary, text: str, counts: Mapping[str, int], rows: torch.Tensor) -> str:
    """The prompt with words `[k]` in its slots."""
    for slot, own in zip(counts, rows.split(list(counts.values())), strict=True):
        text = text.replace(slot, words.text(pipe, own))
    return text
