"""SLD, safe latent diffusion: Schramowski et al., CVPR 2023, arXiv 2211.05105."""

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
from erasers.diffusion.conditions import conditions
from erasers.diffusion.supported import check_family
from erasers.methods.run_time import RunTime
from erasers.models.calls import tokens_a_prompt
from erasers.options import require_least, require_shares
from erasers.patch import Patch
from erasers.patch.safe_guidance import SafeGuidance


@dataclass(frozen=True, kw_only=True)
class SLD(RunTime):
    """Ask the denoiser for the concept, too, and guide each picture away from it where it draws near.

    With e, e_p and e_S what the denoiser says without a prompt, with it, and with the concept's text,

        mu = min(1, scale |e_p - e_S|) where e_p - e_S < threshold, else 0
        gamma = mu (e_S - e) + momentum * nu        nu <- beta nu + (1 - beta) gamma        e_p <- e_p - gamma

    so that the pipeline's own guidance follows e + g (e_p - e - gamma). It does nothing without guidance by asking
    twice, and costs a third call for each picture and step. Every picture changes where it meets the threshold,
    whatever its prompt.

    *Faithful*, with the defaults and presets of the paper (`sld` is medium); mu is the smaller of both numbers, as in
    the authors' code, where the paper prints the larger. The warm-up is a share of the way, which is the published
    number of steps of 50.

    Args:
        warm_up: Share of the way on which nothing is done, from 0 to 1.
        scale: Of the difference of both predictions.
        threshold: Up to which difference a picture counts as near.
        momentum: Weight of nu.
        beta: How much of nu stays, from 0 to 1.
    """

    name: ClassVar[str] = "sld"
    paper: ClassVar[str] = "[SLD](https://arxiv.org/abs/2211.05105)"
    family: ClassVar[str] = "runtime hook, guidance"
    everywhere: ClassVar[bool] = False
    keeps: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "sld-weak": {"warm_up": 0.3, "scale": 20.0, "threshold": 0.0, "momentum": 0.0, "beta": 0.0},
        "sld-medium": {"warm_up": 0.2, "scale": 1000.0, "threshold": 0.01, "momentum": 0.3, "beta": 0.4},
        "sld-strong": {"warm_up": 0.14, "scale": 2000.0, "threshold": 0.025, "momentum": 0.5, "beta": 0.7},
        "sld-max": {"warm_up": 0.0, "scale": 5000.0, "threshold": 1.0, "momentum": 0.5, "beta": 0.7},
    }
    strengths: ClassVar[str] = "no training; the baseline of most papers"
    limits: ClassVar[str] = "a third call a step; Stable Diffusion with guidance alone; can be switched off"

    warm_up: float = 0.2
    scale: float = 1000.0
    threshold: float = 0.01
    momentum: float = 0.3
    beta: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, scale=0, momentum=0)
        require_shares(self, "warm_up", "beta")

    def check_pipe(self, pipe: Any) -> None:
        """See `Eraser.check_pipe`."""
        check_family(pipe, (UNet, SD3), f"for {self.name}, which guide by asking for both at once")
        super().check_pipe(pipe)

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """See `Eraser.fit`; nothing is random."""
        names = [term for concept in concepts for term in concept.terms(aliases=self.aliases)]
        with tokens_a_prompt(pipe, self.max_sequence_length):
            condition = conditions(pipe, [", ".join(names)], self.clip_skip)
        last = (1 - self.warm_up) * int(pipe.scheduler.config.num_train_timesteps)
        numbers = {"first": last, "scale": self.scale, "threshold": self.threshold, "keep": self.momentum}
        parts = {name: torch.tensor([value]) for name, value in (numbers | {"pace": self.beta}).items()}
        parts["states"] = condition.states[0]
        if condition.pooled is not None:
            parts["pooled"] = condition.pooled[0]
        hooks = {(adaptor_of(pipe).components[0], SafeGuidance.kind): parts}
        return hook_patch(self.name, self.config(), pipe, concepts, hooks)
