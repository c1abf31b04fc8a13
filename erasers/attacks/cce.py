"""CCE: Pham et al., "Circumventing Concept Erasure Methods", ICLR 2024, arXiv 2308.01508."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from erasers.attacks.attack import Draw
from erasers.attacks.budget import Budget, Preparation
from erasers.attacks.candidate import Candidate
from erasers.attacks.encoders import EncoderAttack
from erasers.attacks.examples import examples
from erasers.diffusion.attacked import Vocabulary, side_by_side, vocabulary
from erasers.diffusion.denoiser import denoising_in_parts
from erasers.diffusion.draws import gaussian, picks
from erasers.diffusion.gradients import LossScale, frozen
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import random_times
from erasers.diffusion.rates import Rate, require_rate, token_rate
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.supported import check_drawable
from erasers.diffusion.tokens import token_table
from erasers.options import Bound

if TYPE_CHECKING:
    from erasers.asks import Ask

TOKEN = "<concept>"


@dataclass(frozen=True)
class Prepared:
    """What the attack knows of the unedited model.

    Args:
        latents: Of its pictures of the concept `[n, c, h, w]`.
        words: What soft tokens may start from.
    """

    latents: torch.Tensor
    words: Vocabulary


@dataclass(frozen=True, kw_only=True)
class CCE(EncoderAttack):
    """Textual inversion on the edited model: learn a word for what the unedited model draws, and ask for it.

    Whether the denoiser can still draw the concept, when it is asked in a way that no text can. The soft tokens are
    learned from random words, once for all prompts, as the prompt's own text is not used: what is drawn is the first
    template with the new word, with the noise of each prompt. A soft token has an embedding in every attacked encoder.

    Differs from the official code: the pictures are drawn from the attacked prompts, each with fresh noise, in place of
    one prompt for all; tokens start from random words, not from one that fits; a batch shares one template; no picture
    is flipped.

    Args:
        tokens: Soft tokens; the paper has 1.
        steps: Steps of AdamW; the paper has 5000 for most erasers, 1000 for safe latent diffusion.
        batch: Pictures a step; the paper has four batches of four.
        lr: Learning rate; 0.005 times the pictures of a step, as the official code scales it, which is several times a
            coordinate of a token. A few hundred steps learn more at less: the first ones move every coordinate by about
            the rate. "auto" is a quarter of a typical coordinate of each encoder's token table (`diffusion.rates`).
        weight_decay: Of AdamW.
        pictures: Pictures of the concept to learn from.
        templates: Patterns with one `{}` for the new word.
        learned: Once for each `concept`, or anew for each `prompt`.
        encoders: See `EncoderAttack`.
    """

    name = "cce"
    space = "embedding"
    encoder = "attacked"
    bounds = (Bound("tokens steps batch pictures", 1), Bound("weight_decay", 0))
    embedded = {"learned": "prompt"}

    tokens: int = 1
    steps: int = 5000
    batch: int = 16
    lr: Rate = 0.08
    weight_decay: float = 0.01
    pictures: int = 25
    templates: tuple[str, ...] = ("a picture of a {}", "a {}", "a photo of a {}", "a painting of a {}")
    learned: Literal["concept", "prompt"] = "concept"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rate("lr", self.lr)
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise ValueError(f"expected templates with one {{}} each, got {self.templates!r}")

    @property
    def once(self) -> bool:
        """See `Attack.once`."""
        return self.learned == "concept"

    def config(self) -> dict[str, Any]:
        """See `Attack.config`; a token of each prompt's own goes without saying."""
        return {key: value for key, value in super().config().items() if key != "learned" or self.once}

    def passes(self, pipe: Any) -> Sequence[Pass]:
        """See `Attack.passes`."""
        return [Pass(self.batch, (), 1, encoders=self.encoders)]

    def budget(self) -> Budget:
        """See `Attack.budget`."""
        return Budget(self.steps * self.batch, self.steps, 2)

    def preparation(self, prompts: int) -> Preparation:
        """See `Attack.preparation`."""
        return Preparation(images=self.pictures)

    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> Prepared:
        """See `Attack.prepare`."""
        check_drawable(pipe)
        words = vocabulary(pipe, self.attacked(pipe))
        _, latents = examples(pipe, asks, self.pictures, draw=draw, generator=generator)
        return Prepared(latents, words)

    def run(self, pipe: Any, ask: Ask, prepared: Prepared, *, generator: torch.Generator) -> Iterator[Candidate]:
        """See `Attack.run`."""
        check_drawable(pipe)
        texts = [template.format(TOKEN) for template in self.templates]
        prompts = [SoftPrompt(pipe, text, {TOKEN: self.tokens}, encoders=self.encoders) for text in texts]
        start = picks(len(prepared.words), self.tokens, generator)
        vectors = {name: nn.Parameter(rows) for name, rows in prepared.words.parts(pipe, start).items()}
        groups = [
            {"params": [own], "lr": token_rate(self.lr, token_table(pipe, name))} for name, own in vectors.items()
        ]
        optimizer, scale = torch.optim.AdamW(groups, weight_decay=self.weight_decay), LossScale(pipe)
        shape = tuple(prepared.latents.shape[1:])
        with frozen(pipe):
            for _ in range(self.steps):
                prompt = prompts[int(picks(len(prompts), 1, generator))]
                latents = prepared.latents[picks(len(prepared.latents), self.batch, generator)]
                times = random_times(pipe, self.batch, generator, shape).to(latents.device)
                noise = gaussian(latents, generator)
                condition = prompt.condition({TOKEN: side_by_side(vectors)})
                scale.set(denoising_in_parts(pipe, latents, times, noise, condition), list(vectors.values()))
                optimizer.step()
        yield Candidate(texts[0], {TOKEN: side_by_side(vectors).detach().clone()}, encoders=tuple(vectors))
