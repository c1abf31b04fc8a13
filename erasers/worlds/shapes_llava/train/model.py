"""The model, untrained, and its processor."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from erasers.worlds.shapes.train.words import build_tokenizer

PATCH = 8
PLACES = (32 // PATCH) ** 2
"""A picture of 32 x 32 pixels is 16 places, which the language model reads as tokens."""
WIDTH = 128


def build() -> LlavaForConditionalGeneration:
    """About one and a half million parameters, half of them in the vision tower."""
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 4}
    tower = CLIPVisionConfig(
        **sizes, intermediate_size=4 * WIDTH, num_hidden_layers=4, image_size=32, patch_size=PATCH, projection_dim=WIDTH
    )
    text = LlamaConfig(
        **sizes,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=3,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=tower, text_config=text, image_token_index=image, image_seq_length=PLACES)
    )


def processor() -> Any:
    """Makes ids of questions, and pixels in [-1, 1] of pictures of 32 x 32."""
    halves = [0.5, 0.5, 0.5]
    pictures = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, image_mean=halves, image_std=halves)
    return LlavaProcessor(
        pictures,
        build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
