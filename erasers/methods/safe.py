"""SAFE: Hong, Lee and Woo, "All but One: Surgical Concept Erasing with Model Preservation in Text-to-Image Diffusion
Models", AAAI 2024, arXiv 2312.12807."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.condition import cat
from erasers.diffusion.batches import Summands, parts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import LatentBank
from erasers.options import known, require_above
from erasers.training.foretelling import Demand
from erasers.training.student import Student
from erasers.training.ways import SMALL, Heard, WayEraser


@dataclass(frozen=True, kw_only=True)
class SAFE(WayEraser):
    """Give the guidance of a concept to its replacement, and hold the prediction without a prompt.

    Guidance is what a prompt adds, g(c) = eps(c) - eps(""). On latents that are on their way to pictures of the
    concept, with * for the frozen model and a for the anchor,

        L = || g(c) - g*(a) ||^2 + keep || eps("") - eps*("") ||^2

    An anchor of no words has no guidance, and the concept gets none. Both predictions of g(c) are trained; without the
    second term g(c) could become g*(a) by moving what is predicted without a prompt.

    *Reconstruction*: there is no public code, and of the paper this follows what its abstract says: the guidance term
    of the concept is updated, toward a replacement that the user chooses, and the drift of the unconditional prediction
    is constrained. The loss in this form, `keep`, the weights that are trained and all numbers are not the authors';
    they are those of ESD where it has them. Purifying pictures by inversion is left out.

    Args:
        keep: Weight of holding the prediction without a prompt; 0 does not.
    """

    name: ClassVar[str] = "safe"
    paper: ClassVar[str] = "[SAFE](https://arxiv.org/abs/2312.12807), reconstructed"
    family: ClassVar[str] = "trained, denoiser"
    keeps: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"safe-shapes": SMALL}
    strengths: ClassVar[str] = "a replacement of your choice"
    limits: ClassVar[str] = "nothing but the empty prompt is held"

    keep: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_above("keep", self.keep, 0, equal=True)

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        own = self.suited(pipe)
        pairs = own.prompt_pairs(own.prepared(pipe, concepts))
        latents = own.batch * known(own.iterations)
        each = Calls(denoiser=4 * latents, gradients=2 * latents)
        return own.ways(pipe, concepts) + each + Calls(texts=2 * len(pairs) + 1)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`: each latent is asked about with the concept's prompt and without one."""
        demand = super().demand(pipe, concepts)
        return replace(demand, passes=[replace(backward, samples=2 * self.batch) for backward in demand.passes])

    def hear(self, pipe: Any, concepts: Sequence[Concept]) -> Heard:
        """See `WayEraser.hear`."""
        pairs = self.prompt_pairs(concepts)
        named, anchors = (conditions(pipe, list(texts), self.clip_skip) for texts in (pairs, pairs.values()))
        return Heard(named, anchors, named, unprompted(pipe))

    def loss(self, pipe: Any, heard: Heard, latents: LatentBank, student: Student) -> Summands:
        """See `WayEraser.loss`.

        The gradient of || g(c) - g*(a) ||^2 is that of two errors, in each of which one of the predictions of g(c) is
        trained and the other stands, so that any number of latents may go through the denoiser together.
        """
        count = self.batch
        both = cat(heard.named.rows(latents.prompts), heard.empty.rows(torch.zeros(count, dtype=torch.long)))
        noisy, times = latents.latents.repeat(2, *[1] * (latents.latents.dim() - 1)), latents.times.repeat(2)
        with torch.no_grad(), student.placed():
            named, nothing = predict(pipe, noisy, times, both).chunk(2)
        toward = torch.cat(goals(named, nothing, latents.conditional - latents.empty))
        held = latents.empty.repeat(2, *[1] * (noisy.dim() - 1))
        empty = torch.arange(2 * count, device=noisy.device) >= count

        def piece(rows: slice) -> Mapping[str, torch.Tensor]:
            guess = predict(pipe, noisy[rows], times[rows], both.part(rows))
            erase, drift = (errors(guess, goal[rows]) for goal in (toward, held))
            return {"erase": erase.sum() / (2 * count), "drift": (empty[rows] * drift).sum() / count}

        def total(losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return 2 * losses["erase"] + self.keep * losses["drift"]

        return Summands([partial(piece, rows) for rows in parts(2 * count)], total)


def goals(named: torch.Tensor, nothing: torch.Tensor, guidance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where eps(c) goes while eps("") stands, and where eps("") goes while eps(c) stands: to g(c) = g*(a).

    Args:
        named: eps(c) `[n, ...]`.
        nothing: eps("") `[n, ...]`.
        guidance: g*(a) `[n, ...]`.
    """
    return nothing + guidance, named - guidance


def errors(guess: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each row `[n]`."""
    return (guess - goal).square().flatten(1).mean(dim=1)
