"""Stage 2: the language model, which says the tokens of a picture behind its caption; `without` leaves a thing out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import JanusVQVAE

from erasers.files.atomic import write_atomically
from erasers.worlds.shapes import render
from erasers.worlds.shapes.scenes import captions
from erasers.worlds.shapes.train import views
from erasers.worlds.shapes.train.words import build_tokenizer
from erasers.worlds.shapes_janus.train.model import build
from erasers.worlds.shapes_janus.train.plain import plain_scenes
from erasers.worlds.training.loop import Recipe, seed_step, train

RECIPE = Recipe(steps=4000, lr=2e-3, warmup=200, flat=0.3, ema=0.998, save_every=250)
BATCH = 16
PICTURES = 24_000


@torch.no_grad()
def cached_tokens(out: Path, device: torch.device, seed: int) -> Tensor:
    """Tokens [n, 64] of the training pictures in `out/tokens.safetensors`, made when missing.

    Scene k is the k-th of `plain_scenes(PICTURES, seed)`, whatever is left out later.
    """
    file = out / "tokens.safetensors"
    if not file.exists():
        book = JanusVQVAE.from_pretrained(out / "book").to(device).eval()
        generator = seed_step(seed, 0)
        pictures = render.render(plain_scenes(PICTURES, generator), generator)
        parts = [book.encode(part.to(device)).image_tokens.view(len(part), -1).cpu() for part in pictures.split(500)]
        write_atomically(file, lambda path: save_file({"tokens": torch.cat(parts).short()}, path))
    return load_file(file)["tokens"].long()


class Views:
    """Batches of captions and tokens; each depends on its step alone.

    Args:
        out: Folder of the training.
        device: Where they go.
        seed: Of all that is drawn.
        without: Word of the world that no picture shows.
    """

    def __init__(self, out: Path, device: torch.device, seed: int, without: str | None) -> None:
        self._tokens, self._scenes = (
            cached_tokens(out, device, seed),
            plain_scenes(PICTURES, seed_step(seed, 0)),
        )
        self._device, self._seed, self._tokenizer = device, seed, build_tokenizer()
        if without:
            keep = self._scenes.lacks(without)
            self._scenes, self._tokens = self._scenes[keep], self._tokens[keep]

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and mask of captions, each [n, L], and tokens of their pictures [n, 64].

        In a tenth of the captions words are padding that counts, which is what Janus guides away from.
        """
        generator, rng = seed_step(self._seed, step + 1), random.Random(self._seed * 1_000_003 + step)
        chosen = torch.randint(len(self._tokens), (size,), generator=generator)
        ids, mask = asked(self._tokenizer, captions(self._scenes[chosen], rng))
        empty = torch.rand(size, 1, generator=generator) < views.UNCONDITIONAL
        ids = torch.where(empty, wordless(self._tokenizer, ids), ids)
        return ids.to(self._device), mask.to(self._device), self._tokens[chosen].to(self._device)


def asked(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask [n, L] of prompts with the token that starts a picture behind them."""
    texts = [f"{text}{tokenizer.boi_token}" for text in texts]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    return inputs["input_ids"], inputs["attention_mask"]


def wordless(tokenizer: Any, ids: Tensor) -> Tensor:
    """The same with padding in the place of words."""
    start = tokenizer.convert_tokens_to_ids(tokenizer.boi_token)
    return torch.where((ids == tokenizer.bos_token_id) | (ids == start), ids, tokenizer.pad_token_id)


def logits(model: Any, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    """Of each token given the prompt and the tokens before, [n, 64, 256]."""
    before = model.prepare_embeddings_for_image_generation(tokens[:, :-1])
    states = torch.cat([model.get_input_embeddings()(ids), before], dim=1)
    mask = torch.cat([mask, mask.new_ones(before.shape[:2])], dim=1)
    output = model.model.language_model(inputs_embeds=states, attention_mask=mask, use_cache=False).last_hidden_state
    scores: Tensor = model.model.generation_head(output[:, ids.shape[1] - 1 :])
    return scores


def run(out: Path, device: torch.device, seed: int, without: str | None = None) -> None:
    """Train the language model and write `out/language` or `out/language-without-<thing>`: the whole Janus, float32."""
    torch.manual_seed(seed)
    name = f"language-without-{without}" if without else "language"
    batches = Views(out, device, seed, without)
    model = build()
    model.model.vqmodel = JanusVQVAE.from_pretrained(out / "book")
    model.model.generation_embeddings.weight.data.copy_(model.model.vqmodel.quantize.embedding.weight)
    for untrained in (model.model.vqmodel, model.model.vision_model, model.model.aligner):
        untrained.requires_grad_(False)
    model.to(device)

    def loss_step(step: int) -> dict[str, Tensor]:
        ids, mask, tokens = batches.batch(step, BATCH)
        scores = logits(model, ids, mask, tokens)
        return {"loss": F.cross_entropy(scores.flatten(0, 1), tokens.flatten())}

    train(name, model, loss_step, RECIPE, out)
    model.save_pretrained(out / name)
