"""Stage 5, optional: a small open_clip model of the same world, so that CLIP scores can be computed offline.

It needs the extra `[clip]`. It sees every combination, as the oracle does, since it is an instrument and not a subject.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from erasers.files.atomic import write_atomically
from erasers.worlds.shapes import render
from erasers.worlds.shapes.scenes import captions, sample_scenes
from erasers.worlds.shapes.train.contrast import matched
from erasers.worlds.shapes.train.judge import degrade
from erasers.worlds.training.loop import Recipe, seed_step, train

RECIPE = Recipe(steps=2400, lr=1.5e-3, weight_decay=0.05, flat=0.3, save_every=100, log_every=25)
BATCH = 128
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "patch_size": 4, "layers": 3, "width": 96, "head_width": 32},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"},
}
"""open_clip's own form of a model description; its usual tokenizer serves."""


def run(out: Path, device: torch.device, seed: int) -> None:
    """Train and write `out/clip`, a folder that `open_clip.create_model("local-dir:<folder>")` loads (fp16).

    Raises:
        ImportError: open_clip is not installed.
    """
    import open_clip

    torch.manual_seed(seed)
    folder = out / "clip"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    model = open_clip.CLIP(**CONFIG["model_cfg"]).to(device)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONFIG["model_cfg"]["text_cfg"]["context_length"])

    def loss_step(step: int) -> dict[str, Tensor]:
        generator = seed_step(seed, step)
        scenes = sample_scenes(BATCH, generator)
        texts = tokenizer(captions(scenes, random.Random(seed * 1_000_003 + step))).to(device)
        pictures = degrade(render.render(scenes, generator), generator).to(device)
        picture, text, scale = model(pictures, texts)
        return matched(scale * text @ picture.T)

    train("clip", model, loss_step, RECIPE, out)
    state = {name: t.detach().half().cpu().contiguous() for name, t in model.state_dict().items()}
    write_atomically(folder / "open_clip_model.safetensors", lambda file: save_file(state, file))
