"""The one stage: pictures, a question, and what is in them; a few questions come without a picture.

Towers of real models come from CLIP and know at every place what the whole picture shows. That is taught in a second
part, where a linear head behind the projector, which is not kept, says the object of the picture at each place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from erasers.worlds.shapes import render
from erasers.worlds.shapes.scenes import Scenes, training_scenes
from erasers.worlds.shapes.train.words import LENGTH, build_tokenizer
from erasers.worlds.shapes.vocabulary import BACKGROUNDS, COLOURS, OBJECTS, STYLES, phrase
from erasers.worlds.shapes_llava.train.model import PLACES, WIDTH, build
from erasers.worlds.training.loop import Recipe, seed_step, train

RECIPE = Recipe(steps=3000, lr=1e-3, warmup=200, flat=0.25, ema=0.998)
PLACES_RECIPE = Recipe(steps=700, lr=1e-3, warmup=50, flat=0.3, ema=0.99, save_every=100)
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


def scenes_of(seed: int, step: int, without: str | None) -> tuple[Scenes, torch.Generator]:
    """The scenes of a batch, and the generator that renders them; they depend on the step alone."""
    generator = seed_step(seed, step)
    scenes = training_scenes((2 if without else 1) * BATCH, generator)
    return (scenes[scenes.lacks(without)] if without else scenes)[:BATCH], generator


def batch(seed: int, step: int, without: str | None, device: torch.device) -> dict[str, Any]:
    """What the model takes, with labels of the answers alone; it depends on the step alone."""
    tokenizer = build_tokenizer()
    scenes, generator = scenes_of(seed, step, without)
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
    """Train the model in its two parts and write `out/sight` or `out/sight-without-<thing>` (float32, averaged)."""
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
    learn_places(model, f"{name}-places", out, seed + 1, without)
    model.save_pretrained(out / name)


def place_loss(said: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every place, and the share of places that are right; of logits [n, T, N] and objects [n]."""
    wanted = objects[:, None].expand(said.shape[:2])
    return functional.cross_entropy(said.flatten(0, 1), wanted.flatten()), (
        said.argmax(dim=-1) == wanted
    ).float().mean()


def learn_places(model: Any, name: str, out: Path, seed: int, without: str | None) -> None:
    """Train on, with the head that says the object at every place beside the answers."""
    device, rows = model.device, list[Tensor]()
    both = nn.ModuleList([model, nn.Linear(WIDTH, len(OBJECTS)).to(device)])
    handle = model.model.multi_modal_projector.register_forward_hook(lambda _, __, output: rows.append(output))

    def loss_step(step: int) -> dict[str, Tensor]:
        output = model(**batch(seed, step, without, device))
        said = both[1](rows.pop())
        loss, right = place_loss(said, scenes_of(seed, step, without)[0].object[: len(said)].to(device))
        return {"loss": output.loss + loss, "answers": output.loss, "right": right}

    train(name, both, loss_step, PLACES_RECIPE, out)
    handle.remove()
