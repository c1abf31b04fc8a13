"""Pipelines of the sizes of Stable Diffusion 1.4, SDXL, SD3 medium, SD3.5 large and FLUX.1-dev, with random weights or
none, by the configurations that are published with these models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from erasers import load_pipeline

CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
CLIP_G = CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}
SD14_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
SD3_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
SD35_LARGE = SD3_MEDIUM | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
FLUX: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
VAE_16 = VAE | {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}
SD3_VAE = VAE_16 | {"sample_size": 1024, "scaling_factor": 1.5305, "shift_factor": 0.0609}
FLUX_VAE = VAE_16 | {"sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159}


def make_pipe(size: str, device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> Any:
    """A stock pipeline of that size with random weights, or on the meta device with none."""
    torch.manual_seed(0)
    with torch.device(device):
        pipe = {"sd14": _sd14, "sdxl": _sdxl, "sd3": _sd3, "sd35": _sd35, "flux": _flux}[size]()
    for module in (module for module in pipe.components.values() if isinstance(module, torch.nn.Module)):
        module.to(dtype).eval()
    return pipe


def save_bare(pipe: Any, folder: Path) -> Path:
    """Write the folder of a pipeline without its weights."""
    pipe.save_config(folder)
    for name, part in pipe.components.items():
        if part is not None:
            save = getattr(part, "save_config", None) or getattr(part, "config", part).save_pretrained
            save(folder / name)
    return folder


def _tokenizer() -> Any:
    """One for all of them: ids of a smaller vocabulary will do for weights that have seen none."""
    tokenizer = load_pipeline("shapes", device="meta").tokenizer
    tokenizer.model_max_length = 77
    # Another vocabulary than that of the embedded model, for whose copy a folder would be taken otherwise.
    tokenizer.add_tokens(["gogh"])
    return tokenizer


def _clip(config: Any, projection: bool = False) -> Any:
    import transformers

    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return cls(transformers.CLIPTextConfig(**config))


def _t5() -> Any:
    import transformers

    return transformers.T5EncoderModel(transformers.T5Config(**T5_XXL, is_encoder_decoder=False, use_cache=False))


def _alphas() -> Any:
    import diffusers

    with torch.device("cpu"):
        return diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        )


def _flow(**config: Any) -> Any:
    import diffusers

    with torch.device("cpu"):
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **config)


def _sd14() -> Any:
    import diffusers

    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**VAE),
        text_encoder=_clip(CLIP_L),
        tokenizer=_tokenizer(),
        unet=diffusers.UNet2DConditionModel(**SD14_UNET),
        scheduler=_alphas(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    import diffusers

    return diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL(**VAE),
        text_encoder=_clip(CLIP_L),
        text_encoder_2=_clip(CLIP_G, projection=True),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=diffusers.UNet2DConditionModel(**SDXL_UNET),
        scheduler=_alphas(),
    )


def _sd3(config: Any = SD3_MEDIUM) -> Any:
    import diffusers

    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(**config),
        scheduler=_flow(),
        vae=diffusers.AutoencoderKL(**SD3_VAE),
        text_encoder=_clip(CLIP_L, projection=True),
        text_encoder_2=_clip(CLIP_G, projection=True),
        text_encoder_3=_t5(),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        tokenizer_3=_tokenizer(),
    )


def _sd35() -> Any:
    return _sd3(SD35_LARGE)


def _flux() -> Any:
    import diffusers

    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(**FLUX),
        scheduler=_flow(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKL(**FLUX_VAE),
        text_encoder=_clip(CLIP_L),
        text_encoder_2=_t5(),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
    )
