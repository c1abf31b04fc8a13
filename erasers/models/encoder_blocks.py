"""The blocks of a text encoder, by the paths of its modules: CLIP, T5 and language models."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from torch import nn

_CLIP = {"CLIPTextModel", "CLIPTextModelWithProjection"}
_BLOCK = re.compile(r"(?P<stem>(?:\w+\.)*?(?:layers|encoder\.(?:block|layer)))\.(?P<number>\d+)(?:\.(?P<inner>.+))?")
_ATTENTION = re.compile(r"(?:^|\.)(?:self_attn|SelfAttention)\.\w+$")
_FEED_FORWARD = re.compile(r"(?:^|\.)(?:mlp|DenseReluDense)\.\w+$")
# Parts of models of language and pictures that read pictures.
_VISION = re.compile(r"(?:^|\.)vis(?:ion|ual)")
_BEHIND = re.compile(r"(?:^|\.)(?:final_layer_norm|norm|text_projection)$")


class InBlock(NamedTuple):
    """Where in a text encoder a module lies.

    Args:
        stem: Path of the list of blocks.
        number: Of the block, from 0.
        inner: Path inside of it; "" for the block itself.
    """

    stem: str
    number: int
    inner: str

    @property
    def part(self) -> Literal["attention", "feed-forward"] | None:
        """Whether it is a layer of attention to other tokens, or of the feed-forward part."""
        if _ATTENTION.search(self.inner):
            return "attention"
        return "feed-forward" if _FEED_FORWARD.search(self.inner) else None


def in_block(path: str) -> InBlock | None:
    """Which block a module lies in, by its path in the text encoder; None outside of blocks."""
    match = None if _VISION.search(path) else _BLOCK.fullmatch(path)
    return InBlock(match["stem"], int(match["number"]), match["inner"] or "") if match else None


def is_behind(path: str) -> bool:
    """Whether a module acts on what the last block returns: the final norm, or the projection of the pooled vector."""
    return in_block(path) is None and not _VISION.search(path) and bool(_BEHIND.search(path))


def blocks_of(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, block) of a text encoder, in order; adapters and compiled modules have no say in the paths."""
    blocks = []
    for path, module in encoder.named_modules():
        plain = plain_path(path)
        place = in_block(plain)
        if place is not None and not place.inner and not path.endswith("_orig_mod"):
            blocks.append((plain, module))
    return blocks


def plain_path(path: str) -> str:
    """A module's path without what adapters and `torch.compile` put in between."""
    return ".".join(step for step in path.split(".") if step not in ("base_layer", "_orig_mod"))


def is_clip(encoder: Any) -> bool:
    """Whether a text encoder is CLIP's."""
    model = getattr(encoder, "_orig_mod", encoder)
    return bool(_CLIP & {cls.__name__ for cls in type(model).__mro__})
