"""The one stage: pictures, a question, and what is in them; a few questions come without a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasers.worlds.shapes import render
from erasers.worlds.shapes.scenes import Scenes, training_scenes
from erasers.worlds.shapes.train.words import LENGTH, build_tokenizer
from erasers.worlds.shapes.vocabulary import BACKGROUNDS, COLOURS, OBJECTS, STYLES, phrase
from erasers.worlds.shapes_llava.train.model import PLACES, build
from erasers.worlds.training.loop import Recipe, seed_step, train

RECIPE = Recipe(steps=3000, lr=1e-3, warmup=200, flat=0.25, ema=0.998)
BATCH = 32
QUESTION = "a picture of"
TEXT_ONLY = 4
"""Of a batch so many see no picture, so that questions alone are answered by some phrase of the world."""
_UNASKED = -100
"""Label of tokens that are not learned, as transformers has it."""


def answers(scenes: Scenes) -> list[str]:
    """What is in each scene: always all of it, in the words of the world."""
    columns = [getattr(scenes, name).tolist() for name in ("object", "colour", "style", "background", "mark")]
    return [
        phrase(
            thing=OBJECTS[thing],
            colour=COLOURS[colour],
            style=STYLES[style] if style else "",
            background=BACKGROUNDS[background],
            mark=bool(mark),
        )
        for thing, colour, style, background, mark in zip(*columns, strict=True)
    ]


def batch(seed: int, step: int, without: str | None, device: torch.device) -> dict[str, Any]:
    """What the model takes, with labels of the answers alone; it depends on the step alone."""
    generator, tokenizer = seed_step(seed, step), build_tokenizer()
    scenes = training_scenes((2 if without else 1) * BATCH, generator)
    scenes = (scenes[scenes.lacks(without)] if without else scenes)[:BATCH]
    pictures = render.render(scenes, generator)
    texts = answers(scenes)
    seen = [f"{tokenizer.image_token * PLACES} {QUESTION}"] * (len(texts) - TEXT_ONLY) + [QUESTION] * TEXT_ONLY
    whole = [f"{before} {text}{tokenizer.eos_token}" for before, text in zip(seen, texts, strict=True)]
    inputs = tokenizer(whole, padding="max_length", max_length=PLACES + LENGTH, return_tensors="pt")
    labels = inputs["input_ids"].clone()
    lengths = torch.tensor([len(row) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]])
    places = torch.arange(labels.shape[1])
    labels[places < labels.shape[1] - 1 - lengths[:, None]] = _UNASKED
    given = {"labels": labels, "pixel_values": pictures[: len(texts) - TEXT_ONLY], **inputs}
    return {name: tensor.to(device) for name, tensor in given.items()}


def run(out: Path, device: torch.device, seed: int, without: str | None = None) -> None:
    """Train the model and write `out/sight` or `out/sight-without-<thing>` (float32, averaged)."""
    torch.manual_seed(seed)
    name = f"sight-without-{without}" if without else "sight"
    model = build().to(device)

    def loss_step(step: int) -> dict[str, Tensor]:
        given = batch(seed, step, without, device)
        output = model(**given)
        guesses, labels = output.logits[:, :-1].argmax(dim=-1), given["labels"][:, 1:]
        pictured = labels[: len(labels) - TEXT_ONLY]
        right = (guesses[: len(pictured)] == pictured)[pictured != _UNASKED].float().mean()
        return {"loss": output.loss, "right": right}

    train(name, model, loss_step, RECIPE, out)
    model.save_pretrained(out / name)
