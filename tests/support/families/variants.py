"""Tiny pipelines of every other class that diffusers has around the denoisers of the families."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from support.families.all import FAMILIES
from support.families.llm import QWEN, QWEN_CHAT, QWEN_WORDS, SIZES, make_word_tokenizer, randomise
from support.families.motion import make_motion_adapter
from support.families.t5 import FLUX, HEADS, LATENT, WIDTH, make, spread
from support.tiny import make_unet

from erasers.models.families import FAMILIES as TABLE

BIG = {"height": 64, "width": 64}


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
        sizes = {**HEADS, **LATENT, "sample_size": 8, "num_layers": 1, "joint_attention_dim": WIDTH}
        sizes |= {"caption_projection_dim": 32, "pooled_projection_dim": WIDTH, "pos_embed_max_size": 8}
        net = diffusers.SD3ControlNetModel(**sizes, **more)
        return {"controlnet": live(net)}

    return build


def wide_sd3(pipe: Any) -> dict[str, Any]:
    """Sixteen channels, the only number that inpainting takes."""
    sizes = {**HEADS, "in_channels": 16, "out_channels": 16, "sample_size": 8, "num_layers": 2}
    sizes |= {"joint_attention_dim": WIDTH, "caption_projection_dim": 32, "pooled_projection_dim": WIDTH}
    transformer = make("SD3Transformer2DModel", **sizes, pos_embed_max_size=8)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = make(
        "AutoencoderKL",
        **blocks,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        latent_channels=16,
        sample_size=16,
        scaling_factor=1.5,
        shift_factor=0.05,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return {"transformer": spread(transformer), "vae": vae}


def sana_net(pipe: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    sizes = {**HEADS, **LATENT, "num_layers": 1, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16}
    sizes |= {"cross_attention_dim": 32, "caption_channels": WIDTH}
    net = diffusers.SanaControlNetModel(**sizes)
    return {"controlnet": live(net)}


def hunyuan_net(pipe: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    sizes = {**HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 4, "hidden_size": 32}
    sizes |= {"transformer_num_layers": 4, "cross_attention_dim": WIDTH, "cross_attention_dim_t5": WIDTH}
    sizes |= {"pooled_projection_dim": WIDTH}
    net = diffusers.HunyuanDiT2DControlNetModel(**sizes)
    return {"controlnet": live(net)}


def zimage_net(channels: int) -> Callable[[Any], dict[str, Any]]:
    def build(pipe: Any) -> dict[str, Any]:
        torch.manual_seed(3)
        places = {"control_layers_places": [0], "control_refiner_layers_places": [0]}
        sizes = {"dim": 32, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "control_in_dim": channels}
        if channels > 4:
            sizes |= {"add_control_noise_refiner": "control_noise_refiner"}
        return {"controlnet": live(diffusers.ZImageControlNetModel(**places, **sizes))}

    return build


def changed(model: Any, **config: Any) -> Any:
    """A model of the same class and configuration but for some entries; its weights are not drawn yet."""
    known = {key: value for key, value in model.config.items() if not key.startswith("_")}
    return type(model)(**{**known, **config})


def cogview_control(pipe: Any) -> dict[str, Any]:
    return {"transformer": randomise(changed(pipe.transformer, in_channels=8), 1, 1.5)}


def prx_pixels(pipe: Any) -> dict[str, Any]:
    plain_text("prx.pipeline_prx_pixel")
    return {"transformer": randomise(changed(pipe.transformer, in_channels=3), 1, 1.5)}


def wan_pictures(pipe: Any) -> dict[str, Any]:
    """Wan 2.2: latents of the picture and a mask beside those of the video, and no encoder of pictures."""
    plain_text("wan.pipeline_wan_i2v")
    sizes = {**HEADS, "text_dim": WIDTH, "ffn_dim": 96, "num_layers": 2, "in_channels": 12, "out_channels": 4}
    return {"transformer": spread(make("WanTransformer3DModel", **sizes))}


def wan_videos(pipe: Any) -> dict[str, Any]:
    plain_text("wan.pipeline_wan_video2video")
    return {}


def plain_text(module: str) -> None:
    """Some pipelines call ftfy unasked; where that is absent texts stay as they are."""
    found = import_module(f"diffusers.pipelines.{module}")
    if not hasattr(found, "ftfy"):
        found.ftfy = SimpleNamespace(fix_text=str)


def upscaler(pipe: Any) -> dict[str, Any]:
    return {"unet": make_unet(32, in_channels=7, num_class_embeds=350), "low_res_scheduler": diffusers.DDPMScheduler()}


def depth(pipe: Any) -> dict[str, Any]:
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = DPTConfig(
        **sizes,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 4, 4, 4],
        fusion_hidden_size=4,
        reassemble_factors=[4, 2, 1, 0.5],
    )
    processor = DPTImageProcessor(size={"height": 32, "width": 32})
    return {
        "unet": make_unet(32, in_channels=5),
        "depth_estimator": DPTForDepthEstimation(config).eval(),
        "feature_extractor": processor,
    }


def variations(pipe: Any) -> dict[str, Any]:
    """Stable unCLIP: the class embedding is that of a picture, with noise."""
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, projection_dim=16, image_size=16, patch_size=8)
    return {
        "unet": make_unet(32, class_embed_type="projection", projection_class_embeddings_input_dim=32),
        "image_encoder": CLIPVisionModelWithProjection(config).eval(),
        "feature_extractor": CLIPImageProcessor(size=16, crop_size=16),
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=16),
        "image_noising_scheduler": diffusers.DDPMScheduler(),
    }


def sprint(pipe: Any) -> dict[str, Any]:
    transformer = spread(changed(pipe.transformer, guidance_embeds=True))
    return {"scheduler": diffusers.SCMScheduler(), "transformer": transformer}


def lucy(pipe: Any) -> dict[str, Any]:
    plain_text("lucy.pipeline_lucy_edit")
    return {}


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
    return {"motion_adapter": make_motion_adapter()}


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
    "StableDiffusionDepth2ImgPipeline": Variant("sd1", depth),
    "StableDiffusionUpscalePipeline": Variant("sd1", upscaler),
    "StableUnCLIPImg2ImgPipeline": Variant("sd1", variations),
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
    "StableDiffusion3InpaintPipeline": Variant("sd3", wide_sd3),
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
    "Flux2KleinPipeline": Variant("flux2", klein, BIG),
    "Flux2KleinKVPipeline": Variant("flux2", klein, BIG),
    "Flux2KleinInpaintPipeline": Variant("flux2", klein),
    # Others
    "ChromaImg2ImgPipeline": Variant("chroma"),
    "ChromaInpaintPipeline": Variant("chroma"),
    "PixArtSigmaPAGPipeline": Variant("pixart-sigma"),
    "SanaPAGPipeline": Variant("sana"),
    "SanaSprintPipeline": Variant("sana", sprint),
    "SanaSprintImg2ImgPipeline": Variant("sana", sprint),
    "SanaControlNetPipeline": Variant("sana", sana_net),
    "HunyuanDiTPAGPipeline": Variant("hunyuandit"),
    "HunyuanDiTControlNetPipeline": Variant("hunyuandit", hunyuan_net),
    "QwenImageImg2ImgPipeline": Variant("qwenimage"),
    "QwenImageInpaintPipeline": Variant("qwenimage"),
    "QwenImageControlNetPipeline": Variant("qwenimage", qwen_net()),
    "QwenImageControlNetInpaintPipeline": Variant("qwenimage", qwen_net(extra_condition_channels=4)),
    "WanImageToVideoPipeline": Variant("wan", wan_pictures),
    "WanVideoToVideoPipeline": Variant("wan", wan_videos),
    "ZImageImg2ImgPipeline": Variant("zimage"),
    "ZImageInpaintPipeline": Variant("zimage"),
    "ZImageControlNetPipeline": Variant("zimage", zimage_net(4)),
    "ZImageControlNetInpaintPipeline": Variant("zimage", zimage_net(9)),
    "CogView4ControlPipeline": Variant("cogview4", cogview_control),
    "PRXPixelPipeline": Variant("prx", prx_pixels),
    # Videos around the UNet of Stable Diffusion
    "AnimateDiffPAGPipeline": Variant("sd1", motion),
    "AnimateDiffSDXLPipeline": Variant("sdxl", motion),
    # Fitted, but not drawn by the command
    "AnimateDiffVideoToVideoPipeline": Variant("sd1", motion),
    "AnimateDiffControlNetPipeline": Variant("sd1", lambda pipe: {**motion(pipe), **unet_net(pipe)}),
    "AnimateDiffVideoToVideoControlNetPipeline": Variant("sd1", lambda pipe: {**motion(pipe), **unet_net(pipe)}),
    "AnimateDiffSparseControlNetPipeline": Variant("sd1", motion),
    "LEditsPPPipelineStableDiffusion": Variant("sd1"),
    "LEditsPPPipelineStableDiffusionXL": Variant("sdxl"),
    "LucyEditPipeline": Variant("wan", lucy),
    "StableDiffusionXLControlNetUnionPipeline": Variant("sdxl"),
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": Variant("sdxl"),
    "StableDiffusionXLControlNetUnionInpaintPipeline": Variant("sdxl"),
}
