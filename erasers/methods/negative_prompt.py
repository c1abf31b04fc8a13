"""The negative prompt, the baseline of most papers: pictures are guided away from the concept's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from erasers.closed_form.hooked import hook_patch
from erasers.concept import Concept
from erasers.diffusion.adaptors.sd3 import SD3
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.adaptors.unet import UNet
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.supported import check_family
from erasers.eraser import Eraser
from erasers.models.calls import tokens_a_prompt
from erasers.options import require_least
from erasers.patch import Patch
from erasers.patch.negative_prompt import NegativePrompt


@dataclass(frozen=True, kw_only=True)
class NegativePromptEraser(Eraser):
    """Guide away from the concept's name where the pipeline guides away from the empty prompt.

    Classifier-free guidance follows e + g (e_p - e); e becomes what the denoiser says of the concept's names, text and
    pooled text. It does nothing without guidance by asking twice, and a negative prompt of the user's own takes its
    place. Every guided picture changes, whatever its prompt.

    *Faithful*: with the patch a pipeline draws, bit for bit, what it draws with `negative_prompt` set to the names.

    Args:
        aliases: The concept's aliases are in the prompt.
        max_sequence_length: Tokens that T5 reads, where pictures are drawn with another number than the pipeline's
            default.
    """

    name: ClassVar[str] = "negative_prompt"
    paper: ClassVar[str] = "[Classifier-free guidance](https://arxiv.org/abs/2207.12598), its baseline"
    family: ClassVar[str] = "runtime hook, guidance"
    everywhere: ClassVar[bool] = False
    keeps: ClassVar[bool] = False
    strengths: ClassVar[str] = "no training and no cost"
    limits: ClassVar[str] = "moves all pictures; Stable Diffusion with guidance alone; can be switched off"
    hooks: ClassVar[bool] = True

    aliases: bool = True
    max_sequence_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, max_sequence_length=1)

    def check_pipe(self, pipe: Any) -> None:
        """See `Eraser.check_pipe`."""
        check_family(pipe, (UNet, SD3), f"for {self.name}, which guide by asking for both at once")

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """See `Eraser.fit`; nothing is random."""
        names = [term for concept in concepts for term in concept.terms(aliases=self.aliases)]
        with tokens_a_prompt(pipe, self.max_sequence_length):
            # Pipelines leave no layer of CLIP out of what they guide away from.
            empty, away = unprompted(pipe), conditions(pipe, [", ".join(names)])
        parts: Mapping[str, torch.Tensor] = {"empty": empty.states[0], "negative": away.states[0]}
        if away.pooled is not None:
            parts = {**parts, "pooled": away.pooled[0]}
        hooks = {(adaptor_of(pipe).components[0], NegativePrompt.kind): parts}
        return hook_patch(self.name, self.config(), pipe, concepts, hooks)
