"""How often pictures of an embedded model show what their prompts want."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from erasers.asks import Ask
from erasers.evaluation.drawing import generate
from erasers.judges.oracle import Oracle


def share(pipe: Any, asks: Sequence[Ask], tokens: int | None = None) -> float:
    """Of pictures of ten steps, with that `max_sequence_length`."""
    batches = generate(pipe, asks, steps=10, guidance=4.0, batch=12, tokens=tokens)
    images = [image for batch in batches for image in batch]
    verdicts = Oracle().judge(images, asks)
    return sum(bool(verdict.value) for verdict in verdicts) / len(verdicts)
