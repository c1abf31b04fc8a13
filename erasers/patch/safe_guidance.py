"""A hook that guides pictures away from a concept, by asking the denoiser a third time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.patch.denoiser_text import POOLED, STATES, arguments, check_whole_text
from erasers.patch.hooks import Hook, on_device

_LATENTS, _TIME, _ADDED = ("sample", "hidden_states"), "timestep", "added_cond_kwargs"


@dataclass(frozen=True, eq=False)
class SafeGuidance(Hook):
    """What a denoiser says of prompts, where it is guided by asking twice, loses what draws it to a concept: see `pull`
    and `momentum`.

    It runs on the denoiser itself. Parts: states `[T, d]` of the concept's text, pooled `[p]` where the denoiser reads
    pooled vectors; first `[1]`, the time from which on it acts; scale, threshold, keep and pace `[1]`.
    """

    kind = "safe_guidance"

    def __post_init__(self) -> None:
        sizes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        states, pooled = sizes.get("states", ()), sizes.get("pooled", ())
        wanted = {"states": states} | dict.fromkeys(("first", "scale", "threshold", "keep", "pace"), (1,))
        wanted |= {"pooled": pooled} if "pooled" in sizes else {}
        if sizes != wanted or len(states) != 2 or len(pooled) > 1 or 0 in states + pooled:
            raise PatchError(
                "expected the parts states [T, d], first, scale, threshold, keep and pace [1], and at most pooled [p], "
                f"of {self.kind}, got {sizes}"
            )
        if self.path:
            raise PatchError(f"expected {self.kind} on a denoiser, got one on {self.target}")

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        pooled = self.parts["pooled"].shape[0] if "pooled" in self.parts else None
        check_whole_text(self, module, self.parts["states"].shape[1], pooled)
        names = arguments(module)
        if _TIME not in names or not {*_LATENTS} & {*names}:
            raise PatchError(f"expected {self.target} as a denoiser of latents, got {type(module).__name__}")

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        return [module.register_forward_hook(_SafeGuidance(self, strength, module), with_kwargs=True)]


class _SafeGuidance:
    """Safe guidance as torch calls it. What it remembers of a picture's way is forgotten where another way begins."""

    def __init__(self, hook: SafeGuidance, strength: float, module: nn.Module) -> None:
        self.parts, self.strength, self.names = dict(hook.parts), strength, arguments(module)
        self.start, self.time, self.pace = float("inf"), float("inf"), torch.zeros(0)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = dict(zip(self.names, args, strict=False)) | kwargs
        latents = next(given[name] for name in _LATENTS if name in given)
        if self.strength == 0 or not _is_guided(latents, given.get(STATES)):
            return output
        self.parts = on_device(self.parts, latents.device)
        said = output[0]
        away, asked = said.chunk(2)
        concept = module.forward(**self._asking(given, len(away)))[0]
        own = pull(asked.float(), away.float(), concept.float(), self.parts)
        time = float(torch.as_tensor(given[_TIME]).flatten()[0])
        # Samplers of second order ask twice at one time, but not at the first.
        if time > self.time or time == self.start or self.pace.shape != own.shape or self.pace.device != own.device:
            self.start, self.pace = time, torch.zeros_like(own)
        self.time = time
        whole, self.pace = momentum(own, self.pace, self.parts)
        if time > float(self.parts["first"]):
            return output
        changed = torch.cat([away, (asked.float() - self.strength * whole).to(said.dtype)])
        if isinstance(output, tuple):
            return (changed, *output[1:])
        return type(output)(changed, *list(output.values())[1:])

    def _asking(self, given: Mapping[str, Any], count: int) -> dict[str, Any]:
        """The call for the concept: what was given with the prompts, with its text in the place of theirs."""
        call = {name: _behind(value, count) for name, value in given.items()}
        states = self.parts["states"]
        call[STATES] = states.to(given[STATES].dtype).expand(count, *states.shape)
        if "pooled" in self.parts:
            where, name = (call, POOLED) if POOLED in call else (call[_ADDED], "text_embeds")
            pooled = self.parts["pooled"].to(where[name].dtype)
            where[name] = pooled.expand(count, *pooled.shape)
        return call


def _is_guided(latents: torch.Tensor, states: Any) -> bool:
    """Whether the first half of a call is the second one's latents with another text."""
    if len(latents) % 2 or not isinstance(states, torch.Tensor):
        return False
    return torch.equal(*latents.chunk(2)) and not torch.equal(*states.chunk(2))


def _behind(value: Any, count: int) -> Any:
    """The second half of what belongs to 2 x count rows, also inside of lists and dicts."""
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == 2 * count:
        return value[count:]
    if isinstance(value, dict):
        return {name: _behind(own, count) for name, own in value.items()}
    return type(value)(_behind(own, count) for own in value) if isinstance(value, (list, tuple)) else value


def pull(
    asked: torch.Tensor, away: torch.Tensor, concept: torch.Tensor, parts: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """gamma = mu (e_S - e), mu = min(1, scale |e_p - e_S|) where e_p - e_S < threshold, else 0 (arXiv 2211.05105, eq. 6
    to 8, with the smaller of both as the authors' code has it).

    Args:
        asked: e_p, with the prompt `[n, ...]`.
        away: e, with what is guided away from.
        concept: e_S, with the concept.
        parts: Those of a `SafeGuidance`.
    """
    apart = asked - concept
    size = (apart.abs() * parts["scale"]).clamp(max=1)
    return torch.where(apart < parts["threshold"], size, torch.zeros_like(size)) * (concept - away)


def momentum(
    own: torch.Tensor, pace: torch.Tensor, parts: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gamma + keep nu, the next nu = pace nu + (1 - pace) (gamma + keep nu)); eq. 9 and 10."""
    whole = own + parts["keep"] * pace
    return whole, parts["pace"] * pace + (1 - parts["pace"]) * whole
