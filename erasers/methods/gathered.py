"""What the closed forms need from a pipeline: paired rows, preserved rows and the Gram matrix of the ports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from erasers.cache import cached
from erasers.hashing import module_hash
from erasers.methods import closed_form
from erasers.methods.rows import Prompt, Rows, encode
from erasers.ports import Port, text_encoders

# Below this, encoding the texts takes less time than hashing the text encoder for the key.
_FEWEST_CACHED = 32
_BLOCKS = 4


@dataclass(frozen=True)
class Preserved:
    """Rows that must not move: themselves `[m, d]` when they are few, else their P'P `[d, d]`; float64.

    Args:
        few: Rows, or None.
        many: P'P, or None.
        count: m.
        texts: Number of prompts that the rows come from.
    """

    few: torch.Tensor | None
    many: torch.Tensor | None
    count: int
    texts: int

    def ridge_edit(
        self, erase: torch.Tensor, anchor: torch.Tensor, *, ridge: float, erase_scale: float, preserve_scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`closed_form.ridge_edit` with these rows preserved."""
        scales = {"ridge": ridge, "erase_scale": erase_scale, "preserve_scale": preserve_scale}
        if self.few is not None:
            return closed_form.ridge_edit(erase, anchor, self.few, **scales)
        return closed_form.ridge_edit_gram(erase, anchor, torch.as_tensor(self.many), **scales)

    def covariance(self) -> torch.Tensor:
        """P'P / m `[d, d]`, zeros when nothing is preserved."""
        total = closed_form.gram(self.few) if self.few is not None else self.many
        return torch.as_tensor(total) / max(1, self.count)


def preserved_rows(pipe: Any, texts: Sequence[Prompt], policy: Rows, width: int, *, cache: bool) -> Preserved:
    """Encode the preserved texts; large sets come from the disk cache when the text encoder was seen before.

    Args:
        pipe: A supported pipeline.
        texts: Distinct texts, maybe none.
        policy: Which of their rows are preserved.
        width: d, the input width of the ports.
        cache: Use the disk cache.
    """
    if not texts:
        return Preserved(torch.zeros(0, width, dtype=torch.float64), None, 0, 0)
    if not cache or len(texts) < _FEWEST_CACHED:
        return _unpack(_accumulate(pipe, texts, policy, width), len(texts))
    key = (_encoders_key(pipe), tuple(texts), policy)
    return _unpack(cached("preserve", key, lambda: _accumulate(pipe, texts, policy, width)), len(texts))


def port_gram(ports: Sequence[Port], hashes: Mapping[str, str], *, cache: bool) -> torch.Tensor:
    """H = sum_l W_l'W_l `[d, d]` in float64 over the ports, from the disk cache when these weights were seen before."""
    if not cache:
        return sum_of_grams([port.module.weight for port in ports])
    key = sorted(hashes[port.parameter] for port in ports)
    return cached("gram", key, lambda: {"gram": sum_of_grams([port.module.weight for port in ports])})["gram"]


@torch.no_grad()
def sum_of_grams(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """sum_l W_l'W_l `[d, d]`: products in the precision of the weights (at least float32), summed in float64.

    Only blocks on and above the diagonal are multiplied; the sum is symmetric.
    """
    width = weights[0].shape[1]
    total = torch.zeros(width, width, dtype=torch.float64)
    step = -(-width // _BLOCKS)
    for weight in weights:
        exact = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        for start in range(0, width, step):
            block = exact[:, start : start + step].T @ exact[:, start:]
            total[start : start + step, start:] += block.to("cpu", torch.float64)
    return torch.triu(total) + torch.triu(total, diagonal=1).T


def _accumulate(pipe: Any, texts: Sequence[Prompt], policy: Rows, width: int) -> dict[str, torch.Tensor]:
    """Preserved rows while they are fewer than d / 2, else their Gram matrix, in bounded memory."""
    chunk = 4096 if policy == "last" else 128
    rows: list[torch.Tensor] = []
    total = torch.zeros(width, width, dtype=torch.float64)
    count = 0
    for start in range(0, len(texts), chunk):
        encoded = encode(pipe, texts[start : start + chunk], policy)
        fresh = torch.cat([item.rows(policy) for item in encoded.values()]).double()
        count += len(fresh)
        rows.append(fresh)
        if 2 * count > width:
            total += closed_form.gram(torch.cat(rows))
            rows = []
    found = {"count": torch.tensor(count)}
    if 2 * count > width:
        return found | {"gram": total}
    return found | {"rows": torch.cat(rows)}


def _unpack(tensors: Mapping[str, torch.Tensor], texts: int) -> Preserved:
    return Preserved(tensors.get("rows"), tensors.get("gram"), int(tensors["count"]), texts)


def _encoders_key(pipe: Any) -> list[str]:
    parts = []
    for encoder in text_encoders(pipe):
        backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
        words = backend.to_str() if backend is not None else repr(sorted(encoder.tokenizer.get_vocab().items()))
        limits = f"{encoder.tokenizer.model_max_length} {encoder.tokenizer.pad_token_id} {encoder.states}"
        parts += [module_hash(encoder.model), hashlib.sha256(words.encode()).hexdigest(), limits]
    return parts
