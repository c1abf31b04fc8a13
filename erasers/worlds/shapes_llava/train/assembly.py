"""The last stage: the model with its processor as a plain folder of transformers, and the retrained ones beside it."""

from __future__ import annotations

from pathlib import Path

from transformers import LlavaForConditionalGeneration

from erasers.worlds.shapes_llava.train.model import processor
from erasers.worlds.training.saving import save_model


def run(out: Path) -> None:
    """Write `out/model`, and `out/reference/<name>` of every `out/sight-without-<word>`, in half precision."""
    for folder in [out / "sight", *sorted(out.glob("sight-without-*"))]:
        target = out / "model" if folder.name == "sight" else out / "reference" / folder.name
        save_model(LlavaForConditionalGeneration.from_pretrained(folder), processor(), target)
