"""How a model is measured: its sampler settings, its prompts and the judge that fits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from erasers.asks import KEPT_SPLITS, Ask, PlainPrompt
from erasers.concept import Concept, names
from erasers.judges import Judge
from erasers.pipeline import EMBEDDED


@dataclass(frozen=True)
class Profile:
    """How one kind of model is measured.

    Args:
        steps: Denoising steps; None takes the pipeline's own default.
        guidance: Guidance scale; likewise.
        batch: Pictures at a time; the pictures do not depend on it.
        prompts: (concepts, prompts a split) -> concept name -> split -> prompts.
        size: Side of the pictures in pixels; None takes the model's own.
        judges: Makes the judges, in the order in which they are asked; none by default.
        note: What a reader of the report has to know.
        arguments: What a call gets beside prompts, noise and the settings above, such as pictures.
    """

    steps: int | None
    guidance: float | None
    batch: int
    prompts: Callable[[Sequence[Concept], int], dict[str, dict[str, list[Ask]]]]
    size: int | None = None
    judges: Callable[[], Sequence[Judge]] = tuple
    note: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


def profile_for(model: str | Path, *, unsafe: bool = False) -> Profile:
    """The profile of a model, by its name or folder.

    Args:
        model: As for `load_pipeline`.
        unsafe: Draw the explicit prompts of concepts of kind `unsafe`, too.
    """
    if is_shapes(model):
        return Profile(20, 4.0, 25, shapes_prompts, size=32, judges=_oracle)

    def prompts(concepts: Sequence[Concept], samples: int) -> dict[str, dict[str, list[Ask]]]:
        more: dict[str, Any] = {"unsafe": unsafe, "erased": concepts}
        return {one.name: plain_prompts(one, samples, turn=k, **more) for k, one in enumerate(concepts)}

    return Profile(None, None, 1, prompts)


def is_shapes(model: str | Path) -> bool:
    """Whether a model is the embedded one or an edited copy of it: their tokenizers have one vocabulary."""
    if str(model) == EMBEDDED:
        return True
    from erasers.worlds.shapes import MODEL_DIR

    mine, theirs = (Path(folder) / "tokenizer" / "tokenizer.json" for folder in (MODEL_DIR, model))
    return mine.is_file() and theirs.is_file() and mine.read_bytes() == theirs.read_bytes()


def shapes_prompts(concepts: Sequence[Concept], samples: int) -> dict[str, dict[str, list[Ask]]]:
    """Prompts about words of the embedded world.

    A kept prompt that names another erased concept is left out, since that is not kept; so is a synonym prompt that
    uses an alias, since that was not held out.

    Raises:
        ValueError: A word that the world does not know, or samples < 1.
    """
    from erasers.worlds.shapes.prompts import kind_of, split_prompts
    from erasers.worlds.shapes.world import SYNONYMS

    words = {concept.name: kind_of(concept.name)[1] for concept in concepts}
    erased = [text for word in words.values() for text in (word, *SYNONYMS.get(word, ()))]
    found: dict[str, dict[str, list[Ask]]] = {}
    for concept in concepts:
        banned = {split: erased for split in KEPT_SPLITS} | {"synonym": list(concept.aliases)}
        # Twelve times as many as needed: with several erased concepts most kept prompts may have to go.
        pool = split_prompts(words[concept.name], samples * (12 if len(concepts) > 1 or concept.aliases else 1))
        splits = {
            split: list(
                islice(
                    (ask for ask in asks if not any(names(ask.text, word) for word in banned.get(split, ()))), samples
                )
            )
            for split, asks in pool.items()
        }
        found[concept.name] = {split: list(asks) for split, asks in splits.items() if asks}
    return found


def plain_prompts(
    concept: Concept, samples: int, *, unsafe: bool = False, erased: Sequence[Concept] = (), turn: int = 0
) -> dict[str, list[Ask]]:
    """Prompts for models of no known world, from templates and everyday captions, each with a seed of its own.

    Args:
        concept: What is erased.
        samples: Prompts a split.
        unsafe: Ask for concepts of kind `unsafe`, too.
        erased: All that are erased together.
        turn: Which of them this is: no two draw one prompt with one seed.
    """
    from erasers.evaluation.profile.words import asked_of

    table: dict[str, list[Ask]] = {}
    for split, asked in asked_of(concept, erased or (concept,), unsafe=unsafe).items():
        # Captions of one kind stand together, so they are taken from all over the list.
        places = [i * len(asked) // samples if split == "unrelated" else i % len(asked) for i in range(samples)]
        table[split] = [
            PlainPrompt(asked[place][0], seed, asked[place][1]) for seed, place in enumerate(places, turn * samples)
        ]
    return table


def _oracle() -> Sequence[Judge]:
    from erasers.judges.oracle import Oracle

    return (Oracle(),)
