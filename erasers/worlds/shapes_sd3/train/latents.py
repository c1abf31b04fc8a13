"""Latents of the training pictures, by the VAE of `shapes`, whose mean SD3's pipeline wants to know, too."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from erasers.files.atomic import write_atomically
from erasers.worlds.shapes import render
from erasers.worlds.shapes.paths import MODEL_DIR
from erasers.worlds.shapes.scenes import training_scenes
from erasers.worlds.shapes.train.loop import seed_step
from erasers.worlds.shapes.train.unet import PICTURES


@torch.no_grad()
def load_vae() -> AutoencoderKL:
    """The autoencoder of `shapes` with a shift, which here is none: its latents lie around zero."""
    vae = AutoencoderKL.from_pretrained(MODEL_DIR / "vae").eval()
    vae.register_to_config(shift_factor=0.0)
    return vae


@torch.no_grad()
def cached_latents(out: Path, device: torch.device, seed: int) -> Tensor:
    """Scaled latents [n, 4, 8, 8] of the training pictures in `out/latents.safetensors`, made when missing.

    Scene k is the k-th of `training_scenes(PICTURES, seed)`, whatever is left out later.
    """
    file = out / "latents.safetensors"
    if not file.exists():
        vae = load_vae().to(device)
        generator = seed_step(seed, 0)
        scenes = training_scenes(PICTURES, generator)
        pictures = render.render(scenes, generator)
        parts = [vae.encode(chunk.to(device)).latent_dist.mean.cpu() for chunk in pictures.split(500)]
        latents = torch.cat(parts) * vae.config.scaling_factor
        write_atomically(file, lambda path: save_file({"latents": latents.contiguous()}, path))
    return load_file(file)["latents"]
