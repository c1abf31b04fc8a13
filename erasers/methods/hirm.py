"""HiRM: "Erasing Concepts by High-level Representation Misdirection", ICLR 2026."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from erasers.concept import Concept, Concepts
from erasers.diffusion.adaptors.adaptor import module_of
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.attacked import attacked_encoders
from erasers.diffusion.counting import Calls
from erasers.diffusion.draws import chances, picks
from erasers.diffusion.needs import Pass
from erasers.diffusion.supported import check_readable
from erasers.models.encoder_blocks import in_block
from erasers.models.feeding import feeds_of
from erasers.options import Auto, known, require_above, require_least
from erasers.text.contexts import anchored, some_kept
from erasers.text.prompts import Templates, require_templates
from erasers.training.foretelling import Demand
from erasers.training.layers import Wanted
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.student import Student, names_of
from erasers.training.suiting import Kind

Outputs = dict[str, torch.Tensor]
"""What the last attention of each encoder returns, `[prompts, T, d]`."""
_LAST = ("out_proj", "o", "o_proj")


@dataclass(frozen=True, kw_only=True)
class HiRM(TrainedEraser):
    """Train the first layer of a text encoder until the last one's attention returns something else for the concept.

    With h(c) `[T, d]` what the attention of the last layer that is read returns for a prompt c of the concept, and h*
    the frozen encoder's,

        L = || h(c) - goal ||^2 + keep || h(p) - h*(p) ||^2

    The goal is one `random` vector, of uniform entries with the norm `coefficient`, or h*(a) of the same prompt with
    the `anchor`. Attention and feed-forward part of the first layer are trained; nothing is drawn, and the denoiser
    does not run. Of several text encoders those of each are trained.

    *Reconstruction* from a description and a re-implementation by others, as no official code was read: what the
    paper's semantic vector is made of is not known to us, and the anchor's states stand for it. The second term, with
    kept prompts p, is ours: without it whatever shares words or places with the concept moves along (`keep=0`, which
    `hirm-official` has, with the paper's coefficient of 500).

    Args:
        toward: What the goal is.
        coefficient: Norm of the random vector.
        keep: Weight of the kept prompts; 0 leaves them out.
        kept: Kept prompts at most: those about neighbours and anchors, preserved ones, and the empty one.
        kept_batch: Of them an iteration.
        templates: Patterns with one `{}` for the concept; "auto" takes those of its kind.
        aliases: Erase the concept's aliases, too.
        encoders: Text encoders that are trained; none: all of CLIP, or the first where none is of CLIP.
    """

    name: ClassVar[str] = "hirm"
    paper: ClassVar[str] = "HiRM (ICLR 2026), reconstructed"
    family: ClassVar[str] = "trained, text encoder"
    suits: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {
        kind: {"lr": 1e-4, "rank": 0} for kind in ("unet", "large unet", "transformer")
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "hirm-official": {"keep": 0.0, "everyday": False},
        "hirm-shapes": {
            "iterations": 150,
            "lr": 3e-4,
            "rank": 0,
            "toward": "anchor",
            "keep": 1.0,
            "templates": "auto",
        },
    }
    strengths: ClassVar[str] = "seconds; nothing is drawn, the denoiser does not run"
    limits: ClassVar[str] = "the denoiser is untouched, and another encoder asks it as before"

    iterations: int = 25
    lr: float | Auto = "auto"
    rank: int | Auto = "auto"
    toward: Literal["random", "anchor"] = "random"
    coefficient: float = 500.0
    keep: float = 1.0
    kept: int = 192
    kept_batch: int = 32
    templates: Templates = ("{}",)
    aliases: bool = True
    encoders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_templates("templates", self.templates)
        require_least(self, keep=0, kept=1, kept_batch=1)
        require_above("coefficient", self.coefficient, 0)

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`."""
        check_readable(pipe)
        attacked_encoders(pipe, self.encoders)

    def pairs(self, concepts: Sequence[Concept]) -> dict[str, str]:
        """Each prompt that is unlearned, and the same with the anchor."""
        return anchored(concepts, self.templates, aliases=self.aliases)

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`: no denoiser runs."""
        prompts = len(self.pairs(self.prepared(pipe, concepts)))
        each = prompts + 2 * self.kept_batch * bool(self.keep)
        return Calls(texts=prompts + each * self.iterations)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        names, prompts = self._names(pipe), len(self.pairs(self.prepared(pipe, concepts)))
        return Demand(names, [Pass(0, names, prompts + self.kept_batch * bool(self.keep))])

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        pairs, chosen = self.pairs(concepts), attacked_encoders(pipe, self.encoders)
        read = partial(attention_outputs, pipe, chosen, clip_skip=self.clip_skip)
        with torch.no_grad():
            goals = read(list(pairs.values()))
        if self.toward == "random":
            goals = {name: misdirection(goal, self.coefficient, generator) for name, goal in goals.items()}
        kept = some_kept(concepts, "auto", self.kept, generator) if self.keep else []
        student = Student(pipe, self._names(pipe), rank=known(self.rank), generator=generator)
        adamw = torch.optim.AdamW(student.parameters, lr=known(self.lr))

        def step(number: int) -> Mapping[str, float]:
            some, still = [], Outputs()
            if kept:
                some = [kept[row] for row in picks(len(kept), self.kept_batch, generator).tolist()]
                with torch.no_grad():
                    still = read(some)
            with student.placed():
                losses = {"erase": distance(read(list(pairs)), goals)}
                if some:
                    losses["keep"] = distance(read(some), still)
                student.backward(losses["erase"] + self.keep * losses.get("keep", 0.0))
            adamw.step()
            return {name: float(loss.detach()) for name, loss in losses.items()}

        return Training(student, step, {"adamw": adamw})

    def _names(self, pipe: Any) -> list[str]:
        """Parameters of attention and feed-forward part of the first layer of each encoder."""
        return [name for encoder in attacked_encoders(pipe, self.encoders) for name in names_of(pipe, encoder, _first)]


def _first(module: nn.Module, path: str) -> bool:
    place = in_block(path)
    return place is not None and not place.number and place.part is not None and isinstance(module, nn.Linear)


def attention_outputs(
    pipe: Any, encoders: Sequence[str], texts: Sequence[str], *, clip_skip: int | None = None
) -> Outputs:
    """What the attention of the last layer that is read returns of prompts, of each of these encoders.

    Raises:
        ValueError: An encoder without such a layer.
    """
    seen: Outputs = {}
    with ExitStack() as stack:
        for name in encoders:
            stack.enter_context(_seen(pipe, name, clip_skip, seen))
        adaptor_of(pipe).encode(pipe, list(texts), clip_skip)
    return seen


@contextmanager
def _seen(pipe: Any, name: str, clip_skip: int | None, seen: Outputs) -> Iterator[None]:
    wanted = _last(feeds_of(pipe, clip_skip)[name].blocks - 1)
    layers = [module for path, module in module_of(pipe, name).named_modules() if wanted(module, path)]
    if not layers:
        raise ValueError(f"expected attention with an output layer in the last layer of {name}, got none")

    def look(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        seen[name] = output.float()

    handle = layers[-1].register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _last(number: int) -> Wanted:
    def wanted(module: nn.Module, path: str) -> bool:
        place = in_block(path)
        if place is None or place.number != number or place.part != "attention":
            return False
        return path.rpartition(".")[2] in _LAST

    return wanted


def misdirection(like: torch.Tensor, coefficient: float, generator: torch.Generator) -> torch.Tensor:
    """Random goals `[prompts, T, d]`, the same for all prompts: uniform entries, scaled to a norm of `coefficient`."""
    one = chances(tuple(like.shape[1:]), generator)
    goal: torch.Tensor = coefficient * one / one.norm()
    return goal.to(like.device).expand_as(like)


def distance(outputs: Outputs, goals: Outputs) -> torch.Tensor:
    """Mean squared error, as a mean over encoders."""
    errors = [functional.mse_loss(outputs[name], goal) for name, goal in goals.items()]
    return torch.stack(errors).mean()
