"""Concept Ablation: Kumari et al., "Ablating Concepts in Text-to-Image Diffusion Models", ICCV 2023,
arXiv 2303.13516."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.counting import Calls
from erasers.options import known
from erasers.training.layers import denoiser_names
from erasers.training.loop import Stage, Training
from erasers.training.scenes import Noised, SceneEraser
from erasers.training.start_token import start_token_held, starts_alike
from erasers.training.student import Student
from erasers.training.suiting import Kind, at_most, own_guidance


@dataclass(frozen=True, kw_only=True)
class Ablation(SceneEraser):
    """Train cross-attention to predict for the concept what is predicted for its anchor.

    Pictures of the anchor are noised. With c the concept's prompt and a the same with the anchor,

        L = || eps(x_t, c) - goal ||^2 + prior_scale || eps(y_t, p) - noise ||^2

    where the goal is what the model says of the anchor, eps*(x_t, a) (`model`, equation 5 of the paper), or the noise
    that the anchor's picture got (`noise`, equation 7). The second term holds the anchor's own pictures y with their
    prompts p, as the paper regularises, and those of `kept` prompts. Keys and values of cross-attention are trained,
    or, where text and picture are one sequence, those of all attention and the layers through which text enters. No
    gradient passes through the keys and values of the token that all prompts start with, as in the official code.

    Differs from the official code: the frozen model says the goal, as in the paper, where that code asks the student
    as it has become (`teacher=student`); `kept` adds pictures of kept prompts to the second term; captions come from
    templates and from preserved captions that name the anchor, not from a language model; pictures are neither flipped
    nor shrunk. `prior=frozen` takes the frozen model's prediction for the noise, so that nothing pulls at the start.

    Args:
        form: `model` or `noise`, see above.
    """

    name: ClassVar[str] = "ablation"
    paper: ClassVar[str] = "[Concept Ablation](https://arxiv.org/abs/2303.13516)"
    family: ClassVar[str] = "trained, text maps"
    draws: ClassVar[Literal["anchor", "concept"]] = "anchor"
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        # 2e-6 times the batch, as `--scale_lr` has it.
        "unet": {"iterations": 100, "lr": 1.6e-5, "rank": 0, "size": None, "guidance": 6.0},
        "large unet": {"iterations": 200, "lr": 2e-4, "rank": 8, "size": None, "guidance": 6.0},
        "transformer": {"iterations": 200, "lr": 1e-3, "rank": 8, "size": at_most(512), "guidance": own_guidance},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ablation-official": {"teacher": "student", "kept": 0, "everyday": False},
        "ablation-noise": {"form": "noise"},
        "ablation-shapes": {
            "iterations": 200,
            "lr": 1e-3,
            "rank": 0,
            "pictures": 64,
            "kept": 64,
            "steps": 10,
            "guidance": 4.0,
            "prior": "frozen",
        },
    }
    strengths: ClassVar[str] = "the anchor takes the concept's place; a short training"
    limits: ClassVar[str] = "text maps alone: attacks bring the concept back"

    form: Literal["model", "noise"] = "model"

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        own, both = self.suited(pipe), bool(self.prior_scale)
        asked = (self.form == "model") + (self.prior == "frozen" and both)
        each = Calls(denoiser=self.batch * asked, gradients=self.batch * (1 + both))
        return own.drawing(pipe, concepts) + each * known(own.iterations)

    def goal(self, pipe: Any, noised: Noised, anchors: Condition, student: Student) -> torch.Tensor:
        """See `SceneEraser.goal`; of the form `noise` that of a perfect denoiser."""
        return noised.goal if self.form == "noise" else super().goal(pipe, noised, anchors, student)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        lesson = self.lesson(pipe, concepts, generator, stage)
        student = Student(pipe, denoiser_names(pipe, self.train_method), rank=known(self.rank), generator=generator)
        adamw = torch.optim.AdamW(student.parameters, lr=known(self.lr))
        told = lesson.asked if lesson.held is None else cat(lesson.asked, lesson.held.conditions)
        alike = starts_alike(told)

        def step(number: int) -> Mapping[str, float]:
            loss = self.loss(pipe, self.batches(pipe, lesson, student, generator))
            with student.placed(), start_token_held(pipe) if alike else nullcontext():
                student.backward(loss)
            adamw.step()
            return loss.shown

        return Training(student, step, {"adamw": adamw})
