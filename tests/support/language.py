"""Tiny random `transformers` models that draw or see pictures, with their processors."""

from __future__ import annotations

from typing import Any

from erasers.models.model_pipeline import ModelPipeline
from support.families.llm import make_word_tokenizer, randomise

SPECIALS = ("<pad>", "<s>", "</s>", "<boi>", "<eoi>", "<image>")
PICTURE = 32
WIDTH = 32
LAYERS = {"hidden_size": WIDTH, "intermediate_size": 48, "num_attention_heads": 2}


def make_tokenizer(words: str = "", **options: Any) -> Any:
    """Whole words behind a start; padded on the left."""
    names = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "padding_side": "left", "extra_special_tokens": names}
    return make_word_tokenizer(SPECIALS, words, ["<s>"], **tokens | options)


def make_janus(side: int = 4, layers: int = 3) -> ModelPipeline:
    """Janus whose pictures of 32 x 32 pixels are `side` x `side` tokens out of a book of 24."""
    from transformers import (
        JanusConfig,
        JanusForConditionalGeneration,
        JanusImageProcessorPil,
        JanusProcessor,
        JanusVisionConfig,
        JanusVQVAEConfig,
        LlamaConfig,
    )

    tokenizer = make_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in zip("pbeio", SPECIALS, strict=False)}
    text = LlamaConfig(
        **LAYERS,
        num_hidden_layers=layers,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=ids["p"],
        bos_token_id=ids["b"],
        eos_token_id=ids["e"],
    )
    vision = JanusVisionConfig(
        **{name: value for name, value in LAYERS.items() if name != "intermediate_size"},
        num_hidden_layers=1,
        image_size=PICTURE,
        patch_size=PICTURE // side,
        projection_dim=WIDTH,
        num_image_tokens=side * side,
    )
    book = JanusVQVAEConfig(
        embed_dim=4,
        num_embeddings=24,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1] * (PICTURE // side).bit_length(),
        num_res_blocks=1,
        projection_dim=WIDTH,
        image_token_embed_dim=WIDTH,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = JanusConfig(text_config=text, vision_config=vision, vq_config=book, image_token_id=image)
    model = randomise(JanusForConditionalGeneration(config), 0)
    model.generation_config.update(pad_token_id=ids["p"], bos_token_id=ids["b"])
    model.generation_config.generation_kwargs = {"boi_token_id": ids["i"]}
    pictures = JanusImageProcessorPil(size={"height": PICTURE, "width": PICTURE}, min_size=PICTURE // side)
    return ModelPipeline(model, JanusProcessor(pictures, tokenizer, num_image_tokens=side * side))


def make_llava(layers: int = 2) -> ModelPipeline:
    """LLaVA that sees pictures of 32 x 32 pixels as 16 places."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = make_tokenizer()
    image = tokenizer.convert_tokens_to_ids("<image>")
    tower = CLIPVisionConfig(**LAYERS, num_hidden_layers=layers, image_size=PICTURE, patch_size=8)
    text = LlamaConfig(
        **LAYERS,
        num_hidden_layers=layers,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=image, image_seq_length=16)
    size = {"height": PICTURE, "width": PICTURE}
    pictures = CLIPImageProcessorPil(size=size, crop_size=size, do_resize=False, do_center_crop=False)
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
    )
    return ModelPipeline(randomise(LlavaForConditionalGeneration(config), 0), processor)
