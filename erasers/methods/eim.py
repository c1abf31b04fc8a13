"""EIM: Shuai et al., "Latent Space Disentanglement in Diffusion Transformers Enables Precise Zero-shot Semantic
Editing", arXiv 2411.08196: encode, identify, manipulate. Its text half, as an eraser."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from erasers.closed_form.hooked import hook_patch
from erasers.concept import Concept
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.sd3 import SD3
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.conditions import conditions
from erasers.diffusion.supported import check_family
from erasers.methods.run_time import RunTime
from erasers.models.calls import tokens_a_prompt
from erasers.options import require_shares
from erasers.patch import Patch
from erasers.patch.joint_shift import JointShift
from erasers.text.contexts import contexts, kept_prompts
from erasers.text.prompts import Templates, require_templates


@dataclass(frozen=True, kw_only=True)
class EIM(RunTime):
    """Move what the denoiser reads of a prompt, tokens and pooled vector, from with the concept to without it.

    Over prompts with the concept p and the same prompts with its anchor q, with x(p) the tokens and y(p) the pooled
    vector of a prompt,

        d_x = mean x(q) - x(p)        d_y = mean y(q) - y(p)        x <- x + s d_x,  y <- y + s d_y

    where s is the strength of the patch. The step is the same for every prompt and linear in s.

    *Reconstruction*: there is no public code, and of the paper this follows what its abstract says of text in a
    Stable Diffusion 3: the direction of an attribute moves both, tokens and pooled vector. It is a step between means
    of prompts; the paper searches its direction by score distillation (HSDS), and moves the picture's latents, too.
    None of that is here. The gate is not the paper's, which edits one picture at a time: a prompt is moved where its
    pooled vector lies on the concept's side along d_y, so that every other prompt stays bit for bit.

    Args:
        gate: Move only prompts that show the concept; False moves every prompt, the empty one, too.
        margin: Where the gate lies between the nearest kept prompt (0) and the farthest with the concept (1).
        templates: Patterns with one `{}` for the concept; "auto": those of its kind.
    """

    name: ClassVar[str] = "eim"
    paper: ClassVar[str] = "[EIM](https://arxiv.org/abs/2411.08196), reconstructed"
    family: ClassVar[str] = "runtime hook, text of Stable Diffusion 3"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"eim-shapes": {"gate": True, "margin": 0.5}}
    everywhere: ClassVar[bool] = False
    strengths: ClassVar[str] = "linear in strength; other prompts stay bit for bit"
    limits: ClassVar[str] = "Stable Diffusion 3 alone; can be switched off; needs this library to load"

    gate: bool = True
    margin: float = 0.5
    templates: Templates = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_templates("templates", self.templates)
        require_shares(self, "margin")

    def check_pipe(self, pipe: Any) -> None:
        """See `Eraser.check_pipe`."""
        check_family(pipe, (SD3,), f"for {self.name}")
        super().check_pipe(pipe)

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """See `Eraser.fit`; nothing is random."""
        with tokens_a_prompt(pipe, self.max_sequence_length):
            parts = self.parts(pipe, concepts)
        hooks = {(adaptor_of(pipe).components[0], JointShift.kind): parts}
        return hook_patch(self.name, self.config(), pipe, concepts, hooks)

    def parts(self, pipe: Any, concepts: Sequence[Concept]) -> dict[str, torch.Tensor]:
        """The parts of the hook, with a step for each concept."""
        near, others = kept_prompts(concepts, self.templates)
        kept = conditions(pipe, [*near, *others], self.clip_skip) if self.gate else None
        columns: dict[str, list[torch.Tensor]] = {}
        for concept in concepts:
            pairs = contexts(concept, self.templates, aliases=self.aliases)
            named, anchored = (conditions(pipe, list(texts), self.clip_skip) for texts in zip(*pairs, strict=True))
            step = shift(named, anchored)
            found = dict(zip(("states", "pooled"), step, strict=True))
            if kept is not None:
                found |= self._gate(concept, step[1], named, kept)
            for part, value in found.items():
                columns.setdefault(part, []).append(value.to("cpu", torch.float32))
        return {part: torch.stack(values) for part, values in columns.items()}

    def _gate(self, concept: Concept, step: torch.Tensor, named: Condition, kept: Condition) -> dict[str, torch.Tensor]:
        """The probe, against the step, and how far along it a prompt shows the concept."""
        probe = -step / step.norm()
        high, low = (float(score) for score in (sides(named, probe).min(), sides(kept, probe).max()))
        if low >= high:
            warnings.warn(
                f"some prompts with {concept.name!r} lie among those that are kept; these are not moved, so they are "
                "not erased",
                stacklevel=2,
            )
        return {"probe": probe, "gate": torch.tensor(low + self.margin * max(0.0, high - low))}


def shift(named: Condition, anchored: Condition) -> tuple[torch.Tensor, torch.Tensor]:
    """d_x `[tokens, d]` and d_y `[p]`: the mean step from prompts with a concept to those without it."""
    return (anchored.states - named.states).double().mean(dim=0), (pooled(anchored) - pooled(named)).mean(dim=0)


def sides(condition: Condition, probe: torch.Tensor) -> torch.Tensor:
    """How far along the probe pooled vectors lie `[n]`."""
    return pooled(condition) @ probe.double()


def pooled(condition: Condition) -> torch.Tensor:
    """The pooled vectors of a condition that has them `[n, p]`."""
    if condition.pooled is None:
        raise ValueError("expected pooled text, got none")
    return condition.pooled.double()
