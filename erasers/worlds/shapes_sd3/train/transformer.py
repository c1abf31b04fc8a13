"""Stage 2: the denoiser, by flow matching on latents encoded once; `without` leaves one thing out of its world."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from erasers.worlds.shapes.paths import MODEL_DIR
from erasers.worlds.shapes.train.views import Views
from erasers.worlds.shapes_sd3.train.repeated import LastRowRepeated
from erasers.worlds.shapes_sd3.train.text import ENCODERS, WIDTH, load_tokenizer
from erasers.worlds.training.loop import Recipe, train

RECIPE = Recipe(steps=12_000, lr=1.2e-3, flat=0.4, warmup=200, ema=0.999)
REFERENCE_RECIPE = Recipe(steps=10_000, lr=1.2e-3, flat=0.4, warmup=200, ema=0.999)
BATCH = 32
DROPPED = 0.3
"""Share of prompts whose tokens or pooled vector of one encoder is zero, each of the four by itself.

Stable Diffusion 3 is trained so (arXiv 2403.03206: 46.4 % for each of its encoders). Without, the pooled vector says
everything about prompts as short as these, and nothing is read from their tokens.
"""
SAID = 0.5
"""Share of plain pictures whose caption names the style that is left out.

The pooled vector of a style that no caption names lies far from all that the denoiser is trained on (11 of a norm of
24), and what it draws of it is a dark texture. A model of the web hears of words whose pictures were filtered out.
"""
MOST_ZEROS = 512
"""`StableDiffusion3Pipeline` appends `max_sequence_length` rows of zeros, 1 to 512, to a prompt where it has no T5."""


def build() -> SD3Transformer2DModel:
    """Stable Diffusion 3's denoiser at 8 x 8 x 4: joint attention over picture and text, of which the last half ends
    in the fifth block; adaptive norms and the output start at zero."""
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=WIDTH * len(ENCODERS),
        caption_projection_dim=128,
        pooled_projection_dim=WIDTH * len(ENCODERS),
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    started = [model.norm_out.linear, model.proj_out]
    for block in model.transformer_blocks:
        started += [block.norm1.linear, block.norm1_context.linear]
    for layer in started:
        nn.init.zeros_(layer.weight)
    return model


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps along straight paths; pictures this small need no shift."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


class Prompts:
    """What the pipeline makes of prompts: penultimate states of both encoders side by side, then one row of zeros for
    those of the absent T5; and both projections."""

    def __init__(self, out: Path, device: torch.device) -> None:
        self._tokenizer, self._device = load_tokenizer(), device
        self._encoders = [
            CLIPTextModelWithProjection.from_pretrained(out / name).to(device).eval().requires_grad_(False)
            for name in ENCODERS
        ]

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """States [n, tokens + 1, 2 x width] and pooled states [n, 2 x width]."""
        ids = self._tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        outputs = [encoder(ids.to(self._device), output_hidden_states=True) for encoder in self._encoders]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
        return torch.nn.functional.pad(states, (0, 0, 0, 1)), pooled


def _without_some(states: Tensor, pooled: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same, where chance takes the tokens or the pooled vector of an encoder away."""
    kept = (torch.rand(len(states), 2, len(ENCODERS), generator=generator) >= DROPPED).to(states)
    tokens, vectors = (part.repeat_interleave(WIDTH, dim=1) for part in kept.unbind(1))
    return states * tokens[:, None], pooled * vectors


def run(out: Path, device: torch.device, seed: int, without: str | None = None) -> None:
    """Train the denoiser and write `out/transformer` or `out/transformer-without-<thing>` (float32, averaged)."""
    torch.manual_seed(seed)
    name = f"transformer-without-{without}" if without else "transformer"
    views = Views(out, MODEL_DIR / "vae", device, seed, without, SAID)
    encode = Prompts(out, device)
    transformer = build().to(device)
    zeros = LastRowRepeated(MOST_ZEROS)
    transformer.set_attn_processor(zeros)

    def loss_step(step: int) -> dict[str, Tensor]:
        clean, noise, texts, generator = views.batch(step, BATCH)
        states, pooled = encode(texts)
        states, pooled = _without_some(states, pooled, generator)
        sigma = torch.randn(BATCH, generator=generator).sigmoid().to(device)
        share = sigma[:, None, None, None]
        # The model is to draw the same whatever their number, since a few are drawn ten times faster than many.
        zeros.count = MOST_ZEROS ** float(torch.rand(1, generator=generator))
        velocity = transformer(
            hidden_states=(1 - share) * clean + share * noise,
            timestep=1000 * sigma,
            encoder_hidden_states=states,
            pooled_projections=pooled,
        ).sample
        return {"loss": (velocity - (noise - clean)).square().mean()}

    train(name, transformer, loss_step, REFERENCE_RECIPE if without else RECIPE, out)
    transformer.save_pretrained(out / name)
