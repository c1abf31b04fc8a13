"""What a UNet reads beside latents, the time step and text."""

from __future__ import annotations

from typing import Any

from erasers.models.families import UnsupportedPipeline


def refuse_more_inputs(pipe: Any) -> None:
    """Refuse a UNet that training and gradient attacks, which draw from prompts alone, cannot call.

    Raises:
        UnsupportedPipeline: Names the input and the way out.
    """
    unet = getattr(pipe.unet, "_orig_mod", pipe.unet)
    config = unet.config
    if config.in_channels != config.out_channels:
        more = f"{config.in_channels} channels: a picture (and a mask) beside them"
    elif config.get("class_embed_type") or config.get("num_class_embeds"):
        more = "a class or a noise level, too"
    elif config.get("time_cond_proj_dim"):
        more = "the guidance scale, too: it is distilled (LCM) to draw in a few steps"
    else:
        return
    raise UnsupportedPipeline(
        f"expected a UNet that reads latents of {config.out_channels} channels, the time and text, got that of "
        f"{type(pipe).__name__}, which reads {more}. Training and gradient attacks draw from prompts alone; take the "
        "text-to-image model, or a method that trains nothing, such as rece"
    )
