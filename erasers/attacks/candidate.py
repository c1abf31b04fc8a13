"""What an attack yields: one thing to draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from PIL import Image

    from erasers.attacks.step_noise import StepNoise
    from erasers.diffusion.adaptors.condition import Condition
    from erasers.diffusion.image_adapter import ImageAdapter
    from erasers.patch import Patch


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture that the pipeline reads as a prompt.

    Args:
        adapter: Reads it.
        picture: What is read.
        scale: Of what it adds to the text.
    """

    adapter: ImageAdapter
    picture: Image.Image
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """One thing to draw.

    Args:
        text: The prompt; the pipeline tokenises it itself.
        tokens: Word of the prompt -> embeddings `[k, d]` of the soft tokens that stand in its place, those of several
            encoders side by side.
        latents: Noise of unit variance, as the pipeline takes it, where the attack chooses it; None: that of the seed.
        patch: Weights to draw it with, on top of those that the pipeline has.
        noise: Fresh noise in every step of the sampler, which the pipeline's own may not add.
        encoders: The text encoders that were attacked, in the order in which a soft token has their embeddings; empty
            where none was.
        image: A picture beside the text.
        condition: What the denoiser reads in place of the text, states and pooled vector of one prompt.
    """

    text: str
    tokens: Mapping[str, torch.Tensor] = field(default_factory=dict)
    latents: torch.Tensor | None = None
    patch: Patch | None = None
    noise: StepNoise | None = None
    encoders: Sequence[str] = ()
    image: Shown | None = None
    condition: Condition | None = None


def drawable_together(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Places of the candidates in groups, each of which one call of the pipeline can draw.

    Texts are one group, texts with fresh noise another, and so are several times the same candidate. One with latents
    of its own is alone.
    """
    groups: dict[Any, list[int]] = {}
    for place, candidate in enumerate(candidates):
        if candidate.latents is not None:
            kind: Any = place
        elif candidate.tokens or (candidate.patch, candidate.image, candidate.condition) != (None, None, None):
            kind = candidate
        else:
            kind = "text" if candidate.noise is None else "noise"
        groups.setdefault(kind, []).append(place)
    return list(groups.values())


@contextmanager
def placed(pipe: Any, candidates: Sequence[Candidate]) -> Iterator[dict[str, Any]]:
    """Inside, `pipe` draws these candidates, in order, when it is called with the yielded arguments.

    Args:
        pipe: The pipeline.
        candidates: A group of `drawable_together`. `pipe` may be called for all of them at once, or with its prompts in
            batches, one after the other.

    Yields:
        A prompt for each of them, and latents or a picture where the candidate has its own.
    """
    from erasers.attacks.noisy_sampler import noisy_sampler
    from erasers.diffusion.read_instead import read_instead
    from erasers.diffusion.soft import SoftPrompt

    first, texts = candidates[0], [candidate.text for candidate in candidates]
    noises = [candidate.noise for candidate in candidates if candidate.noise is not None]
    with ExitStack() as stack:
        if first.patch is not None:
            stack.enter_context(first.patch.applied(pipe))
        if noises:
            stack.enter_context(noisy_sampler(pipe, noises))
        if first.tokens:
            counts = {word: len(vectors) for word, vectors in first.tokens.items()}
            prompt = SoftPrompt(pipe, first.text, counts, encoders=first.encoders)
            stack.enter_context(prompt.placed(first.tokens))
            texts = [prompt.text] * len(candidates)
        arguments: dict[str, Any] = {"prompt": texts}
        if first.latents is not None:
            arguments["latents"] = first.latents
        if first.condition is not None:
            stack.enter_context(read_instead(pipe, first.text, first.condition))
        if first.image is not None:
            stack.enter_context(first.image.adapter.placed(pipe, scale=first.image.scale))
            arguments["ip_adapter_image"] = first.image.picture
        yield arguments
