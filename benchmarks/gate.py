"""How well the gate of `itd` tells prompts with a concept from others, on held-out prompts of the embedded world.

    python benchmarks/gate.py                # benchmarks/results/shapes-gate.json
    python benchmarks/gate.py --concept star --prompts 50 --out gate.json

Positive are `explicit` prompts, `synonym` ones (words that the fit never saw) and `implicit` ones, which show the
concept unasked: for the mark, prompts in the style that brings it. Negative are `neighbour` and `unrelated` prompts.
The score of a prompt is what the gate compares with its threshold. Prompts that the fit has read are left out.
Intervals are percentiles of 2,000 bootstrap samples of prompts. `unchanged` is the share of prompts whose embedding is
bit for bit that without the patch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erasers import Concept, load_pipeline
from erasers.eraser import get_eraser, options_for
from erasers.methods.itd.eraser import ItD, read_saes
from erasers.methods.itd.explaining import activities
from erasers.sae.text_blocks import Block
from erasers.text.contexts import contexts, kept_prompts
from erasers.worlds.shapes.prompts import concept_for, split_prompts
from erasers.worlds.shapes.vocabulary import KINDS, MARK, MARKED_STYLE

POSITIVE, NEGATIVE = ("explicit", "synonym", "implicit"), ("neighbour", "unrelated")
SAMPLES = 2000
OUT = Path(__file__).parent / "results" / "shapes-gate.json"


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive score is above a negative one; ties count half."""
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left") + np.searchsorted(order, positive, "right")
    return float(below.mean() / (2 * len(negative)))


def interval(positive: np.ndarray, negative: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """The area under the ROC curve with a 95 % percentile interval."""
    areas = [auc(rng.choice(positive, len(positive)), rng.choice(negative, len(negative))) for _ in range(SAMPLES)]
    low, high = np.percentile(areas, [2.5, 97.5])
    return {
        "auc": round(auc(positive, negative), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "n": [len(positive), len(negative)],
    }


def prompts_of(concept: Concept, count: int, seen: set[str]) -> dict[str, list[str]]:
    """Distinct prompts a split that the fit has not read."""
    splits = {split: [ask.text for ask in asks] for split, asks in split_prompts(concept.name, count).items()}
    if concept.name == MARK:
        asks = split_prompts(MARKED_STYLE, count)["explicit"]
        splits["implicit"] = [ask.text for ask in asks]
        splits["unrelated"] = [text for text in splits["unrelated"] if MARKED_STYLE not in text]
    return {split: [text for text in dict.fromkeys(texts) if text not in seen] for split, texts in splits.items()}


def scores(block: Block, parts: dict[str, torch.Tensor], prompts: Sequence[str]) -> np.ndarray:
    """What the gate compares: above 1 it opens."""
    return (activities(block, parts, list(prompts)) / parts["gate"]).amax(dim=(1, 2)).numpy()


def unchanged(pipe: Any, patch: Any, prompts: Sequence[str]) -> float:
    """Share of prompts whose embedding the patch leaves as it is."""
    with torch.no_grad():
        before = pipe.encode_prompt(list(prompts), "cpu", 1, False)[0]
        with patch.applied(pipe):
            after = pipe.encode_prompt(list(prompts), "cpu", 1, False)[0]
    return float((before == after).flatten(1).all(dim=1).double().mean())


def measure(pipe: Any, eraser: ItD, name: str, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """All about one concept."""
    concept = concept_for(name)
    near, others = kept_prompts([concept], eraser.templates)
    seen = {*near, *others, *(text for text, _ in contexts(concept, eraser.templates))}
    splits = prompts_of(concept, count, seen)
    ((block, sae, _),) = read_saes(pipe, eraser.sae)
    parts, patch = eraser.parts(block, sae, [concept]), eraser.fit(pipe, concept)
    compared = {split: scores(block, parts, texts) for split, texts in splits.items()}
    negative = np.concatenate([compared[split] for split in NEGATIVE if split in compared])
    result: dict[str, Any] = {"features": len(parts["gate"]), "bytes": patch.nbytes, "splits": {}}
    for split, texts in splits.items():
        entry: dict[str, Any] = {"n": len(texts), "opened": round(float((compared[split] > 1).mean()), 4)}
        entry["unchanged"] = round(unchanged(pipe, patch, texts), 4)
        if split in POSITIVE:
            entry["against_all"] = interval(compared[split], negative, rng)
            entry |= {
                f"against_{other}": interval(compared[split], compared[other], rng)
                for other in NEGATIVE
                if other in compared
            }
        result["splits"][split] = entry
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--concept", action="append", help="all words of the world, if not given")
    parser.add_argument("--prompts", type=int, default=200, help="a split")
    parser.add_argument("--sae", help="a file; that of the package, if not given")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe, rng = load_pipeline("shapes"), np.random.default_rng(0)
    eraser = get_eraser("itd", **options_for("itd", "shapes"), **({"sae": (options.sae,)} if options.sae else {}))
    names = options.concept or [word for words in KINDS.values() for word in words]
    concepts = {}
    for name in names:
        concepts[name] = measure(pipe, eraser, name, options.prompts, rng)  # type: ignore[arg-type]
        shares = {
            split: (entry["opened"], entry.get("against_all", {}).get("auc"))
            for split, entry in concepts[name]["splits"].items()
        }
        print(name, concepts[name]["features"], shares, flush=True)
    options.out.write_text(
        json.dumps({"config": eraser.config(), "concepts": concepts}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
