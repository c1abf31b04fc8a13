"""ESD: Gandikota et al., "Erasing Concepts from Diffusion Models", ICCV 2023, arXiv 2303.07345."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from erasers.concept import Concept, Concepts
from erasers.diffusion.batches import Summands, mean_in_parts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import LatentBank
from erasers.options import known
from erasers.training.student import Student
from erasers.training.ways import SMALL, Heard, WayEraser

_SMALL: Mapping[str, Any] = {**SMALL, "refresh": 50}


@dataclass(frozen=True, kw_only=True)
class ESD(WayEraser):
    """Train the denoiser to predict the opposite of the concept where it is asked for it.

    The student's prediction with the concept's prompt goes to eps*("") - eta (eps*(c) - eps*("")) of the frozen model,
    on latents that are on their way to pictures of the concept. Along a flow the predictions are velocities; models
    that read a guidance scale are asked at 1, and draw at their own.

    Differs from the official code: `eta` is the paper's (the option `negative_guidance` of the diffusers code is
    eta + 1 for Stable Diffusion, and its default for SDXL trains toward eps*("") alone); latents have the noise of the
    time that the denoiser is told, under any scheduler; pictures have the model's own size; a whole way is drawn every
    `refresh` iterations and learned from in all of them, in place of a part of a fresh way every iteration.

    Transformers get low-rank weights, as in EraseAnything (arXiv 2412.20413), on pictures of 512 pixels; the UNet of
    SDXL gets some, too.

    Args:
        eta: Negative guidance, as in the paper.
        from_concept: Erase the concept from this alone, as a hat from a cowboy: its prediction f, on the way to its
            pictures, goes to eps*(f) - eta (eps*(c) - eps*("")). None erases the concept itself.
    """

    name: ClassVar[str] = "esd"
    paper: ClassVar[str] = "[ESD](https://arxiv.org/abs/2303.07345)"
    family: ClassVar[str] = "trained, denoiser"
    keeps: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "esd-x": {"train_method": "x"},
        "esd-u": {"train_method": "u"},
        "esd-shapes": _SMALL,
        "esd-shapes-sd3": {**_SMALL, "train_method": "all", "rank": 16, "lr": 1e-3},
    }
    strengths: ClassVar[str] = "no pictures needed"
    limits: ClassVar[str] = "the style stays; found by attacks it was not trained on"

    eta: float = 1.0
    from_concept: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_concept is not None and not self.from_concept.strip():
            raise ValueError("expected from_concept as text with at least one letter, got none")

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        own = self.suited(pipe)
        prompts, iterations = len(own.prompts(own.prepared(pipe, concepts))), known(own.iterations)
        asked = max(0, iterations - own.refresh) if own.drawn_by == "student" else 0
        each = Calls(gradients=own.batch) * iterations
        also = Calls(denoiser=own.batch * iterations, texts=1) if own.from_concept else Calls()
        again = Calls(denoiser=2 * own.batch * asked, texts=prompts + 1)
        return own.ways(pipe, concepts) + each + also + again

    def hear(self, pipe: Any, concepts: Sequence[Concept]) -> Heard:
        """See `WayEraser.hear`."""
        prompts = self.prompts(concepts)
        named, empty = conditions(pipe, prompts, self.clip_skip), unprompted(pipe)
        drawn = named
        if self.from_concept:
            only = conditions(pipe, [self.from_concept], self.clip_skip)
            drawn = only.rows(torch.zeros(len(prompts), dtype=torch.long))
        return Heard(drawn, drawn, named, empty)

    def loss(self, pipe: Any, heard: Heard, latents: LatentBank, student: Student) -> Summands:
        """See `WayEraser.loss`."""
        if self.from_concept:
            with torch.no_grad():
                named = predict(pipe, latents.latents, latents.times, heard.named.rows(latents.prompts))
            goal = target_from(latents.conditional, latents.empty, named, self.eta)
        else:
            goal = target(latents.empty, latents.conditional, self.eta)

        def error(rows: slice) -> torch.Tensor:
            condition = heard.drawn.rows(latents.prompts[rows])
            return functional.mse_loss(predict(pipe, latents.latents[rows], latents.times[rows], condition), goal[rows])

        return mean_in_parts(self.batch, error)


def target(empty: torch.Tensor, conditional: torch.Tensor, eta: float) -> torch.Tensor:
    """eps*("") - eta (eps*(c) - eps*("")), equation 7 of the paper."""
    return empty - eta * (conditional - empty)


def target_from(whole: torch.Tensor, empty: torch.Tensor, conditional: torch.Tensor, eta: float) -> torch.Tensor:
    """eps*(f) - eta (eps*(c) - eps*("")), the official code's form for a concept c that is erased from f."""
    return whole - eta * (conditional - empty)
