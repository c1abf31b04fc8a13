"""What a reader has to know about the prompts of a task that come from files, in lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from erasers.evaluation.tasks.task import Sample, Task

_WHY = {
    "empty": "without text",
    "refused": "refused, for they name minors",
    "repeated": "there before",
    "erased": "naming an erased concept",
}


def notes(task: Task, unpinned: Sequence[str] = ()) -> Iterator[str]:
    """Which files the prompts come from, and for each case how many rows were left out and why.

    Args:
        task: With its files located.
        unpinned: Sources whose sha256 the task file does not name.

    Raises:
        ValueError: A file without the columns that the task names, or a split without a row that will do.
    """
    for name, source in task.sources.items():
        known = "the task names none, so compare it with that of others" if name in unpinned else "as the task says"
        yield f"prompts {name}: sha256 {source.sha256} ({known})" + (f", {source.licence}" if source.licence else "")
    for case in task.named_cases:
        concepts = [concept.name for concept in task.concepts(case)]
        for split, tallies in task.tallies(case).items():
            for concept, tally in zip(concepts, tallies, strict=True):
                why = ", ".join(f"{count} {_WHY[key]}" for key, count in sorted(tally.left_out.items()))
                yield f"{split} prompts of {concept}: {len(tally.asks)}; rows left out: {why or 'none'}"


def too_long(pipe: Any, samples: Sequence[Sample]) -> int:
    """How many prompts are longer than the longest text that any encoder of a pipeline reads; they are cut there."""
    tokenizers = [
        component
        for name, component in pipe.components.items()
        if name.startswith("tokenizer") and component is not None
    ]
    if not tokenizers:
        return 0
    longest = max(tokenizers, key=lambda tokenizer: int(tokenizer.model_max_length))
    texts = sorted({sample.text for sample in samples})
    rows = longest(texts, truncation=False, verbose=False)["input_ids"] if texts else []
    return sum(len(row) > longest.model_max_length for row in rows)
