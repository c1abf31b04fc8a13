"""Stage 6, optional: an IP-Adapter, so that a picture is a prompt; of the model and the CLIP that the package holds.

Ye et al., arXiv 2308.06721: the denoiser is frozen, and what is trained is four tokens of a picture's embedding and the
keys and values that cross-attention makes of them.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from erasers.files.atomic import write_atomically
from erasers.worlds.shapes import render
from erasers.worlds.shapes.paths import CLIP_DIR, MODEL_DIR
from erasers.worlds.shapes.scenes import Scenes, captions, training_scenes
from erasers.worlds.shapes.train.unet import SNR_CAP, scheduler
from erasers.worlds.shapes.train.vision import MEAN, STD, vision_encoder
from erasers.worlds.training.loop import Recipe, seed_step, train

RECIPE = Recipe(steps=450, lr=2e-3, flat=0.3, warmup=50, ema=0.995, save_every=100, log_every=25)
BATCH = 32
PICTURES = 6_000
TOKENS = 4
NO_TEXT = 0.7
"""Share of pictures without a caption, which the adapter has to say all of."""
NO_PICTURE = 0.1
"""Share of captions without a picture, for classifier-free guidance."""


class Adapter(nn.Module):
    """What is trained, in the order in which diffusers numbers cross-attention.

    Args:
        unet: Gets the adapter.
        width: Of a picture's embedding.
    """

    def __init__(self, unet: UNet2DConditionModel, width: int) -> None:
        super().__init__()
        unet._load_ip_adapter_weights([_untrained(unet, width)], low_cpu_mem_usage=False)
        (self.projection,) = unet.encoder_hid_proj.image_projection_layers
        self.attention = nn.ModuleList(p for p in unet.attn_processors.values() if isinstance(p, nn.Module))

    def tensors(self) -> dict[str, Tensor]:
        """The adapter as published ones name it."""
        outer = {name.replace("image_embeds", "proj"): value for name, value in self.projection.state_dict().items()}
        inner = {
            f"{2 * number + 1}.{name.replace('.0.', '.')}": value
            for number, layer in enumerate(self.attention)
            for name, value in layer.state_dict().items()
        }
        both = {"image_proj": outer, "ip_adapter": inner}
        return {f"{part}.{name}": value for part, values in both.items() for name, value in values.items()}


def _untrained(unet: UNet2DConditionModel, width: int) -> dict[str, dict[str, Tensor]]:
    """Keys and values are at first those of the text."""
    dim = unet.config.cross_attention_dim
    projection, norm = nn.Linear(width, TOKENS * dim), nn.LayerNorm(dim)
    crosses = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    inner = {
        f"{2 * number + 1}.{leaf}_ip.weight": unet.get_submodule(f"{name}.{leaf}").weight.detach().clone()
        for number, name in enumerate(crosses)
        for leaf in ("to_k", "to_v")
    }
    outer = {f"proj.{leaf}": value for leaf, value in projection.state_dict().items()}
    outer |= {f"norm.{leaf}": value for leaf, value in norm.state_dict().items()}
    return {"image_proj": outer, "ip_adapter": inner}


class Pictures:
    """Latents and embeddings of drawn pictures, made once, with fresh captions of them.

    Args:
        device: Where they go.
        seed: Of all that is drawn.
    """

    @torch.no_grad()
    def __init__(self, device: torch.device, seed: int) -> None:
        generator = seed_step(seed, 0)
        self._scenes: Scenes = training_scenes(PICTURES, generator)
        pictures = render.render(self._scenes, generator)
        vae = AutoencoderKL.from_pretrained(MODEL_DIR / "vae").to(device).eval()
        vision = vision_encoder(CLIP_DIR).to(device)
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        latents, embeddings = [], []
        for chunk in pictures.split(250):
            latents.append(vae.encode(chunk.to(device)).latent_dist.mean * vae.config.scaling_factor)
            embeddings.append(vision(((chunk / 2 + 0.5 - mean) / std).to(device)).image_embeds)
        self._latents, self._embeddings, self._seed = torch.cat(latents), torch.cat(embeddings), seed

    def batch(self, step: int) -> tuple[Tensor, Tensor, Sequence[str], torch.Generator]:
        """Latents [n, 4, 8, 8], embeddings [n, d] or zeros, captions or "", and the generator of what else is drawn."""
        generator, rng = seed_step(self._seed, step + 1), random.Random(self._seed * 1_000_003 + step)
        chosen = torch.randint(PICTURES, (BATCH,), generator=generator)
        texts = ["" if rng.random() < NO_TEXT else text for text in captions(self._scenes[chosen], rng)]
        seen = (torch.rand(BATCH, 1, generator=generator) >= NO_PICTURE).to(self._embeddings)
        return self._latents[chosen], self._embeddings[chosen] * seen, texts, generator


def run(out: Path, device: torch.device, seed: int) -> None:
    """Train and write `out/ip_adapter`, which `load_ip_adapter` of diffusers loads (fp16, averaged weights)."""
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(MODEL_DIR / "text_encoder").to(device).eval().requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet").requires_grad_(False)
    unet.to(device, memory_format=torch.channels_last)
    pictures, vision = Pictures(device, seed), vision_encoder(CLIP_DIR)
    adapter = Adapter(unet, vision.config.projection_dim)
    alphas = scheduler().alphas_cumprod.to(device)
    snr = alphas / (1 - alphas)

    def loss_step(step: int) -> dict[str, Tensor]:
        clean, embeddings, texts, generator = pictures.batch(step)
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states = encoder(ids.to(device)).last_hidden_state
        t = torch.randint(1000, (BATCH,), generator=generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        a = alphas[t][:, None, None, None]
        noisy = (a.sqrt() * clean + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        more = {"image_embeds": [embeddings[:, None]]}
        guess = unet(noisy, t, states, added_cond_kwargs=more).sample
        error = (guess - noise).square().mean(dim=(1, 2, 3))
        weight = snr[t].clamp(max=SNR_CAP) / snr[t]
        return {"loss": (weight * error).mean(), "error": error.mean()}

    train("ip_adapter", adapter, loss_step, RECIPE, out)
    save(adapter, vision, out / "ip_adapter")


def save(adapter: Adapter, vision: Any, folder: Path) -> None:
    """Write the adapter with its picture encoder as published ones lie on the Hub, in half precision."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    half = {name: value.detach().half().cpu().contiguous() for name, value in adapter.tensors().items()}
    write_atomically(folder / "ip-adapter.safetensors", lambda file: save_file(half, file))
    vision.half().save_pretrained(folder / "image_encoder")
