"""EraseFlow: Kusumba et al., "EraseFlow: Learning Concept Erasure Policies via GFlowNet-Driven Alignment", NeurIPS
2025."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.table import adaptor_of, denoiser_of
from erasers.diffusion.batches import Summands, parts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import gaussian
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import ancestral, flows, renoised, time_grid
from erasers.diffusion.supported import check_drawable
from erasers.models.families import UnsupportedPipeline
from erasers.options import Auto, known, require_least
from erasers.text.contexts import anchored
from erasers.text.prompts import Templates, require_templates
from erasers.training.foretelling import Demand
from erasers.training.layers import denoiser_names
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.student import Student
from erasers.training.suiting import Kind

_EARLY = 0.8
"""Share of the steps that random ones are drawn from."""


class Path(NamedTuple):
    """Ways from noise toward pictures, step by step.

    Args:
        latents: x `[n, c, h, w]` before each step, and after the last one.
        times: Of these, but for the last one's end.
    """

    latents: list[torch.Tensor]
    times: list[float]


@dataclass(frozen=True, kw_only=True)
class EraseFlow(TrainedEraser):
    """Make ways that lead to the anchor's pictures as likely for the concept's prompt, by trajectory balance.

    In every iteration the student itself draws a way x_T, ..., x_0 with the anchor's prompt, by DDIM with noise (eta 1)
    and guidance. With p_F the step back under the concept's prompt c, p_B the noising of the forward process, and both
    logarithms of densities as means over numbers,

        L = ( sum_t [ log p_F(x_{t-1} | x_t, c) - log p_B(x_t | x_{t-1}) ] - constant )^2

    over some steps: `random_steps` of the first four fifths and the `last_steps`. What the constant is for is the
    widths of both densities: where c is the anchor and nothing was trained the sum is sum_t log(sigma_B / sigma_F) on
    average, and with that taken off, as "auto" does, L is about 0 there, and otherwise says how much less likely the
    way is for c.

    Differs from the official code, which has 2.695 for every schedule (2.5 and a learned logarithm of the partition
    function that starts at -0.1953 and hardly moves; `eraseflow-official`): with other steps than its own the sign of
    the gradient may turn round. No such logarithm is learned here, and each iteration has a way of its own.

    Args:
        steps: Of a way.
        guidance: Of all predictions, of the way as of p_F.
        batch: Ways an iteration; prompts take turns.
        random_steps: See above.
        last_steps: See above.
        constant: See above; a number, or "auto".
        templates: Patterns with one `{}` for the concept; "auto" takes those of its kind.
        aliases: Erase the concept's aliases, too.
    """

    name: ClassVar[str] = "eraseflow"
    paper: ClassVar[str] = "EraseFlow (NeurIPS 2025)"
    family: ClassVar[str] = "trained, denoiser"
    keeps: ClassVar[bool] = False
    everywhere: ClassVar[bool] = False
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        kind: {"lr": 3e-4, "rank": 4} for kind in ("unet", "large unet", "transformer")
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "eraseflow-official": {"constant": 2.6953},
        "eraseflow-shapes": {
            "iterations": 40,
            "lr": 5e-3,
            "rank": 16,
            "steps": 20,
            "guidance": 4.0,
            "batch": 2,
            "random_steps": 4,
            "last_steps": 2,
            "templates": "auto",
        },
    }
    strengths: ClassVar[str] = "few iterations, no pictures"
    limits: ClassVar[str] = "schedules of alphas alone; keeps nothing"

    iterations: int = 20
    lr: float | Auto = "auto"
    rank: int | Auto = "auto"
    steps: int = 50
    guidance: float = 5.0
    batch: int = 1
    random_steps: int = 10
    last_steps: int = 10
    constant: float | Auto = "auto"
    templates: Templates = ("{}",)
    aliases: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, steps=2, batch=1, random_steps=0, last_steps=0)
        require_templates("templates", self.templates)
        if not 0 < self.random_steps + self.last_steps < self.steps:
            raise ValueError(
                f"expected random_steps and last_steps of at least 1 and below {self.steps} together, got "
                f"{self.random_steps} and {self.last_steps}"
            )

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`: along a flow there is no noise in a step back."""
        check_drawable(pipe)
        if flows(pipe):
            raise UnsupportedPipeline(
                "expected a pipeline with a schedule of alphas (Stable Diffusion 1, 2, XL or PixArt), got "
                f"{type(pipe).__name__}"
            )

    def pairs(self, concepts: Sequence[Concept]) -> dict[str, str]:
        """Each prompt that is unlearned, and the same with the anchor."""
        return anchored(concepts, self.templates, aliases=self.aliases)

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        chosen, both = self.random_steps + self.last_steps, 1 + (adaptor_of(pipe).guides(pipe) == "twice")
        each = Calls(denoiser=both * (self.steps - 1 + chosen), gradients=both * chosen) * self.batch
        return each * self.iterations + Calls(texts=2 * len(self.pairs(self.prepared(pipe, concepts))) + 1)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`; a latent is asked about with a prompt and without one."""
        names = denoiser_names(pipe, "attention")
        return Demand(names, [Pass(2 * self.batch, names, size=known(self.size))], latents=self.batch * self.steps)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        pairs = self.pairs(concepts)
        named, anchors = (conditions(pipe, list(texts), self.clip_skip) for texts in (pairs, pairs.values()))
        guided = Guided(pipe, unprompted(pipe), self.guidance)
        student = Student(pipe, denoiser_names(pipe, "attention"), rank=known(self.rank), generator=generator)
        adamw = torch.optim.AdamW(student.parameters, lr=known(self.lr))

        def step(number: int) -> Mapping[str, float]:
            rows = (torch.arange(self.batch) + number * self.batch) % len(pairs)
            with student.placed():
                path = self.way(guided, anchors.rows(rows), generator)
                chosen = self.chosen(generator)
                with torch.no_grad():
                    steps = [step_balance(guided, path, at, named.rows(rows)) for at in chosen]
                # With the widths of both densities; "auto" takes these off again.
                balance = torch.stack(steps).sum(dim=0)
                if self.constant != "auto":
                    balance = balance + log_widths(guided, path, chosen) - self.constant
                student.backward(balance_loss(guided, path, chosen, named.rows(rows), balance))
            adamw.step()
            return {"loss": float(balance.square().mean())}

        return Training(student, step, {"adamw": adamw})

    def chosen(self, generator: torch.Generator) -> list[int]:
        """The steps of a way that count; the very last one, which adds no noise, never does."""
        last = list(range(self.steps - 1 - self.last_steps, self.steps - 1))
        early = max(self.random_steps, min(int(_EARLY * self.steps), self.steps - 1 - self.last_steps))
        order = torch.randperm(early, generator=generator, device=generator.device).tolist()
        return sorted(order[: self.random_steps]) + last

    @torch.no_grad()
    def way(self, guided: Guided, anchors: Condition, generator: torch.Generator) -> Path:
        """A way for each row of a condition, with noise in each step, but for the last step."""
        pipe, shape = guided.pipe, latent_shape(guided.pipe, known(self.size))
        times = [float(time) for time in time_grid(pipe, self.steps, shape)]
        noise = torch.empty(len(anchors.states), *shape, device=denoiser_of(pipe).device)
        latents = [gaussian(noise, generator)]
        for time, before in zip(times[:-1], times[1:], strict=True):
            now, then = (torch.full((len(noise),), int(value), device=noise.device) for value in (time, before))
            mean, sigma = ancestral(pipe, latents[-1], now, then, guided(latents[-1], time, anchors))
            latents.append(mean + sigma * gaussian(noise, generator))
        return Path(latents, times)


class Guided:
    """Guided predictions of a pipeline, as it now is.

    Args:
        pipe: A pipeline with a schedule of alphas.
        empty: What it guides with where nothing is asked for.
        scale: Of guidance.
    """

    def __init__(self, pipe: Any, empty: Condition, scale: float) -> None:
        self.pipe, self.empty, self.scale = pipe, empty, scale
        self.twice = adaptor_of(pipe).guides(pipe) == "twice"

    def __call__(self, noisy: torch.Tensor, time: float, condition: Condition) -> torch.Tensor:
        """What is predicted `[n, c, h, w]` of latents at a time."""
        times = torch.full((len(noisy),), int(time), device=noisy.device)
        asked = predict(self.pipe, noisy, times, condition, self.scale)
        if not self.twice:
            return asked
        return adaptor_of(self.pipe).guided(asked, predict(self.pipe, noisy, times, self.empty), self.scale)


def step_balance(guided: Guided, path: Path, at: int, condition: Condition, rows: slice = slice(None)) -> torch.Tensor:
    """log p_F(x_{t-1} | x_t, c) - log p_B(x_t | x_{t-1}) of a step `[n]`, as means over numbers, without widths.

    The widths of both are left to `log_widths`.
    """
    noisy, earlier = path.latents[at][rows], path.latents[at + 1][rows]
    times, before = (torch.full((len(noisy),), int(path.times[step]), device=noisy.device) for step in (at, at + 1))
    mean, sigma = ancestral(guided.pipe, noisy, times, before, guided(noisy, path.times[at], condition))
    back, spread = renoised(guided.pipe, earlier, before, times)
    forward, backward = ((earlier - mean) / sigma).square(), ((noisy - back) / spread).square()
    return 0.5 * (backward - forward).flatten(1).mean(dim=1)


def log_widths(guided: Guided, path: Path, chosen: Sequence[int]) -> float:
    """sum_t log(sigma_B / sigma_F) over steps."""
    total, like = 0.0, path.latents[0][:1]
    for at in chosen:
        times, before = (torch.full((1,), int(path.times[step]), device=like.device) for step in (at, at + 1))
        sigma = ancestral(guided.pipe, like, times, before, like)[1]
        total += float((renoised(guided.pipe, like, before, times)[1] / sigma).log())
    return total


def balance_loss(
    guided: Guided, path: Path, chosen: Sequence[int], condition: Condition, balance: torch.Tensor
) -> Summands:
    """A loss with the gradient of mean(balance^2), one step of the way after the other.

    Args:
        guided: Predictions.
        path: The ways.
        chosen: Steps.
        condition: The concept's prompts `[n]`.
        balance: Sums over all steps `[n]`, which stand.
    """

    def piece(at: int, rows: slice) -> dict[str, torch.Tensor]:
        own = step_balance(guided, path, at, condition.part(rows), rows)
        return {"slope": 2 * (balance[rows] * own).sum() / len(balance)}

    pieces = [partial(piece, at, rows) for at in chosen for rows in parts(len(balance))]
    return Summands(pieces, lambda losses: losses["slope"])
