"""Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from erasers.diffusion.adaptors.adaptor import Adaptor, module_of, refuse_more_inputs
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.clip import encode
from erasers.diffusion.tokens import tokenise
from erasers.models.families import UnsupportedPipeline


class UNet(Adaptor):
    """Stable Diffusion 1, 2 and XL: a schedule of alphas; XL has a pooled vector and sizes beside the states."""

    title = "Stable Diffusion 1, 2 and XL"
    denoiser = "UNet2DConditionModel"
    flow: ClassVar[bool] = False
    components: ClassVar[tuple[str, ...]] = ("unet",)
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    optional: ClassVar[tuple[str, ...]] = encoders

    def check(self, pipe: Any) -> None:
        """See `Adaptor.check`."""
        added = module_of(pipe, "unet").config.get("addition_embed_type")
        if added not in (None, "text_time") or not hasattr(pipe, "text_encoder"):
            raise UnsupportedPipeline(
                "expected a Stable Diffusion 1, 2 or XL pipeline (UNet2DConditionModel with CLIP text encoders), got "
                f"{type(pipe).__name__}"
            )
        refuse_more_inputs(pipe, _more_inputs(module_of(pipe, "unet").config))

    def encode(self, pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> Condition:
        """See `Adaptor.encode`."""
        if not hasattr(pipe, "text_encoder_2") and type(module_of(pipe, "text_encoder")).__name__ == "CLIPTextModel":
            # The same, but that the pipelines' own `clip_skip` looks for the final norm where it no longer is in
            # transformers 5.
            return Condition(encode(pipe, tokenise(pipe, texts), clip_skip))
        more = {"device": pipe.unet.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        more |= {} if clip_skip is None else {"clip_skip": clip_skip}
        output = pipe.encode_prompt(list(texts), **more)
        return Condition(output[0], output[2] if len(output) > 2 else None)

    def written(self, pipe: Any, condition: Condition, name: str) -> list[torch.Tensor]:
        """See `Adaptor.written`: SDXL has the states of two encoders side by side, and the second one's vector."""
        if condition.pooled is None or module_of(pipe, "text_encoder") is None:
            return super().written(pipe, condition, name)
        width = int(module_of(pipe, "text_encoder").config.hidden_size)
        if name == "text_encoder":
            return [condition.states[..., :width]]
        return [condition.states[..., width:], condition.pooled]

    def unprompted(self, pipe: Any) -> Condition:
        """See `Adaptor.unprompted`: the empty prompt, or the zeros of SDXL."""
        empty = self.encode(pipe, [""])
        if not pipe.config.get("force_zeros_for_empty_prompt", False):
            return empty
        pooled = None if empty.pooled is None else torch.zeros_like(empty.pooled)
        return Condition(torch.zeros_like(empty.states), pooled)

    def predict(
        self, pipe: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """See `Adaptor.predict`."""
        unet, more = pipe.unet, dict[str, Any]()
        if condition.pooled is not None:
            more |= {"text_embeds": condition.pooled.to(unet.dtype), "time_ids": _time_ids(pipe, noisy)}
        if condition.image is not None:
            more["image_embeds"] = [condition.image.to(unet.dtype)]
        states = condition.states.to(unet.dtype)
        output = unet(noisy.to(unet.dtype), times, encoder_hidden_states=states, added_cond_kwargs=more or None).sample
        return torch.as_tensor(output)

    def shape(self, pipe: Any, size: int | None = None) -> tuple[int, ...]:
        """See `Adaptor.shape`."""
        config = pipe.unet.config
        own = config.sample_size if size is None else size // pipe.vae_scale_factor
        height, width = own if isinstance(own, (list, tuple)) else (own, own)
        return int(config.in_channels), int(height), int(width)

    def scaled(self, pipe: Any, mean: torch.Tensor) -> torch.Tensor:
        """See `Adaptor.scaled`."""
        return torch.as_tensor(mean * pipe.vae.config.scaling_factor)


def _more_inputs(config: Any) -> str:
    """What a UNet reads beside latents, the time and text, in words; "" where that is nothing."""
    if config.in_channels != config.out_channels:
        return f"{config.in_channels} channels: a picture (and a mask) beside them"
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        return "a class or a noise level, too"
    if config.get("time_cond_proj_dim"):
        return "the guidance scale, too: it is distilled (LCM) to draw in a few steps"
    return ""


def _time_ids(pipe: Any, noisy: torch.Tensor) -> torch.Tensor:
    """SDXL's sizes `[n, 6]`: a picture of the model's own size, not cropped."""
    side = int(noisy.shape[-1] * pipe.vae_scale_factor), int(noisy.shape[-2] * pipe.vae_scale_factor)
    width = getattr(getattr(pipe, "text_encoder_2", None), "config", None)
    dim = None if width is None else int(width.projection_dim)
    more = {"dtype": pipe.unet.dtype, "text_encoder_projection_dim": dim}
    if "aesthetic_score" in inspect.signature(pipe._get_add_time_ids).parameters:
        # Pipelines that draw from pictures return a pair, with the ids of the negative prompt behind.
        called = inspect.signature(type(pipe).__call__).parameters
        more |= {name: called[name].default for name in ("aesthetic_score", "negative_aesthetic_score")}
        more |= {"negative_original_size": side[::-1], "negative_target_size": side[::-1]}
        more |= {"negative_crops_coords_top_left": (0, 0)}
    ids = pipe._get_add_time_ids(side[::-1], (0, 0), side[::-1], **more)
    ids = ids[0] if isinstance(ids, tuple) else ids
    return torch.as_tensor(ids).to(noisy.device).expand(len(noisy), -1)
