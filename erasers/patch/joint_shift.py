"""A hook that moves both things that a joint denoiser reads of a prompt: its tokens and its pooled vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.patch.denoiser_text import Text, WholeTextCall, check_whole_text
from erasers.patch.hooks import Hook, precise

_SHIFT, _GATE = {"states", "pooled"}, {"probe", "gate"}


@dataclass(frozen=True, eq=False)
class JointShift(Hook):
    """What a denoiser reads of prompts is moved by fixed steps, one for each of m concepts: see `shifted`.

    It runs on the denoiser itself. Parts: states `[m, T, d]`, pooled `[m, p]`; probe `[m, p]` and gate `[m]` where only
    prompts that show a concept are moved.
    """

    kind = "joint_shift"

    def __post_init__(self) -> None:
        shapes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        states, pooled = shapes.get("states", ()), shapes.get("pooled", ())
        wanted = {"states": states, "pooled": pooled}
        wanted |= {"probe": pooled, "gate": pooled[:1]} if _GATE & set(shapes) else {}
        if shapes != wanted or len(states) != 3 or len(pooled) != 2 or states[0] != pooled[0] or 0 in states + pooled:
            raise PatchError(
                f"expected the parts states [m, T, d] and pooled [m, p] of {self.kind}, and probe [m, p] and gate [m] "
                f"or neither, got {shapes}"
            )
        if self.path:
            raise PatchError(f"expected {self.kind} on a denoiser, got one on {self.target}")

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        check_whole_text(self, module, self.parts["states"].shape[-1], self.parts["pooled"].shape[-1])

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        widths = self.parts["states"].shape[-1], self.parts["pooled"].shape[-1]
        call = _JointShift(self, strength, module, *widths)
        return [module.register_forward_pre_hook(call, with_kwargs=True)]


class _JointShift(WholeTextCall):
    def changed(self, text: Text) -> Text:
        return Text(*shifted(text.states, text.pooled, self.parts, self.strength))  # type: ignore[arg-type]


def shifted(
    states: torch.Tensor, pooled: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + s d_x, y + s d_y) of tokens x and pooled vectors y, in the prompts that show a concept; linear in s.

    A prompt shows a concept where <probe, y> > gate, or always where there is no gate; the others stay as they are, bit
    for bit. Of a prompt with several concepts all steps count. Tokens behind the T of the hook are not moved.

    Attacks differentiate through the gate as well, by a straight-through estimator (Bengio et al., arXiv 1308.3432):
    backwards the gate is <probe, y> in units of itself, so that a step can shut it.

    Args:
        states: x `[n, tokens, d]`.
        pooled: y `[n, p]`.
        parts: Those of a `JointShift`, on the device of the text.
        strength: s.

    Returns:
        Text of the same shapes and dtypes; computed in float32 or float64.
    """
    if strength == 0:
        return states, pooled
    x, cast = precise(states, parts)
    y = pooled.to(x.dtype)
    shown = torch.ones(len(y), len(cast["pooled"]), dtype=x.dtype, device=x.device)
    if "gate" in cast:
        score = y @ cast["probe"].T
        shown = (score > cast["gate"]).to(x.dtype)
        shown = shown + (score - score.detach()) / cast["gate"].abs().clamp(min=1e-6)
    step = functional.pad(cast["states"], (0, 0, 0, max(0, x.shape[1] - cast["states"].shape[1])))[:, : x.shape[1]]
    moved = shown.detach().any(dim=1)
    new = (x + strength * torch.einsum("nm,mtd->ntd", shown, step)).to(states.dtype)
    vector = (y + strength * shown @ cast["pooled"]).to(pooled.dtype)
    if not new.requires_grad and not vector.requires_grad:
        # Adding a shift of zero would already change the sign of a zero.
        return torch.where(moved[:, None, None], new, states), torch.where(moved[:, None], vector, pooled)
    return new, vector
