"""Stage 1: the book of picture tokens, with the encoder and the decoder around it (VQGAN without its discriminator)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusVQVAE

from erasers.worlds.shapes.train import vae
from erasers.worlds.shapes_janus.train.model import BOOK, build
from erasers.worlds.training.loop import Recipe, seed_step, train

RECIPE = Recipe(steps=5000, lr=1e-3, weight_decay=1e-4, flat=0.5, ema=0.995)
IDLE = 100
"""Steps without use after which an entry is replaced, in the first half of the training."""
COMMITMENT = 0.25


class Book(nn.Module):
    """The autoencoder, and how long each of its entries was not used.

    Janus decodes from entries of length 1 and takes the nearest entry for a token, so both sides are kept at length 1
    here: then the nearest is the one of the largest product, whatever the length of what the encoder gives.
    """

    idle: Tensor

    def __init__(self, vq: JanusVQVAE) -> None:
        super().__init__()
        self.vq = vq
        self.register_buffer("idle", torch.zeros(BOOK))

    def encode(self, pictures: Tensor) -> Tensor:
        """Directions [n, 8, 8, d] of pictures [n, 3, 32, 32]."""
        return F.normalize(self.vq.quant_conv(self.vq.encoder(pictures)).movedim(1, -1), dim=-1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decoded pictures, how far directions are from their entries, and tokens [n, 8, 8]."""
        directions = self.encode(pictures)
        entries = F.normalize(self.vq.quantize.embedding.weight, dim=-1)
        tokens = (directions @ entries.T).argmax(dim=-1)
        own = entries[tokens]
        distance = F.mse_loss(own, directions.detach()) + COMMITMENT * F.mse_loss(directions, own.detach())
        passed = directions + (own - directions).detach()
        return self.vq.decoder(self.vq.post_quant_conv(passed.movedim(-1, 1))), distance, tokens

    @torch.no_grad()
    def count(self, tokens: Tensor) -> None:
        """Remember which entries were used."""
        self.idle += 1
        self.idle[tokens.unique()] = 0

    @torch.no_grad()
    def revive(self, pictures: Tensor, generator: torch.Generator) -> None:
        """Put directions of pictures in the place of entries that nothing used for long."""
        dead = (self.idle > IDLE).nonzero().flatten()
        if len(dead):
            rows = self.encode(pictures).flatten(0, 2)
            chosen = torch.randint(len(rows), (len(dead),), generator=generator).to(rows.device)
            self.vq.quantize.embedding.weight[dead] = rows[chosen]
            self.idle[dead] = 0

    @torch.no_grad()
    def settle(self) -> JanusVQVAE:
        """The autoencoder with entries of length 1, as Janus reads them."""
        weight = self.vq.quantize.embedding.weight
        weight.copy_(F.normalize(weight, dim=-1))
        return self.vq.eval()


def run(out: Path, device: torch.device, seed: int) -> None:
    """Train the book and write `out/book` (float32, averaged)."""
    torch.manual_seed(seed)
    book = Book(build().model.vqmodel).to(device)

    def loss_step(step: int) -> dict[str, Tensor]:
        pictures = vae.pictures(seed, step, device)
        if step < RECIPE.steps // 2:
            book.revive(pictures, seed_step(seed + 1, step))
        decoded, distance, tokens = book(pictures)
        book.count(tokens)
        reconstruction = vae.reconstruction_loss(decoded, pictures)
        psnr = 10 * torch.log10(4 / F.mse_loss(decoded.detach(), pictures))
        used = (book.idle <= IDLE).float().mean()
        return {"loss": reconstruction + distance, "distance": distance, "psnr": psnr, "used": used}

    train("book", book, loss_step, RECIPE, out)
    book.settle().save_pretrained(out / "book")
