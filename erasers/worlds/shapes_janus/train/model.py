"""The model, untrained, and its processor."""

from __future__ import annotations

from typing import Any

from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessorPil,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from erasers.worlds.shapes.train.words import LENGTH, build_tokenizer

SIDE = 8
"""A picture of 32 x 32 pixels is 8 x 8 tokens."""
TOKENS = SIDE * SIDE
BITS = 8
"""Of a token."""
BOOK = 2**BITS
"""Different tokens of a picture."""
WIDTH = 128


def build() -> JanusForConditionalGeneration:
    """Not two million parameters, half of them in four layers of a Llama; the part that sees pictures is a stub."""
    tokenizer = build_tokenizer()
    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=2 * (LENGTH + TOKENS),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    sight = JanusVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=32,
        patch_size=32 // SIDE,
        projection_dim=WIDTH,
        depth=1,
        num_image_tokens=TOKENS,
    )
    book = JanusVQVAEConfig(
        embed_dim=BITS,
        num_embeddings=BOOK,
        latent_channels=32,
        base_channels=64,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=0,
        projection_dim=WIDTH,
        image_token_embed_dim=WIDTH,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = JanusConfig(text_config=text, vision_config=sight, vq_config=book, image_token_id=image)
    return that_draws(JanusForConditionalGeneration(config))


def that_draws(model: JanusForConditionalGeneration) -> JanusForConditionalGeneration:
    """The model with what its `generate` asks for; transformers saves it, but does not load it."""
    tokenizer = build_tokenizer()
    model.generation_config.update(pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id)
    model.generation_config.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids("<boi>")}
    return model


def processor() -> Any:
    """Makes ids of prompts, and pictures of what the model draws."""
    halves = [0.5, 0.5, 0.5]
    size = {"height": 32, "width": 32}
    pictures = JanusImageProcessorPil(size=size, min_size=4, image_mean=halves, image_std=halves)
    return JanusProcessor(pictures, build_tokenizer(), num_image_tokens=TOKENS)
