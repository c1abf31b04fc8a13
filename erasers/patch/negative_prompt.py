"""A hook that guides away from a prompt where the pipeline guides away from none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.patch.denoiser_text import Text, WholeTextCall, check_whole_text
from erasers.patch.hooks import Hook, precise

_NEAR = 0.1
"""Share of the way from the empty prompt to the negative one within which text counts as empty: rounding is far below,
and every other prompt far above."""


@dataclass(frozen=True, eq=False)
class NegativePrompt(Hook):
    """What a denoiser reads of the empty prompt, where it is guided away from that, becomes a negative prompt: see
    `guided_away`.

    It runs on the denoiser itself. Parts: empty `[T, d]` and negative `[T, d]`; where the denoiser reads pooled
    vectors, pooled `[p]`, which goes with the negative prompt.
    """

    kind = "negative_prompt"

    def __post_init__(self) -> None:
        sizes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        empty = sizes.get("empty", ())
        wanted = {"empty": empty, "negative": empty} | {name: sizes[name] for name in {"pooled"} & set(sizes)}
        if sizes != wanted or len(empty) != 2 or 0 in empty or len(sizes.get("pooled", (1,))) != 1:
            raise PatchError(
                f"expected the parts empty [T, d] and negative [T, d], and at most pooled [p], of {self.kind}, got "
                f"{sizes}"
            )
        if self.path:
            raise PatchError(f"expected {self.kind} on a denoiser, got one on {self.target}")

    @property
    def widths(self) -> tuple[int, int | None]:
        """Those of states and of pooled vectors."""
        return self.parts["empty"].shape[1], self.parts["pooled"].shape[0] if "pooled" in self.parts else None

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        check_whole_text(self, module, *self.widths)

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        call = _NegativePrompt(self, strength, module, *self.widths)
        return [module.register_forward_pre_hook(call, with_kwargs=True)]


class _NegativePrompt(WholeTextCall):
    def changed(self, text: Text) -> Text:
        states = guided_away(text.states, self.parts, self.strength)
        if text.pooled is None:
            return Text(states)
        changed = (states != text.states).flatten(1).any(dim=1)[:, None]
        pooled, cast = precise(text.pooled, self.parts)
        # At strength 1 the negative prompt's own, bit for bit.
        own = cast["pooled"] if self.strength == 1 else pooled + self.strength * (cast["pooled"] - pooled)
        return Text(states, torch.where(changed, own.to(text.pooled.dtype), text.pooled))


def guided_away(rows: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float) -> torch.Tensor:
    """Text `[2 n, T, d]` with e + s (m - e) in the place of the empty prompt e, m being the negative one.

    Pipelines that guide by asking twice put what they guide away from first and the n prompts behind it. A row of the
    first half is replaced if it is the empty prompt and its prompt, in the second half, is another: so a negative
    prompt of the user's own stays, and so does a picture without a prompt or without guidance, bit for bit.

    Args:
        rows: The text of a call.
        parts: Those of a `NegativePrompt`, on the device of the text.
        strength: s.

    Returns:
        Text of the same size and dtype; computed in float32 or float64.
    """
    if strength == 0 or len(rows) % 2 or rows.shape[1] != len(parts["empty"]):
        return rows
    x, cast = precise(rows, parts)
    step = cast["negative"] - cast["empty"]
    is_empty = (x - cast["empty"]).flatten(1).norm(dim=1) < _NEAR * step.norm()
    first, second = is_empty.chunk(2)
    replaced = torch.cat([first & ~second, torch.zeros_like(second)])
    away = cast["negative"] if strength == 1 else cast["empty"] + strength * step
    return torch.where(replaced[:, None, None], away.to(rows.dtype), rows)
