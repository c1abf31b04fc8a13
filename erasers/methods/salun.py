"""SalUn: Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
Classification and Generation", ICLR 2024, arXiv 2310.12508."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.batches import Summands, parts
from erasers.diffusion.conditions import unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.options import Auto, known, require_above, require_least
from erasers.processes import same_start
from erasers.training.foretelling import Demand
from erasers.training.layers import denoiser_names
from erasers.training.loop import Stage, Training
from erasers.training.scenes import Lesson, Noised, SceneEraser, noised
from erasers.training.student import Student
from erasers.training.suiting import Kind, at_most, own_guidance


@dataclass(frozen=True, kw_only=True)
class SalUn(SceneEraser):
    """Relabel the concept's pictures as the anchor's, in the weights alone that matter most for the concept.

    Pictures of the concept and of kept prompts are noised. Which weights w matter says the gradient of the forgetting
    loss before training, over all pictures x of the concept (equation 4 of the paper), with guidance g of its prompt c:

        mask = | grad - || (1 + g) eps(x_t, c) - g eps(x_t, "") - noise ||^2 |  >=  its quantile of 1 - `share`

    The others stay as they are, bit for bit. The masked weights learn, with a the prompt with the anchor,

        L = || eps(x_t, c) - eps*(x_t, a) ||^2 + prior_scale || eps(y_t, p) - noise ||^2

    on pictures y of kept prompts p (equation 7). `train_method` bounds where masked weights may be.

    Differs from the official code: the frozen model says what the anchor's prompt predicts, where that code asks the
    student as it has become (`teacher=student`); pictures of the concept and of what is kept are drawn by the pipeline,
    and their prompts come from templates. Weights whose gradient is zero are never in the mask. Large UNets and
    transformers train keys and values of the text alone, as masks are of whole weights, not of low-rank additions.

    Args:
        share: Of the weights that are trained.
        mask_guidance: g.
        rank: 0, see above.
    """

    name: ClassVar[str] = "salun"
    paper: ClassVar[str] = "[SalUn](https://arxiv.org/abs/2310.12508)"
    family: ClassVar[str] = "trained, masked weights"
    draws: ClassVar[Literal["anchor", "concept"]] = "concept"
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        "unet": {"iterations": 500, "lr": 1e-5, "size": None, "guidance": 6.0, "train_method": "all"},
        "large unet": {"iterations": 500, "lr": 1e-5, "size": None, "guidance": 6.0, "train_method": "x-strict"},
        "transformer": {
            "iterations": 500,
            "lr": 1e-5,
            "size": at_most(512),
            "guidance": own_guidance,
            "train_method": "x-strict",
        },
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "salun-official": {"teacher": "student", "everyday": False},
        "salun-shapes": {
            "iterations": 200,
            "lr": 5e-4,
            "pictures": 64,
            "kept": 96,
            "steps": 10,
            "guidance": 4.0,
            "prior": "frozen",
            "prior_scale": 1.0,
            "train_method": "all",
        },
    }
    strengths: ClassVar[str] = "most weights stay bit for bit"
    limits: ClassVar[str] = "a large patch; which weights changed says what was erased"

    rank: int | Auto = 0
    prior_scale: float = 0.1
    train_method: Literal["auto", "x-strict", "x", "all"] = "auto"
    share: float = 0.5
    mask_guidance: float = 7.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, mask_guidance=0, kept=1)
        require_above("share", self.share, 0)
        if self.share > 1:
            raise ValueError(f"expected share of at most 1, got {self.share}")
        if self.rank:
            raise ValueError(f"expected rank 0, as the mask is of weights, got {self.rank}")

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        own, both = self.suited(pipe), bool(self.prior_scale)
        seen = self.latents(concepts) - self.kept
        asked = 1 + (self.prior == "frozen" and both)
        each = Calls(denoiser=self.batch * asked, gradients=self.batch * (1 + both))
        return own.drawing(pipe, concepts) + each * known(own.iterations) + Calls(2, 2) * seen + Calls(texts=1)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`; there is a mask, and each latent of it is told twice."""
        demand = super().demand(pipe, concepts)
        return replace(demand, passes=[replace(each, samples=2 * self.batch) for each in demand.passes], copies=5)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        lesson = self.lesson(pipe, concepts, generator, stage)
        student = Student(pipe, denoiser_names(pipe, known(self.train_method)), generator=generator, exact=True)
        masks = salient(self._slopes(pipe, lesson, student, generator), self.share)
        same_start(masks)
        adam = torch.optim.Adam(student.parameters, lr=known(self.lr))

        def step(number: int) -> Mapping[str, float]:
            loss = self.loss(pipe, self.batches(pipe, lesson, student, generator))
            with student.placed():
                student.backward(loss)
            for weight, mask in zip(student.parameters, masks, strict=True):
                if weight.grad is not None:
                    weight.grad.mul_(mask)
            adam.step()
            return loss.shown

        return Training(student, step, {"adam": adam})

    def _slopes(self, pipe: Any, lesson: Lesson, student: Student, generator: torch.Generator) -> list[torch.Tensor]:
        """The gradient of the forgetting loss for each weight, over all pictures of the concept."""
        empty, total = unprompted(pipe), [torch.zeros_like(weight) for weight in student.parameters]
        for rows in torch.arange(len(lesson.drawn.pictures)).split(self.batch):
            told = lesson.asked.rows(lesson.drawn.prompts[rows])
            batch = noised(pipe, lesson.drawn.pictures[rows], told, generator)
            with student.placed():
                # Where float16 has no room for them, the scale of the loss is smaller the next time.
                while not student.backward(forgetting(pipe, batch, empty, self.mask_guidance)):
                    continue
            for slope, weight in zip(total, student.parameters, strict=True):
                slope += weight.grad if weight.grad is not None else 0.0
        return total


def forgetting(pipe: Any, batch: Noised, empty: Condition, guidance: float) -> Summands:
    """A loss with the gradient of - || r ||^2, where r = (1 + g) eps(c) - g eps("") - noise.

    That gradient is the one of - 2 <r, (1 + g) eps(c) - g eps("")> where r stands, in which both predictions are apart,
    so that any number of latents may go through the denoiser together.
    """
    count = len(batch.times)
    both = cat(batch.told, empty.rows(torch.zeros(count, dtype=torch.long)))
    noisy, times = torch.cat([batch.noisy, batch.noisy]), batch.times.repeat(2)
    weights = torch.tensor([1 + guidance, -guidance], device=noisy.device).repeat_interleave(count)
    weights = weights.view(-1, *[1] * (noisy.dim() - 1))
    with torch.no_grad():
        rest = (weights * predict(pipe, noisy, times, both)).unflatten(0, (2, count)).sum(dim=0) - batch.goal

    def piece(rows: slice) -> dict[str, torch.Tensor]:
        guess = predict(pipe, noisy[rows], times[rows], both.part(rows))
        return {"forget": -2 * (torch.cat([rest, rest])[rows] * weights[rows] * guess).sum() / rest.numel()}

    return Summands([partial(piece, rows) for rows in parts(2 * count)], lambda losses: losses["forget"])


def salient(slopes: Sequence[torch.Tensor], share: float) -> list[torch.Tensor]:
    """1 for each of the share of all weights with the largest gradients, 0 for others; equation 5 of the paper."""
    sizes = torch.cat([slope.abs().flatten() for slope in slopes])
    chosen = max(1, round(share * len(sizes)))
    least = sizes.kthvalue(len(sizes) - chosen + 1).values
    return [((slope.abs() >= least) & (slope != 0)).to(slope.dtype) for slope in slopes]
