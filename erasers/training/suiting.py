"""What suits a denoiser: by its kind and size, not only by the paper of a method."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

from erasers.diffusion.adaptors.adaptor import module_of
from erasers.diffusion.adaptors.table import adaptor_of, denoisers_of
from erasers.diffusion.attacked import attacked_encoders
from erasers.diffusion.latents import latent_shape

Kind = Literal["unet", "large unet", "transformer"]
"""What papers of this field trained, what they trained with other settings, and what came later."""

_LARGE = 1.5e9
_LARGE_TEXT = 5e8
_USUAL = 5.0


def kind_of(pipe: Any) -> Kind:
    """Which kind of denoiser a pipeline has; a UNet is large with 1.5e9 parameters or more, as that of SDXL is."""
    if adaptor_of(pipe).components != ("unet",):
        return "transformer"
    size = sum(weight.numel() for module in denoisers_of(pipe).values() for weight in module.parameters())
    return "large unet" if size >= _LARGE else "unet"


def own_guidance(pipe: Any) -> float:
    """The guidance scale that the pipeline draws with when it is given none; 1 where it is never guided."""
    if adaptor_of(pipe).guides(pipe) == "never":
        return 1.0
    parameters = inspect.signature(type(pipe).__call__).parameters
    defaults = [parameters[name].default for name in ("guidance_scale", "true_cfg_scale") if name in parameters]
    return next((float(value) for value in defaults if isinstance(value, (int, float)) and value > 1), _USUAL)


def by_encoders(small: Any, large: Any) -> Callable[[Any], Any]:
    """A value by whether the CLIP encoders of a pipeline, or its first encoder, have 5e8 parameters or more.

    CLIP-L has a quarter of that; the second encoder of SDXL and SD3 more, and so have language models.
    """

    def value(pipe: Any) -> Any:
        encoders = [module_of(pipe, name) for name in attacked_encoders(pipe)]
        size = sum(weight.numel() for encoder in encoders for weight in encoder.parameters())
        return large if size >= _LARGE_TEXT else small

    return value


def at_most(pixels: int) -> Callable[[Any], int | None]:
    """A size of pictures that is the model's own, None, where that is no larger."""

    def size(pipe: Any) -> int | None:
        smaller = math.prod(latent_shape(pipe, pixels)) < math.prod(latent_shape(pipe))
        return pixels if smaller else None

    return size
