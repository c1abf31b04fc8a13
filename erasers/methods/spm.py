"""SPM: Lyu et al., "One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications",
CVPR 2024, arXiv 2312.16145."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.condition import Condition, cat
from erasers.diffusion.adaptors.table import denoisers_of
from erasers.diffusion.batches import Summands, errors_in_parts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import chances, gaussian
from erasers.diffusion.latent_bank import LatentBank
from erasers.methods.esd import target
from erasers.models.families import UnsupportedPipeline
from erasers.options import known, require_least
from erasers.patch.hooks import Hook
from erasers.patch.membrane import Membrane
from erasers.processes import same_start
from erasers.text.contexts import kept_prompts, some_kept
from erasers.text.prompts import Templates
from erasers.training.foretelling import Demand
from erasers.training.hooked import HookedStudent
from erasers.training.loop import Stage
from erasers.training.student import Student
from erasers.training.suiting import Kind, kind_of
from erasers.training.ways import SMALL, Heard, WayEraser

_LAYERS = re.compile(r"transformer_blocks\.\d+\.(?:attn\d?|ff)\.")
_LEAST = 0.05
"""Of the likeness at which a membrane is open: how far below it is shut at least."""
_RIDGE = 0.01
_ROOM = 0.1
"""Share of the way from shut to open that belongs to each side, so that rounding opens and shuts nothing."""
_READ = ("StableDiffusion3Pipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline")


@dataclass(frozen=True, kw_only=True)
class SPM(WayEraser):
    """Train a membrane of one dimension beside every layer of the transformer blocks, which only the concept opens.

    A linear layer y = W x becomes y + g(p) up down x, with down `[1, in]` and up `[out, 1]`; no weight changes. On
    latents x_t that are on their way to pictures of the concept, with c its prompt, a the anchor's and M the membranes,
    all open,

        L = || eps_M(x_t, c) - (eps*(a) - eta (eps*(c) - eps*(a))) ||^2
            + anchoring E_p || eps_M(x_t, p) - eps*(x_t, p) ||^2

    where kept prompts p are drawn with a probability that falls as they are like the concept, (1 - |cos(p, c)|)^`alpha`
    (latent anchoring). When pictures are drawn, g(p) says how much the prompt lets through (facilitated transport).

    Differs from the official code: g comes from the states that the denoiser reads, row by row, so that prompts that do
    not open the membrane stay bit for bit in any batch; that code takes the larger of the cosine of whole prompts and
    the share of the concept's tokens among the prompt's, and lets something of every prompt through. Here the likest
    token counts, along the difference between the concept's prompts and the anchor's; below the likest kept prompt
    nothing passes, from the least like prompt of the concept on everything. The surrogate is the anchor, which is the
    empty prompt in the official settings (`spm-official`). Prompts for anchoring are kept prompts, not random vectors
    near words. Several concepts share one membrane, which any of them opens. Convolutions have none.

    Args:
        rank: Of the membranes; the paper has 1.
        surrogate: What stands for a: the prompt with the `anchor`, or the `empty` prompt.
        eta: Negative guidance, as for ESD, from the surrogate.
        anchoring: Weight of the second term; 0 leaves it out.
        anchors: Kept prompts an iteration.
        kept: Kept prompts at most.
        alpha: See above.
        train_method: Membranes alone are trained: "auto".
    """

    name: ClassVar[str] = "spm"
    paper: ClassVar[str] = "[SPM](https://arxiv.org/abs/2312.16145)"
    family: ClassVar[str] = "trained, membranes at run time"
    everywhere: ClassVar[bool] = False
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        kind: {**values, "iterations": 3000, "lr": 1e-4, "rank": 1} for kind, values in WayEraser.suits.items()
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "spm-official": {"surrogate": "empty", "anchoring": 1000.0, "templates": ("{}",), "everyday": False},
        "spm-shapes": {
            **{key: value for key, value in SMALL.items() if key != "train_method"},
            "rank": 1,
            "lr": 3e-3,
            "batch": 4,
            "anchors": 4,
            "kept": 96,
        },
    }
    strengths: ClassVar[str] = "kilobytes; other prompts stay bit for bit"
    limits: ClassVar[str] = "what does not open the gate gets through, as words of an attack"
    hooks: ClassVar[bool] = True

    surrogate: Literal["anchor", "empty"] = "anchor"
    eta: float = 1.0
    anchoring: float = 1.0
    anchors: int = 4
    kept: int = 192
    alpha: float = 1.0
    templates: Templates = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, rank=1, anchoring=0, anchors=1, kept=1, alpha=0)
        if self.train_method != "auto":
            raise ValueError(f"expected train_method auto, as membranes are trained, got {self.train_method!r}")

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`: membranes stand in transformer blocks, and read one text for each picture."""
        super().check_pipe(pipe)
        if type(pipe).__name__ not in _READ and kind_of(pipe) == "transformer":
            raise UnsupportedPipeline(
                "expected a pipeline whose denoiser tells its layers apart by prompt (a UNet, Stable Diffusion 3 or "
                f"PixArt), got {type(pipe).__name__}"
            )

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        own = self.suited(pipe)
        prepared, iterations, anchored = own.prepared(pipe, concepts), known(own.iterations), bool(own.anchoring)
        texts = 2 * len(own.prompts(prepared)) + 1 + min(own.kept, sum(map(len, kept_prompts(prepared, own.templates))))
        if own.surrogate == "anchor":
            asked = 3 * iterations
        else:
            asked = 2 * max(0, iterations - own.refresh) if own.drawn_by == "student" else 0
        more = own.anchors * anchored * iterations
        gradients = own.batch * iterations + more
        return own.ways(pipe, concepts) + Calls(own.batch * asked + more, gradients, texts)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        own, layers = self.suited(pipe), membrane_layers(pipe)
        beside = sum(known(own.rank) * (layer.in_features + layer.out_features) for layer in layers.values())
        demand, names = super().demand(pipe, concepts), [f"{name}.weight" for name in layers]
        samples = own.batch + own.anchors * bool(own.anchoring)
        # Gradients go as far back as those of the layers that the membranes stand beside.
        passes = [replace(one, samples=samples, trained=names) for one in demand.passes]
        return replace(demand, names=[], beside=beside, passes=passes)

    def hear(self, pipe: Any, concepts: Sequence[Concept]) -> Heard:
        """See `WayEraser.hear`."""
        pairs = self.prompt_pairs(concepts)
        named = asked = conditions(pipe, list(pairs), self.clip_skip)
        if self.surrogate == "anchor":
            asked = conditions(pipe, list(pairs.values()), self.clip_skip)
        return Heard(named, asked, named, unprompted(pipe))

    def beside(
        self, pipe: Any, concepts: Sequence[Concept], heard: Heard, generator: torch.Generator, stage: Stage
    ) -> Anchors:
        """See `WayEraser.beside`: what is kept, how often it is asked for, and the gate."""
        pairs = self.prompt_pairs(concepts)
        kept = conditions(pipe, some_kept(concepts, self.templates, self.kept, generator), self.clip_skip)
        anchors = heard.asked if self.surrogate == "anchor" else conditions(pipe, list(pairs.values()), self.clip_skip)
        sizes = [len(pairs), len(pairs), len(kept.states)]
        named, others, held = cat(heard.named, anchors, kept).states.float().split(sizes)
        owners = [self.prompts([concept]) for concept in concepts]
        rows = [torch.tensor([text in owner for text in pairs]) for owner in owners]
        gate = {part: value.contiguous() for part, value in gate_of(named, others, held, rows).items()}
        # Each process keeps prompts of its own, and all have to end with one patch.
        same_start(list(gate.values()))
        return Anchors(kept, chances_of(held, named, self.alpha), gate, generator)

    def student(self, pipe: Any, concepts: Sequence[Concept], beside: Any, generator: torch.Generator) -> Student:
        """See `WayEraser.student`."""
        layers = membrane_layers(pipe)
        hooks = [
            Membrane(name, fresh(layer, known(self.rank), beside.gate["probe"].shape[1], generator))
            for name, layer in layers.items()
        ]
        names = [f"{name}.weight" for name in layers]
        return MembraneStudent(pipe, hooks, names, beside.gate, generator=generator)

    def learn(
        self, pipe: Any, heard: Heard, latents: LatentBank, student: Student, beside: Any, number: int
    ) -> Mapping[str, float]:
        """See `WayEraser.learn`."""
        named, noisy, times = heard.named.rows(latents.prompts), latents.latents, latents.times
        goals = {"erase": target(latents.empty, latents.conditional, self.eta)}
        if self.surrogate == "anchor":
            with torch.no_grad():
                goals["erase"] = target(latents.conditional, predict(pipe, noisy, times, named), self.eta)
        if self.anchoring:
            kept = beside.kept.rows(beside.drawn(self.anchors))
            again = torch.arange(self.anchors) % len(times)
            with torch.no_grad():
                goals["anchor"] = predict(pipe, noisy[again], times[again], kept)
            named, noisy, times = cat(named, kept), torch.cat([noisy, noisy[again]]), torch.cat([times, times[again]])

        def guess(rows: slice) -> torch.Tensor:
            return predict(pipe, noisy[rows], times[rows], named.part(rows))

        loss = Summands(errors_in_parts(goals, guess), partial(weighted, anchoring=self.anchoring))
        with student.placed():
            student.backward(loss)
        return loss.shown


@dataclass(frozen=True)
class Anchors:
    """What keeps other prompts.

    Args:
        kept: Conditions of kept prompts.
        shares: How often each is asked for `[n]`, on the CPU.
        gate: Parts of a `Membrane` that say what opens it.
        generator: Draws them.
    """

    kept: Condition
    shares: torch.Tensor
    gate: Mapping[str, torch.Tensor]
    generator: torch.Generator

    def drawn(self, count: int) -> torch.Tensor:
        """Random rows of kept prompts `[count]`."""
        rows = torch.searchsorted(self.shares.cumsum(dim=0), chances((count,), self.generator))
        return rows.clamp(max=len(self.shares) - 1)


class MembraneStudent(HookedStudent):
    """Membranes that are open while they are trained, and get their gate in the patch."""

    def __init__(
        self,
        pipe: Any,
        hooks: Sequence[Membrane],
        beneath: Sequence[str],
        gate: Mapping[str, torch.Tensor],
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(pipe, hooks, beneath, generator=generator)
        self._gate = {name: value.cpu() for name, value in gate.items()}

    def finished(self) -> Sequence[Hook]:
        """See `HookedStudent.finished`."""
        # A file holds no tensor twice.
        gates = [{name: value.clone() for name, value in self._gate.items()} for _ in self.hooks]
        return [Membrane(hook.target, {**hook.parts, **gate}) for hook, gate in zip(self.hooks, gates, strict=True)]


def membrane_layers(pipe: Any) -> dict[str, nn.Linear]:
    """The linear layers of attention and feed-forward parts of transformer blocks, by full name."""
    return {
        f"{name}.{path}": module
        for name, denoiser in denoisers_of(pipe).items()
        for path, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and _LAYERS.search(path)
    }


def fresh(layer: nn.Linear, rank: int, width: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The parts of a membrane that is open and adds nothing yet; text has so many values."""
    device = layer.weight.device
    down = gaussian(torch.empty(rank, layer.in_features, device=device), generator) / layer.in_features**0.5
    return {
        "down": nn.Parameter(down),
        "up": nn.Parameter(torch.zeros(layer.out_features, rank, device=device)),
        "probe": torch.zeros(1, width, device=device),
        "shut": torch.full((1,), -1.0, device=device),
        "open": torch.zeros(1, device=device),
    }


def chances_of(kept: torch.Tensor, named: torch.Tensor, alpha: float) -> torch.Tensor:
    """How often each kept prompt is asked for `[n]`: in proportion to (1 - |cos(p, c)|)^alpha, of the likest c.

    Args:
        kept: States `[n, T, d]`.
        named: States of the concept's prompts `[m, T, d]`.
        alpha: 0 asks for all alike.
    """
    p, c = (functional.normalize(states.flatten(1), dim=1) for states in (kept, named))
    shares = (1 - (p @ c.T).abs().amax(dim=1)).clamp(min=1e-6) ** alpha
    return (shares / shares.sum()).cpu()


def gate_of(
    named: torch.Tensor, anchors: torch.Tensor, kept: torch.Tensor, concepts: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What opens a membrane, in the parts of one.

    The probe of a concept is the direction from its anchor's prompts to its own, each at the token where they are
    farthest apart, as kept tokens show it least: (X'X / n + ridge)^-1 times it, as a matched filter has it. `open` is
    the likeness of the least like prompt of the concept, `shut` that of the likest kept one;
    both give way a little.

    Args:
        named: States of the concepts' prompts `[n, T, d]`.
        anchors: Those of the same with anchors.
        kept: States of kept prompts `[m, T, d]`.
        concepts: Which of the n belong to each concept.
    """
    steps = named - anchors
    farthest = steps.norm(dim=-1).argmax(dim=1)
    steps = steps[torch.arange(len(steps)), farthest]
    tokens = kept.flatten(0, 1)
    spread = tokens.T @ tokens / len(tokens)
    ridge = _RIDGE * spread.diagonal().mean() * torch.eye(len(spread), dtype=spread.dtype, device=spread.device)
    means = torch.stack([steps[rows].mean(dim=0) for rows in concepts])
    probe = functional.normalize(torch.linalg.solve(spread + ridge, means.T).T, dim=1)
    like, other = ((states @ probe.T).amax(dim=1) for states in (named, kept))
    opens = torch.stack([like[rows, number].min() for number, rows in enumerate(concepts)])
    shut = torch.minimum(other.amax(dim=0), opens - _LEAST * opens.abs())
    room = _ROOM * (opens - shut)
    return {"probe": probe, "shut": shut + room, "open": opens - room}


def weighted(losses: Mapping[str, torch.Tensor], anchoring: float) -> torch.Tensor:
    """L of the terms that there are."""
    return torch.stack([loss * (anchoring if name == "anchor" else 1.0) for name, loss in losses.items()]).sum()
