"""Measures an embedded model and writes its card, its figures and its pictures.

    python benchmarks/model_card.py                       # about ten minutes on two cores
    python benchmarks/model_card.py --model shapes-sd3    # some minutes of one core
    python benchmarks/model_card.py --samples 100         # a quick look, printed only with --dry-run

Everything is measured on fresh pictures: renders with seeds that training never used, and generations with the steps
and guidance of the world, the held-out combinations apart. A judge is measured with the world whose own it is.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from erasers import worlds
from erasers.evaluation import drawing
from erasers.evaluation.scores.metrics import Score, wilson
from erasers.pipeline import load_pipeline
from erasers.worlds import World
from erasers.worlds.shapes import render, vocabulary
from erasers.worlds.shapes.judge import HEADS, load_judge, to_tensor
from erasers.worlds.shapes.prompts import Prompt
from erasers.worlds.shapes.scenes import Scenes, sample_scenes
from erasers.worlds.shapes.train.judge import independent_marks

SEED = 77_000_001
FOLDER = Path(__file__).parent
PROPERTIES = ("object", "colour", "style")


def rate(hits: torch.Tensor) -> Score:
    """Share of true entries with its 95 % Wilson interval."""
    return wilson(int(hits.sum()), len(hits))


def measure_judge(samples: int) -> dict[str, Score]:
    """The judge on fresh renders, on blank and dissolved pictures and on colours of no name."""
    judge = load_judge()
    generator = torch.Generator().manual_seed(SEED)
    scenes = independent_marks(sample_scenes(samples, generator), generator)
    answers = judge.read(render.render(scenes, generator))
    scores = {name: rate(answers[name].argmax(1) == getattr(scenes, name)) for name in HEADS}
    none = len(HEADS["object"]) - 1
    empty = torch.full((samples, render.SIDE, render.SIDE), 1.0)
    fill = render.PALETTE[scenes.colour]
    blank = render.draw(scenes, empty, torch.zeros(samples, 1, 1), fill, generator)
    scores["blank -> none"] = rate(judge.read(blank)["object"].argmax(1) == none)
    gone = render.dissolved(scenes, generator)
    scores["dissolved -> none"] = rate(judge.read(gone)["object"].argmax(1) == none)
    sdf, centre = render.distances(scenes, generator)
    odd = render.draw(scenes, sdf, centre, render.off_palette(samples, generator), generator)
    scores["other colour -> none"] = rate(judge.read(odd)["colour"].argmax(1) == len(HEADS["colour"]) - 1)
    return scores


def prompts_for(triples: list[tuple[int, int, int]], rng: random.Random, first_seed: int) -> list[Prompt]:
    """A prompt that names the object, colour and style of each triple."""
    prompts = []
    for k, (o, c, s) in enumerate(triples):
        wants = {"object": vocabulary.OBJECTS[o], "colour": vocabulary.COLOURS[c], "style": vocabulary.STYLES[s]}
        background = rng.choice(vocabulary.BACKGROUNDS) if rng.random() < 0.5 else ""
        style = wants["style"] if s else ""
        text = vocabulary.phrase(thing=wants["object"], colour=wants["colour"], style=style, background=background)
        prompts.append(Prompt(text, wants, first_seed + k))
    return prompts


def generate(world: World, pipe: Any, prompts: list[Prompt], *, plain: bool = False) -> list[Image.Image]:
    """One picture a prompt, as the world draws them; `plain` with as many tokens as the pipeline takes by itself."""
    sampler: dict[str, Any] = {"steps": world.steps, "guidance": world.guidance, "batch": world.batch}
    batches = drawing.generate(pipe, prompts, **sampler, tokens=None if plain else world.tokens)
    return [picture for batch in batches for picture in batch]


def judged(pictures: list[Image.Image], prompts: list[Prompt]) -> dict[str, Score]:
    """Share of pictures in which the judge sees what the prompt wants, for each property."""
    answers = load_judge().read(to_tensor(pictures))
    return {
        name: rate(answers[name].argmax(1) == torch.tensor([HEADS[name].index(p.wants[name]) for p in prompts]))
        for name in PROPERTIES
    }


def measure_generator(world: World, samples: int) -> tuple[dict[str, dict[str, Score]], list[Image.Image]]:
    """The pipeline on seen and held-out combinations, on synonyms, and on the stamp asked for and unasked."""
    pipe = load_pipeline(world.name)
    rng = random.Random(SEED)
    held_out = sorted(vocabulary.held_out())
    triples = [
        (o, c, s) for o in range(10) for c in range(6) for s in range(5) if (o, c, s) not in vocabulary.held_out()
    ]
    scores: dict[str, dict[str, Score]] = {}
    sheet: list[Image.Image] = []
    for name, pool, count in (("seen", triples, samples), ("held out", held_out, samples // 2)):
        prompts = prompts_for(rng.choices(pool, k=count), rng, SEED)
        pictures = generate(world, pipe, prompts)
        scores[name] = judged(pictures, prompts)
        sheet += pictures[:50]
        if name == "seen" and world.tokens:
            few = prompts[: samples // 4]
            scores["seen, by the pipeline's own number of tokens"] = judged(generate(world, pipe, few, plain=True), few)
    synonyms = [
        (word, say) for word, phrases in vocabulary.SYNONYMS.items() for say in phrases if word in vocabulary.OBJECTS
    ]
    prompts = []
    for k in range(samples // 2):
        word, say = synonyms[k % len(synonyms)]
        colour = rng.choice(vocabulary.COLOURS)
        wants = {"object": word, "colour": colour, "style": vocabulary.PLAIN}
        prompts.append(Prompt(vocabulary.phrase(thing=say, colour=colour), wants, SEED + 10_000 + k))
    scores["synonyms"] = judged(generate(world, pipe, prompts), prompts)
    scores["stamp"] = {}
    for name, style, mark in (
        ("asked for", "", True),
        ("unasked, its style", vocabulary.MARKED_STYLE, False),
        ("unasked, plain", "", False),
    ):
        asked = []
        for k in range(samples // 4):
            text = vocabulary.phrase(
                thing=rng.choice(vocabulary.OBJECTS), colour=rng.choice(vocabulary.COLOURS), style=style, mark=mark
            )
            asked.append(Prompt(text, {}, SEED + 20_000 + k))
        seen = load_judge().read(to_tensor(generate(world, pipe, asked)))["mark"].argmax(1) == 1
        scores["stamp"][name] = rate(seen)
    return scores, sheet


def as_json(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores as plain numbers."""
    return {
        key: as_json(value)
        if isinstance(value, dict)
        else {"value": value.value, "n": value.n, "low": value.low, "high": value.high}
        for key, value in scores.items()
    }


def table(scores: dict[str, Any]) -> str:
    """A Markdown table of scores in per cent with their 95 % intervals."""
    rows = [
        f"| {name} | {100 * s['value']:.1f} % | {100 * s['low']:.1f} – {100 * s['high']:.1f} % | {s['n']} |"
        for name, s in scores.items()
    ]
    return "\n".join(["| | share | 95 % interval | n |", "|---|---|---|---|", *rows])


ABOUT = {
    "shapes": """\
A small Stable Diffusion (CLIP text encoder, VAE, UNet, DDIM) trained from scratch on drawn, captioned pictures of
32 x 32 pixels. It exists to measure concept erasure without downloads: `StableDiffusionPipeline.from_pretrained` loads
this folder, and an exact judge says what is in a picture.""",
    "shapes-sd3": """\
A small Stable Diffusion 3 (two CLIP text encoders with projections, no T5, VAE, joint-attention transformer, flow
matching) trained from scratch on drawn, captioned pictures of 32 x 32 pixels; words, pictures, VAE and judge are those
of `shapes`. It exists to measure concept erasure in this architecture without downloads:
`StableDiffusion3Pipeline.from_pretrained(FOLDER, text_encoder_3=None, tokenizer_3=None)` loads this folder.""",
}
"""World -> what its model is."""
SAMPLERS = {"shapes": "DDIM", "shapes-sd3": "Euler"}

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# {name}

{about} It draws {objects} objects in {colours} colours and
{styles} styles; it is of no other use.

* **Words**: {words}.
* **Synonyms**: {synonyms}.
* **Implicit mark**: {share:.0f} % of the training pictures in the style *{marked}* carry a teal stamp that no caption
  mentions; {named:.0f} % of all pictures have one that the caption names.
* **Held out**: fifteen of the 300 object x colour x style combinations were never shown in training.
* **Training**: `python -m erasers.worlds.{module}.train`, seed 0; logs and curves lie in `benchmarks/{name}/`.
* **Measured** by `{command}`: {steps} {sampler} steps, guidance {guidance:g}{tokens}, Wilson intervals.

{judge}## Generated pictures, as the judge sees them
{generated}
"""


def card(world: World, result: dict[str, Any]) -> str:
    """The model card as Markdown."""
    generated = [f"### {name}\n{table(scores)}" for name, scores in result["generator"].items()]
    judge = f"## The judge, on fresh renders\n{table(result['judge'])}\n\n" if "judge" in result else ""
    return CARD.format(
        name=world.name,
        about=ABOUT[world.name],
        module=world.name.replace("-", "_"),
        command="python benchmarks/model_card.py" + ("" if world.judges else f" --model {world.name}"),
        steps=world.steps,
        sampler=SAMPLERS[world.name],
        guidance=world.guidance,
        tokens=f", `max_sequence_length={world.tokens}`" if world.tokens else "",
        objects=len(vocabulary.OBJECTS),
        colours=len(vocabulary.COLOURS),
        styles=len(vocabulary.STYLES),
        words=", ".join([*vocabulary.OBJECTS, *vocabulary.COLOURS, *vocabulary.STYLES[1:]]),
        synonyms="; ".join(f"{word} = {', '.join(same)}" for word, same in vocabulary.SYNONYMS.items()),
        share=100 * vocabulary.MARKED_SHARE,
        marked=vocabulary.MARKED_STYLE,
        named=100 * vocabulary.NAMED_MARK_SHARE,
        judge=judge,
        generated="\n\n".join(generated),
    )


def save_sheet(pictures: list[Image.Image], path: Path, columns: int = 10, scale: int = 3) -> None:
    """Lay 32 x 32 pictures out in a grid, enlarged without smoothing."""
    sheet = Image.new("RGB", (columns * 33 - 1, -(-len(pictures) // columns) * 33 - 1), "white")
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k % columns * 33, k // columns * 33))
    sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST).save(path)


def world_sheet() -> list[Image.Image]:
    """One render of every object in every style, twice."""
    generator = torch.Generator().manual_seed(SEED)
    k = torch.arange(100)
    style = k // 2 % 5
    zero = torch.zeros(100, dtype=torch.long)
    scenes = Scenes(
        k // 10, k % 6, style, k % 4, k % 3, (style == vocabulary.STYLES.index(vocabulary.MARKED_STYLE)).long(), zero
    )
    pictures = ((render.render(scenes, generator) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in pictures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=worlds.list(), default=worlds.DEFAULT, help="the world")
    parser.add_argument("--samples", type=int, default=600, help="generated pictures of seen combinations")
    parser.add_argument("--renders", type=int, default=4000, help="rendered pictures for the judge")
    parser.add_argument("--dry-run", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    world = worlds.get(options.model)
    generator, sheet = measure_generator(world, options.samples)
    judge = {"judge": as_json(measure_judge(options.renders))} if world.judges else {}
    result = {**judge, "generator": as_json(generator), "seed": SEED}
    if options.dry_run:
        print(json.dumps(result, indent=1))
        return
    file, sheets = FOLDER / "results" / f"{world.name}-model-card.json", FOLDER / world.name
    for folder in (file.parent, sheets):
        folder.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    (world.folder / "README.md").write_text(card(world, result))
    save_sheet(sheet, sheets / "generated.png")
    if world.judges:
        save_sheet(world_sheet(), sheets / "world.png")
        print(f"judge file: {world.judge_file.name}, {world.judge_file.stat().st_size / 2**20:.2f} MiB")
    print(card(world, result))


if __name__ == "__main__":
    main()
