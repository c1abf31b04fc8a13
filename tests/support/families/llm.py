"""Tiny pipelines of the families whose text encoder is a language model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from support.families.base import Family
from support.tiny import TOKENS, WORDS

WIDTH = 64
SHARP = re.compile(r"norm_(added_)?[qk]\.")
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>")
QWEN_WORDS = (
    "system user assistant Describe the image by detailing color size texture quantity text spatial relationships "
    "objects and background : ,"
)
QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = ("<pad>", "<eos>", "<bos>")
GLM = ("<|endoftext|>", "[gMASK]", "<sop>")
MISTRAL = ("<pad>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]")
MISTRAL_WORDS = "You are an AI that reasons about image descriptions . , give structured responses object and actions"
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set mark = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}"
    "[{{ mark }}]{% for part in message.content %}{{ part.text }}{% endfor %}[/{{ mark }}]{% endfor %}"
)
LUMINA_WORDS = (
    "You are an assistant designed to generate superior images with the degree image text . - < > Prompt Start"
)


def make_word_tokenizer(
    specials: Sequence[str], words: str = "", prefix: Sequence[str] = (), *, width: int = 256, **options: Any
) -> Any:
    """A tokenizer of whole words; the prefix comes before every text and the first special token is the padding."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = dict.fromkeys([*specials, "<unk>", "\n", *WORDS, *words.split()])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.add_special_tokens(list(specials))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "removed", invert=True)
    if prefix:
        pairs = [(token, vocabulary[token]) for token in prefix]
        core.post_processor = processors.TemplateProcessing(single=[*prefix, "$A"], special_tokens=pairs)
    names = {"unk_token": "<unk>", "pad_token": specials[0], "model_input_names": ["input_ids", "attention_mask"]}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=width, **names | options)


def randomise(model: Any, seed: int, gain: float = 1.0) -> Any:
    """Draws every parameter, those that start at zero too: matrices keep the scale of their input times the gain."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("embed_tokens.weight"):
                weight.copy_(noise)
            elif weight.ndim > 1:
                weight.copy_(noise * gain / weight[0].numel() ** 0.5)
            elif name.endswith(("weight", "gate")):
                weight.copy_((1.5 if SHARP.search(name) else 1.0) + 0.1 * noise)
            else:
                weight.copy_(0.1 * noise)
    return model.eval()


def make_kl(blocks: int = 2, kind: str = "AutoencoderKL", **options: Any) -> Any:
    """An autoencoder of four latent channels that halves the picture's sides once less than it has blocks."""
    import diffusers

    torch.manual_seed(2)
    names = {"down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks}
    sizes = {"block_out_channels": (8,) * blocks, "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    return getattr(diffusers, kind)(**names, **sizes, sample_size=16, **options).eval()


def assemble(
    kind: str, transformer: Any, text_encoder: Any, tokenizer: Any, vae: Any, gain: float = 1.5, **schedule: Any
) -> Any:
    """The pipeline of that class; the transformer's weights are drawn here, with a gain that lets the prompt matter."""
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**schedule or {"shift": 3.0})
    parts = {"text_encoder": text_encoder, "tokenizer": tokenizer, "vae": vae, "scheduler": scheduler}
    return getattr(diffusers, kind)(transformer=randomise(transformer, 1, gain), **parts)


def build_flux2(folder: Path) -> Any:
    """FLUX.2: Mistral 3, deep enough for the states 10, 20 and 30 that the pipeline concatenates."""
    from diffusers import Flux2Transformer2DModel
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    names = {"bos_token": "<s>", "eos_token": "</s>", "padding_side": "left", "chat_template": MISTRAL_CHAT}
    tokenizer = make_word_tokenizer(MISTRAL, MISTRAL_WORDS, **names)
    picture = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = MistralConfig(**SIZES | {"num_hidden_layers": 31}, head_dim=16, vocab_size=len(tokenizer), pad_token_id=0)
    config = Mistral3Config(
        text_config=text,
        vision_config=PixtralVisionConfig(**picture, image_size=16, patch_size=4),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    sizes = {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16}
    sizes |= {"num_attention_heads": 2, "joint_attention_dim": 3 * WIDTH, "timestep_guidance_channels": 16}
    sizes |= {"axes_dims_rope": (4, 4, 4, 4)}
    transformer = Flux2Transformer2DModel(**sizes)
    encoder = randomise(Mistral3ForConditionalGeneration(config), 0, 0.5)
    vae = make_kl(kind="AutoencoderKLFlux2")
    return assemble("Flux2Pipeline", transformer, encoder, tokenizer, vae, use_dynamic_shifting=True)


def build_qwenimage(folder: Path) -> Any:
    """Qwen-Image: Qwen 2.5 VL, of whose states the pipeline drops the first 34."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = make_word_tokenizer(QWEN, QWEN_WORDS, eos_token="<|im_end|>", width=2048)
    text = {
        **SIZES,
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    picture = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    names = {"vision_start_token_id": QWEN[3], "image_token_id": QWEN[4], "video_token_id": QWEN[5]}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=picture, **ids)
    # These sizes make the saved header a multiple of 16 bytes: products of one row with memory-mapped weights off that
    # grid round otherwise than with weights in memory.
    sizes = {"in_channels": 16, "out_channels": 4, "num_layers": 3, "attention_head_dim": 16}
    sizes |= {"num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6)}
    transformer = QwenImageTransformer2DModel(**sizes)
    torch.manual_seed(2)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    encoder = randomise(Qwen2_5_VLForConditionalGeneration(config), 0)
    return assemble("QwenImagePipeline", transformer, encoder, tokenizer, vae, use_dynamic_shifting=True)


def make_gemma(kind: str, tokenizer: Any) -> Any:
    """Gemma or Gemma 2 without the head."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**SIZES, head_dim=16, vocab_size=len(tokenizer))
    return randomise(getattr(transformers, f"{kind}Model")(config), 0)


def build_luminanext(folder: Path) -> Any:
    """Lumina-Next: Gemma."""
    from diffusers import LuminaNextDiT2DModel

    tokenizer = make_word_tokenizer(GEMMA, prefix=["<bos>"], bos_token="<bos>", eos_token="<eos>")
    sizes = {"sample_size": 8, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "num_kv_heads": 1}
    sizes |= {"multiple_of": 16, "cross_attention_dim": WIDTH}
    transformer = LuminaNextDiT2DModel(**sizes)
    return assemble("LuminaPipeline", transformer, make_gemma("Gemma", tokenizer), tokenizer, make_kl(4), gain=0.5)


def build_lumina2(folder: Path) -> Any:
    """Lumina-Image 2: Gemma 2, whose prompt follows a system prompt."""
    from diffusers import Lumina2Transformer2DModel

    tokenizer = make_word_tokenizer(GEMMA, LUMINA_WORDS, ["<bos>"], bos_token="<bos>", eos_token="<eos>")
    # Two refiners for the same reason as Qwen-Image's three layers.
    sizes = {"sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 2, "num_refiner_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": (4, 6, 6)}
    sizes |= {"axes_lens": (300, 32, 32), "cap_feat_dim": WIDTH}
    transformer = Lumina2Transformer2DModel(**sizes)
    vae = make_kl(4, shift_factor=0.1)
    return assemble("Lumina2Pipeline", transformer, make_gemma("Gemma2", tokenizer), tokenizer, vae)


def build_zimage(folder: Path) -> Any:
    """Z-Image: Qwen 3 behind a chat template."""
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = make_word_tokenizer(QWEN, QWEN_WORDS, eos_token="<|im_end|>", chat_template=QWEN_CHAT, width=1024)
    config = Qwen3Config(**SIZES, head_dim=16, vocab_size=len(tokenizer), pad_token_id=0)
    sizes = {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    sizes |= {"cap_feat_dim": WIDTH, "axes_dims": [4, 6, 6], "axes_lens": [1024, 32, 32]}
    transformer = ZImageTransformer2DModel(**sizes)
    encoder = randomise(Qwen3Model(config), 0)
    return assemble("ZImagePipeline", transformer, encoder, tokenizer, make_kl(shift_factor=0.1))


def build_cogview4(folder: Path) -> Any:
    """CogView 4: GLM, padded on the left."""
    from diffusers import CogView4Transformer2DModel
    from transformers import GlmConfig, GlmModel

    tokenizer = make_word_tokenizer(GLM, prefix=GLM[1:], padding_side="left", eos_token="<|endoftext|>", width=2048)
    config = GlmConfig(**SIZES, head_dim=16, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=0)
    sizes = {"in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
    sizes |= {"text_embed_dim": WIDTH, "time_embed_dim": 32, "condition_dim": 4, "sample_size": 8}
    transformer = CogView4Transformer2DModel(**sizes)
    shifts = {"base_shift": 0.25, "max_shift": 0.75, "time_shift_type": "linear", "use_dynamic_shifting": True}
    return assemble("CogView4Pipeline", transformer, randomise(GlmModel(config), 0), tokenizer, make_kl(), **shifts)


def build_prx(folder: Path) -> Any:
    """PRX: the encoder of T5Gemma."""
    from diffusers import PRXTransformer2DModel
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder, T5GemmaModuleConfig

    tokenizer = make_word_tokenizer(GEMMA, prefix=["<bos>"], bos_token="<bos>", eos_token="<eos>", width=TOKENS)
    sizes = {**SIZES, "head_dim": 16, "vocab_size": len(tokenizer)}
    # Loading takes the sizes from the part of the configuration named encoder, which saving alone does not write.
    config = T5GemmaModuleConfig(**sizes, dropout_rate=0.0, encoder=sizes, decoder=sizes)
    transformer = PRXTransformer2DModel(
        in_channels=4, context_in_dim=WIDTH, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=2, axes_dim=[8, 8]
    )
    encoder = randomise(T5GemmaEncoder(config), 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LoraLoaderMixin", FutureWarning)
        return assemble("PRXPipeline", transformer, encoder, tokenizer, make_kl(shift_factor=0.1))


def options(side: int, **more: Any) -> dict[str, Any]:
    """Two steps at that many pixels a side."""
    return {"num_inference_steps": 2, "height": side, "width": side, "output_type": "latent", **more}


FAMILIES: dict[str, Family] = {
    "flux2": Family(build_flux2, options(16, guidance_scale=3.0, max_sequence_length=48)),
    "qwenimage": Family(
        build_qwenimage, options(16, true_cfg_scale=3.0, negative_prompt=" ", max_sequence_length=TOKENS)
    ),
    "luminanext": Family(build_luminanext, options(64, guidance_scale=3.0, clean_caption=False)),
    "lumina2": Family(build_lumina2, options(64, guidance_scale=3.0, max_sequence_length=48)),
    "zimage": Family(build_zimage, options(16, guidance_scale=3.0, max_sequence_length=32)),
    "cogview4": Family(build_cogview4, options(16, guidance_scale=3.0, max_sequence_length=32)),
    "prx": Family(build_prx, options(16, guidance_scale=3.0, use_resolution_binning=False)),
}
