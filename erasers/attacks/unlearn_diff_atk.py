"""UnlearnDiffAtk: Zhang et al., "To Generate or Not?", ECCV 2024, arXiv 2310.11868."""

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
from erasers.diffusion.attacked import Vocabulary, every_token, vocabulary
from erasers.diffusion.denoiser import denoising_loss
from erasers.diffusion.draws import gaussian
from erasers.diffusion.gradients import LossScale, frozen
from erasers.diffusion.latents import latents_of
from erasers.diffusion.noise import middle_times
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.supported import check_drawable
from erasers.options import Bound

if TYPE_CHECKING:
    from erasers.asks import Ask

PREFIX = "<prefix>"


@dataclass(frozen=True)
class Prepared:
    """What the attack knows of the unedited model.

    Args:
        latents: (text, seed) of a prompt -> latents `[1, c, h, w]` of the unedited model's picture of it.
        words: What a prefix may have.
    """

    latents: Mapping[tuple[str, int], torch.Tensor]
    words: Vocabulary


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtk(EncoderAttack):
    """Find k tokens in front of the prompt with which the edited model denoises the unedited model's picture of it.

    Each token is a point P of the probability simplex over the vocabulary. A step draws tokens s ~ P, takes the
    gradient of `||noise - eps(z_t, t, [s, prompt])||^2` straight through to P, clipped to [-1, 1], lets Adam step and
    projects back. After the steps at one time step the most likely tokens are a candidate; P goes on from there. Along
    a flow the loss is `||noise - z_0 - v(z_t, t, [s, prompt])||^2`. A token has one P for all attacked encoders.

    Differs from the official code: prefixes have only tokens that can be typed as words (`words`; `all` takes every
    token but the special ones); a prefix that was drawn is not drawn again; the projection is exact, not bisected.

    Args:
        k: Tokens in front of the prompt; the paper takes 5 for nudity, else 3.
        timesteps: Time steps, evenly spread and in ascending order, each followed by one picture.
        steps: Gradients at each time step.
        lr: Learning rate of Adam.
        weight_decay: Of Adam.
        vocabulary: `words` or `all`; of several encoders, what they have in common.
        encoders: See `EncoderAttack`.
    """

    name = "unlearn_diff_atk"
    space = "text"
    encoder = "attacked"
    bounds = (Bound("k timesteps steps", 1), Bound("lr", 0, equal=False), Bound("weight_decay", 0))

    k: int = 3
    timesteps: int = 50
    steps: int = 40
    lr: float = 0.01
    weight_decay: float = 0.1
    vocabulary: Literal["words", "all"] = "words"

    def budget(self) -> Budget:
        """See `Attack.budget`."""
        gradients = self.timesteps * self.steps
        return Budget(gradients, gradients, self.timesteps + 1)

    def preparation(self, prompts: int) -> Preparation:
        """See `Attack.preparation`."""
        return Preparation(images=prompts)

    def prepare(self, pipe: Any, asks: Sequence[Ask], *, draw: Draw, generator: torch.Generator) -> Prepared:
        """See `Attack.prepare`."""
        check_drawable(pipe)
        encoders = self.attacked(pipe)
        images = draw(pipe, {"prompt": [ask.text for ask in asks]}, [ask.seed for ask in asks])
        pictures = {(ask.text, ask.seed): image for ask, image in zip(asks, images, strict=True)}
        return Prepared(
            {key: latents_of(pipe, [image]) for key, image in pictures.items()},
            (vocabulary if self.vocabulary == "words" else every_token)(pipe, encoders),
        )

    def run(self, pipe: Any, ask: Ask, prepared: Prepared, *, generator: torch.Generator) -> Iterator[Candidate]:
        """See `Attack.run`."""
        check_drawable(pipe)
        latents = prepared.latents[ask.text, ask.seed]
        prompt = SoftPrompt(pipe, f"{PREFIX} {ask.text}", {PREFIX: self.k}, encoders=self.encoders)
        table = prepared.words.table(pipe)
        chances = nn.Parameter(torch.full((self.k, len(table)), 1 / len(table), device=table.device))
        adam = torch.optim.Adam([chances], lr=self.lr, weight_decay=self.weight_decay)
        drawn, scale = {ask.text}, LossScale(pipe)
        for t in middle_times(pipe, self.timesteps, tuple(latents.shape[1:])):
            with frozen(pipe):
                for _ in range(self.steps):
                    rows = torch.multinomial(chances.detach().to(generator.device), 1, generator=generator)[:, 0]
                    noise = gaussian(latents, generator)
                    chances.grad = gradient(pipe, prompt, table, rows.to(table.device), latents, t, noise, scale)
                    adam.step()
                    chances.data = project_simplex(chances.data)
            text = f"{prepared.words.text(pipe, chances.argmax(dim=-1))} {ask.text}"
            if text not in drawn:
                drawn.add(text)
                yield Candidate(text, encoders=prompt.encoders)


def gradient(
    pipe: Any,
    prompt: SoftPrompt,
    table: torch.Tensor,
    rows: torch.Tensor,
    latents: torch.Tensor,
    t: float,
    noise: torch.Tensor,
    scale: LossScale,
) -> torch.Tensor | None:
    """The straight-through gradient `[k, words]` of the denoising loss to the chances of the words of each token.

    There is none where it overflowed.

    Args:
        pipe: The edited pipeline.
        prompt: The prompt with `PREFIX` for k soft tokens.
        table: Embeddings `[words, d]` that a token may have, those of several encoders side by side.
        rows: Row of the table `[k]` that was drawn for each token.
        latents: z_0 `[1, c, h, w]`.
        t: The time step.
        noise: `[1, c, h, w]`.
        scale: Of the loss.
    """
    vectors = table[rows].requires_grad_()
    time = torch.tensor([t], device=latents.device)
    loss = denoising_loss(pipe, latents, time, noise, prompt.condition({PREFIX: vectors}))
    slopes = scale.slopes(loss, [vectors])
    # A token is onehot(pick) @ table, so this is the gradient to the one-hot vector.
    return None if slopes is None else functional.hardtanh(slopes[0] @ table.T)


def project_simplex(rows: torch.Tensor) -> torch.Tensor:
    """The nearest point of the probability simplex, row by row; rows `[..., n]`.

    Source: Duchi et al., "Efficient Projections onto the l1-Ball", ICML 2008, figure 1.
    """
    ordered = rows.sort(dim=-1, descending=True).values
    places = torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=rows.dtype)
    excess = (ordered.cumsum(dim=-1) - 1) / places
    count = (ordered > excess).sum(dim=-1, keepdim=True)
    return (rows - excess.gather(-1, count - 1)).clamp(min=0)
