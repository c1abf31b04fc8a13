"""Stage 3: the tokenizer, and the text encoder by contrast with the frozen judge's features (as CLIP, then frozen)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from erasers.worlds.shapes.judge import load_judge
from erasers.worlds.shapes.train.contrast import RECIPE, against_judge, projection, similarities
from erasers.worlds.shapes.vocabulary import VOCABULARY
from erasers.worlds.training.loop import train

WIDTH = 128
LENGTH = 24
"""Tokens a prompt, begin and end included."""
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes of byte-level BPE (the field's usual table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + k) for k in range(len(others))]


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges after which every word is one token: the commonest pair first, until none is left."""
    spellings = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(s) > 1 for s in spellings):
        pairs = Counter(pair for s in spellings for pair in zip(s, s[1:], strict=False))
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        for s in spellings:
            k = 0
            while k < len(s) - 1:
                if (s[k], s[k + 1]) == best:
                    s[k : k + 2] = [best[0] + best[1]]
                k += 1
    return merges


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of a few hundred entries in which each word of the world is one token."""
    alphabet = byte_alphabet()
    merges = learn_merges(VOCABULARY)
    entries = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges), _BOS, _EOS]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def build_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A three-layer CLIP text encoder for the tokenizer."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


class Contrast(nn.Module):
    """Text encoder and the two projections of InfoNCE."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.picture_projection = projection(WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(2.6))

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        """Scaled cosine similarities [texts, pictures]."""
        text = self.text_projection(self.encoder(ids).pooler_output)
        return similarities(text, self.picture_projection(features), self.log_scale)


def run(out: Path, device: torch.device, seed: int) -> None:
    """Train on `out/judge.safetensors` and write `out/tokenizer` and `out/text_encoder` (float32)."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    judge = load_judge(out / "judge.safetensors").to(device)
    model = Contrast(build_encoder(tokenizer)).to(device)
    train("text", model, against_judge(model, tokenizer, judge, device, seed), RECIPE, out)
    tokenizer.save_pretrained(out / "tokenizer")
    model.encoder.save_pretrained(out / "text_encoder")
