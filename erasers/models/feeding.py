"""What feeds a denoiser: which text encoders it reads, what of them, and what an edit leaves open."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from erasers.models.encoder_blocks import blocks_of, is_clip
from erasers.models.families import Family
from erasers.models.ports import Kind, find_family


@dataclass(frozen=True)
class Feed:
    """What a denoiser reads of one text encoder.

    Args:
        tokens: Blocks that have a say in the states of every token; None: it reads no states.
        pooled: It reads a vector that summarises the prompt, in which all blocks have a say.
        depth: Blocks in all.
        normed: What lies behind the last block has a say, too: the final norm, and a projection.
    """

    tokens: int | None
    pooled: bool
    depth: int
    normed: bool

    @property
    def blocks(self) -> int:
        """How many first blocks have a say in anything."""
        return self.depth if self.pooled else self.tokens or 0

    @property
    def upstream(self) -> int:
        """How many first blocks are read token by token: in the states, or by a later block for the summary."""
        return self.depth - 1 if self.tokens is None else self.tokens

    def __str__(self) -> str:
        whats = ["the states of its tokens"] * (self.tokens is not None) + ["its summary of the prompt"] * self.pooled
        return " and ".join(whats)


def feeds_of(pipe: Any, clip_skip: int | None = None) -> dict[str, Feed]:
    """How the denoiser reads each text encoder that a pipeline has, by the name of the component.

    Args:
        pipe: A pipeline of a family in the table.
        clip_skip: Last blocks of CLIP that are left out beside those that the pipeline always leaves out.

    Raises:
        UnsupportedPipeline: The message lists the supported ones.
        ValueError: As `find_family` raises.
    """
    family, _ = find_family(pipe)
    names = [name for source in family.sources for name in source.encoders]
    names += family.pooled.encoders if family.pooled else ()
    feeds = {}
    for name in sorted(set(names)):
        encoder = getattr(pipe, name, None)
        encoder = getattr(encoder, "_orig_mod", encoder)
        if isinstance(encoder, nn.Module):
            skipped = clip_skip or 0 if is_clip(encoder) else 0
            feeds[name] = _feed(pipe, family, name, len(blocks_of(encoder)), skipped)
    return feeds


def _feed(pipe: Any, family: Family, name: str, depth: int, clip_skip: int) -> Feed:
    pooled = family.pooled is not None and family.pooled.output is not None and name in family.pooled.encoders
    pooled = pooled and all(hasattr(pipe, other) for other in family.pooled.encoders)  # type: ignore[union-attr]
    for source in family.sources:
        if name in source.encoders:
            left_out = source.left_out if all(hasattr(pipe, other) for other in source.encoders) else 0
            return Feed(depth - left_out - clip_skip, pooled, depth, pooled or not left_out)
    return Feed(None, pooled, depth, pooled)


def warn_of_missed_encoders(pipe: Any, edited: Collection[str], how: str = "", *, stacklevel: int = 3) -> None:
    """Warn of text encoders that feed the denoiser and are not edited, where the edit is in text encoders alone.

    Args:
        pipe: A pipeline of a family in the table.
        edited: Names of the components that are edited.
        how: How to edit the others, too, as the end of a sentence.
        stacklevel: As for `warnings.warn`.
    """
    feeds = feeds_of(pipe)
    if not set(edited) <= set(feeds):
        return
    for name, feed in feeds.items():
        if name not in edited:
            _warn(f"pipe.{name} is not edited, and the denoiser reads {feed}", how, stacklevel + 1)


def warn_of_missed_ports(pipe: Any, kinds: Sequence[Kind]) -> None:
    """Warn of ports that are usually edited and are not among these kinds, with the text encoders that feed them.

    Editing what joint blocks read stands for editing what they are made of.
    """
    family, _ = find_family(pipe)
    if not {"text", "joint"} & set(kinds):
        names = [name for source in family.sources for name in source.encoders]
        _warn_of_ports(pipe, "text", names, "the states of its tokens")
    if family.kind != "cross" and family.pooled is not None and "pooled" not in kinds:
        _warn_of_ports(pipe, "pooled", family.pooled.encoders, "its summary of the prompt")


def _warn_of_ports(pipe: Any, kind: Kind, encoders: Sequence[str], what: str) -> None:
    names = " and ".join(f"pipe.{name}" for name in encoders if getattr(pipe, name, None) is not None)
    said = f"the {kind} ports are not edited, through which the denoiser reads {what} from {names}"
    _warn(said, f"add {kind} to ports", 5)


def _warn(said: str, how: str, stacklevel: int) -> None:
    way_out = f"; {how}" if how else ""
    warnings.warn(f"{said}; what is erased may still come through it{way_out}", UserWarning, stacklevel=stacklevel)
