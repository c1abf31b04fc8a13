"""Co-Erasing: Li et al., "One Image is Worth a Thousand Words: A Usability Preservable Text-Image Collaborative Erasing
Framework", ICML 2025, arXiv 2505.11131."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn import functional

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.batches import Summands, mean_in_parts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import picks
from erasers.diffusion.image_adapter import ImageAdapter, adapter_file, check_adaptable, refined
from erasers.diffusion.latent_bank import LatentBank, Way, calls_a_step, draw_pictures
from erasers.diffusion.latents import pictures_of
from erasers.methods.esd import target
from erasers.options import known, require_above, require_least, require_shares
from erasers.training.loop import Stage, Training
from erasers.training.student import Student
from erasers.training.suiting import Kind
from erasers.training.ways import SMALL, Heard, WayEraser


@dataclass(frozen=True)
class Seen:
    """Pictures of concepts, as the denoiser reads them.

    Args:
        adapter: Through which it does.
        tokens: Of all pictures `[concepts * each, k, d]`.
        owners: Of which concept each prompt is `[prompts]`.
        each: Pictures of each concept.
        generator: Draws one of them.
    """

    adapter: ImageAdapter
    tokens: torch.Tensor
    owners: torch.Tensor
    each: int
    generator: torch.Generator

    def beside(self, named: Condition, prompts: torch.Tensor, *, refine: bool) -> Condition:
        """Prompts `[n]`, each with a picture of its concept."""
        rows = self.owners[prompts] * self.each + picks(self.each, len(prompts), self.generator)
        texts, tokens = named.rows(prompts), self.tokens[rows.to(self.tokens.device)]
        return texts._replace(image=refined(tokens, texts.states) if refine else tokens)


@dataclass(frozen=True, kw_only=True)
class CoErasing(WayEraser):
    """ESD with text, then with text and pictures that the model draws of the concept, which an IP-Adapter reads.

    The prediction with the concept's prompt T and a picture p goes to u - eta (eps*(T, p) - u) of the frozen model with
    the same adapter, u being its prediction with no prompt and no picture. The tokens of p are refined: those of T,
    mixed by how they fit p. The adapter stands in training alone: what is trained is the UNet, and the patch has no
    other weights.

    Differs from the official code, whose teacher is the UNet that was erased by text (here it is the model itself, as
    the authors' summary has it), whose predictions without a picture read the last four tokens of the text as one
    (here the adapter is away), and whose latents have other noise than the time that the denoiser is told (here that
    of `ESD`, which see for how latents are drawn). Latents are not blurred, and no noise is added to them.

    Args:
        adapter: The IP-Adapter: a file as published ones are (`ip-adapter_sd15.safetensors`) with the folder
            `image_encoder` beside it, or a folder with one; "auto": that of an embedded model.
        images: Pictures that the model draws of each concept.
        text_share: Share of the iterations, the first ones, that learn from the text alone.
        scale: Of what the picture adds to the text.
        refine: Refine a picture's tokens by the text.
        eta: Negative guidance, as in ESD.
    """

    name: ClassVar[str] = "co_erasing"
    paper: ClassVar[str] = "[Co-Erasing](https://arxiv.org/abs/2505.11131)"
    family: ClassVar[str] = "trained, denoiser"
    keeps: ClassVar[bool] = False
    everywhere: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"co_erasing-shapes": {**SMALL, "lr": 2e-4, "images": 40}}
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        "unet": {**WayEraser.suits["unet"], "iterations": 2000},
        "large unet": {**WayEraser.suits["large unet"], "iterations": 1000},
    }
    strengths: ClassVar[str] = "pictures as prompts are unlearned, too"
    limits: ClassVar[str] = "needs an IP-Adapter to train; UNets only"

    adapter: str = "auto"
    images: int = 100
    text_share: float = 0.5
    scale: float = 1.0
    refine: bool = True
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, images=1)
        require_above("scale", self.scale, 0, equal=True)
        require_shares(self, "text_share")

    def config(self) -> dict[str, Any]:
        """See `Eraser.config`; of the adapter the name of its file alone."""
        return super().config() | {"adapter": self.adapter if self.adapter == "auto" else Path(self.adapter).name}

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        super().check_pipe(pipe)
        check_adaptable(pipe)

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        own = self.suited(pipe)
        prepared, iterations = own.prepared(pipe, concepts), known(own.iterations)
        asked = max(0, iterations - own.refresh) if own.drawn_by == "student" else 0
        drawn = own.images * len(prepared) * known(own.steps) * calls_a_step(pipe, kept=False)
        again = Calls(denoiser=own.batch * (2 * asked + iterations - own.by_text) + drawn)
        texts = Calls(texts=len(own.prompts(prepared)) + 1)
        return own.ways(pipe, concepts) + Calls(gradients=own.batch * iterations) + again + texts

    @property
    def by_text(self) -> int:
        """Iterations that learn from the text alone, of one who has what suits the pipeline."""
        return round(self.text_share * known(self.iterations))

    def hear(self, pipe: Any, concepts: Sequence[Concept]) -> Heard:
        """See `WayEraser.hear`."""
        named = conditions(pipe, self.prompts(concepts), self.clip_skip)
        return Heard(named, named, named, unprompted(pipe))

    def loss(self, pipe: Any, heard: Heard, latents: LatentBank, student: Student) -> Summands:
        """See `WayEraser.loss`: that of the text alone, which is ESD's."""
        return unlearning(pipe, latents, heard.named.rows(latents.prompts), latents.conditional, self.eta)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`; without an adapter nothing is drawn."""
        adapter_file(pipe, self.adapter)
        return super().prepare(pipe, concepts, generator, stage)

    def beside(
        self, pipe: Any, concepts: Sequence[Concept], heard: Heard, generator: torch.Generator, stage: Stage
    ) -> Seen:
        """See `WayEraser.beside`."""
        adapter, prompts = ImageAdapter(pipe, self.adapter), self.prompts(concepts)
        way, tokens = Way(known(self.steps), known(self.guidance), size=known(self.size)), list[torch.Tensor]()
        owners = torch.zeros(len(prompts), dtype=torch.long)
        with stage("drawing pictures that are prompts", self.images * len(concepts)) as advance:
            for number, concept in enumerate(concepts):
                own = torch.tensor([prompts.index(text) for text in self.prompts([concept])])
                owners[own] = number
                turn = own[torch.arange(self.images) % len(own)]
                latents = draw_pictures(pipe, heard.drawn.rows(turn), heard.empty, way, generator, advance)
                tokens.append(adapter.tokens(pipe, pictures_of(pipe, latents)))
        adapter.forget_encoder()
        return Seen(adapter, torch.cat(tokens), owners, self.images, generator)

    def learn(
        self, pipe: Any, heard: Heard, latents: LatentBank, student: Student, beside: Seen, number: int
    ) -> Mapping[str, float]:
        """See `WayEraser.learn`."""
        if number < self.by_text:
            return super().learn(pipe, heard, latents, student, beside, number)
        condition = beside.beside(heard.named, latents.prompts, refine=self.refine)
        # A backward pass may compute activations again, for which the adapter has to be there, too.
        with beside.adapter.placed(pipe, scale=self.scale, projected=True):
            with torch.no_grad():
                named = predict(pipe, latents.latents, latents.times, condition)
            loss = unlearning(pipe, latents, condition, named, self.eta)
            with student.placed():
                student.backward(loss)
        return loss.shown


def unlearning(pipe: Any, latents: LatentBank, condition: Condition, named: torch.Tensor, eta: float) -> Summands:
    """Mean squared error from u - eta (eps* - u), in summands.

    Args:
        pipe: Predicts, with what is trained.
        latents: That it is asked about, with u in `empty`.
        condition: With which it is asked.
        named: eps* of the frozen model with the same condition.
        eta: Negative guidance.
    """
    goal = target(latents.empty, named, eta)

    def error(rows: slice) -> torch.Tensor:
        guess = predict(pipe, latents.latents[rows], latents.times[rows], condition.part(rows))
        return functional.mse_loss(guess, goal[rows])

    return mean_in_parts(len(goal), error)
