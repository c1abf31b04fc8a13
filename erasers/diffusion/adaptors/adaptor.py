"""What the rest of the library knows of a family of denoisers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy
import torch

from erasers.diffusion.adaptors.condition import Condition
from erasers.models.calls import handed_on
from erasers.models.families import UnsupportedPipeline

Guides = Literal["twice", "embedded", "never"]
"""How a picture is guided: by asking the denoiser twice, by a number that it reads, or not at all."""


class Adaptor(ABC):
    """How one family of denoisers is called.

    Times of families with a schedule of alphas are its steps; those of flows are 1000 sigma, where sigma is the share
    of noise: x_t = (1 - sigma) x_0 + sigma noise, of which the denoiser predicts the velocity noise - x_0.

    Attributes:
        title: What users call the family.
        denoiser: Name of its class.
        components: Attributes of the pipeline that hold denoisers, the one of high noise first.
        encoders: Attributes of the text encoders that the denoiser reads.
        optional: Those of them that a pipeline may lack, while it has others.
        flow: It follows a flow, and not a schedule of alphas.
    """

    title: ClassVar[str]
    denoiser: ClassVar[str]
    components: ClassVar[tuple[str, ...]] = ("transformer",)
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    optional: ClassVar[tuple[str, ...]] = ()
    flow: ClassVar[bool] = True

    def check(self, pipe: Any) -> None:
        """Refuse a denoiser that reads more than latents, the time and text.

        Raises:
            UnsupportedPipeline: Names the reason and the way out.
        """
        config = module_of(pipe, self.components[0]).config
        refuse_other_channels(pipe, config.in_channels, config.get("out_channels") or config.in_channels)

    def guides(self, pipe: Any) -> Guides:
        """How pictures of this pipeline are guided."""
        return "twice"

    def guided(self, conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
        """What the pipeline follows where it asks twice `[n, c, ...]`: classifier-free guidance, in its own form."""
        return unconditional + scale * (conditional - unconditional)

    def encode(self, pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
        """What the pipeline itself makes of prompts, with gradients to its text encoders where these are wanted."""
        states, *_ = pipe.encode_prompt(list(texts), **handed_on(pipe))
        return Condition(states)

    def written(self, pipe: Any, condition: Condition, name: str) -> list[torch.Tensor]:
        """What one text encoder wrote of a condition: its states, its part of the pooled vector."""
        return [value for value in (condition.states, condition.pooled) if value is not None]

    def unprompted(self, pipe: Any) -> Condition:
        """What the pipeline guides with where nothing is asked for, one row."""
        return self.encode(pipe, [""])

    @abstractmethod
    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """What the denoiser predicts, in its own precision.

        Args:
            pipe: A pipeline of the family.
            noisy: Latents `[n, c, ...]`.
            times: `[n]`, on the device of the latents.
            condition: Of n prompts, in any precision.
            guidance: For those that read it.
        """

    def shape(self, pipe: Any, size: int | None = None) -> tuple[int, ...]:
        """(channels, ..., height, width) of the latents of a picture of so many pixels; None: the model's own size."""
        config = module_of(pipe, self.components[0]).config
        side = int(config.sample_size if size is None else size // pipe.vae_scale_factor)
        return int(config.in_channels), side, side

    def scaled(self, pipe: Any, mean: torch.Tensor) -> torch.Tensor:
        """Latents as the denoiser reads them, of what the VAE makes of pictures."""
        config = pipe.vae.config
        return torch.as_tensor((mean - (config.get("shift_factor") or 0.0)) * config.scaling_factor)

    def handed(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `[n, c, ..., h, w]` in the form in which the call of the pipeline takes them."""
        return latents

    def shift(self, pipe: Any, shape: Sequence[int]) -> float | None:
        """mu of the scheduler's shift for latents of that shape `[c, ..., h, w]`; None where that does not move it."""
        return None

    def set_times(self, pipe: Any, scheduler: Any, steps: int, shape: Sequence[int]) -> None:
        """Set the times of a scheduler for that many steps, as the pipeline does before it draws."""
        mu = self.shift(pipe, shape)
        scheduler.set_timesteps(steps, **({} if mu is None else {"mu": mu}))


class EvenSigmas(Adaptor):
    """Families whose pipelines spread sigmas evenly, which the scheduler then shifts by the size of the picture."""

    def shift(self, pipe: Any, shape: Sequence[int]) -> float | None:
        """See `Adaptor.shift`: a token is a square of 2 x 2."""
        config = pipe.scheduler.config
        dynamic = config.get("use_dynamic_shifting", False)
        return moved_by(config, shape[-2] // 2 * (shape[-1] // 2)) if dynamic else None

    def set_times(self, pipe: Any, scheduler: Any, steps: int, shape: Sequence[int]) -> None:
        """See `Adaptor.set_times`: shares of noise from 1 down to 1 / steps."""
        scheduler.set_timesteps(sigmas=numpy.linspace(1.0, 1 / steps, steps), mu=self.shift(pipe, shape))


def refuse_more_inputs(pipe: Any, more: str) -> None:
    """Refuse a denoiser that training and gradient attacks, which draw from prompts alone, cannot call.

    Args:
        pipe: The pipeline.
        more: What it reads beside latents, the time and text, in words; "" for nothing.

    Raises:
        UnsupportedPipeline: Names that and the way out.
    """
    if more:
        raise UnsupportedPipeline(
            f"expected a denoiser that reads latents, the time and text, got that of {type(pipe).__name__}, which "
            f"reads {more}. Training and gradient attacks draw from prompts alone; take the text-to-image model, or a "
            "method that trains nothing, such as rece"
        )


def refuse_other_channels(pipe: Any, channels: int, out: int) -> None:
    """Refuse a denoiser that reads more channels than latents have; arguments as its configuration counts them.

    Raises:
        UnsupportedPipeline: Names the channels and the way out.
    """
    refuse_more_inputs(pipe, f"{channels} channels: a picture beside them" if channels != out else "")


def in_groups(labels: torch.Tensor, ask: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What is said of rows that cannot be asked together, in their order.

    Args:
        labels: Of the rows `[n]`; those of one label are asked together. On the meta device all are 0.
        ask: (label, indices of its rows) -> what is said of these.
    """
    if labels.is_meta:
        return ask(0, torch.arange(len(labels)))
    groups = [(int(label), (labels == label).nonzero()[:, 0]) for label in labels.unique()]
    order = torch.cat([index for _, index in groups]).argsort()
    said = torch.cat([ask(label, index) for label, index in groups])
    return said[order.to(said.device)]


def whole(pipe: Any, times: torch.Tensor) -> torch.Tensor:
    """Times as the scheduler says them to the denoiser: those that look back on earlier steps cut fractions off."""
    if type(pipe.scheduler).__name__.startswith("FlowMatch"):
        return times
    # Sigmas are rounded to float32, which takes less than 1e-3 from a whole time.
    return (times + 1e-3).floor()


def module_of(pipe: Any, name: str) -> Any:
    """A component, seen through `torch.compile`."""
    module = getattr(pipe, name, None)
    return getattr(module, "_orig_mod", module)


def shift_factor(config: Any, mu: float | None) -> float:
    """s of a scheduler that moves sigmas to s sigma / (1 + (s - 1) sigma); mu as `Adaptor.shift` has it."""
    if mu is not None:
        return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    return float(config.get("shift", config.get("flow_shift", 1.0)) or 1.0)


def moved_by(config: Any, tokens: int) -> float:
    """mu of resolution-dependent shifting, linear in the number of tokens of a picture.

    Source: Esser et al., arXiv 2403.03206, section 5.3.2, in the form of diffusers' `calculate_shift`.
    """
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (most - least)
    return float(tokens * slope + (low - slope * least))
