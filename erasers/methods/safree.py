"""SAFREE: "SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image And Video Generation", ICLR 2025, arXiv
2410.12761."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from erasers.closed_form.hooked import hook_patch
from erasers.concept import Concept
from erasers.methods.run_time import RunTime
from erasers.models.calls import tokens_a_prompt
from erasers.models.feeding import feeds_of, warn_of_missed_encoders
from erasers.options import require_shares
from erasers.patch import Patch
from erasers.patch.trigger import TriggerCall, TriggerProjection, ratios, space_of
from erasers.sae.text_blocks import Block, encoder_block, readable_encoders
from erasers.text.alarms import gates
from erasers.text.contexts import contexts, kept_prompts
from erasers.text.prompts import Templates, require_templates

_PUBLISHED = 0.01


@dataclass(frozen=True, kw_only=True)
class SAFREE(RunTime):
    """Find the tokens of a prompt that bring the concept, and take its space out of their states.

    With P_C the projector on the pooled states of the concept's names and e_i that of a prompt without its token i,

        d_i = |(I - P_C) e_i|        token i is a trigger where d_i >= (1 + alpha) mean_{j != i} d_j
        x <- (I - P_C) P_I x for the state x of a trigger, P_I the projector on the e_i of this prompt

    A prompt without a trigger keeps its states bit for bit; each prompt of a batch is for itself. It runs in the last
    block of each text encoder that the denoiser reads states of, so that what is made of these, the pooled vector,
    has lost the concept, too. The pooled state is that of the token that ends a prompt, of CLIP with token i masked.
    T5 has no such token: there it is the mean of the states up to the end, and e_i that without the token's own, for
    which nothing is encoded again.

    *Corrected*: alpha is found, as so small that at most `false_alarms` of the kept prompts have a trigger; states are
    taken less that of the empty prompt, which is in all of them, and e at length 1 (`centred`); the whole prompt is
    among the j, so that a prompt of one word has a trigger; the states behind the first trigger, which have read it,
    become (I - P_C) x (`behind`). `safree-official` has of this the whole prompt among the j alone, and the published
    alpha. Not here is what the published code has beside: fewer edited steps for weaker triggers (in its Stable
    Diffusion 3 every step is edited, too), and the filter of skip connections.

    Args:
        alpha: How much farther a prompt without a trigger is, above 0; "auto": found on kept prompts.
        false_alarms: With "auto", the share of kept prompts that may have a trigger.
        centred: Take states less that of the empty prompt, and compare e at length 1.
        behind: States behind a trigger lose the space, too.
        templates: Patterns with one `{}` for prompts with the concept, its anchor and neighbours; "auto": those of its
            kind.
    """

    name: ClassVar[str] = "safree"
    paper: ClassVar[str] = "[SAFREE](https://arxiv.org/abs/2410.12761)"
    family: ClassVar[str] = "runtime hook, text encoder"
    everywhere: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "safree-official": {"alpha": _PUBLISHED, "centred": False, "behind": False},
    }
    strengths: ClassVar[str] = "no training; other prompts stay bit for bit"
    limits: ClassVar[str] = "text encoders of CLIP and T5; can be switched off; needs this library to load"

    alpha: float | Literal["auto"] = "auto"
    false_alarms: float = 0.01
    centred: bool = True
    behind: bool = True
    templates: Templates = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares(self, "false_alarms", whole=False)
        require_templates("templates", self.templates)
        if self.alpha != "auto" and not 0 < self.alpha < float("inf"):
            raise ValueError(f"expected alpha above 0, got {self.alpha}")

    def check_pipe(self, pipe: Any) -> None:
        """See `Eraser.check_pipe`."""
        readable_encoders(pipe)
        super().check_pipe(pipe)

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """See `Eraser.fit`; nothing is random."""
        names = readable_encoders(pipe)
        warn_of_missed_encoders(pipe, names)
        feeds = feeds_of(pipe, self.clip_skip)
        with tokens_a_prompt(pipe, self.max_sequence_length):
            blocks = [encoder_block(pipe, name, feeds[name].upstream - 1) for name in names]
            hooks = {(block.target, TriggerProjection.kind): self.parts(block, concepts) for block in blocks}
        base = {name: digest for block in blocks for name, digest in block.fingerprints().items()}
        return hook_patch(self.name, self.config(), pipe, concepts, hooks, base)

    def parts(self, block: Block, concepts: Sequence[Concept]) -> dict[str, torch.Tensor]:
        """The parts of the hook of one text encoder."""
        parts = {
            "space": torch.eye(1, block.width),
            "alpha": torch.zeros(1),
            "end": torch.tensor([float(block.tokenizer.eos_token_id)]),
            "first": torch.tensor([float(block.first)]),
            "behind": torch.tensor([float(self.behind)]),
        }
        names = [term for concept in concepts for term in concept.terms(aliases=self.aliases)]
        phrases = torch.stack([e[0] for e in pooled(block, parts, names)])
        if self.centred:
            parts["centre"] = self.empty(block)
            phrases = phrases - parts["centre"]
        parts["space"] = space_of(phrases)
        if self.alpha != "auto":
            parts["alpha"] = torch.tensor([float(self.alpha)])
            return parts
        near, others = kept_prompts(concepts, self.templates)
        kept = largest(pooled(block, parts, [text for text in (*near, *others) if text]), parts)
        parts["alpha"] = (gates(kept[:, None], torch.ones(1, 1), self.false_alarms) - 1).clamp(min=1e-4)
        asked = [text for concept in concepts for text, _ in contexts(concept, self.templates, aliases=self.aliases)]
        passing = largest(pooled(block, parts, asked), parts) >= 1 + parts["alpha"]
        if not passing.all():
            warnings.warn(
                f"{int((~passing).sum())} of {len(asked)} prompts with the concept have no trigger in {block.name}, "
                f"such as {asked[int((~passing).nonzero()[0])]!r}; these stay as they are there",
                stacklevel=2,
            )
        return parts

    def empty(self, block: Block) -> torch.Tensor:
        """The pooled state of the empty prompt `[d]`."""
        states = block.outputs([""])[0]
        ids = block.tokens([""])[0][0]
        return states[int((ids == block.tokenizer.eos_token_id).nonzero()[0])]


def pooled(block: Block, parts: Mapping[str, torch.Tensor], prompts: Sequence[str]) -> list[torch.Tensor]:
    """e of each prompt `[1 + tokens, d]`: of the whole prompt, then without each of its tokens."""
    heard: list[torch.Tensor] = []
    handles = TriggerCall(block.target, parts, 1.0, block.module, block.model, heard).install()
    try:
        block.outputs(list(prompts))
    finally:
        for handle in handles:
            handle.remove()
    return heard


def largest(heard: Sequence[torch.Tensor], parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The largest ratio of each prompt `[n]`."""
    return torch.stack([ratios(e, parts).amax() for e in heard])
