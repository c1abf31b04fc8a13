"""What the closed forms keep: preserved rows of a pipeline, in memory or on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from erasers.closed_form import algebra as closed_form
from erasers.files.cache import cached
from erasers.files.hashing import can_hash, module_hash
from erasers.models.ports import Group
from erasers.models.readers import is_bare
from erasers.text.encoding import Reader, text_parts
from erasers.text.prompts import Prompt
from erasers.text.states import Encoded, Rows

# Below this, encoding the texts takes less time than hashing the text encoder for the key.
_FEWEST_CACHED = 32
_MOST_ROWS = 0.5


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
        """`algebra.ridge_edit` with these rows preserved."""
        scales = {"ridge": ridge, "erase_scale": erase_scale, "preserve_scale": preserve_scale}
        if self.few is not None:
            return closed_form.ridge_edit(erase, anchor, self.few, **scales)
        return closed_form.ridge_edit_gram(erase, anchor, torch.as_tensor(self.many), **scales)

    def spectrum(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Singular values of the rows, descending and above 0 `[r]`, and the right singular vectors `[d, r]`.

        Squares lose half of the digits: of a Gram matrix, a value below 1e-7 of the largest counts as 0.
        """
        if self.few is not None:
            _, values, right = torch.linalg.svd(self.few.double(), full_matrices=False)
            directions, least = right.T, 1e-13
        else:
            squares, vectors = torch.linalg.eigh(torch.as_tensor(self.many).double())
            values, directions, least = squares.clamp(min=0).sqrt().flip(0), vectors.flip(1), 1e-7
        rank = int((values > least * values.max()).sum()) if len(values) else 0
        return values[:rank], directions[:, :rank].contiguous()

    def covariance(self) -> torch.Tensor:
        """P'P / m `[d, d]`, zeros when nothing is preserved."""
        total = closed_form.gram(self.few) if self.few is not None else self.many
        return torch.as_tensor(total) / max(1, self.count)


def preserved_rows(
    reader: Reader,
    groups: Sequence[Group],
    texts: Sequence[Prompt],
    widths: Sequence[int],
    *,
    cache: bool,
    most: float = _MOST_ROWS,
) -> list[Preserved]:
    """What must not move in each group of ports: the rows of the preserved texts, and what stands for missing tokens.

    Large sets come from the disk cache when text encoders and what lies before the ports were seen before. Encoders
    that are quantised or offloaded have no fingerprint, and the weights of those with adapters or hooks do not say what
    they give: that is not cached.

    Args:
        reader: Its policy says which rows are preserved.
        groups: Groups of ports.
        texts: Distinct texts, maybe none.
        widths: d of each group.
        cache: Use the disk cache.
        most: Up to this share of d rows are kept themselves.
    """
    if not texts:
        return [Preserved(torch.zeros(0, width, dtype=torch.float64), None, 0, 0) for width in widths]

    def encode() -> dict[str, torch.Tensor]:
        return _accumulate(reader, groups, texts, widths, most)

    modules = [encoder for _, _, encoder in text_parts(reader.pipe)] + [
        step for group in groups for step in group.through
    ]
    known = all(can_hash(module) and is_bare(module) for module in modules)
    if not cache or not known or len(texts) < _FEWEST_CACHED:
        totals = encode()
    else:
        skip, own = reader.clip_skip, () if most == _MOST_ROWS else (most,)
        ways = [[group.name, *(module_hash(module) for module in group.through)] for group in groups]
        totals = cached(
            "preserve",
            (_encoders_key(reader.pipe), tuple(texts), reader.policy, reader.max_length, ways, skip, *own),
            encode,
        )
    return [
        Preserved(totals.get(f"{i}/rows"), totals.get(f"{i}/gram"), int(totals[f"{i}/count"]), len(texts))
        for i in range(len(groups))
    ]


def _accumulate(
    reader: Reader, groups: Sequence[Group], texts: Sequence[Prompt], widths: Sequence[int], most: float
) -> dict[str, torch.Tensor]:
    """Preserved rows of each group, or their Gram matrix where they are more than a share `most` of d, in chunks."""
    chunk = 4096 if reader.policy == "last" else 128
    devices = [group.ports[0].module.weight.device for group in groups]
    totals = [_Total(width, int(most * width), device) for width, device in zip(widths, devices, strict=True)]
    for start in range(0, len(texts), chunk):
        encoded = reader.encode(texts[start : start + chunk]).values()
        for group, total in zip(groups, totals, strict=True):
            total.add(torch.cat([group.read(states_for(group, item, reader.policy)) for item in encoded]))
    for group, total in zip(groups, totals, strict=True):
        if group.padding is not None:
            total.add(group.padding)
    return {f"{i}/{name}": tensor for i, total in enumerate(totals) for name, tensor in total.tensors().items()}


def states_for(group: Group, encoded: Encoded, policy: Rows) -> torch.Tensor:
    """The states `[n, d]` of one prompt that a group of ports reads, before what they pass on the way."""
    return torch.as_tensor(encoded.pooled)[None] if group.kind == "pooled" else encoded.rows(policy)


class _Total:
    """Rows `[m, d]` while they are at most `most`, then their Gram matrix `[d, d]`; in float64 where the ports are."""

    def __init__(self, width: int, most: int, device: torch.device) -> None:
        # One sort of accelerator has no float64.
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.rows: list[torch.Tensor] = []
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=self.device)
        self.count, self.most = 0, most

    def add(self, rows: torch.Tensor) -> None:
        self.rows.append(rows.to(self.device, torch.float64))
        self.count += len(rows)
        if self.count > self.most:
            self.gram += closed_form.gram(torch.cat(self.rows))
            self.rows = []

    def tensors(self) -> dict[str, torch.Tensor]:
        many = self.count > self.most
        tensors = {"gram": self.gram} if many else {"rows": torch.cat(self.rows)}
        return {"count": torch.tensor(self.count), **{name: tensor.cpu() for name, tensor in tensors.items()}}


def _encoders_key(pipe: Any) -> list[str]:
    parts = []
    for _, tokenizer, model in text_parts(pipe):
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one
        backend = getattr(tokenizer, "backend_tokenizer", None)
        words = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
        limits = f"{tokenizer.model_max_length} {tokenizer.pad_token_id} {type(pipe).__name__}"
        # Fingerprints are the same in half precision, what the encoder gives is not.
        parts += [module_hash(model), _settings(model), hashlib.sha256(words.encode()).hexdigest(), limits]
    return parts


def _settings(model: Any) -> str:
    """What a text encoder does beside its weights; where it was loaded from does not count."""
    config = model.config.to_dict() if hasattr(model, "config") else {}
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "dtype", "architectures")}
    settings = json.dumps(kept, sort_keys=True, default=repr)
    return f"{type(model).__name__} {getattr(model, 'dtype', None)} {model.training} {settings}"
