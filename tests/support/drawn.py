"""Pictures of the embedded world without its model."""

from __future__ import annotations

import torch
from PIL import Image

from erasers.worlds.shapes.render import render
from erasers.worlds.shapes.scenes import sample_scenes


def pictures(n: int, seed: int = 0) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(seed)
    drawn = ((render(sample_scenes(n, generator), generator) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(picture) for picture in drawn.numpy()]


def grey(n: int) -> list[Image.Image]:
    return [Image.new("RGB", (32, 32), (128, 128, 128))] * n
