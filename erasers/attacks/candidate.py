"""What an attack yields: one thing to draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from erasers.attacks.step_noise import StepNoise
    from erasers.patch import Patch


@dataclass(frozen=True, eq=False)
class Candidate:
    """One thing to draw.

    Args:
        text: The prompt; the pipeline tokenises it itself.
        tokens: Word of the prompt -> embeddings `[k, d]` of the soft tokens that stand in its place, those of several
            encoders side by side.
        latents: Noise `[1, c, h, w]` of unit variance, where the attack chooses it; None takes that of the seed.
        patch: Weights to draw it with, on top of those that the pipeline has.
        noise: Fresh noise in every step of the sampler, which the pipeline's own may not add.
        encoders: The text encoders that were attacked, in the order in which a soft token has their embeddings; empty
            where none was.
    """

    text: str
    tokens: Mapping[str, torch.Tensor] = field(default_factory=dict)
    latents: torch.Tensor | None = None
    patch: Patch | None = None
    noise: StepNoise | None = None
    encoders: Sequence[str] = ()

    @property
    def plain(self) -> bool:
        """Whether it is a text and nothing else, so that several can be drawn together."""
        return not self.tokens and self.latents is None and self.patch is None and self.noise is None

    @contextmanager
    def placed(self, pipe: Any) -> Iterator[dict[str, Any]]:
        """Inside, `pipe` draws this candidate when it is called with the yielded arguments."""
        from erasers.attacks.noisy_sampler import noisy_sampler
        from erasers.diffusion.soft import SoftPrompt

        with ExitStack() as stack:
            if self.patch is not None:
                stack.enter_context(self.patch.applied(pipe))
            if self.noise is not None:
                stack.enter_context(noisy_sampler(pipe, self.noise))
            arguments: dict[str, Any] = {"prompt": self.text}
            if self.tokens:
                counts = {word: len(vectors) for word, vectors in self.tokens.items()}
                prompt = SoftPrompt(pipe, self.text, counts, encoders=self.encoders)
                stack.enter_context(prompt.placed(self.tokens))
                arguments["prompt"] = prompt.text
            if self.latents is not None:
                arguments["latents"] = self.latents
            yield arguments
