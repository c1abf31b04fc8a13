"""What is learned from: latents of pictures, prompts that say where concepts are, and what errors count there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from erasers.concept import Concept, names
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.draws import picks
from erasers.diffusion.latent_bank import Way, draw_pictures
from erasers.diffusion.latents import latent_shape, latents_of
from erasers.judges.boxes import Detector
from erasers.methods.geom_erasing.grid import bin_weights, covered, latent_weights
from erasers.methods.geom_erasing.marked import Marked
from erasers.methods.geom_erasing.places import LocatedPrompt
from erasers.training.pictures import picture

_DECODED = 8
Bins = Mapping[str, tuple[int, ...]]
"""Name of a concept -> the bins that it covers in a picture."""


@dataclass(frozen=True)
class Lessons:
    """Pictures that are learned from.

    Args:
        latents: x_0 `[n, c, h, w]`.
        weights: What an error counts `[n, 1, h, w]`.
        prompts: With location tokens where the picture shows a concept.
        bins: Where that is.
        captions: Without location tokens.
    """

    latents: torch.Tensor
    weights: torch.Tensor
    prompts: Sequence[LocatedPrompt]
    bins: Sequence[Bins]
    captions: Sequence[str]

    def draw(self, count: int, generator: torch.Generator, *, marked: bool) -> torch.Tensor:
        """Numbers of `count` pictures: of marked ones alone, or half of them of these where there are others.

        Of the others half are of prompts of which there are marked pictures, too, where there are both kinds.
        """
        shown = [any(bins.values()) for bins in self.bins]
        brought = {text for text, own in zip(self.captions, shown, strict=True) if own}
        rows = list(enumerate(zip(self.captions, shown, strict=True)))
        with_ = [number for number, (_, own) in rows if own]
        beside = [number for number, (text, own) in rows if not own and text in brought]
        apart = [number for number, (text, own) in rows if not own and text not in brought]
        others = 0 if marked or not beside + apart else count // 2
        half = others // 2 if apart and beside else others * bool(beside)
        parts = [(with_, count - others), (beside, half), (apart, others - half)]
        return torch.cat([torch.tensor(own)[picks(len(own), number, generator)] for own, number in parts if number])


@dataclass(frozen=True)
class Drawn:
    """Pictures that the model drew: x_0 `[n, c, h, w]`, and a prompt for each."""

    latents: torch.Tensor
    prompts: Sequence[str]


def first_prompts(named: Sequence[str], unasked: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """What half of `count` pictures are drawn of: prompts that name a concept, and others that may bring it."""
    half = max(1, count // 2)
    own = half if not unasked else max(1, half // 2)
    return in_turn(named, own), in_turn(unasked, half - own)


def in_turn(texts: Sequence[str], count: int) -> list[str]:
    """So many of them, one after the other."""
    return [texts[number % len(texts)] for number in range(count)]


def drawn_lessons(
    pipe: Any,
    prompts: tuple[Sequence[str], Sequence[str]],
    count: int,
    way: Way,
    locate: Callable[[Drawn], list[Bins]],
    generator: torch.Generator,
    advance: Callable[[int], None],
    clip_skip: int | None = None,
) -> tuple[Drawn, list[Bins]]:
    """Pictures that the model draws, and where they show concepts.

    The second half is of those prompts of the first that brought a concept unasked, for there they are with it and
    without it; of all prompts where none did.

    Args:
        pipe: A pipeline of Stable Diffusion 1 or 2.
        prompts: Those that name a concept, and others.
        count: Pictures.
        way: How they are drawn.
        locate: Says where pictures show concepts.
        generator: Draws the noise.
        advance: Told of every picture.
        clip_skip: As the pipeline takes it.
    """
    named, others = first_prompts(*prompts, count)
    first, empty = [*named, *others], unprompted(pipe)
    rows = {text: number for number, text in enumerate(dict.fromkeys(first))}
    asked = conditions(pipe, list(rows), clip_skip)

    def draw(texts: Sequence[str]) -> Drawn:
        own = asked.rows(torch.tensor([rows[text] for text in texts]))
        return Drawn(draw_pictures(pipe, own, empty, way, generator, advance), texts)

    start = draw(first)
    bins = locate(start)
    brought = [text for text, own in zip(others, bins[len(named) :], strict=True) if any(own.values())]
    end = draw(in_turn(list(dict.fromkeys(brought)) or first, count - len(first)))
    return Drawn(torch.cat([start.latents, end.latents]), [*first, *end.prompts]), [*bins, *locate(end)]


def named_bins(drawn: Drawn, concepts: Sequence[Concept], grid: int) -> list[Bins]:
    """All bins for a concept that a prompt names, none for others: what is known without a detector."""
    whole = tuple(range(grid**2))
    return [
        {concept.name: whole if any(names(prompt, term) for term in concept.terms()) else () for concept in concepts}
        for prompt in drawn.prompts
    ]


def detected_bins(pipe: Any, drawn: Drawn, concepts: Sequence[str], detector: Detector, grid: int) -> list[Bins]:
    """The bins that a detector's boxes cover in drawn pictures."""
    images = [image for part in drawn.latents.split(_DECODED) for image in decoded(pipe, part)]
    return [{name: covered(detector(image, name), image.size, grid) for name in concepts} for image in images]


@torch.no_grad()
def decoded(pipe: Any, latents: torch.Tensor) -> list[Image.Image]:
    """Pictures of latents `[n, c, h, w]`, as pipelines of Stable Diffusion 1 and 2 decode them."""
    pixels = pipe.vae.decode((latents / pipe.vae.config.scaling_factor).to(pipe.vae.dtype)).sample
    images: list[Image.Image] = pipe.image_processor.postprocess(pixels, output_type="pil")
    return images


def read_latents(pipe: Any, pictures: Sequence[Marked], size: int | None) -> Drawn:
    """The same of pictures of one's own."""
    sides = [side * pipe.vae_scale_factor for side in latent_shape(pipe, size)[-2:]]
    images = [picture(own.image, (sides[1], sides[0])) for own in pictures]
    latents = [latents_of(pipe, images[start : start + _DECODED]) for start in range(0, len(images), _DECODED)]
    return Drawn(torch.cat(latents), [own.prompt for own in pictures])


def lessons_of(
    pipe: Any, drawn: Drawn, bins: Sequence[Bins], grid: int, alpha: float, clip_skip: int | None = None
) -> Lessons:
    """What is learned from pictures and from where they show concepts."""
    union = [sorted({number for covered in own.values() for number in covered}) for own in bins]
    weights = torch.stack([bin_weights(own, grid, alpha) for own in union])
    resized = latent_weights(weights, drawn.latents.shape[-2:]).to(drawn.latents)
    prompts = [LocatedPrompt(pipe, text, own, clip_skip) for text, own in zip(drawn.prompts, bins, strict=True)]
    return Lessons(drawn.latents, resized, prompts, bins, drawn.prompts)
