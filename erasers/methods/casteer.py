"""CASteer: "CASteer: Cross-Attention Steering for Controllable Concept Erasure", ICLR 2026, arXiv 2503.09630."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from rich.console import Console
from torch import nn
from torch.nn import functional

from erasers.closed_form.hooked import hook_patch
from erasers.concept import Concept
from erasers.diffusion.adaptors.table import adaptor_of, denoiser_of
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.latent_bank import Way, draw_pictures
from erasers.diffusion.supported import check_drawable
from erasers.methods.run_time import RunTime
from erasers.models.calls import default_of, tokens_a_prompt
from erasers.models.families import UnsupportedPipeline
from erasers.models.ports import find_family
from erasers.options import require_least
from erasers.patch import Patch
from erasers.patch.feature_hooks import Clock, first_output
from erasers.patch.steering import Steering
from erasers.progress import progress as bar
from erasers.text.contexts import contexts, shuffled
from erasers.text.prompts import Templates, require_templates

_PUBLISHED_GUIDANCE = 7.5


@dataclass(frozen=True, kw_only=True)
class CASteer(RunTime):
    """Turn what cross-attention returns away from the direction that a concept has there, step by step.

    Pictures of pairs of prompts, with the concept and with its anchor, are drawn from the same noise. For each layer
    and step, with v the output of cross-attention at a place of the picture,

        a = mean v (with) - mean v (without)        s = a / |a|        v <- v - b max(<v, s>, 0) s, at its old length

    Where <v, s> is not above 0, v stays bit for bit; that is of places and not of prompts, so that pictures of other
    prompts change, too. Where text and picture attend to each other, v is what joint attention returns of the picture.

    *Corrected*: b is 1, after which v is orthogonal to s; with the published 2 it points away from the concept as far
    as it pointed to it (`casteer-official`). Directions are of the nearest time, whatever the number of steps, where
    the published code counts them; both prompts of a pair are drawn from the same noise.

    Args:
        scale: b.
        pairs: Of prompts, at most so many of each concept.
        steps: Of the sampler that draws their pictures.
        guidance: With which they are drawn; "auto" is 7.5 for a UNet, and the pipeline's own for others.
        batch: Pictures drawn together.
        templates: Patterns with one `{}` for the concept and its anchor; "auto": those of its kind.
        size: Of the pictures in pixels; None: the model's own.
    """

    name: ClassVar[str] = "casteer"
    paper: ClassVar[str] = "[CASteer](https://arxiv.org/abs/2503.09630)"
    family: ClassVar[str] = "runtime hook, attention of the denoiser"
    everywhere: ClassVar[bool] = False
    keeps: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "casteer-official": {"scale": 2.0},
        "casteer-shapes": {"steps": 20, "guidance": 4.0},
    }
    strengths: ClassVar[str] = "no training; sees what no text says, such as pictures as prompts"
    limits: ClassVar[str] = "moves other pictures, too; can be switched off; needs this library to load"

    scale: float = 1.0
    pairs: int = 50
    steps: int = 50
    guidance: float | Literal["auto"] = "auto"
    batch: int = 8
    templates: Templates = "auto"
    size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, pairs=1, steps=1, batch=1, size=1, scale=0)
        require_templates("templates", self.templates)
        if self.guidance != "auto" and not abs(self.guidance) < float("inf"):
            raise ValueError(f"expected a finite guidance, got {self.guidance}")

    def check_pipe(self, pipe: Any) -> None:
        """See `Eraser.check_pipe`."""
        check_drawable(pipe)
        if not attentions(pipe) or len(find_family(pipe)[1]) > 1:
            raise UnsupportedPipeline(
                f"expected a pipeline with one denoiser in which the picture attends to text for {self.name}, got "
                f"{type(pipe).__name__}"
            )
        super().check_pipe(pipe)

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """See `Eraser.fit`."""
        pairs = [
            shuffled(contexts(concept, self.templates, aliases=self.aliases), self.pairs, generator)
            for concept in concepts
        ]
        total = 2 * sum(map(len, pairs))
        with (
            bar(Console(stderr=True) if progress else None, "drawing pairs of pictures", total) as advance,
            tokens_a_prompt(pipe, self.max_sequence_length),
        ):
            found = [self.directions(pipe, own, generator, advance) for own in pairs]
        times = torch.tensor(found[0][0])
        scale, hooks = torch.tensor([self.scale]), {}
        for name in found[0][1]:
            away = torch.stack([own[name] for _, own in found])
            hooks[name, Steering.kind] = {"away": away, "times": times, "scale": scale}
        return hook_patch(self.name, self.config(), pipe, concepts, hooks)

    def directions(
        self,
        pipe: Any,
        pairs: Sequence[tuple[str, str]],
        generator: torch.Generator,
        advance: Callable[[int], None] = lambda count: None,
    ) -> tuple[list[float], dict[str, torch.Tensor]]:
        """The times of the steps, and s of each layer by its name `[steps, d]`.

        Raises:
            ValueError: Both prompts of all pairs are read alike.
        """
        state, (named, anchored) = generator.get_state(), zip(*pairs, strict=True)
        times, with_ = self.means(pipe, named, generator, advance)
        after = generator.get_state()
        generator.set_state(state)
        without = self.means(pipe, anchored, generator, advance)[1]
        generator.set_state(after)
        steps = {name: with_[name] - without[name] for name in with_}
        if not any(step.any() for step in steps.values()):
            raise ValueError(f"expected prompts that draw other pictures than their anchors, got {named[0]!r}")
        return times, {name: functional.normalize(step, dim=1) for name, step in steps.items()}

    def means(
        self, pipe: Any, prompts: Sequence[str], generator: torch.Generator, advance: Callable[[int], None]
    ) -> tuple[list[float], dict[str, torch.Tensor]]:
        """The times of the steps, and the mean output of each layer over pictures and places `[steps, d]`."""
        way = Way(self.steps, self._guidance(pipe), self.batch, self.size)
        root, denoiser = adaptor_of(pipe).components[0], denoiser_of(pipe)
        sums: dict[str, list[torch.Tensor]] = {name: [] for name in attentions(pipe)}
        told: list[Any] = []
        for start in range(0, len(prompts), self.batch):
            batch = prompts[start : start + self.batch]
            told.clear()
            seen: dict[str, list[torch.Tensor]] = {name: [] for name in sums}
            handles = [denoiser.register_forward_pre_hook(Clock(root, denoiser, told.append), with_kwargs=True)]
            handles += [
                module.register_forward_hook(partial(_look, seen[name], len(batch)))
                for name, module in attentions(pipe).items()
            ]
            try:
                asked = conditions(pipe, batch, self.clip_skip)
                draw_pictures(pipe, asked, unprompted(pipe), way, generator)
            finally:
                for handle in handles:
                    handle.remove()
            for name, steps in seen.items():
                sums[name].append(torch.stack(steps))
            advance(len(batch))
        times = [float(torch.as_tensor(time).flatten()[0]) for time in told]
        return times, {name: torch.stack(parts).sum(dim=0) / len(prompts) for name, parts in sums.items()}

    def _guidance(self, pipe: Any) -> float:
        if self.guidance != "auto":
            return self.guidance
        own = None if adaptor_of(pipe).components[0] == "unet" else default_of(pipe, "guidance_scale")
        return _PUBLISHED_GUIDANCE if own is None else float(own)


@torch.no_grad()
def _look(seen: list[torch.Tensor], count: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    # Where the denoiser is asked twice, the prompts come first.
    seen.append(first_output(output)[:count].float().mean(dim=1).sum(dim=0).cpu())


def attentions(pipe: Any) -> dict[str, nn.Module]:
    """The attention layers in which the picture attends to text, by name; none where both are one sequence."""
    family, ((name, denoiser), *_) = find_family(pipe)
    pattern = family.text if family.kind == "cross" else family.joint
    layers = [path for path, _ in denoiser.named_modules() if pattern is not None and pattern.search(path)]
    paths = dict.fromkeys(path.rpartition(".")[0] for path in layers)
    modules = {f"{name}.{path}": denoiser.get_submodule(path) for path in paths}
    return {
        path: module
        for path, module in modules.items()
        if getattr(module, "is_cross_attention", True) or name != "unet"
    }
