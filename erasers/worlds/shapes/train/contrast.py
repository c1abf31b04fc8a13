"""Texts against pictures: what trains the text encoders of every model of this world (as CLIP, then frozen)."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

from erasers.worlds.shapes import render
from erasers.worlds.shapes.judge import FEATURES, ShapesJudge
from erasers.worlds.shapes.scenes import captions, training_scenes
from erasers.worlds.training.loop import LossStep, Recipe, seed_step

RECIPE = Recipe(steps=700, lr=1.5e-3, weight_decay=0.02, flat=0.3, save_every=100, log_every=25)
BATCH = 192


def projection(width: int) -> nn.Sequential:
    """From features of the judge to vectors that texts are compared with."""
    return nn.Sequential(nn.Linear(FEATURES, width), nn.GELU(), nn.Linear(width, width))


def similarities(text: Tensor, picture: Tensor, log_scale: Tensor) -> Tensor:
    """Scaled cosine similarities [texts, pictures]."""
    return log_scale.clamp(max=4.6).exp() * F.normalize(text, dim=1) @ F.normalize(picture, dim=1).T


def matched(similarity: Tensor) -> dict[str, Tensor]:
    """InfoNCE of similarities [n, n] whose diagonal belongs together, in both directions."""
    target = torch.arange(len(similarity), device=similarity.device)
    loss = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
    return {"loss": loss, "recall_at_1": (similarity.argmax(1) == target).float().mean()}


def against_judge(
    model: nn.Module, tokenizer: CLIPTokenizer, judge: ShapesJudge, device: torch.device, seed: int
) -> LossStep:
    """Match captions with the features that the frozen judge has of fresh renders.

    Args:
        model: Tokens and features to similarities [texts, pictures].
        tokenizer: Of the captions.
        judge: On the device.
        device: Where the model is.
        seed: Of the scenes.
    """

    def loss_step(step: int) -> dict[str, Tensor]:
        generator = seed_step(seed, step)
        scenes = training_scenes(BATCH, generator)
        texts = captions(scenes, random.Random(seed * 1_000_003 + step))
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        with torch.no_grad():
            features = judge.features(render.render(scenes, generator).to(device))
        return matched(model(ids, features))

    return loss_step
