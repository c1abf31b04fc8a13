"""Tiny random pipelines of the families that read T5, or UMT5 or Gemma2 in its place."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from support.families.base import Family
from support.tiny import WORDS, make_text_encoder, make_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

WIDTH = 64
LENGTH = 16
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
LATENT = {"in_channels": 4, "out_channels": 4}
FLUX = {"in_channels": 16, "num_layers": 1, "num_single_layers": 2, "axes_dims_rope": (4, 6, 6), **HEADS}
STACK = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE_WORDS = ["the", "and", "with", "painting", "photo", "user", "prompt", ",", "."]

# Quick calls: square pictures, two steps.
SHORT = {"num_inference_steps": 2, "output_type": "latent", "height": 16, "width": 16}
GUIDED = {**SHORT, "guidance_scale": 3.5, "max_sequence_length": LENGTH}
UNBINNED = {"use_resolution_binning": False}


def make(kind: str, **config: Any) -> Any:
    """A model of diffusers, of random weights."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers' own, in Chroma
        return getattr(diffusers, kind)(**config).eval()


def spread(model: Any, attention: float = 1.0) -> Any:
    """Draws all layers anew: none is zero, signals keep their size, those through attention grow by the factor."""
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)):
            gain = attention if ".attn." in name else 1.0
            torch.nn.init.normal_(module.weight, std=gain * module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
    return model


def word_tokenizer(special: list[str], split: Any, template: str, side: str, **tokens: str) -> Any:
    """A tokenizer of one token per word; the special tokens have the first ids."""
    vocabulary = {word: i for i, word in enumerate([*special, " ", *WORDS, *MORE_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    ids = [(word, vocabulary[word]) for word in special if word in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        padding_side=side,
        unk_token="<unk>",
        pad_token="<pad>",
        **tokens,
    )


def t5_tokenizer() -> Any:
    """Ends in </s> and pads on the right, like those of T5 and UMT5."""
    split = pre_tokenizers.Whitespace()
    return word_tokenizer(["<pad>", "</s>", "<unk>"], split, "$A </s>", "right", eos_token="</s>")


def gemma_tokenizer() -> Any:
    """Starts with <bos> and pads on the left; space at the end of the text is a token, as Gemma has it."""
    split = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+|\s+\z"), behavior="removed", invert=True)
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    return word_tokenizer(special, split, "<bos> $A", "left", bos_token="<bos>", eos_token="<eos>")


def bert_tokenizer() -> Any:
    """A BertTokenizer with every word of WORDS."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, *MORE_WORDS])}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=77)


def t5_encoder(tokenizer: Any, kind: str = "T5") -> Any:
    """A T5EncoderModel or a UMT5EncoderModel."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=16,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def gemma_encoder(tokenizer: Any) -> Any:
    """A Gemma2Model."""
    torch.manual_seed(1)
    config = transformers.Gemma2Config(
        **STACK,
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=1024,
        initializer_range=WIDTH**-0.5,
    )
    return transformers.Gemma2Model(config).eval()


def bert_encoder(tokenizer: Any) -> Any:
    """A BertModel."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        **STACK, vocab_size=len(tokenizer), max_position_embeddings=77, initializer_range=WIDTH**-0.5
    )
    return transformers.BertModel(config).eval()


def make_vae(blocks: int = 2, **more: Any) -> Any:
    """An AutoencoderKL that halves the size with every block after the first."""
    return make(
        "AutoencoderKL",
        block_out_channels=(4,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
        **more,
    )


def make_flow_vae() -> Any:
    """The autoencoder of SD3, Flux and Chroma: latents have an offset, and there is no layer around them."""
    return make_vae(scaling_factor=1.5, shift_factor=0.05, use_quant_conv=False, use_post_quant_conv=False)


def flow(**more: Any) -> Any:
    """The scheduler of most flow models."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **more})


def build_sd3(folder: Path, **more: Any) -> Any:
    """Stable Diffusion 3: CLIP of widths 24 and 40, T5, and a pooled vector of 64."""
    tokenizer, second = make_tokenizer(folder / "tokenizer"), make_tokenizer(folder / "tokenizer_2", pad="!")
    third = t5_tokenizer()
    sizes = {**HEADS, **LATENT, "sample_size": 8, "num_layers": 2, "joint_attention_dim": WIDTH}
    sizes |= {"caption_projection_dim": 32, "pooled_projection_dim": WIDTH, "pos_embed_max_size": 8}
    transformer = make("SD3Transformer2DModel", **sizes, **more)
    return diffusers.StableDiffusion3Pipeline(
        transformer=spread(transformer),
        scheduler=flow(),
        vae=make_flow_vae(),
        text_encoder=spread(make_text_encoder(tokenizer, 24, projection=True)),
        tokenizer=tokenizer,
        text_encoder_2=spread(make_text_encoder(second, 40, projection=True, seed=5)),
        tokenizer_2=second,
        text_encoder_3=t5_encoder(third),
        tokenizer_3=third,
    )


def build_flux(folder: Path) -> Any:
    """Flux.1 dev: the pooled vector of CLIP, states of T5, an embedded guidance scale."""
    tokenizer, second = make_tokenizer(folder / "tokenizer"), t5_tokenizer()
    transformer = make(
        "FluxTransformer2DModel", **FLUX, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True
    )
    return diffusers.FluxPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=make_flow_vae(),
        text_encoder=spread(make_text_encoder(tokenizer, WIDTH)),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(second),
        tokenizer_2=second,
        transformer=spread(transformer, attention=2.0),
    )


def build_chroma(folder: Path) -> Any:
    """Chroma: a Flux of T5 alone, with modulations from a small network and true guidance."""
    tokenizer = t5_tokenizer()
    transformer = make(
        "ChromaTransformer2DModel",
        **FLUX,
        joint_attention_dim=WIDTH,
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(
        scheduler=flow(),
        vae=make_flow_vae(),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=spread(transformer),
    )


def build_auraflow(folder: Path) -> Any:
    """AuraFlow: UMT5, joint and single blocks, no pooled vector."""
    tokenizer = t5_tokenizer()
    sizes = {**HEADS, "sample_size": 8, "num_mmdit_layers": 2, "num_single_dit_layers": 2}
    sizes |= {"joint_attention_dim": WIDTH, "caption_projection_dim": 32, "pos_embed_max_size": 64}
    transformer = make("AuraFlowTransformer2DModel", **sizes)
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer, "UMT5"),
        vae=make_vae(),
        transformer=spread(transformer, attention=2.0),
        scheduler=flow(shift=1.73),
    )


def build_pixart(folder: Path, name: str = "PixArtAlphaPipeline", micro: bool = True) -> Any:
    """PixArt of size 1024; Alpha is told the size of the picture."""
    tokenizer = t5_tokenizer()
    sizes = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "cross_attention_dim": 48}
    sizes |= {"caption_channels": WIDTH, "sample_size": 128, "use_additional_conditions": micro}
    transformer = make("PixArtTransformer2DModel", **sizes)
    return getattr(diffusers, name)(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=make_vae(),
        transformer=spread(transformer),
        scheduler=diffusers.DDIMScheduler(num_train_timesteps=50, clip_sample=False),
    )


def build_sana(folder: Path) -> Any:
    """Sana: Gemma2 behind an instruction, linear attention, a deep autoencoder."""
    vae = make(
        "AutoencoderDC",
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
    )
    sizes = {**HEADS, **LATENT, "num_layers": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16}
    sizes |= {"cross_attention_dim": 32, "caption_channels": WIDTH}
    transformer = make("SanaTransformer2DModel", **sizes)
    tokenizer = gemma_tokenizer()
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_encoder(tokenizer),
        vae=vae,
        transformer=spread(transformer),
        scheduler=flow(),
    )


def build_wan(folder: Path) -> Any:
    """Wan 2.1: UMT5 and one transformer of videos."""
    vae = make(
        "AutoencoderKLWan",
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * 4,
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    # With this ffn_dim the weights in a saved file start at a multiple of 16 bytes, without which MKL rounds otherwise.
    transformer = make("WanTransformer3DModel", **HEADS, **LATENT, text_dim=WIDTH, ffn_dim=96, num_layers=2)
    tokenizer = t5_tokenizer()
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer, "UMT5"),
        vae=vae,
        scheduler=scheduler,
        transformer=spread(transformer),
    )


def build_hunyuandit(folder: Path) -> Any:
    """HunyuanDiT 1.1: BERT of 77 tokens and T5 of 256, which the pipeline fixes."""
    tokenizer, second = bert_tokenizer(), t5_tokenizer()
    sizes = {**HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 4, "hidden_size": 32, "num_layers": 4}
    sizes |= {"cross_attention_dim": WIDTH, "cross_attention_dim_t5": WIDTH, "pooled_projection_dim": WIDTH}
    transformer = make("HunyuanDiT2DModel", **sizes)
    # Rows of its own for each missing token; few enough directions that text has some to itself, as at full width.
    padding = transformer.text_embedding_padding.data
    padding.copy_(torch.randn(len(padding), 8) @ torch.randn(8, WIDTH) / 8**0.5)
    noise = {"beta_end": 0.03, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    return diffusers.HunyuanDiTPipeline(
        vae=make_vae(4),
        text_encoder=bert_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=spread(transformer),
        scheduler=diffusers.DDPMScheduler(beta_start=0.00085, steps_offset=1, clip_sample=False, **noise),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_encoder(second),
        tokenizer_2=second,
    )


build_sd35 = partial(build_sd3, dual_attention_layers=(0,), qk_norm="rms_norm")
build_sigma = partial(build_pixart, name="PixArtSigmaPipeline", micro=False)

FAMILIES: dict[str, Family] = {
    "sd3": Family(build_sd3, GUIDED),
    "sd35": Family(build_sd35, GUIDED),
    "flux": Family(build_flux, GUIDED),
    "chroma": Family(build_chroma, GUIDED),
    "auraflow": Family(build_auraflow, GUIDED),
    "pixart": Family(build_pixart, {**GUIDED, **UNBINNED, "clean_caption": False}),
    "pixart-sigma": Family(build_sigma, {**GUIDED, **UNBINNED, "clean_caption": False}),
    "sana": Family(build_sana, {**GUIDED, **UNBINNED, "height": 32, "width": 32}),
    "wan": Family(build_wan, {**GUIDED, "height": 32, "width": 32, "num_frames": 5}),
    "hunyuandit": Family(build_hunyuandit, {**SHORT, **UNBINNED, "guidance_scale": 3.5, "height": 32, "width": 32}),
}
