"""Stage 1: two CLIP text encoders with projections, each by contrast with the features of the judge of `shapes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from erasers.worlds.shapes.judge import load_judge
from erasers.worlds.shapes.paths import MODEL_DIR
from erasers.worlds.shapes.train.contrast import RECIPE, against_judge, projection, similarities
from erasers.worlds.training.loop import train

WIDTH = 128
"""Of the states and of the projection, for both."""

ENCODERS: dict[str, dict[str, Any]] = {
    "text_encoder": {"num_hidden_layers": 3, "hidden_act": "quick_gelu"},
    "text_encoder_2": {"num_hidden_layers": 4, "hidden_act": "gelu"},
}
"""Component -> how it differs, as CLIP ViT-L and bigG do in Stable Diffusion 3."""


def load_tokenizer() -> CLIPTokenizer:
    """The tokenizer of `shapes`, in which each word of the world is one token."""
    return CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")


def build_encoder(name: str, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """One of the two encoders, untrained."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **ENCODERS[name],
    )
    return CLIPTextModelWithProjection(config)


class Contrast(nn.Module):
    """A text encoder, and the projection of pictures of InfoNCE."""

    def __init__(self, encoder: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.encoder = encoder
        self.picture_projection = projection(WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(2.6))

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        """Scaled cosine similarities [texts, pictures]."""
        text = self.encoder(ids).text_embeds
        return similarities(text, self.picture_projection(features), self.log_scale)


def run(out: Path, device: torch.device, seed: int, name: str) -> None:
    """Train one encoder and write `out/<name>` (float32)."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer()
    judge = load_judge().to(device)
    model = Contrast(build_encoder(name, tokenizer)).to(device)
    own = seed + 10 * (1 + list(ENCODERS).index(name))
    train(name, model, against_judge(model, tokenizer, judge, device, own), RECIPE, out)
    model.encoder.save_pretrained(out / name)
