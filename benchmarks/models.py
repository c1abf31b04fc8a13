"""What `ear` and `sauce` do to the small models of transformers that are trained on drawn shapes.

    python benchmarks/models.py ear --model runs/shapes-janus/model --set pairs=50 --out ear.json
    python benchmarks/models.py sauce --model runs/shapes-llava/model --set scale=-2 --out sauce.json

`ear` draws every prompt of each split with the same seed before and after, and has the judge of the world say whether
it shows the object that was asked for. `sauce` trains an autoencoder of the projector, and asks for what is in new
pictures: how often the object is named, by object, and how many pictures are answered with the same logits, bit for
bit, as before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from erasers import ModelPipeline, get_eraser, worlds
from erasers.eraser import parse_options
from erasers.methods.ear.sequences import Asked, ask, draw_tokens
from erasers.sae.autoencoder import save_sae
from erasers.sae.picture_block import find_picture_block, rows_of_pictures
from erasers.sae.training import SAETraining, train_sae
from erasers.worlds.shapes.render import render
from erasers.worlds.shapes.scenes import Scenes, training_scenes
from erasers.worlds.shapes.vocabulary import OBJECTS
from erasers.worlds.shapes_llava.train.sight import QUESTION

WORLD = "shapes"
GUIDANCE = 5.0
SAE = SAETraining(features=1024, k=16, steps=3000, prompts=16, dead_after=50_000)
PICTURES = 4000


@torch.no_grad()
def drawn(pipe: ModelPipeline, texts: Sequence[str], seed: int) -> torch.Tensor:
    """Pictures [n, 3, 32, 32] in [-1, 1] of prompts, drawn together."""
    asked = ask(pipe, texts)
    rows = [[getattr(one, name)[[half]] for half in (0, 1) for one in asked] for name in Asked._fields]
    tokens = draw_tokens(pipe.model, Asked(*map(torch.cat, rows)), GUIDANCE, torch.Generator().manual_seed(seed))
    return pipe.model.decode_image_tokens(tokens).movedim(-1, 1)


def shown(pipe: ModelPipeline, name: str, count: int) -> dict[str, float]:
    """By split the share of pictures that show the object which the prompt asks for."""
    world = worlds.get(WORLD)
    judge, shares = world.network(), {}
    for split, asks in world.split_prompts(name, count).items():
        pictures = drawn(pipe, [one.text for one in asks], 0)
        answers = judge.read(pictures.clamp(-1, 1))["object"].argmax(dim=1).tolist()
        pairs = zip(answers, asks, strict=True)
        shares[split] = sum(judge.answers["object"][answer] == one.wants["object"] for answer, one in pairs) / len(asks)
    return shares


def ear(pipe: ModelPipeline, name: str, count: int, options: dict[str, Any]) -> dict[str, Any]:
    """Shares before and after."""
    before = shown(pipe, name, count)
    patch = get_eraser("ear", **options).fit(pipe, worlds.get(WORLD).concept(name))
    with patch.applied(pipe):
        after = shown(pipe, name, count)
    return {"before": before, "after": after, "bytes": patch.nbytes, "config": patch.meta["config"]}


def pictured(scenes: Scenes, generator: torch.Generator) -> list[Image.Image]:
    rows = ((render(scenes, generator) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(row) for row in rows]


@torch.no_grad()
def named(pipe: ModelPipeline, pictures: Sequence[Image.Image], name: str) -> tuple[float, torch.Tensor]:
    """Share of answers that name a thing, and the logits `[n, N]` of the first word of each."""
    inputs = pipe.processor(text=[f"<image> {QUESTION}"] * len(pictures), images=list(pictures), return_tensors="pt")
    answers = pipe.model.generate(**inputs, max_new_tokens=24, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    texts = pipe.processor.tokenizer.batch_decode(answers)
    return sum(name in text.split() for text in texts) / len(texts), pipe.model(**inputs).logits[:, -1]


def sauce(pipe: ModelPipeline, name: str, count: int, options: dict[str, Any]) -> dict[str, Any]:
    """By object the share of answers that name it, before and after, and that of logits that stayed as they were."""
    generator = torch.Generator().manual_seed(0)
    scenes = training_scenes(PICTURES, generator)
    pictures, without = pictured(scenes, generator), scenes.lacks(name).tolist()
    block = find_picture_block(pipe)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sae.safetensors"
        trained = train_sae(rows_of_pictures(block, pictures, size=SAE.prompts), SAE)
        save_sae(file, trained.sae, target=block.target, base=block.fingerprints(), about={})
        own = [picture for picture, lacks in zip(pictures, without, strict=True) if not lacks]
        kept = [picture for picture, lacks in zip(pictures, without, strict=True) if lacks]
        concept = replace(worlds.get(WORLD).concept(name), images=tuple(own))
        patch = get_eraser("sauce", sae=str(file), **options).fit(pipe, concept, kept=kept)
    result: dict[str, Any] = {}
    for word in OBJECTS:
        held = training_scenes(200 + 40 * count, generator)
        new = pictured(held[~held.lacks(word)][:count], generator)
        before, logits = named(pipe, new, word)
        with patch.applied(pipe):
            after, changed = named(pipe, new, word)
        same = float((logits == changed).all(dim=1).double().mean())
        result[word] = {"n": len(new), "before": before, "after": after, "same": same}
    return {"objects": result, "variance": trained.quality.explained_variance, "config": patch.meta["config"]}


def load(folder: Path) -> ModelPipeline:
    """The model in a folder, of the class that its configuration names, with its processor."""
    import transformers

    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    return ModelPipeline(model, transformers.AutoProcessor.from_pretrained(folder))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("method", choices=["ear", "sauce"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--concept", default="star")
    parser.add_argument("--samples", type=int, default=40, help="prompts a split, or pictures an object")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    measure = ear if options.method == "ear" else sauce
    settings = parse_options(options.method, options.set)
    result = measure(load(options.model), options.concept, options.samples, settings)
    options.out.write_text(json.dumps({"method": options.method} | result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
