"""How a model is measured: its sampler settings, its prompts and the judge that fits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasers import worlds
from erasers.asks import Ask, PlainPrompt
from erasers.concept import Concept
from erasers.judges import Judge, get_judge


@dataclass(frozen=True)
class Profile:
    """How one kind of model is measured.

    Args:
        steps: Denoising steps; None takes the pipeline's own default.
        guidance: Guidance scale; likewise.
        batch: Pictures at a time; the pictures do not depend on it.
        prompts: (concepts, prompts a split) -> concept name -> split -> prompts.
        size: Side of the pictures in pixels; None takes the model's own.
        tokens: Tokens that a prompt is padded or cut to; None takes the pipeline's own default.
        judges: Makes the judges, in the order in which they are asked; none by default.
        note: What a reader of the report has to know.
        arguments: What a call gets beside prompts, noise and the settings above, such as pictures.
    """

    steps: int | None
    guidance: float | None
    batch: int
    prompts: Callable[[Sequence[Concept], int], dict[str, dict[str, list[Ask]]]]
    size: int | None = None
    tokens: int | None = None
    judges: Callable[[], Sequence[Judge]] = tuple
    note: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


def profile_for(model: str | Path, *, unsafe: bool = False) -> Profile:
    """The profile of a model, by its name or folder.

    Args:
        model: As for `load_pipeline`.
        unsafe: Draw the explicit prompts of concepts of kind `unsafe`, too.
    """
    if world := worlds.find(model):
        own = world.judge
        return Profile(
            world.steps,
            world.guidance,
            world.batch,
            world.prompts,
            size=world.size,
            tokens=world.tokens,
            judges=lambda: (get_judge(own),),
        )

    def prompts(concepts: Sequence[Concept], samples: int) -> dict[str, dict[str, list[Ask]]]:
        more: dict[str, Any] = {"unsafe": unsafe, "erased": concepts}
        return {concept.name: plain_prompts(concept, samples, turn=k, **more) for k, concept in enumerate(concepts)}

    return Profile(None, None, 1, prompts)


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
