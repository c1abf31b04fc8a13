"""What text does in a transformer that reads it twice: tokens in joint attention, and one pooled vector beside them.

    python benchmarks/entrances.py                 # some minutes: measures, and writes docs/entrances.md
    python benchmarks/entrances.py --table         # writes the page from the results that are there
    python benchmarks/entrances.py --samples 8 --concepts star --out star.json

First the unedited model is asked through one entrance, while the other hears nothing, or the same prompt with the
anchor in the place of the concept. Then a closed form edits the weights behind each entrance: the embedder that every
token passes (`text`), the map of the pooled vector (`pooled`), keys and values that joint attention has for its half of
text (`joint`). All rows draw the same prompts from the same noise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from closed_form import measure, show
from PIL import Image

from erasers import Concept, get_eraser, worlds
from erasers.asks import Ask
from erasers.diffusion.adaptors.condition import Condition
from erasers.evaluation.run.states import reference
from erasers.evaluation.scores.metrics import score
from erasers.files.atomic import write_atomically
from erasers.judges import Judge, get_judge
from erasers.pipeline import load_pipeline
from erasers.worlds import World

ROOT = Path(__file__).parents[1]
MODEL = "shapes-sd3"
RESULT = ROOT / "benchmarks" / "results" / f"{MODEL}-entrances.json"
PAGE = ROOT / "docs" / "entrances.md"
SPLITS = ("explicit", "synonym", "neighbour", "unrelated")
PORTS = (("text",), ("pooled",), ("joint",), ("text", "pooled"), ("text", "pooled", "joint"))
ASKED = {
    "both": ("prompt", "prompt"),
    "tokens, pooled silent": ("prompt", "silent"),
    "pooled, tokens silent": ("silent", "prompt"),
    "tokens against pooled": ("prompt", "anchor"),
    "pooled against tokens": ("anchor", "prompt"),
    "neither": ("anchor", "anchor"),
}
"""Row -> what the tokens and the pooled vector say: the prompt, the prompt with the anchor, or zeros."""


def with_anchor(text: str, concept: Concept) -> str:
    """A prompt with the anchor in the concept's place, or without its style where the anchor is nothing."""
    if not concept.anchor:
        return text.replace(f" in the style of {concept.name}", "")
    return text.replace(concept.name, concept.anchor)


def crossed(pipe: Any, texts: Mapping[str, Sequence[str]], tokens: str, pooled: str) -> Condition:
    """What the denoiser reads where each of its entrances hears one of some texts, or is `silent`."""
    states, vector = (heard(pipe, texts["prompt" if name == "silent" else name]) for name in (tokens, pooled))
    return Condition(
        torch.zeros_like(states.states) if tokens == "silent" else states.states,
        torch.zeros_like(vector.pooled) if pooled == "silent" else vector.pooled,
    )


@torch.no_grad()
def heard(pipe: Any, texts: Sequence[str]) -> Condition:
    """What this world's pipeline makes of prompts, with as few rows for its absent T5 as the world draws with."""
    states, _, pooled, _ = pipe.encode_prompt(
        prompt=list(texts),
        prompt_2=None,
        prompt_3=None,
        do_classifier_free_guidance=False,
        max_sequence_length=worlds.get(MODEL).tokens,
    )
    return Condition(states, pooled)


def draw(world: World, pipe: Any, condition: Condition, asks: Sequence[Ask]) -> list[Image.Image]:
    """A picture of each row, from the noise of its prompt."""
    empty = heard(pipe, [""]).expand(len(asks))
    images: list[Image.Image] = pipe(
        prompt_embeds=condition.states,
        pooled_prompt_embeds=condition.pooled,
        negative_prompt_embeds=empty.states,
        negative_pooled_prompt_embeds=empty.pooled,
        num_inference_steps=world.steps,
        guidance_scale=world.guidance,
        generator=[torch.Generator().manual_seed(ask.seed) for ask in asks],
    ).images
    return images


def asked(world: World, pipe: Any, judge: Judge, concept: Concept, asks: Sequence[Ask]) -> dict[str, Any]:
    """Entrances that hear the prompt -> share of pictures that show the concept."""
    shares = {}
    for name, (tokens, pooled) in ASKED.items():
        verdicts = []
        for start in range(0, len(asks), world.batch):
            chunk = asks[start : start + world.batch]
            prompts = [ask.text for ask in chunk]
            texts = {"prompt": prompts, "anchor": [with_anchor(text, concept) for text in prompts]}
            verdicts += judge.judge(draw(world, pipe, crossed(pipe, texts, tokens, pooled), chunk), chunk)
        share = score(verdicts)
        shares[name] = share.to_json() if share else None
        print(f"{concept.name} asked through {name}: {shares[name]}", flush=True)
    return shares


def edited(world: World, pipe: Any, judge: Judge, concept: Concept, method: str, samples: int) -> list[dict[str, Any]]:
    """The unedited model, every edit, and the model retrained without the concept where there is one."""
    splits = world.split_prompts(concept.name, samples)
    rows = [{"concept": concept.name, "method": "unedited", "splits": measure(pipe, judge, splits, None, world.tokens)}]
    show(rows[-1])
    for ports in PORTS:
        patch = get_eraser(method, ports=ports).fit(pipe, concept)
        cells = measure(pipe, judge, splits, patch, world.tokens)
        rows.append({"concept": concept.name, "method": " + ".join(ports), "splits": cells, "bytes": patch.nbytes})
        show(rows[-1])
    folder = ROOT / "benchmarks" / "reference" / f"transformer-without-{concept.name}"
    with reference(pipe, folder) if folder.is_dir() else contextlib.nullcontext():
        if folder.is_dir():
            cells = measure(pipe, judge, splits, None, world.tokens)
            rows.append({"concept": concept.name, "method": "retrained", "splits": cells})
            show(rows[-1])
    return rows


def cell(share: Mapping[str, Any] | None) -> str:
    """A share in per cent with its 95 % interval."""
    if not share:
        return "-"
    return f"{100 * share['value']:.0f} ({100 * share['low']:.0f} to {100 * share['high']:.0f})"


PAGE_TEXT = """# Where text enters, and what an edit there does

Written by `python benchmarks/entrances.py` from `benchmarks/results/{result}`: per cent of {samples} pictures with
95 % Wilson intervals on `{model}`, a small Stable Diffusion 3 that we trained ourselves on drawn pictures, with an
outside judge; {steps} steps, guidance {guidance:g}. It is one small model: a first orientation for larger ones, and no
measurement of them.

Text reaches this denoiser as tokens, which joint attention mixes with the picture, and as one pooled vector, which
scales and shifts every layer, as the time does.

## What each entrance carries

The unedited model, asked for the concept through both entrances; through one while the other is silent (zeros), or
speaks against it: the same prompt with {anchors}. "Neither" is the floor: what the judge
sees where nobody asks.

As Stable Diffusion 3 was, this model was trained with entrances left out at random, here tokens and pooled vector of
each encoder in three of ten prompts. A first model, of which none was ever left out, read nothing from its tokens: the
pooled vector can say everything about prompts as short as these.

{asked}

## What an edit of each entrance does

`{method}` on the weights behind them: `text` is the embedder that every token passes before it is mixed, `pooled` the
map of the pooled vector, `joint` keys and values for the half of text in every block, which read tokens that earlier
blocks have mixed. Explicit and synonym should fall, to those of a model that never saw the concept ("retrained"); the
others should stay.

{edited}
"""


def page(result: Mapping[str, Any]) -> str:
    """The page of documentation."""
    heads = list(ASKED)
    carried = [f"| concept | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    carried += [
        f"| {word} | {' | '.join(cell(shares[name]) for name in heads)} |" for word, shares in result["asked"].items()
    ]
    done = [f"| concept | edited | {' | '.join(SPLITS)} |", "|---" * (len(SPLITS) + 2) + "|"]
    done += [
        f"| {row['concept']} | {row['method']} | {' | '.join(cell(row['splits'].get(name)) for name in SPLITS)} |"
        for row in result["rows"]
    ]
    anchors = " or ".join(
        f"`{anchor}` for `{word}`" if anchor else f"no word for `{word}`" for word, anchor in result["anchors"].items()
    )
    return PAGE_TEXT.format(
        **{key: result[key] for key in ("samples", "model", "steps", "guidance", "method")},
        result=RESULT.name,
        anchors=anchors,
        asked="\n".join(carried),
        edited="\n".join(done),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=lambda text: text.split(","), default=["star", "zorblat"])
    parser.add_argument("--method", default="uce", help="a closed form that takes ports")
    parser.add_argument("--samples", type=int, default=50, help="pictures a split")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="draw nothing; write the page from the results")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(options.threads)
        world, pipe = worlds.get(MODEL), load_pipeline(MODEL)
        pipe.set_progress_bar_config(disable=True)
        judge, result = get_judge(world.judge), {"model": MODEL, "method": options.method, "samples": options.samples}
        result |= {"steps": world.steps, "guidance": world.guidance, "asked": {}, "rows": [], "anchors": {}}
        for word in options.concepts:
            concept = world.concept(word)
            explicit = world.split_prompts(word, options.samples)["explicit"]
            result["anchors"][word] = concept.anchor
            result["asked"][word] = asked(world, pipe, judge, concept, explicit)
            result["rows"] += edited(world, pipe, judge, concept, options.method, options.samples)
        text = json.dumps(result, indent=1) + "\n"
        write_atomically(options.out, lambda file: file.write_text(text, encoding="utf-8"))
    if options.table or options.out == RESULT:
        content = page(json.loads(RESULT.read_text(encoding="utf-8")))
        write_atomically(PAGE, lambda file: file.write_text(content, encoding="utf-8"))


if __name__ == "__main__":
    main()
