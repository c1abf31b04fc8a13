"""EAR: "EAR: Erasing Concepts from Unified Autoregressive Models", arXiv 2506.20151."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch.nn import functional

from erasers.concept import Concept
from erasers.diffusion.gradients import frozen, mixed
from erasers.eraser import ModelEraser
from erasers.methods.ear.sequences import Asked, Context, ask, ask_raw, draw_tokens, states_of
from erasers.models.model_pipeline import COMPONENT, ModelPipeline
from erasers.options import require_above, require_least
from erasers.patch import Patch
from erasers.progress import progress as bar
from erasers.text.contexts import contexts, shuffled
from erasers.text.prompts import Templates, require_templates
from erasers.training.loop import without_dropout
from erasers.training.student import Student, names_of

_ATTENTION = re.compile(r"model\.language_model\.layers\.(?P<layer>\d+)\.self_attn\.[qkvo]_proj")


@dataclass(frozen=True, kw_only=True)
class EAR(ModelEraser):
    """Train the first layers of a model that draws token by token, so that it draws the concept's anchor.

    For a prompt c, the same with the anchor s, the tokens of a picture and h the states that these are drawn from, each
    token has the loss |h(c) - (h*(s) - eta (h*(c) - h*(s)))|^2, h* being the model before. The losses of a window of
    tokens are added up for one step of the optimizer, and a window whose sum is below a threshold is left alone.

    Faithful with `context="last_token"`, but for where its pairs come from. Corrected otherwise: the official training
    forgets the prompt behind the first token, as it keeps no cache of keys and values: every further token is seen
    alone, with guidance between two equal rows. Here tokens are drawn with all that is before them, once for each
    pair, under the prompt with the concept, so that targets differ by their prompts alone; prompts have the form in
    which pictures are drawn from them; the last window counts though it is shorter; a token's loss is that of the
    state that it is drawn from, where the official code has all states of the prompt for the first one.

    Differs from the paper in both: pairs come from templates and captions with the anchor in the concept's place, not
    from language models, and no classifier leaves any out. A picture is one pair; pairs are taken in turn until there
    are as many as asked for.

    Args:
        pairs: Pictures that are learned from, one after another.
        eta: How far beyond the anchor the target lies.
        window: Tokens whose losses are added up for a step; 100 was published for nudity, 48 for a church, 12 for
            Van Gogh.
        threshold: Sum of the losses of a window up to which it is left alone.
        layers: The first layers of the language model, whose attention is trained.
        lr: Learning rate of Adam.
        guidance: With which pictures are drawn.
        rank: 0 trains the weights themselves; otherwise low-rank additions, for a smaller patch.
        context: `full` draws and learns a token from all that is before it, `last_token` from the last one alone.
        templates: Patterns with one `{}` for the concept; "auto": those of its kind.
        aliases: Erase the concept's aliases, too.
    """

    name: ClassVar[str] = "ear"
    paper: ClassVar[str] = "[EAR](https://arxiv.org/abs/2506.20151)"
    family: ClassVar[str] = "trained, attention of a model that draws token by token (Janus)"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ear-official": {"context": "last_token"},
        "ear-nudity": {"window": 100},
        "ear-object": {"window": 48},
        "ear-style": {"window": 12},
    }
    strengths: ClassVar[str] = "the model's own pictures, none of yours; one pass over some fifty of them"
    limits: ClassVar[str] = "nothing is kept but by the threshold; the window has to suit the concept"
    keeps: ClassVar[bool] = False
    models: ClassVar[tuple[str, ...]] = ("JanusForConditionalGeneration",)

    pairs: int = 50
    eta: float = 1.0
    window: int = 48
    threshold: float = 0.05
    layers: int = 5
    lr: float = 1e-4
    guidance: float = 5.0
    rank: int = 0
    context: Context = "full"
    templates: Templates = "auto"
    aliases: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, pairs=1, eta=0, window=1, threshold=0, layers=1, guidance=0, rank=0)
        require_above("lr", self.lr, 0)
        require_templates("templates", self.templates)

    def _fit(
        self, pipe: ModelPipeline, concepts: Sequence[Concept], generator: torch.Generator, progress: bool
    ) -> Patch:
        """See `Eraser.fit`."""
        with frozen(pipe), without_dropout(pipe), mixed(pipe, pipe.model):
            student = Student(pipe, trained_names(pipe, self.layers), rank=self.rank, generator=generator)
            adam, losses = torch.optim.Adam(student.parameters, lr=self.lr), list[float]()
            with bar(Console(stderr=True) if progress else None, self.name, self.pairs) as advance:
                for pair in self.prompts(concepts, generator):
                    losses += self._learn(pipe, student, adam, pair, generator)
                    advance(1, f"loss of a window {losses[-1]:.4g}")
            if max(losses) <= self.threshold:
                raise ValueError(
                    f"expected windows with a loss above {self.threshold:g}, got none of more than {max(losses):.3g}; "
                    "lower threshold"
                )
            return student.patch(self, concepts)

    def prompts(self, concepts: Sequence[Concept], generator: torch.Generator) -> list[tuple[str, str]]:
        """As many (prompt with a concept, that with its anchor) as there are pictures, each in its turn."""
        known = [pair for concept in concepts for pair in contexts(concept, self.templates, aliases=self.aliases)]
        turns = -(-self.pairs // len(known))
        return [pair for _ in range(turns) for pair in shuffled(known, len(known), generator)][: self.pairs]

    def _learn(
        self,
        pipe: ModelPipeline,
        student: Student,
        adam: torch.optim.Optimizer,
        pair: tuple[str, str],
        generator: torch.Generator,
    ) -> list[float]:
        """Learn from one picture; the losses of its windows."""
        full = self.context == "full"
        asked, anchor = (ask if full else ask_raw)(pipe, pair)
        ways = [asked] if full else [asked, anchor, anchor]
        drawn = [draw_tokens(pipe.model, way, self.guidance, generator, self.context) for way in ways]
        goals = self.goals(pipe.model, asked, anchor, drawn * 3 if full else drawn)
        losses = []
        for window in windows(len(goals), self.window, whole=not full):
            with student.placed():
                learned = states_of(pipe.model, asked, drawn[0], window, self.context)
                loss = token_losses(learned, goals[window]).sum()
                losses.append(float(loss.detach()))
                if losses[-1] > self.threshold and student.backward(loss):
                    adam.step()
        return losses

    @torch.no_grad()
    def goals(self, model: Any, asked: Asked, anchor: Asked, drawn: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the states of each token of a picture of the concept are to become.

        Args:
            model: As it was.
            asked: The prompt with the concept.
            anchor: That with its anchor.
            drawn: Tokens `[1, T]` of a picture of the first, and of two of the second; or thrice the first.
        """
        whole = slice(0, drawn[0].shape[1])
        ways = zip((asked, anchor, anchor), drawn, strict=True)
        unsafe, safe, other = (states_of(model, way, tokens, whole, self.context) for way, tokens in ways)
        return [target(*states, eta=self.eta) for states in zip(unsafe, safe, other, strict=True)]


def target(unsafe: torch.Tensor, safe: torch.Tensor, other: torch.Tensor, *, eta: float) -> torch.Tensor:
    """h*(s) - eta (h*(c) - h*'(s)), of states of one shape; `other` is h*'(s), which may be of another picture."""
    return safe - eta * (unsafe - other)


def token_losses(states: Sequence[torch.Tensor], goals: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean squared error of each token, `[T]`; its states and its goal have one shape."""
    return torch.stack(
        [functional.mse_loss(state.float(), goal.float()) for state, goal in zip(states, goals, strict=True)]
    )


def windows(count: int, size: int, *, whole: bool = False) -> list[slice]:
    """Consecutive windows of tokens; a shorter last one is left out with `whole`, unless it is the only one."""
    slices = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    return slices[:-1] if whole and len(slices) > 1 and count % size else slices


def trained_names(pipe: ModelPipeline, layers: int) -> list[str]:
    """Parameters of the attention of the first layers."""

    def wanted(module: torch.nn.Module, path: str) -> bool:
        match = _ATTENTION.fullmatch(path)
        return match is not None and int(match["layer"]) < layers

    return names_of(pipe, COMPONENT, wanted)
