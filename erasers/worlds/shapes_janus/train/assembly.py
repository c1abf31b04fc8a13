"""The last stage: the model with its processor as a plain folder of transformers, and the retrained ones beside it."""

from __future__ import annotations

from pathlib import Path

from transformers import JanusForConditionalGeneration, JanusVQVAE

from erasers.worlds.shapes_janus.train.model import processor, that_draws
from erasers.worlds.training.saving import save_model


def run(out: Path) -> None:
    """Write `out/model`, and `out/reference/<name>` of every `out/language-without-<word>`, in half precision."""
    folders = {out / "language": out / "model"}
    folders |= {folder: out / "reference" / folder.name for folder in sorted(out.glob("language-without-*"))}
    for folder, target in folders.items():
        model = that_draws(JanusForConditionalGeneration.from_pretrained(folder))
        model.model.vqmodel = JanusVQVAE.from_pretrained(out / "decoder")
        save_model(model, processor(), target)
