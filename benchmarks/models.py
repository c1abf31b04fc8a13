"""What `ear` and `sauce` do to the small models of transformers in the package.

    python benchmarks/models.py ear
    python benchmarks/models.py sauce
    python benchmarks/models.py ear --rows ear --set pairs=100 --out ear.json

`ear` draws every prompt of each split with the same seed before and after, and has the judge of the world say whether
it shows the object that was asked for. `sauce` trains an autoencoder of the projector, and asks for what is in new
pictures: how often the object is named, by object, and how many pictures are answered with the same words and the same
logits, bit for bit, as before; the question alone, without a picture, is asked, too. Shares have 95 % Wilson intervals.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from model_card import as_json, rate, save_sheet
from PIL import Image, ImageDraw, ImageFont

from erasers import ModelPipeline, get_eraser, load_model, worlds
from erasers.eraser import parse_options
from erasers.methods.ear.sequences import Asked, ask, draw_tokens
from erasers.sae.autoencoder import save_sae
from erasers.sae.picture_block import find_picture_block, rows_of_pictures
from erasers.sae.training import SAETraining, train_sae
from erasers.worlds.shapes.render import render
from erasers.worlds.shapes.scenes import Scenes, training_scenes
from erasers.worlds.shapes.vocabulary import OBJECTS, STYLES
from erasers.worlds.shapes_llava.train.sight import QUESTION

WORLD = "shapes"
GUIDANCE = 5.0
SAE = SAETraining(features=512, k=16, steps=600, prompts=16, dead_after=20_000)
PICTURES = 1500
SHOWN = 4
"""Pictures of a split on the sheet."""
SHOWN_ANSWERS = 9
MODELS = {"ear": "shapes-janus", "sauce": "shapes-llava"}
SMALL = {"window": 8, "lr": 3e-5}
"""A picture of this Janus has 64 tokens, where published windows are of 12 to 100 out of 576."""
SPREAD = {"scale": -5.0, "features": 64, "quiet": 0.8, "often": 0.1, "margin": 0.0}
"""No feature of this LLaVA fires in most pictures of an object: many are turned down that fire in some."""
ROWS: dict[str, dict[str, dict[str, Any]]] = {"ear": {"ear": SMALL, "ear-official": SMALL}, "sauce": {"sauce": SPREAD}}
"""Method -> its presets that are measured, with their settings for the small models."""


@torch.no_grad()
def drawn(pipe: ModelPipeline, texts: Sequence[str], seed: int) -> torch.Tensor:
    """Pictures [n, 3, 32, 32] in [-1, 1] of prompts, drawn together."""
    asked = ask(pipe, texts)
    rows = [[getattr(prompt, name)[[half]] for half in (0, 1) for prompt in asked] for name in Asked._fields]
    tokens = draw_tokens(pipe.model, Asked(*map(torch.cat, rows)), GUIDANCE, torch.Generator().manual_seed(seed))
    return pipe.model.decode_image_tokens(tokens).movedim(-1, 1).clamp(-1, 1)


def as_pictures(pictures: torch.Tensor) -> list[Image.Image]:
    """Pictures [n, 3, h, w] in [-1, 1] as those of PIL."""
    rows = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(row) for row in rows]


def shown(pipe: ModelPipeline, name: str, count: int) -> tuple[dict[str, Any], list[Image.Image]]:
    """By split the share of pictures that show the object which the prompt asks for, and the first of them.

    No prompt names a style.
    """
    world = worlds.get(WORLD)
    judge, scores, first = world.network(), {}, list[Image.Image]()
    for split, every in world.split_prompts(name, 3 * count).items():
        asks = [prompt for prompt in every if not set(prompt.text.split()) & set(STYLES)][:count]
        pictures = drawn(pipe, [prompt.text for prompt in asks], 0)
        answered = judge.read(pictures)["object"].argmax(dim=1)
        wanted = torch.tensor([list(judge.answers["object"]).index(prompt.wants["object"]) for prompt in asks])
        scores[split] = rate(answered == wanted)
        first += as_pictures(pictures[:SHOWN])
    return as_json(scores), first


def ear(pipe: ModelPipeline, rows: Mapping[str, dict[str, Any]], name: str, count: int, sheet: Path) -> dict[str, Any]:
    """Shares by split, unedited and after each fit; a sheet with a line of pictures for each of them."""
    whole = worlds.get(WORLD).concept(name)
    plain = tuple(text for text in whole.preserve if not set(text.split()) & set(STYLES))
    unedited, pictures = shown(pipe, name, count)
    columns, result = len(pictures), dict[str, Any]()
    for row, options in rows.items():
        patch = get_eraser(row, **options).fit(pipe, replace(whole, preserve=plain), progress=False)
        with patch.applied(pipe):
            shares, edited = shown(pipe, name, count)
        result[row] = {"shares": shares, "bytes": patch.nbytes, "config": patch.meta["config"]}
        pictures += edited
    save_sheet(pictures, sheet, columns=columns, scale=2)
    return {"concept": name, "unedited": unedited, "rows": result}


def asked_about(pipe: ModelPipeline, pictures: Sequence[Image.Image]) -> Any:
    """The question about each picture, as the model takes it."""
    return pipe.processor(text=[f"<image> {QUESTION}"] * len(pictures), images=list(pictures), return_tensors="pt")


@torch.no_grad()
def answers(pipe: ModelPipeline, pictures: Sequence[Image.Image]) -> list[str]:
    """What the model says is in each picture."""
    texts = list[str]()
    for start in range(0, len(pictures), 200):
        inputs = asked_about(pipe, pictures[start : start + 200])
        rows = pipe.model.generate(**inputs, max_new_tokens=24, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        texts += pipe.processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return texts


@torch.no_grad()
def logits(pipe: ModelPipeline, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Of every position of the question about each picture, [n, L, N]; of the question alone without pictures."""
    if pictures:
        scores: torch.Tensor = pipe.model(**asked_about(pipe, pictures)).logits
        return scores
    alone: torch.Tensor = pipe.model(**pipe.processor.tokenizer([QUESTION], return_tensors="pt")).logits
    return alone


def learned_features(pipe: ModelPipeline, pictures: Sequence[Image.Image], file: Path) -> float:
    """Train an autoencoder of the projector into a file; the share of the variance that it explains."""
    block = find_picture_block(pipe)
    trained = train_sae(rows_of_pictures(block, pictures, size=SAE.prompts), SAE)
    save_sae(file, trained.sae, target=block.target, base=block.fingerprints(), about={})
    return trained.quality.explained_variance


def pictured(scenes: Scenes, generator: torch.Generator) -> list[Image.Image]:
    """A render of each scene."""
    return as_pictures(render(scenes, generator))


def sauce(
    pipe: ModelPipeline, rows: Mapping[str, dict[str, Any]], name: str, count: int, sheet: Path
) -> dict[str, Any]:
    """By object the share of answers that name it, before and after, and that of answers that stayed bit for bit.

    It learns from pictures that the model itself does not mistake. The sheet has some pictures, and what is said of
    them before and after each fit.
    """
    generator = torch.Generator().manual_seed(0)
    scenes = training_scenes(PICTURES, generator)
    pictures, without = pictured(scenes, generator), scenes.lacks(name).tolist()
    said = [name in text.split() for text in answers(pipe, pictures)]
    own = [picture for picture, lacks, named in zip(pictures, without, said, strict=True) if named and not lacks]
    kept = [picture for picture, lacks, named in zip(pictures, without, said, strict=True) if lacks and not named]
    new = {}
    for word in OBJECTS:
        held = training_scenes(200 + 40 * count, generator)
        new[word] = pictured(held[~held.lacks(word)][:count], generator)
    result, concept = dict[str, Any](), replace(worlds.get(WORLD).concept(name), images=tuple(own))
    examples = [*new[name][:3], *(new[word][0] for word in OBJECTS if word != name)][:SHOWN_ANSWERS]
    texts, alone = [answers(pipe, examples)], logits(pipe, [])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sae.safetensors"
        variance = learned_features(pipe, pictures, file)
        for row, options in rows.items():
            patch = get_eraser(row, **options, sae=str(file)).fit(pipe, concept, kept=kept, progress=False)
            objects = {word: about(pipe, patch, word, pictures) for word, pictures in new.items()}
            with patch.applied(pipe):
                texts.append(answers(pipe, examples))
                same = torch.equal(alone, logits(pipe, []))
            facts = {"bytes": patch.nbytes, "config": patch.meta["config"]}
            result[row] = {"objects": objects, "text alone, bit for bit": same, **facts}
    answers_sheet(examples, texts, sheet)
    return {"concept": name, "variance": variance, "rows": result}


def about(pipe: ModelPipeline, patch: Any, word: str, pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """What is said of pictures of an object before and after a patch."""
    before, rows = answers(pipe, pictures), logits(pipe, pictures)
    with patch.applied(pipe):
        after, changed = answers(pipe, pictures), logits(pipe, pictures)
    equal = (rows == changed).flatten(1).all(dim=1)
    words = torch.tensor([old == new for old, new in zip(before, after, strict=True)])
    said = [next((thing for thing in OBJECTS if thing in text.split()), "none") for text in after]
    scores = {
        "before": rate(torch.tensor([word in text.split() for text in before])),
        "after": rate(torch.tensor([word in text.split() for text in after])),
        "same": rate(equal & words),
    }
    return as_json(scores) | {"said": dict(Counter(said).most_common())}


def answers_sheet(pictures: Sequence[Image.Image], texts: Sequence[Sequence[str]], path: Path) -> None:
    """Pictures in a row, enlarged without smoothing, and under each what was said of it, a text a line of the sheet."""
    width, high, font = 150, 74, ImageFont.load_default(size=12)
    sheet = Image.new("RGB", (width * len(pictures), 108 + high * len(texts)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, picture in enumerate(pictures):
        sheet.paste(picture.resize((96, 96), Image.Resampling.NEAREST), (column * width + 6, 6))
        for line, row in enumerate(texts):
            changed = row[column] != texts[0][column]
            lines = textwrap.fill(row[column], 23)
            pen.text(
                (column * width + 6, 108 + high * line), lines, font=font, fill="firebrick" if changed else "black"
            )
    sheet.save(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("method", choices=list(MODELS))
    parser.add_argument("--model", help="folder of another model of the same kind")
    parser.add_argument("--concept", default="star")
    parser.add_argument("--rows", nargs="+", help="presets of the method, a row each")
    parser.add_argument("--samples", type=int, default=60, help="prompts a split, or pictures an object")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results")
    options = parser.parse_args(arguments)
    name = MODELS[options.method]
    pipe, measure = load_model(options.model or name), ear if options.method == "ear" else sauce
    rows = {
        row: ROWS[options.method].get(row, {}) | parse_options(row, options.set)
        for row in options.rows or ROWS[options.method]
    }
    out = options.out or Path(__file__).parent / "results" / f"{name}-{options.method}.json"
    result = measure(pipe, rows, options.concept, options.samples, out.with_suffix(".png"))
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
