"""Text as the token ids of a pipeline's text encoders, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from erasers.models.prompts import converted


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


def nearest_tokens(vectors: torch.Tensor, table: torch.Tensor, allowed: torch.Tensor | None = None) -> torch.Tensor:
    """Ids `[k]` of the tokens nearest by cosine to vectors `[k, d]`, among `allowed` ids or in the whole table."""
    candidates = table if allowed is None else table[allowed.to(table.device)]
    similar = functional.normalize(vectors.float(), dim=-1) @ functional.normalize(candidates.float(), dim=-1).T
    best = similar.argmax(dim=-1)
    return best if allowed is None else allowed.to(best.device)[best]
