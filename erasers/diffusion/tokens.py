"""Text as the token ids of a pipeline's text encoders, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from erasers.models.prompts import converted

_ENDLESS = 10**6
"""Tokenizers without a limit name one above this."""


def tokenise(pipe: Any, texts: str | Sequence[str]) -> torch.Tensor:
    """Token ids `[texts, n]`, padded and cut as the pipeline does when it draws."""
    tokenizer = pipe.tokenizer
    batch = [converted(pipe, tokenizer, text) for text in ([texts] if isinstance(texts, str) else texts)]
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    ids: torch.Tensor = tokenizer(batch, return_tensors="pt", **options).input_ids
    return ids


def tokenizer_of(pipe: Any, encoder: str) -> Any:
    """The tokenizer of a text encoder; of a processor, the one it has."""
    tokenizer = getattr(pipe, encoder.replace("text_encoder", "tokenizer"))
    return getattr(tokenizer, "tokenizer", tokenizer)


@torch.no_grad()
def token_table(pipe: Any, encoder: str = "text_encoder") -> torch.Tensor:
    """The token embeddings `[vocabulary, d]` of a text encoder as it is now, as its first layer reads them."""
    embedding = getattr(pipe, encoder).get_input_embeddings()
    weight: torch.Tensor = embedding.weight.detach()
    if type(embedding) is nn.Embedding:
        return weight
    # That of Gemma multiplies what it looks up.
    return torch.as_tensor(embedding(torch.arange(len(weight), device=weight.device)))


def whole_words(tokenizer: Any) -> torch.Tensor:
    """Ids of the tokens that can be typed as words: decoded and tokenised again, they are the same token."""
    texts = {token: decode(tokenizer, torch.tensor([token])) for token in range(len(tokenizer))}
    typed = {token: text for token, text in texts.items() if text and text.isprintable()}
    again = tokenizer(list(typed.values()), add_special_tokens=False).input_ids
    return torch.tensor([token for token, back in zip(typed, again, strict=True) if back == [token]])


def decode(tokenizer: Any, ids: torch.Tensor) -> str:
    """The text of token ids `[n]`; tokenised again, pieces of words may become other tokens."""
    text: str = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return " ".join(text.split())


def nearest_tokens(vectors: torch.Tensor, table: torch.Tensor, widths: Sequence[int] = ()) -> torch.Tensor:
    """Rows `[k]` of a table `[n, d]` that are nearest to vectors `[k, d]`.

    Args:
        vectors: Soft tokens.
        table: Tokens.
        widths: How many of the d values each of several encoders has; empty: one has all. Nearest is what has the
            largest sum of their cosines.
    """
    parts = [side.float().split(list(widths) or side.shape[-1], dim=-1) for side in (vectors, table)]
    similar = [
        functional.normalize(own, dim=-1) @ functional.normalize(tokens, dim=-1).T
        for own, tokens in zip(*parts, strict=True)
    ]
    return torch.stack(similar).sum(dim=0).argmax(dim=-1)


def longest(tokenizer: Any) -> int | None:
    """How many tokens the encoder takes, those around a text included; None: the tokenizer names no limit."""
    length = int(tokenizer.model_max_length)
    return length if length < _ENDLESS else None


def room_for_text(tokenizer: Any) -> float:
    """How many tokens of text the encoder takes; infinite where the tokenizer names no limit."""
    length = longest(tokenizer)
    return float("inf") if length is None else length - len(tokenizer("").input_ids)
