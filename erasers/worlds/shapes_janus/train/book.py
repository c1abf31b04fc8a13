"""Stage 1: the book of picture tokens: first both halves around it, then the decoder alone behind the frozen encoder.

The book is not learned: its entries are all vectors of signs, of length 1, so that a token is `BITS` yes-or-no answers
about its place in the picture (binary spherical quantization, arXiv 2406.07548). None of them can fall out of use, and
Janus, which takes the entry nearest to a direction, reads the signs of that direction.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusVQVAE

from erasers.worlds.shapes import render
from erasers.worlds.shapes.train.vae import reconstruction_loss
from erasers.worlds.shapes_janus.train.model import BITS, SIDE, build
from erasers.worlds.shapes_janus.train.plain import plain_scenes
from erasers.worlds.training.loop import Recipe, seed_step, train

JOINT = Recipe(steps=2000, lr=2e-3, weight_decay=1e-4, flat=0.4, ema=0.99, save_every=100)
DECODER = Recipe(steps=1500, lr=2e-3, weight_decay=1e-4, flat=0.2, ema=0.99, save_every=100)
BATCH = 8
SIGNED = 300
"""Steps until all numbers are signs; before, a growing share of them is. Signs from the start teach next to nothing."""


def entries() -> Tensor:
    """All vectors of signs, each of length 1, [2^b, b]."""
    bits = torch.arange(2**BITS)[:, None] >> torch.arange(BITS) & 1
    return F.normalize(2.0 * bits - 1, dim=-1)


class Book(nn.Module):
    """The autoencoder; it decodes from signs, and learns as if they were the directions that they are the signs of."""

    def __init__(self, vq: JanusVQVAE) -> None:
        super().__init__()
        self.vq = vq
        for module in vq.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
        vq.quantize.embedding.requires_grad_(False).weight.data.copy_(entries())

    def encode(self, pictures: Tensor) -> Tensor:
        """Directions [n, b, side, side] of pictures [n, 3, 32, 32]."""
        return F.normalize(self.vq.quant_conv(self.vq.encoder(pictures)), dim=1)

    def forward(self, pictures: Tensor, signed: Tensor) -> Tensor:
        """Decoded pictures; of the directions those numbers that are `signed`, [n, b, side, side], are signs."""
        directions = self.encode(pictures)
        signs = torch.where(directions > 0, 1.0, -1.0) / BITS**0.5
        passed = torch.where(signed, directions + (signs - directions).detach(), directions)
        decoded: Tensor = self.vq.decoder(self.vq.post_quant_conv(passed))
        return decoded


def drawn(seed: int, step: int, device: torch.device) -> Tensor:
    """Fresh pictures [n, 3, 32, 32] that depend on the step alone."""
    generator = seed_step(seed, step)
    return render.render(plain_scenes(BATCH, generator), generator).to(device)


def run(out: Path, device: torch.device, seed: int) -> None:
    """Train both halves and write `out/book` (float32, averaged): what tokens pictures have is settled with it."""
    torch.manual_seed(seed)
    book = Book(build().model.vqmodel).to(device)

    def loss_step(step: int) -> dict[str, Tensor]:
        pictures = drawn(seed, step, device)
        signed = torch.rand(len(pictures), BITS, SIDE, SIDE, generator=seed_step(seed + 1, step)) < step / SIGNED
        decoded = book(pictures, signed.to(device))
        psnr = 10 * torch.log10(4 / F.mse_loss(decoded.detach(), pictures))
        return {"loss": reconstruction_loss(decoded, pictures), "psnr": psnr}

    train("book", book, loss_step, JOINT, out)
    book.vq.eval().save_pretrained(out / "book")


def run_decoder(out: Path, device: torch.device, seed: int) -> None:
    """Train the decoder of `out/book` on and write `out/decoder`: the whole autoencoder (float32, averaged)."""
    vq = JanusVQVAE.from_pretrained(out / "book").to(device)
    vq.requires_grad_(False)
    decoder = nn.ModuleList([vq.post_quant_conv, vq.decoder]).requires_grad_(True)

    def loss_step(step: int) -> dict[str, Tensor]:
        pictures = drawn(seed + 2, step, device)
        with torch.no_grad():
            tokens = vq.encode(pictures).image_tokens.view(len(pictures), -1)
        decoded = vq.decode(tokens)
        psnr = 10 * torch.log10(4 / F.mse_loss(decoded.detach(), pictures))
        return {"loss": reconstruction_loss(decoded, pictures), "psnr": psnr}

    train("decoder", decoder, loss_step, DECODER, out)
    vq.eval().save_pretrained(out / "decoder")
