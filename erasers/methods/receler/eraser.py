"""Receler: Huang et al., "Receler: Reliable Concept Erasing of Text-to-Image Diffusion Models via Lightweight Erasers",
ECCV 2024, arXiv 2311.17717."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.nn import functional

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.batches import Summands, mean_in_parts, parts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import chances, gaussian
from erasers.diffusion.gradients import LossScale
from erasers.diffusion.latent_bank import LatentBank
from erasers.diffusion.tokens import tokenise
from erasers.methods.adv_unlearn import words_of
from erasers.methods.esd import target
from erasers.methods.receler.attention import attention_masks, cross_attention, outside
from erasers.models.families import UnsupportedPipeline
from erasers.options import known, require_above, require_least
from erasers.patch.adapter import Adapter
from erasers.patch.feature_hooks import first_output
from erasers.patch.hooks import Hook
from erasers.patch.targets import find_target
from erasers.text.prompts import fill, templates_for
from erasers.training.foretelling import Demand
from erasers.training.hooked import HookedStudent
from erasers.training.loop import Stage
from erasers.training.student import Student
from erasers.training.suiting import Kind, kind_of
from erasers.training.ways import SMALL, Heard, WayEraser

UNETS: tuple[Kind, ...] = ("unet", "large unet")


@dataclass(frozen=True, kw_only=True)
class Receler(WayEraser):
    """Train small adapters behind cross-attention, against vectors in the conditioning that bring the concept back.

    What a cross-attention layer returns, a, becomes a + up GELU(down a). All weights stay; only adapters are trained,
    and their last layer starts at zero. On latents x_t that are on their way to pictures of the concept, with c its
    prompt and v vectors behind the states of c,

        v = argmin || eps(x_t, [c, v]) - eps*(x_t, c) ||^2
        L = || eps(x_t, [c, v]) - (eps*("") - eta (eps*(c) - eps*(""))) ||^2 + locality || o (1 - M) ||^2

    where o is what the adapters add (equations 4 to 8 of the paper) and M where the frozen model's cross-attention
    looks at the tokens of the concept: its map, stretched from 0 to 1, is above `threshold`. The vectors live as long
    as the training.

    Differs from the official code, where the vectors are written into a copy and so never reach the denoiser: here
    they do. `receler-official` reproduces it, without the steps that change nothing there. The vectors stand behind the
    prompt's states, not in the place of some of its padding, so that they count under any mask of the text; latents
    come from whole ways (see `esd`).

    Args:
        rank: Of the adapters.
        eta: Negative guidance, as for ESD.
        attack_steps: Steps on the vectors an iteration; 0 trains without them.
        attack_lr: Of their Adam, whose weight decay is the same.
        vectors: How many.
        locality: Weight of what adapters add outside of the concept; 0 asks for no masks.
        threshold: Of the masks.
        train_method: Adapters alone are trained: "auto".
    """

    name: ClassVar[str] = "receler"
    paper: ClassVar[str] = "[Receler](https://arxiv.org/abs/2311.17717)"
    family: ClassVar[str] = "trained, adapters at run time, against attacks"
    keeps: ClassVar[bool] = False
    everywhere: ClassVar[bool] = False
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        kind: {**WayEraser.suits[kind], "iterations": 500, "lr": 3e-4, "rank": 128} for kind in UNETS
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "receler-official": {"attack_steps": 0, "templates": ("{}",)},
        "receler-shapes": {
            **{key: value for key, value in SMALL.items() if key != "train_method"},
            "rank": 16,
            "lr": 1e-3,
            "batch": 4,
            "attack_steps": 3,
        },
    }
    strengths: ClassVar[str] = "weights stay; changes where the concept is"
    limits: ClassVar[str] = "comes off with its hooks; denoisers with cross-attention"
    hooks: ClassVar[bool] = True

    eta: float = 1.0
    attack_steps: int = 50
    attack_lr: float = 0.1
    vectors: int = 16
    locality: float = 0.1
    threshold: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, rank=1, attack_steps=0, vectors=1, locality=0, threshold=0)
        require_above("attack_lr", self.attack_lr, 0)
        if self.train_method != "auto":
            raise ValueError(f"expected train_method auto, as adapters are trained, got {self.train_method!r}")

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`: adapters stand behind the cross-attention of UNets."""
        super().check_pipe(pipe)
        if kind_of(pipe) == "transformer" or not cross_attention(pipe):
            raise UnsupportedPipeline(
                "expected a pipeline with a UNet, whose cross-attention gets adapters (Stable Diffusion 1, 2, XL), got "
                f"{type(pipe).__name__}"
            )

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        own = self.suited(pipe)
        prompts, iterations = len(own.prompts(own.prepared(pipe, concepts))), known(own.iterations)
        asked = max(0, iterations - own.refresh) if own.drawn_by == "student" else 0
        each = Calls(denoiser=own.batch * bool(own.locality), gradients=own.batch * (1 + own.attack_steps))
        again = Calls(denoiser=2 * own.batch * asked, texts=prompts + 1)
        return own.ways(pipe, concepts) + each * iterations + again

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        rank = known(self.suited(pipe).rank)
        widths = [width_of(module) for module in cross_attention(pipe).values()]
        beside = sum(2 * rank * width + rank + width for width in widths)
        demand = super().demand(pipe, concepts)
        # Gradients go as far back as those of the layers that the adapters stand behind.
        return replace(demand, names=[], beside=beside)

    def hear(self, pipe: Any, concepts: Sequence[Concept]) -> Heard:
        """See `WayEraser.hear`."""
        named = conditions(pipe, self.prompts(concepts), self.clip_skip)
        return Heard(named, named, named, unprompted(pipe))

    def student(self, pipe: Any, concepts: Sequence[Concept], beside: Any, generator: torch.Generator) -> Student:
        """See `WayEraser.student`."""
        modules = cross_attention(pipe)
        hooks = [Adapter(name, fresh(module, known(self.rank), generator)) for name, module in modules.items()]
        return HookedStudent(pipe, hooks, [f"{name}.to_out.0.weight" for name in modules], generator=generator)

    def beside(
        self, pipe: Any, concepts: Sequence[Concept], heard: Heard, generator: torch.Generator, stage: Stage
    ) -> Attack:
        """See `WayEraser.beside`: the vectors, and where the concept's tokens stand in each prompt."""
        size = (self.vectors, heard.named.states.shape[-1])
        vectors = nn.Parameter(chances(size, generator).to(heard.named.states.device))
        return Attack(
            pipe, vectors, self.attack_lr, [positions(pipe, text, term) for text, term in self._terms(concepts).items()]
        )

    def lasting(self, beside: Any) -> tuple[dict[str, torch.optim.Optimizer], dict[str, torch.Tensor]]:
        """See `WayEraser.lasting`."""
        return {"attack": beside.adam}, {"vectors": beside.vectors.data, "attack-scale": beside.scale.state}

    def learn(
        self, pipe: Any, heard: Heard, latents: LatentBank, student: Student, beside: Any, number: int
    ) -> Mapping[str, float]:
        """See `WayEraser.learn`: the vectors attack the student as it is, then it learns."""
        named, masks = heard.named.rows(latents.prompts), None
        if self.locality:
            tokens = [beside.tokens[number] for number in latents.prompts.tolist()]
            masks = attention_masks(pipe, latents.latents, latents.times, named, tokens, self.threshold)
        with student.placed():
            for _ in range(self.attack_steps):
                beside.step(latents, named)
            told = behind(named, beside.vectors.detach()) if self.attack_steps else named
            loss = self._learnt(pipe, latents, told, masks, cast(HookedStudent, student))
            student.backward(loss)
        return loss.shown

    def _terms(self, concepts: Sequence[Concept]) -> dict[str, str]:
        """The words of the concept in each prompt."""
        return {
            fill(template, term).text: term
            for concept in concepts
            for term in concept.terms(aliases=self.aliases)
            for template in templates_for(concept, self.templates)
        }

    def _learnt(
        self, pipe: Any, latents: LatentBank, told: Condition, masks: torch.Tensor | None, student: HookedStudent
    ) -> Summands:
        """L, derived with the student placed."""
        goal, count = target(latents.empty, latents.conditional, self.eta), len(latents.times)

        def piece(rows: slice) -> dict[str, torch.Tensor]:
            share = (rows.stop - rows.start) / count
            with watched(pipe, student.hooks) as added:
                guess = predict(pipe, latents.latents[rows], latents.times[rows], told.part(rows))
            losses = {"erase": share * functional.mse_loss(guess, goal[rows])}
            if masks is not None:
                own = masks[rows]
                strays = [(o * outside(own, o.shape[1])).square().mean() for o in (more() for more in added)]
                losses["outside"] = share * torch.stack(strays).mean()
            return losses

        def total(losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return losses["erase"] + self.locality * losses.get("outside", 0.0)

        return Summands([partial(piece, rows) for rows in parts(count)], total)


class Attack:
    """Vectors behind the states of prompts, which learn to bring the concept back.

    Args:
        pipe: The pipeline.
        vectors: `[k, d]`.
        lr: Of Adam, and its weight decay.
        tokens: Positions of the concept's tokens in each prompt.
    """

    def __init__(self, pipe: Any, vectors: nn.Parameter, lr: float, tokens: Sequence[torch.Tensor]) -> None:
        self.pipe, self.vectors, self.tokens, self.scale = pipe, vectors, tokens, LossScale(pipe)
        self.adam = torch.optim.Adam([vectors], lr=lr, weight_decay=lr)

    def step(self, latents: LatentBank, named: Condition) -> None:
        """A step on || eps(x_t, [c, v]) - eps*(x_t, c) ||^2, with the student placed."""

        def error(rows: slice) -> torch.Tensor:
            told = behind(named.part(rows), self.vectors)
            guess = predict(self.pipe, latents.latents[rows], latents.times[rows], told)
            return functional.mse_loss(guess, latents.conditional[rows])

        self.scale.set(mean_in_parts(len(latents.times), error), [self.vectors])
        self.adam.step()


def behind(condition: Condition, vectors: torch.Tensor) -> Condition:
    """The condition with vectors `[k, d]` behind the states of each prompt, where the denoiser looks at them."""
    more = vectors.to(condition.states.dtype).expand(len(condition.states), *vectors.shape)
    mask = None if condition.mask is None else functional.pad(condition.mask, (0, len(vectors)), value=1)
    return condition._replace(states=torch.cat([condition.states, more], dim=1), mask=mask)


def positions(pipe: Any, text: str, term: str) -> torch.Tensor:
    """Where the tokens of a term stand in a prompt; those of all words where the tokenizer reads it otherwise there."""
    ids, words = tokenise(pipe, text)[0].tolist(), words_of(pipe, "text_encoder", term)
    starts = [start for start in range(len(ids)) if ids[start : start + len(words)] == words]
    if starts:
        return torch.arange(starts[0], starts[0] + len(words))
    return torch.arange(1, 1 + len(words_of(pipe, "text_encoder", text)))


def width_of(attention: Any) -> int:
    """d of the rows that an attention module returns."""
    return int(attention.to_out[0].out_features)


def fresh(attention: Any, rank: int, generator: torch.Generator) -> dict[str, nn.Parameter]:
    """The parts of an adapter that adds nothing yet."""
    like = attention.to_out[0].weight
    width = width_of(attention)
    down = gaussian(torch.empty(rank, width, device=like.device), generator) / width**0.5
    zeros = {"inner": (rank,), "up": (width, rank), "outer": (width,)}
    return {"down": nn.Parameter(down)} | {
        name: nn.Parameter(torch.zeros(size, device=like.device)) for name, size in zeros.items()
    }


@contextmanager
def watched(pipe: Any, hooks: Sequence[Hook]) -> Iterator[list[Callable[[], torch.Tensor]]]:
    """Inside, what the hooks add `[n, places, d]` is remembered, one function for each; they must be installed."""
    seen: list[list[torch.Tensor]] = [[] for _ in hooks]

    def look(rows: list[torch.Tensor], module: nn.Module, args: Any, output: Any) -> None:
        rows.append(first_output(output))

    with ExitStack() as stack:
        for hook, rows in zip(hooks, seen, strict=True):
            module = find_target(pipe, hook)
            stack.callback(module.register_forward_hook(partial(look, rows), prepend=True).remove)
            stack.callback(module.register_forward_hook(partial(look, rows)).remove)
        yield [partial(lambda rows: rows[1].float() - rows[0].float(), rows) for rows in seen]
