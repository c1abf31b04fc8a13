"""Blocks of denoisers that return rows of tokens: which of what they return is of the picture and which of the text."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

Half = Literal["picture", "text"]
"""Whose tokens rows `[n, tokens, d]` are."""

_TEXT_FIRST = {"text": 0, "picture": 1}
_BLOCKS: dict[str, dict[str, int]] = {
    "JointTransformerBlock": _TEXT_FIRST,
    "FluxTransformerBlock": _TEXT_FIRST,
    "FluxSingleTransformerBlock": _TEXT_FIRST,
    "Flux2TransformerBlock": _TEXT_FIRST,
    "ChromaTransformerBlock": _TEXT_FIRST,
    "QwenImageTransformerBlock": _TEXT_FIRST,
    "AuraFlowJointTransformerBlock": _TEXT_FIRST,
    "BasicTransformerBlock": {"picture": 0},
    "SanaTransformerBlock": {"picture": 0},
}
"""Class of a block -> where in what it returns the tokens of each are."""


def halves_of(block: Any) -> dict[str, int]:
    """Where in what a block returns the tokens of the picture and of the text are; empty for other modules."""
    names = [cls.__name__ for cls in type(getattr(block, "_orig_mod", block)).__mro__]
    places = next((_BLOCKS[name] for name in names if name in _BLOCKS), {})
    # The last block of Stable Diffusion 3 is done with the text.
    done = getattr(block, "context_pre_only", False)
    return {half: place for half, place in places.items() if not (done and half == "text")}


def width_of(block: nn.Module) -> int | None:
    """d of the rows that such a block reads and returns; None where it has no attention to tell."""
    queries = (layer for path, layer in block.named_modules() if path.rpartition(".")[2] == "to_q")
    width = next((getattr(layer, "in_features", None) for layer in queries), None)
    return int(width) if width is not None else None


def last_block(denoiser: nn.Module) -> nn.Module | None:
    """The block that is called last, whose text nothing reads."""
    lists = [child for child in denoiser.children() if isinstance(child, nn.ModuleList) and len(child)]
    return lists[-1][-1] if lists else None


def blocks_with_rows(denoiser: nn.Module) -> list[str]:
    """Paths of such blocks in a denoiser, in order."""
    return [path for path, module in denoiser.named_modules() if halves_of(module)]
