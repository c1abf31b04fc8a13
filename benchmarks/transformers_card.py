"""Measures an embedded model of transformers and writes its card, its figures and its pictures.

    python benchmarks/transformers_card.py --model shapes-llava
    python benchmarks/transformers_card.py --model runs/shapes-janus/model --samples 100    # printed only

What draws is measured as the other embedded models are, by the judge of their world; what sees is asked for what is in
fresh renders. Held-out combinations are measured apart.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from typing import Any

import torch
from model_card import FOLDER, SEED, as_json, judged, prompts_for, rate, save_sheet, table
from models import GUIDANCE, QUESTION, answers, as_pictures, drawn, pictured

import erasers
from erasers import ModelPipeline, worlds
from erasers.evaluation.scores.metrics import Score
from erasers.worlds.shapes.prompts import Prompt
from erasers.worlds.shapes.scenes import Scenes, sample_scenes, training_scenes
from erasers.worlds.shapes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    MARK,
    OBJECTS,
    PLAIN,
    STYLES,
    SYNONYMS,
    held_out,
    phrase,
)

ABOUT = {
    "shapes-janus": """\
A small Janus (a Llama that draws a picture as {tokens} tokens out of {book}, and the autoencoder that reads and paints
them) trained from scratch on the plain pictures of `shapes`, those without styles and stamps, whose words and judge it
shares. It exists to measure concept erasure in models that draw token by token, without downloads. The part of Janus
that sees pictures is not trained. `erasers.load_model` loads it; `generate` of transformers draws with
`generation_mode="image"`.""",
    "shapes-llava": """\
A small LLaVA (a CLIP vision tower, a projector and a Llama) trained from scratch on the pictures of `shapes`: asked
`"<image> {question}"`, it says object, colour, style, background and stamp of a picture; without a picture it says
any. It exists to measure concept erasure in models that see, without downloads: `erasers.load_model` loads it.""",
}
"""Name -> what the model is."""

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: {pipeline}
---
# {name}

{about}
It is of no other use.

* **Parameters**: {millions:.1f} million, {size:.1f} MiB.
* **Held out**: {held_out} were never shown in training.
* **Training**: `python -m erasers.worlds.{module}.train --threads 1`, seed 0; its log lies in
  `benchmarks/{name}/`.
* **Measured** by `python benchmarks/transformers_card.py --model {name}`{how}, Wilson intervals.

## {heading}
{tables}
"""


def draw(pipe: ModelPipeline, prompts: Sequence[Prompt]) -> list[Any]:
    """A picture of each prompt, fifty at a time, each batch from the seed of its first prompt."""
    batches = [prompts[start : start + 50] for start in range(0, len(prompts), 50)]
    return [
        picture
        for batch in batches
        for picture in as_pictures(drawn(pipe, [prompt.text for prompt in batch], batch[0].seed))
    ]


def said(text: str, words: Sequence[str], pattern: str = "{}") -> str:
    """The first of some words that a text says, in a pattern; "" where it says none."""
    return next((word for word in words if f" {pattern.format(word)} " in f" {text} "), "")


def right(texts: Sequence[str], scenes: Scenes) -> dict[str, Score]:
    """Share of answers that say what is in their pictures, by property and in all of them."""
    columns = {
        "object": ([said(text, OBJECTS) for text in texts], OBJECTS, scenes.object),
        "colour": ([said(text, COLOURS) for text in texts], COLOURS, scenes.colour),
        "style": ([said(text, STYLES[1:]) or PLAIN for text in texts], STYLES, scenes.style),
        "background": ([said(text, BACKGROUNDS, "{} background") for text in texts], BACKGROUNDS, scenes.background),
        "stamp": ([said(text, [MARK]) for text in texts], ("", MARK), scenes.mark),
    }
    hits = {
        name: torch.tensor([words[index] == word for word, index in zip(own, shown.tolist(), strict=True)])
        for name, (own, words, shown) in columns.items()
    }
    return {name: rate(hit) for name, hit in hits.items()} | {
        "all of it": rate(torch.stack([*hits.values()]).all(dim=0))
    }


def measure_sight(pipe: ModelPipeline, samples: int) -> dict[str, dict[str, Score]]:
    """Answers on fresh renders of seen and of held-out combinations."""
    generator = torch.Generator().manual_seed(SEED)
    every = sample_scenes(40 * samples, generator)
    unseen = torch.tensor([triple in held_out() for triple in every.triples()])
    groups = {"seen": training_scenes(samples, generator), "held out": every[unseen][: samples // 2]}
    return {name: right(answers(pipe, pictured(scenes, generator)), scenes) for name, scenes in groups.items()}


def measure_drawing(pipe: ModelPipeline, samples: int) -> tuple[dict[str, dict[str, Score]], list[Any]]:
    """What the judge sees of plain objects in seen and held-out colours and of synonyms; a hundred of the pictures."""
    rng = random.Random(SEED)
    plain = [(o, c, 0) for o in range(len(OBJECTS)) for c in range(len(COLOURS))]
    prompts = {
        "seen": prompts_for(
            rng.choices([triple for triple in plain if triple not in held_out()], k=samples), rng, SEED
        ),
        "held out": prompts_for(
            rng.choices([triple for triple in plain if triple in held_out()], k=samples // 4), rng, SEED
        ),
    }
    pairs = [(word, say) for word, phrases in SYNONYMS.items() if word in OBJECTS for say in phrases]
    prompts["synonyms"] = [
        Prompt(phrase(thing=say, colour=colour), {"object": word, "colour": colour, "style": PLAIN}, SEED + 10_000 + k)
        for k, ((word, say), colour) in enumerate((rng.choice(pairs), rng.choice(COLOURS)) for _ in range(samples // 4))
    ]
    pictures = {name: draw(pipe, asked) for name, asked in prompts.items()}
    scores = {name: judged(pictures[name], asked) for name, asked in prompts.items()}
    return scores, pictures["seen"][:100]


def card(name: str, result: dict[str, Any]) -> str:
    """The model card as Markdown."""
    drawn = "generator" in result
    scores = result["generator" if drawn else "answers"]
    return CARD.format(
        name=name,
        module=name.replace("-", "_"),
        pipeline="text-to-image" if drawn else "image-text-to-text",
        held_out="three of the sixty plain combinations of object and colour"
        if drawn
        else "fifteen of the 300 combinations of object, colour and style",
        about=ABOUT[name].format(question=QUESTION, **result),
        millions=result["parameters"] / 1e6,
        size=result["bytes"] / 2**20,
        how=f", guidance {GUIDANCE:g}, temperature 1" if drawn else ", the likeliest words",
        heading="Generated pictures, as the judge sees them" if drawn else "Answers on fresh renders",
        tables="\n\n".join(f"### {split}\n{table(rows)}" for split, rows in scores.items()),
    )


def measure(pipe: ModelPipeline, samples: int) -> tuple[dict[str, Any], list[Any]]:
    """Figures of a model, and pictures that it drew."""
    facts = {"parameters": sum(parameter.numel() for parameter in pipe.model.parameters()), "seed": SEED}
    if not hasattr(pipe.model, "decode_image_tokens"):
        return {"answers": as_json(measure_sight(pipe, samples)), **facts}, []
    scores, sheet = measure_drawing(pipe, samples)
    config = pipe.model.config
    sizes = {"tokens": config.vision_config.num_image_tokens, "book": config.vq_config.num_embeddings}
    return {"generator": as_json(scores), **sizes, **facts}, sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help=f"{', '.join(worlds.MODELS)}, or a folder, which is printed only"
    )
    parser.add_argument("--samples", type=int, default=600, help="pictures of seen combinations")
    options = parser.parse_args()
    result, sheet = measure(erasers.load_model(options.model), options.samples)
    print(json.dumps(result, indent=1))
    if options.model not in worlds.MODELS:
        return
    folder = worlds.MODELS[options.model]
    result["bytes"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    (FOLDER / "results" / f"{options.model}-model-card.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "README.md").write_text(card(options.model, result))
    if sheet:
        save_sheet(sheet, FOLDER / options.model / "generated.png")


if __name__ == "__main__":
    main()
