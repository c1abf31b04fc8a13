"""Stage 1: the judge, on fresh renders, dissolved objects and colours that are none of the world's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from erasers.files.atomic import write_atomically
from erasers.worlds.shapes import render
from erasers.worlds.shapes.judge import HEADS, ShapesJudge
from erasers.worlds.shapes.scenes import Scenes, sample_scenes
from erasers.worlds.training.loop import Recipe, seed_step, train

RECIPE = Recipe(steps=2200, lr=4e-3, flat=0.25)
BATCH = (96, 16, 16)
"""Pictures a step: of the world, dissolved, off the palette."""


def independent_marks(scenes: Scenes, generator: torch.Generator) -> Scenes:
    """The same scenes with the stamp in half of them at random, so that a style cannot be read off the stamp."""
    return replace(scenes, mark=(torch.rand(len(scenes), generator=generator) < 0.5).long())


def degrade(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Blur and noise of random strength, such as a decoder leaves."""
    n = len(pictures)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blur = 0.7 * torch.rand(n, 1, 1, 1, generator=generator) * (torch.rand(n, 1, 1, 1, generator=generator) < 0.7)
    noise = 0.08 * torch.rand(n, 1, 1, 1, generator=generator) * torch.randn(pictures.shape, generator=generator)
    return pictures + (blurred - pictures) * blur + noise


def batch(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures [128, 3, 32, 32] and the right answers [128] a property, -100 where the question makes no sense."""
    plain, broken, odd = BATCH
    scenes = independent_marks(sample_scenes(plain + broken + odd, generator), generator)
    world, gone, off = scenes[slice(plain)], scenes[slice(plain, plain + broken)], scenes[slice(plain + broken, None)]
    sdf, centre_y = render.distances(off, generator)
    pictures = torch.cat(
        [
            render.render(world, generator),
            render.dissolved(gone, generator),
            render.draw(off, sdf, centre_y, render.off_palette(odd, generator), generator),
        ]
    )
    answers = {name: getattr(scenes, name).clone() for name in HEADS}
    answers["object"][plain : plain + broken] = len(HEADS["object"]) - 1
    answers["colour"][plain + broken :] = len(HEADS["colour"]) - 1
    for name in ("colour", "style"):
        answers[name][plain : plain + broken] = -100
    return degrade(pictures, generator), answers


def run(out: Path, device: torch.device, seed: int) -> None:
    """Train the judge and write `out/judge.safetensors` (fp16)."""
    torch.manual_seed(seed)
    network = ShapesJudge().to(device)

    def loss_step(step: int) -> dict[str, Tensor]:
        pictures, answers = batch(seed_step(seed, step))
        logits = network(pictures.to(device))
        losses = {name: F.cross_entropy(logits[name], answers[name].to(device), label_smoothing=0.02) for name in HEADS}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    train("judge", network, loss_step, RECIPE, out)
    state = {k: v.half().cpu() if v.is_floating_point() else v.cpu() for k, v in network.state_dict().items()}
    write_atomically(out / "judge.safetensors", lambda file: save_file(state, file))
