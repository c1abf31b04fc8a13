"""Stage 4: the denoiser, on latents encoded once; `without` retrains it on a world that lacks one thing."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from erasers.worlds.shapes.train.text import WIDTH
from erasers.worlds.shapes.train.views import Views
from erasers.worlds.training.loop import Recipe, train

RECIPE = Recipe(steps=6600, lr=1.2e-3, flat=0.3, warmup=150, ema=0.999)
REFERENCE_RECIPE = Recipe(steps=5000, lr=1.2e-3, flat=0.3, warmup=150, ema=0.999)
BATCH = 32
SNR_CAP = 5.0
"""Gamma of min-SNR weighting (arXiv 2303.09556, section 3.4)."""


def build() -> UNet2DConditionModel:
    """Stable Diffusion's denoiser at 8 x 8 x 4: two levels, cross-attention on both."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=(2, 4),
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule for DDIM sampling."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def run(out: Path, device: torch.device, seed: int, without: str | None = None) -> None:
    """Train the denoiser and write `out/unet` or `out/unet-without-<thing>` (float32, averaged weights)."""
    torch.manual_seed(seed)
    name = f"unet-without-{without}" if without else "unet"
    views = Views(out, out / "vae", device, seed, without)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(out / "text_encoder").to(device).eval().requires_grad_(False)
    unet = build().to(device, memory_format=torch.channels_last)
    alphas = scheduler().alphas_cumprod.to(device)
    snr = alphas / (1 - alphas)

    def loss_step(step: int) -> dict[str, Tensor]:
        clean, noise, texts, generator = views.batch(step, BATCH)
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states = encoder(ids.to(device)).last_hidden_state
        t = torch.randint(1000, (BATCH,), generator=generator).to(device)
        a = alphas[t][:, None, None, None]
        noisy = (a.sqrt() * clean + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        error = (unet(noisy, t, states).sample - noise).square().mean(dim=(1, 2, 3))
        weight = snr[t].clamp(max=SNR_CAP) / snr[t]
        return {"loss": (weight * error).mean(), "error": error.mean()}

    train(name, unet, loss_step, REFERENCE_RECIPE if without else RECIPE, out)
    unet.to(memory_format=torch.contiguous_format).save_pretrained(out / name)
