"""ESD: Gandikota et al., "Erasing Concepts from Diffusion Models", ICCV 2023, arXiv 2303.07345."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from erasers.concept import Concept, Concepts, as_concepts
from erasers.methods.counting import Calls
from erasers.methods.latent_bank import Way, ask_again, conditions, predict, sample_bank
from erasers.methods.rows import fill, templates_for
from erasers.methods.student import Student, names_of
from erasers.methods.supported import check_unet
from erasers.methods.training import Stage, TrainedEraser, Training

Method = Literal["auto", "x", "x-strict", "u", "all"]
_STRICT = re.compile(r"\.attn2\.(to_k|to_v)$")


@dataclass(frozen=True, kw_only=True)
class ESD(TrainedEraser):
    """Train the denoiser to predict the opposite of the concept where it is asked for it.

    The student's prediction with the concept's prompt goes to eps*("") - eta (eps*(c) - eps*("")) of the frozen model,
    on latents that are on their way to pictures of the concept.

    Differs from the official code: `eta` is the paper's (the option `negative_guidance` of the diffusers code is
    eta + 1 for Stable Diffusion, and its default for SDXL trains toward eps*("") alone); latents have the noise of the
    time that the denoiser is told, under any scheduler; pictures have the model's own size; latents come from
    `pictures` whole ways, drawn anew every `refresh` iterations, in place of a part of a fresh way every iteration.

    Args:
        train_method: `x` cross-attention, `x-strict` its keys and values, `u` everything else, `all` both; norms are
            never trained. "auto" is `x` for styles and identities, and `u` if any concept is of another kind.
        eta: Negative guidance, as in the paper.
        drawn_by: Who draws the latents: the `student` as in the paper, or the `frozen` model as in the diffusers code.
        refresh: Iterations after which the student draws anew.
        guidance: With which the latents are drawn.
        steps: Of their sampler.
        pictures: Ways for each name of a concept.
        batch: Latents an iteration; the paper has 1.
        templates: Patterns with one `{}` for the concept; the paper has the bare name. "auto": those of its kind.
        aliases: Erase the concept's aliases, too.
    """

    name: ClassVar[str] = "esd"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "esd-x": {"train_method": "x"},
        "esd-u": {"train_method": "u"},
        "esd-shapes": {
            "iterations": 200,
            "lr": 3e-4,
            "steps": 20,
            "batch": 8,
            "pictures": 4,
            "templates": "auto",
            # Latents of the student soon wander off, and take what is kept with them.
            "train_method": "x",
            "drawn_by": "frozen",
        },
    }

    train_method: Method = "auto"
    eta: float = 1.0
    drawn_by: Literal["student", "frozen"] = "student"
    refresh: int = 50
    guidance: float = 3.0
    steps: int = 50
    pictures: int = 16
    batch: int = 1
    templates: tuple[str, ...] | Literal["auto"] = ("{}",)
    aliases: bool = True

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_unet(pipe)

    def prompts(self, concepts: Sequence[Concept]) -> list[str]:
        """The prompts that are unlearned."""
        found = [
            fill(template, term).text
            for concept in concepts
            for term in concept.terms(aliases=self.aliases)
            for template in templates_for(concept, self.templates)
        ]
        return list(dict.fromkeys(found))

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        prompts = len(self.prompts(as_concepts(concepts)))
        again = (self.iterations - 1) // self.refresh if self.drawn_by == "student" else 0
        ways = Calls(denoiser=2 * self.steps * (1 + 2 * again)) * (prompts * self.pictures)
        return ways + Calls(gradients=self.batch) * self.iterations + Calls(texts=prompts + 1)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        prompts = self.prompts(concepts)
        asked, empty = conditions(pipe, prompts), conditions(pipe, [""])
        options: dict[str, Any] = {"rounds": self.pictures, "generator": generator}
        way = Way(self.steps, self.guidance)
        with stage("drawing what is unlearned", self.pictures * len(prompts)) as advance:
            bank = sample_bank(pipe, asked, empty, way, advance=advance, **options)
        student = Student(
            pipe, names_of(pipe, "unet", selector(self.method_for(concepts))), rank=self.rank, generator=generator
        )
        adam = torch.optim.Adam(student.parameters, lr=self.lr)

        def step(number: int) -> dict[str, float]:
            if self.drawn_by == "student" and number and number % self.refresh == 0:
                with student.placed():
                    fresh = sample_bank(pipe, asked, empty, way, **options)
                bank.take(ask_again(pipe, fresh, asked, empty))
            some = bank.draw(self.batch, generator)
            goal = target(some.empty, some.conditional, self.eta)
            with student.placed():
                guess = predict(pipe, some.latents, some.times, asked.rows(some.prompts))
                loss = functional.mse_loss(guess, goal)
                student.backward(loss)
            adam.step()
            return {"loss": float(loss.detach())}

        return Training(student, step, {"adam": adam}, bank.tensors())

    def method_for(self, concepts: Sequence[Concept]) -> str:
        """`train_method`, with "auto" worked out."""
        if self.train_method != "auto":
            return self.train_method
        return "x" if all(concept.kind in ("style", "identity") for concept in concepts) else "u"


def target(empty: torch.Tensor, conditional: torch.Tensor, eta: float) -> torch.Tensor:
    """eps*("") - eta (eps*(c) - eps*("")), equation 7 of the paper."""
    return empty - eta * (conditional - empty)


def selector(method: str) -> Any:
    """Which modules of a UNet a method trains, by (module, path)."""

    def wanted(module: nn.Module, path: str) -> bool:
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            return False
        cross = ".attn2." in f".{path}."
        return {"x": cross, "x-strict": bool(_STRICT.search(path)), "u": not cross, "all": True}[method]

    return wanted
