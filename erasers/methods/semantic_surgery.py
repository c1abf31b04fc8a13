"""Semantic Surgery: "Semantic Surgery: Zero-Shot Concept Erasure in Diffusion Models", NeurIPS 2025, arXiv
2510.22851."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from erasers.closed_form.hooked import hook_patch
from erasers.concept import Concept
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.flux import Flux
from erasers.diffusion.adaptors.sd3 import SD3
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.adaptors.unet import UNet
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.supported import check_family
from erasers.methods.run_time import RunTime
from erasers.models.calls import tokens_a_prompt
from erasers.options import require_above, require_shares
from erasers.patch import Patch
from erasers.patch.semantic_gate import SemanticGate, likeness
from erasers.text.alarms import gates
from erasers.text.contexts import contexts, kept_prompts
from erasers.text.prompts import Templates, require_templates

_PROMPTS_A_BATCH = 16
# Rows that stand before a prompt's first word are the same in all prompts, but for their last digits.
_SAME = 1e-3
_BETAS = {"style": -0.30, "identity": -0.28, "unsafe": 0.0}
_OBJECTS = -0.12


@dataclass(frozen=True, kw_only=True)
class SemanticSurgery(RunTime):
    """Ask of every prompt how much it means the concept, and subtract what the concept adds to the empty prompt.

    With tau(p) the states of a prompt, of which the denoiser reads every position, and c_i the names of what is erased,

        D_i = tau(c_i) - tau("")        s_i = mean over positions of cos(D_i, tau(p) - tau(""))
        rho_i = sigmoid((s_i + beta) / gamma)        tau(p) <- tau(p) - max rho * D over the c_i with rho_i > 1/2

    A prompt for which no rho is above 1/2 keeps its text bit for bit, and so does the empty prompt that pictures are
    guided away from. A pooled vector loses the same share of what the names add to it, whenever the states do.

    *Corrected*: beta is not tuned but found on kept prompts, of which at most `false_alarms` may pass; prompts are
    compared less the empty one, as D is, for all prompts lie much in one direction; positions where D is zero, as at
    the first token of CLIP, do not count in the mean. The D of several names is the shortest step that takes of each
    what its own would; the published code encodes the names joined to one prompt, which a hook cannot. Its second look
    at the finished picture, by a detector that is paid for, is not here. Positions behind those that were read when
    fitting stay.

    Args:
        beta: Less the least likeness of a prompt with the concept; "auto": found on kept prompts; "published": that of
            the concept's kind.
        false_alarms: Share of kept prompts that may pass.
        gamma: Width of the step from no to yes, above 0.
        centred: Compare prompts less the empty one; False is as published.
        templates: Patterns with one `{}` for prompts with the concept, its anchor and neighbours; "auto": those of its
            kind.
    """

    name: ClassVar[str] = "semantic_surgery"
    paper: ClassVar[str] = "[Semantic Surgery](https://arxiv.org/abs/2510.22851)"
    family: ClassVar[str] = "runtime hook, text states and pooled text"
    everywhere: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "semantic_surgery-official": {"beta": "published", "centred": False, "everyday": False},
    }
    strengths: ClassVar[str] = "no training; other prompts stay bit for bit"
    limits: ClassVar[str] = "Stable Diffusion and FLUX.1; can be switched off; needs this library to load"

    beta: float | Literal["auto", "published"] = "auto"
    false_alarms: float = 0.01
    gamma: float = 0.02
    centred: bool = True
    templates: Templates = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares(self, "false_alarms", whole=False)
        require_templates("templates", self.templates)
        require_above("gamma", self.gamma, 0)
        if not isinstance(self.beta, str) and not abs(self.beta) <= 1:
            raise ValueError(f"expected beta from -1 to 1, got {self.beta}")

    def check_pipe(self, pipe: Any) -> None:
        """See `Eraser.check_pipe`."""
        check_family(pipe, (UNet, SD3, Flux), f"for {self.name}, whose denoisers read every position of a prompt")
        super().check_pipe(pipe)

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """See `Eraser.fit`; nothing is random."""
        with tokens_a_prompt(pipe, self.max_sequence_length):
            parts = self.parts(pipe, concepts)
        hooks = {(adaptor_of(pipe).components[0], SemanticGate.kind): parts}
        return hook_patch(self.name, self.config(), pipe, concepts, hooks)

    def parts(self, pipe: Any, concepts: Sequence[Concept]) -> dict[str, torch.Tensor]:
        """The parts of the hook, with a direction for each name."""
        terms = {term: concept for concept in concepts for term in concept.terms(aliases=self.aliases)}
        named, empty = conditions(pipe, list(terms), self.clip_skip), conditions(pipe, [""], self.clip_skip)
        parts = directions(named, empty, self.centred)
        parts["slope"] = torch.tensor([self.gamma])
        if self.beta == "auto":
            near, others = kept_prompts(concepts, self.templates)
            never = torch.cat([self.scores(pipe, parts, [""]), likeness(unprompted(pipe).states.float().cpu(), parts)])
            parts["gate"] = gates(self.scores(pipe, parts, [*near, *others]), never, self.false_alarms)
        else:
            betas = [_BETAS.get(concept.kind, _OBJECTS) for concept in terms.values()]
            parts["gate"] = -torch.tensor(betas if self.beta == "published" else [float(self.beta)] * len(terms))
        self._warn(pipe, concepts, parts)
        return parts

    def scores(self, pipe: Any, parts: Mapping[str, torch.Tensor], prompts: Sequence[str]) -> torch.Tensor:
        """How much prompts mean each name `[prompts, k]`."""
        rows = []
        for start in range(0, len(prompts), _PROMPTS_A_BATCH):
            condition = conditions(pipe, prompts[start : start + _PROMPTS_A_BATCH], self.clip_skip)
            rows.append(likeness(condition.states.float().cpu(), parts))
        return torch.cat(rows)

    def _warn(self, pipe: Any, concepts: Sequence[Concept], parts: Mapping[str, torch.Tensor]) -> None:
        for concept in concepts:
            asked = [text for text, _ in contexts(concept, self.templates, aliases=self.aliases)]
            passing = (self.scores(pipe, parts, asked) > parts["gate"]).any(dim=1)
            if not passing.all():
                missed = asked[int((~passing).nonzero()[0])]
                warnings.warn(
                    f"{int((~passing).sum())} of {len(asked)} prompts with {concept.name!r} mean it no more than kept "
                    f"ones do, such as {missed!r}; these are not moved, so they are not erased",
                    stacklevel=2,
                )


def directions(named: Condition, empty: Condition, centred: bool) -> dict[str, torch.Tensor]:
    """What names add to the empty prompt, and how much positions count: the parts away, weight, centre and pooled.

    Args:
        named: Of k names.
        empty: Of the empty prompt `[1]`.
        centred: Compare prompts less the empty one; then positions at which nothing is added do not count.
    """
    states, centre = named.states.float().cpu(), empty.states.float().cpu()
    away = states - centre
    counted = away.norm(dim=-1) > _SAME * centre.norm(dim=-1)
    away = torch.where(counted[..., None], away, torch.zeros_like(away))
    weight = counted if centred else torch.ones_like(counted)
    parts = {"away": away, "weight": weight / weight.sum(dim=1, keepdim=True).clamp(min=1)}
    if centred:
        parts["centre"] = centre[0]
    if named.pooled is not None and empty.pooled is not None:
        parts["pooled"] = (named.pooled - empty.pooled).float().cpu()
    return parts
