"""Tiny pipelines of every other class that diffusers has around the denoisers of the families."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from families.all import FAMILIES
from families.llm import QWEN, QWEN_CHAT, QWEN_WORDS, SIZES, make_word_tokenizer, randomise
from families.t5 import FLUX, HEADS, LATENT, WIDTH, make, spread
from tiny import make_unet

from erasers.families import FAMILIES as TABLE

TINY_NET = {"conditioning_embedding_out_channels": (4, 8)}
MOTION = {"block_out_channels": (8, 16), "motion_layers_per_block": 1, "motion_num_attention_heads": 2}


def with_class(name: str, parts: Mapping[str, Any], **more: Any) -> Any:
    """A pipeline of a class from those parts that it takes; what is missing is None."""
    cls = getattr(diffusers, name)
    wanted = {key: value for key, value in inspect.signature(cls.__init__).parameters.items() if key != "self"}
    given = {"requires_safety_checker": False, "add_watermarker": False, **parts, **more}
    found = {
        key: given.get(key) for key, value in wanted.items() if key in given or value.default is inspect.Parameter.empty
    }
    pipe = cls(**found)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def classes() -> dict[str, str]:
    """Name of each class of pipelines with a denoiser of the table -> name of the denoiser, as diffusers annotates."""
    denoisers = "|".join(family.denoiser for family in TABLE)
    found = {}
    for name in dir(diffusers):
        if "Pipeline" not in name:
            continue
        cls = getattr(diffusers, name)
        if not (inspect.isclass(cls) and issubclass(cls, diffusers.DiffusionPipeline)):
            continue
        kinds = " ".join(str(value.annotation) for value in inspect.signature(cls.__init__).parameters.values())
        if match := re.search(rf"\b({denoisers})\b", kinds):
            found[name] = match[1]
    return found


@dataclass(frozen=True)
class Variant:
    """A class of pipelines around the parts of a family.

    Args:
        family: Whose parts.
        parts: Makes those that are other or more.
        options: Arguments of a small quick call beside those of the family.
        text: Reads prompts otherwise than the family, so that patches are its own.
    """

    family: str
    parts: Callable[[Any], dict[str, Any]] = lambda pipe: {}
    options: Mapping[str, Any] = field(default_factory=dict)


def build(name: str, folder: Path) -> Any:
    variant = VARIANTS[name]
    base = FAMILIES[variant.family].build(folder)
    return with_class(name, {**base.components, **variant.parts(base)})


def unet(**options: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda pipe: {"unet": make_unet(32, **options)}


def xl_unet(**options: Any) -> Callable[[Any], dict[str, Any]]:
    more = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 16 + 6 * 4,
        "transformer_layers_per_block": 2,
        "use_linear_projection": True,
    }
    return lambda pipe: {"unet": make_unet(40, **more, **options)}


def live(net: Any) -> Any:
    """A net whose outputs are not zero."""
    torch.manual_seed(3)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def unet_net(pipe: Any) -> dict[str, Any]:
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    return {"controlnet": live(net)}


def sd3_net(**more: Any) -> Callable[[Any], dict[str, Any]]:
    def build(pipe: Any) -> dict[str, Any]:
        net = diffusers.SD3ControlNetModel(
            **HEADS,
            **LATENT,
            sample_size=8,
            num_layers=1,
            joint_attention_dim=WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=WIDTH,
            pos_embed_max_size=8,
            **more,
        )
        return {"controlnet": live(net)}

    return build


def flux_net(pipe: Any) -> dict[str, Any]:
    sizes = {**FLUX, "num_single_layers": 1, "joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH}
    return {"controlnet": live(diffusers.FluxControlNetModel(**sizes, guidance_embeds=True))}


def flux_of(channels: int) -> Callable[[Any], dict[str, Any]]:
    def build(pipe: Any) -> dict[str, Any]:
        sizes = {**FLUX, "in_channels": channels, "out_channels": 16}
        sizes |= {"joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "guidance_embeds": True}
        return {"transformer": spread(make("FluxTransformer2DModel", **sizes), attention=2.0)}

    return build


def qwen_net(**more: Any) -> Callable[[Any], dict[str, Any]]:
    def build(pipe: Any) -> dict[str, Any]:
        sizes = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 6, 6)}
        net = diffusers.QwenImageControlNetModel(
            in_channels=16, out_channels=4, num_layers=1, joint_attention_dim=WIDTH, **sizes, **more
        )
        return {"controlnet": live(net)}

    return build


def klein(pipe: Any) -> dict[str, Any]:
    """FLUX.2 klein: Qwen 3, whose states of layers 9, 18 and 27 the pipeline concatenates."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    chat = QWEN_CHAT
    tokenizer = make_word_tokenizer(QWEN, QWEN_WORDS, eos_token="<|im_end|>", chat_template=chat, width=1024)
    sizes = {**SIZES, "num_hidden_layers": 28}
    config = Qwen3Config(**sizes, head_dim=16, vocab_size=len(tokenizer), pad_token_id=0)
    return {"text_encoder": randomise(Qwen3ForCausalLM(config), 0, 0.5), "tokenizer": tokenizer}


def adapter(pipe: Any) -> dict[str, Any]:
    return {"adapter": live(diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=2))}


def motion(pipe: Any) -> dict[str, Any]:
    torch.manual_seed(4)
    sizes = {**MOTION, "motion_norm_num_groups": 4, "use_motion_mid_block": False}
    return {"motion_adapter": live(diffusers.MotionAdapter(**sizes))}


def consistency(pipe: Any) -> dict[str, Any]:
    return {"unet": make_unet(32, time_cond_proj_dim=8), "scheduler": diffusers.LCMScheduler()}


VARIANTS: dict[str, Variant] = {
    # Stable Diffusion 1 and 2
    "StableDiffusionImg2ImgPipeline": Variant("sd1"),
    "StableDiffusionInpaintPipeline": Variant("sd1", unet(in_channels=9)),
    "StableDiffusionInstructPix2PixPipeline": Variant("sd1", unet(in_channels=8)),
    "StableDiffusionPAGPipeline": Variant("sd1"),
    "StableDiffusionPAGImg2ImgPipeline": Variant("sd1"),
    "StableDiffusionPAGInpaintPipeline": Variant("sd1"),
    "StableDiffusionControlNetPipeline": Variant("sd1", unet_net),
    "StableDiffusionControlNetImg2ImgPipeline": Variant("sd1", unet_net),
    "StableDiffusionControlNetInpaintPipeline": Variant("sd1", unet_net),
    "StableDiffusionControlNetPAGPipeline": Variant("sd1", unet_net),
    "StableDiffusionControlNetPAGInpaintPipeline": Variant("sd1", unet_net),
    "StableDiffusionAdapterPipeline": Variant("sd1", adapter),
    "LatentConsistencyModelPipeline": Variant("sd1", consistency),
    "LatentConsistencyModelImg2ImgPipeline": Variant("sd1", consistency),
    # SDXL
    "StableDiffusionXLImg2ImgPipeline": Variant("sdxl"),
    "StableDiffusionXLInpaintPipeline": Variant("sdxl", xl_unet(in_channels=9)),
    "StableDiffusionXLInstructPix2PixPipeline": Variant("sdxl", xl_unet(in_channels=8)),
    "StableDiffusionXLPAGPipeline": Variant("sdxl"),
    "StableDiffusionXLPAGImg2ImgPipeline": Variant("sdxl"),
    "StableDiffusionXLPAGInpaintPipeline": Variant("sdxl"),
    "StableDiffusionXLControlNetPipeline": Variant("sdxl", unet_net),
    "StableDiffusionXLControlNetImg2ImgPipeline": Variant("sdxl", unet_net),
    "StableDiffusionXLControlNetInpaintPipeline": Variant("sdxl", unet_net),
    "StableDiffusionXLControlNetPAGPipeline": Variant("sdxl", unet_net),
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": Variant("sdxl", unet_net),
    "StableDiffusionXLAdapterPipeline": Variant("sdxl", adapter),
    # Stable Diffusion 3
    "StableDiffusion3Img2ImgPipeline": Variant("sd3"),
    "StableDiffusion3InpaintPipeline": Variant("sd3"),
    "StableDiffusion3PAGPipeline": Variant("sd3"),
    "StableDiffusion3PAGImg2ImgPipeline": Variant("sd3"),
    "StableDiffusion3ControlNetPipeline": Variant("sd3", sd3_net()),
    "StableDiffusion3ControlNetInpaintingPipeline": Variant("sd3", sd3_net(extra_conditioning_channels=1)),
    # FLUX
    "FluxImg2ImgPipeline": Variant("flux"),
    "FluxInpaintPipeline": Variant("flux"),
    "FluxFillPipeline": Variant("flux", flux_of(16 + 16 + 16)),
    "FluxKontextPipeline": Variant("flux", options={"_auto_resize": False, "max_area": 256}),
    "FluxKontextInpaintPipeline": Variant("flux", options={"_auto_resize": False, "max_area": 256}),
    "FluxControlPipeline": Variant("flux", flux_of(32)),
    "FluxControlImg2ImgPipeline": Variant("flux", flux_of(32)),
    "FluxControlInpaintPipeline": Variant("flux", flux_of(32)),
    "FluxControlNetPipeline": Variant("flux", flux_net),
    "FluxControlNetImg2ImgPipeline": Variant("flux", flux_net),
    "FluxControlNetInpaintPipeline": Variant("flux", flux_net),
    "Flux2KleinPipeline": Variant("flux2", klein),
    "Flux2KleinKVPipeline": Variant("flux2", klein),
    "Flux2KleinInpaintPipeline": Variant("flux2", klein),
    # Others
    "ChromaImg2ImgPipeline": Variant("chroma"),
    "ChromaInpaintPipeline": Variant("chroma"),
    "PixArtSigmaPAGPipeline": Variant("pixart-sigma"),
    "SanaPAGPipeline": Variant("sana"),
    "SanaSprintPipeline": Variant("sana"),
    "SanaSprintImg2ImgPipeline": Variant("sana"),
    "SanaControlNetPipeline": Variant("sana"),
    "HunyuanDiTPAGPipeline": Variant("hunyuandit"),
    "HunyuanDiTControlNetPipeline": Variant("hunyuandit"),
    "QwenImageImg2ImgPipeline": Variant("qwenimage"),
    "QwenImageInpaintPipeline": Variant("qwenimage"),
    "QwenImageControlNetPipeline": Variant("qwenimage", qwen_net()),
    "QwenImageControlNetInpaintPipeline": Variant("qwenimage", qwen_net(extra_condition_channels=4)),
    "WanImageToVideoPipeline": Variant("wan"),
    "WanVideoToVideoPipeline": Variant("wan"),
    "ZImageImg2ImgPipeline": Variant("zimage"),
    "ZImageInpaintPipeline": Variant("zimage"),
    "ZImageControlNetPipeline": Variant("zimage"),
    "ZImageControlNetInpaintPipeline": Variant("zimage"),
    "CogView4ControlPipeline": Variant("cogview4"),
    "PRXPixelPipeline": Variant("prx"),
    # Videos around the UNet of Stable Diffusion
    "AnimateDiffPipeline": Variant("sd1", motion),
    "AnimateDiffPAGPipeline": Variant("sd1", motion),
    "AnimateDiffSDXLPipeline": Variant("sdxl", motion),
}
