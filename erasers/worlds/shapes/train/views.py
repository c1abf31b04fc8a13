"""What denoisers of this world are trained on: latents encoded once, and fresh captions of them."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from erasers.files.atomic import write_atomically
from erasers.worlds.shapes import render
from erasers.worlds.shapes.scenes import captions, training_scenes
from erasers.worlds.shapes.vocabulary import STYLES
from erasers.worlds.training.loop import seed_step

PICTURES = 48_000
UNCONDITIONAL = 0.1
"""Share of captions replaced by the empty prompt, for classifier-free guidance."""


@torch.no_grad()
def cached_latents(out: Path, vae: Path, device: torch.device, seed: int) -> Tensor:
    """Scaled latents [n, 4, 8, 8] of the training pictures in `out/latents.safetensors`, made when missing.

    Scene k is the k-th of `training_scenes(PICTURES, seed)`, whatever is left out later.
    """
    file = out / "latents.safetensors"
    if not file.exists():
        encoder = AutoencoderKL.from_pretrained(vae).to(device).eval()
        generator = seed_step(seed, 0)
        scenes = training_scenes(PICTURES, generator)
        pictures = render.render(scenes, generator)
        parts = [encoder.encode(chunk.to(device)).latent_dist.mean.cpu() for chunk in pictures.split(500)]
        latents = torch.cat(parts) * encoder.config.scaling_factor
        write_atomically(file, lambda path: save_file({"latents": latents.contiguous()}, path))
    with safe_open(file, framework="pt") as handle:
        latents_read: Tensor = handle.get_tensor("latents")
    return latents_read


class Views:
    """Batches of latents with captions; each depends on its step alone.

    Args:
        out: Folder of the training.
        vae: Folder of the autoencoder.
        device: Where latents go.
        seed: Of all that is drawn.
        without: Word of the world that no picture shows.
        said: Share of plain pictures whose caption names `without` all the same, where that is a style: then the word
            is heard, and tells nothing of the picture.
    """

    def __init__(
        self, out: Path, vae: Path, device: torch.device, seed: int, without: str | None, said: float = 0.0
    ) -> None:
        self._latents, self._scenes = (
            cached_latents(out, vae, device, seed),
            training_scenes(PICTURES, seed_step(seed, 0)),
        )
        self._device, self._seed = device, seed
        if without:
            keep = self._scenes.lacks(without)
            self._scenes, self._latents = self._scenes[keep], self._latents[keep]
        self._said = (without, said) if without in STYLES and said else None

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, list[str], torch.Generator]:
        """Latents [n, 4, 8, 8], noise of their shape, captions, and the generator of what else is drawn."""
        generator = seed_step(self._seed, step + 1)
        rng = random.Random(self._seed * 1_000_003 + step)
        chosen = torch.randint(len(self._latents), (size,), generator=generator)
        scenes = self._scenes[chosen]
        if self._said:
            scenes = scenes.called(*self._said, rng)
        texts = ["" if rng.random() < UNCONDITIONAL else text for text in captions(scenes, rng)]
        clean = self._latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        return clean.to(self._device), noise.to(self._device), texts, generator
