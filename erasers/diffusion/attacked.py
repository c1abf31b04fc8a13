"""Which text encoders soft tokens are in, and words that each of them reads as one token.

A soft token has an embedding for every one of these encoders. They lie side by side in one vector, those of the first
encoder first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from erasers.diffusion.adaptors.adaptor import module_of
from erasers.diffusion.adaptors.table import encoders_of
from erasers.diffusion.tokens import decode, token_table, tokenizer_of, whole_words
from erasers.models.encoder_blocks import is_clip


def attacked_encoders(pipe: Any, encoders: Sequence[str] = ()) -> tuple[str, ...]:
    """The text encoders that soft tokens are in, in the order of their embeddings.

    Args:
        pipe: A pipeline of a family in `erasers.diffusion.adaptors.table`.
        encoders: Their names; empty: all CLIP encoders, or the first encoder where none is of CLIP.

    Raises:
        ValueError: A name that the denoiser reads no encoder of.
    """
    present = tuple(encoders_of(pipe))
    unknown = [name for name in encoders if name not in present]
    if unknown:
        raise ValueError(f"expected encoders among {', '.join(present)}, got {', '.join(unknown)}")
    clip = [name for name in present if is_clip(module_of(pipe, name))]
    return tuple(name for name in present if name in (encoders or clip or present[:1]))


def widths(pipe: Any, encoders: Sequence[str]) -> list[int]:
    """How many values each of these encoders has in a soft token."""
    return [int(module_of(pipe, name).get_input_embeddings().weight.shape[1]) for name in encoders]


@dataclass(frozen=True)
class Vocabulary:
    """Words that can be typed, each one token of every encoder.

    Args:
        ids: Encoder -> token ids `[n]` of the words, as they stand behind another word.
    """

    ids: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.ids.values())))

    def parts(self, pipe: Any, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encoder -> its embeddings `[k, d]` of words `[k]` as they are now, in float32."""
        tables = {name: token_table(pipe, name) for name in self.ids}
        return {name: table[self.ids[name][rows].to(table.device)].float() for name, table in tables.items()}

    def table(self, pipe: Any) -> torch.Tensor:
        """All words as soft tokens `[n, d of the first encoder + d of the second + ...]`, in float32."""
        return side_by_side(self.parts(pipe, torch.arange(len(self))))

    def without(self, left_out: torch.Tensor) -> Vocabulary:
        """The other words; `left_out` `[n]` says of each whether it goes."""
        return Vocabulary({name: ids[~left_out] for name, ids in self.ids.items()})

    def texts(self, pipe: Any) -> list[str]:
        """All words, each as it is typed."""
        return [self.text(pipe, row) for row in torch.arange(len(self))[:, None]]

    def text(self, pipe: Any, rows: torch.Tensor) -> str:
        """Words `[k]`, as they are typed."""
        name, ids = next(iter(self.ids.items()))
        return decode(tokenizer_of(pipe, name), ids[rows.cpu()])


def side_by_side(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Soft tokens `[..., d]` of their embeddings in each encoder, where those of the first are."""
    first, *others = parts.values()
    return torch.cat([first, *(own.to(first.device) for own in others)], dim=-1)


def vocabulary(pipe: Any, encoders: Sequence[str]) -> Vocabulary:
    """All words that each of these encoders reads as one token.

    Raises:
        ValueError: There is none.
    """
    first, *others = encoders
    tokenizer = tokenizer_of(pipe, first)
    own = whole_words(tokenizer)
    texts = [decode(tokenizer, token[None]) for token in own]
    behind = [read or int(token) for read, token in zip(behind_words(tokenizer, texts), own, strict=True)]
    columns = [behind, *(behind_words(tokenizer_of(pipe, name), texts) for name in others)]
    rows = [row for row in zip(*columns, strict=True) if None not in row]
    if not rows:
        raise ValueError(f"expected words that {', '.join(encoders)} all read as one token, got none")
    return Vocabulary(dict(zip(encoders, torch.tensor(rows).T, strict=True)))


def every_token(pipe: Any, encoders: Sequence[str]) -> Vocabulary:
    """All tokens but special ones, pieces of words included, that the tokenizers of all encoders have in common.

    Raises:
        ValueError: There is none.
    """
    tables = [_plain_tokens(tokenizer_of(pipe, name)) for name in encoders]
    common = [
        token for token in sorted(tables[0], key=tables[0].__getitem__) if all(token in table for table in tables)
    ]
    if not common:
        raise ValueError(f"expected tokens that {', '.join(encoders)} have in common, got none; search among words")
    return Vocabulary(
        {name: torch.tensor([table[token] for token in common]) for name, table in zip(encoders, tables, strict=True)}
    )


def behind_words(tokenizer: Any, texts: Sequence[str]) -> list[int | None]:
    """The token that each text is behind another word; None where it is several, or the tokenizer lacks it."""
    both = tokenizer([f"{text} {text}" for text in texts], add_special_tokens=False).input_ids
    return [ids[1] if _is_twice(tokenizer, ids, text) else None for ids, text in zip(both, texts, strict=True)]


def forms(tokenizer: Any, text: str) -> set[int]:
    """The tokens that a word is at the beginning of a text and behind another word; none where it is several."""
    ids = tokenizer(f"{text} {text}", add_special_tokens=False).input_ids
    return set(ids) if _is_twice(tokenizer, ids, text) else set()


def _plain_tokens(tokenizer: Any) -> dict[str, int]:
    special = set(tokenizer.all_special_ids)
    return {token: number for token, number in tokenizer.get_vocab().items() if number not in special}


def _is_twice(tokenizer: Any, ids: Sequence[int], text: str) -> bool:
    return len(ids) == 2 and all(decode(tokenizer, torch.tensor([token])) == text for token in ids)
