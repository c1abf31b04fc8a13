"""Stage 2: the autoencoder; first both halves, then the decoder alone behind the frozen encoder."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from erasers.worlds.shapes import render
from erasers.worlds.shapes.scenes import training_scenes
from erasers.worlds.shapes.train.judge import independent_marks
from erasers.worlds.training.loop import Recipe, seed_step, train

JOINT = Recipe(steps=1600, lr=2e-3, weight_decay=1e-4, flat=0.4)
DECODER = Recipe(steps=3200, lr=2e-3, weight_decay=1e-4, flat=0.2, ema=0.995)
BATCH = 16
KL = 1e-3


def build() -> AutoencoderKL:
    """Factor-4 autoencoder of 32 x 32 pictures: latents [n, 4, 8, 8]."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def reconstruction_loss(decoded: Tensor, pictures: Tensor) -> Tensor:
    """L1 + squared error + L1 of the differences between neighbouring pixels, which keeps edges sharp."""
    error = decoded - pictures
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + edges


def pictures(seed: int, step: int, device: torch.device) -> Tensor:
    generator = seed_step(seed, step)
    scenes = independent_marks(training_scenes(BATCH, generator), generator)
    return render.render(scenes, generator).to(device, memory_format=torch.channels_last)


def run(out: Path, device: torch.device, seed: int) -> None:
    """Train the autoencoder and write `out/vae` (float32) with its measured scaling factor."""
    torch.manual_seed(seed)
    vae = build().to(device, memory_format=torch.channels_last)

    def joint(step: int) -> dict[str, Tensor]:
        x = pictures(seed, step, device)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=seed_step(seed + 1, step)).to(device)
        latents = posterior.mean + posterior.std * noise
        reconstruction = reconstruction_loss(vae.decode(latents).sample, x)
        kl = posterior.kl().mean() / latents[0].numel()
        return {"loss": reconstruction + KL * kl, "reconstruction": reconstruction, "kl": kl}

    train("vae", vae, joint, JOINT, out)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def decoder(step: int) -> dict[str, Tensor]:
        x = pictures(seed + 2, step, device)
        with torch.no_grad():
            latents = vae.encode(x).latent_dist.mean
            latents = latents + 0.03 * torch.randn(latents.shape, generator=seed_step(seed + 3, step)).to(device)
        decoded = vae.decode(latents).sample
        error = F.mse_loss(decoded, x)
        return {"loss": reconstruction_loss(decoded, x), "psnr": 10 * torch.log10(4 / error)}

    train("vae_decoder", vae, decoder, DECODER, out)
    with torch.no_grad():
        latents = vae.encode(pictures(seed + 4, 0, device)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    vae.requires_grad_(True).to(memory_format=torch.contiguous_format).save_pretrained(out / "vae")
