"""Stage 1: two CLIP text encoders with projections, each by contrast with the features of the judge of `shapes`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from erasers.worlds.shapes import render
from erasers.worlds.shapes.judge import FEATURES, load_judge
from erasers.worlds.shapes.paths import MODEL_DIR
from erasers.worlds.shapes.scenes import captions, training_scenes
from erasers.worlds.shapes.train.loop import Recipe, seed_step, train
from erasers.worlds.shapes.train.text import BATCH, RECIPE

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
        self.picture_projection = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.log_scale = nn.Parameter(torch.tensor(2.6))

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        """Scaled cosine similarities [texts, pictures]."""
        text = F.normalize(self.encoder(ids).text_embeds, dim=1)
        picture = F.normalize(self.picture_projection(features), dim=1)
        return self.log_scale.clamp(max=4.6).exp() * text @ picture.T


def run(out: Path, device: torch.device, seed: int, name: str, recipe: Recipe = RECIPE) -> None:
    """Train one encoder and write `out/<name>` (float32)."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer()
    judge = load_judge().to(device)
    model = Contrast(build_encoder(name, tokenizer)).to(device)
    own = seed + 10 * (1 + list(ENCODERS).index(name))

    def loss_step(step: int) -> dict[str, Tensor]:
        generator = seed_step(own, step)
        scenes = training_scenes(BATCH, generator)
        texts = captions(scenes, random.Random(own * 1_000_003 + step))
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        with torch.no_grad():
            features = judge.features(render.render(scenes, generator).to(device))
        similarity = model(ids, features)
        target = torch.arange(BATCH, device=device)
        loss = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
        return {"loss": loss, "recall_at_1": (similarity.argmax(1) == target).float().mean()}

    train(name, model, loss_step, recipe, out)
    model.encoder.save_pretrained(out / name)
