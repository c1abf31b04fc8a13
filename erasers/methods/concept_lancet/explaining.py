"""What prompts consist of, as Concept Lancet sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from erasers.concept import Concept
from erasers.methods.concept_lancet.eraser import ConceptLancet
from erasers.text.contexts import kept_prompts

_PROMPTS = 8


@dataclass(frozen=True)
class Decomposition:
    """One prompt.

    Args:
        prompt: Its text.
        text: The ports that read it.
        own: The largest coefficient of the concept among its vectors.
        gate: What that has to pass for the concept to be there.
        others: The largest coefficients of other directions by name, the strongest first; without those that are 0.
    """

    prompt: str
    text: str
    own: float
    gate: float
    others: tuple[tuple[str, float], ...]


def decompositions(pipe: Any, concept: Concept, eraser: ConceptLancet) -> list[Decomposition]:
    """Some prompts with the concept, then some kept ones, for each text that ports read; raises as `fit` does."""
    concepts = eraser.prepared(pipe, [concept])
    fitted = eraser.fitted(pipe, concepts)
    names = [atom.name for atom in eraser.atoms(concepts)]
    near, others = kept_prompts(concepts, eraser.templates)
    prompts = [*eraser.asked(concepts)[0][:_PROMPTS], *near[: _PROMPTS // 2], *others[-_PROMPTS // 2 :]]
    shown = []
    for (text, parts), rows in zip(fitted, eraser.coefficients(pipe, fitted, prompts), strict=True):
        for prompt, row in zip(prompts, rows.tolist(), strict=True):
            ranked = sorted(zip(names[1:], row[1:], strict=True), key=lambda pair: -abs(pair[1]))
            least = tuple(pair for pair in ranked if pair[1])
            shown.append(Decomposition(prompt, text.group.name, row[0], float(parts["gate"][0]), least))
    return shown
