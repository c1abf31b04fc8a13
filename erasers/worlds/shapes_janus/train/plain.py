"""What this model is shown: scenes of `shapes` without styles and stamps, which 64 tokens of 8 bits have room for."""

from __future__ import annotations

from dataclasses import replace

import torch

from erasers.worlds.shapes.scenes import Scenes, sample_scenes
from erasers.worlds.shapes.vocabulary import held_out


def plain_scenes(n: int, generator: torch.Generator) -> Scenes:
    """Draw n plain scenes that avoid the held-out combinations."""
    drawn = sample_scenes(2 * n, generator)
    none = torch.zeros_like(drawn.mark)
    drawn, excluded = replace(drawn, style=none, mark=none, named_mark=none), held_out()
    return drawn[torch.tensor([i for i, triple in enumerate(drawn.triples()) if triple not in excluded][:n])]
