"""A hook that takes the meaning of concepts out of prompts that have it, in proportion to how sure that is."""

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

_RIDGE = 1e-3
"""Share of a direction's length that may go amiss, so that directions of synonyms, nearly the same, can be solved."""


@dataclass(frozen=True, eq=False)
class SemanticGate(Hook):
    """Text of prompts that mean one of k terms loses what the term adds to the empty prompt: see `operated`.

    It runs on the denoiser itself. Parts: away `[k, T, d]`; weight `[k, T]`, of the positions in a mean; gate `[k]`;
    slope `[1]`; centre `[T, d]` where prompts are compared less that; pooled `[k, p]` where the denoiser reads pooled
    vectors.
    """

    kind = "semantic_gate"

    def __post_init__(self) -> None:
        shapes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        away, pooled = shapes.get("away", ()), shapes.get("pooled", ())
        wanted = {"away": away, "weight": away[:2], "gate": away[:1], "slope": (1,)}
        wanted |= {"centre": away[1:]} if "centre" in shapes else {}
        wanted |= {"pooled": (*away[:1], *pooled[1:])} if "pooled" in shapes else {}
        if shapes != wanted or len(away) != 3 or len(pooled) not in (0, 2) or 0 in away + pooled:
            raise PatchError(
                "expected the parts away [k, T, d], weight [k, T], gate [k] and slope [1], and at most centre [T, d] "
                f"and pooled [k, p], of {self.kind}, got {shapes}"
            )
        if self.parts["slope"] <= 0:
            raise PatchError(f"expected a slope above 0 of {self.kind}, got {float(self.parts['slope'])}")
        if self.path:
            raise PatchError(f"expected {self.kind} on a denoiser, got one on {self.target}")

    @property
    def widths(self) -> tuple[int, int | None]:
        """Those of states and of pooled vectors."""
        return self.parts["away"].shape[2], self.parts["pooled"].shape[1] if "pooled" in self.parts else None

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        check_whole_text(self, module, *self.widths)

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        call = _SemanticGate(self, strength, module, *self.widths)
        return [module.register_forward_pre_hook(call, with_kwargs=True)]


class _SemanticGate(WholeTextCall):
    def changed(self, text: Text) -> Text:
        return operated(text, self.parts, self.strength)


def likeness(states: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """s `[n, k]`: the weighted mean, over positions, of cos(away_k, x - centre); states x and parts in one dtype.

    Positions at which either is zero count as 0.
    """
    count = min(states.shape[1], parts["away"].shape[1])
    x, away = states[:, :count], parts["away"][:, :count]
    x = x - parts["centre"][:count] if "centre" in parts else x
    products = torch.einsum("ntd,ktd->nkt", x, away)
    return (products / (_norm(x)[:, None] * _norm(away)) * parts["weight"][:, :count]).sum(dim=-1)


def _norm(rows: torch.Tensor) -> torch.Tensor:
    # The square root has no gradient at 0.
    return rows.pow(2).sum(dim=-1).clamp(min=1e-24).sqrt()


def shares(away: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """w `[n, k]`, 0 outside of the chosen terms: sum_k w_k away_k is the shortest step that has of each chosen
    direction what that itself has, so that what several directions share is taken once.

    Args:
        away: `[k, ...]`.
        chosen: Boolean `[n, k]`.
    """
    rows = away.flatten(1)
    gram = rows @ rows.T
    length = gram.diagonal()
    system = gram + torch.diag(_RIDGE * length)
    pairs = chosen[:, :, None] & chosen[:, None, :]
    system = torch.where(pairs, system, torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    aims = torch.where(chosen, (1 + _RIDGE) * length, torch.zeros_like(length))
    return torch.as_tensor(torch.linalg.solve(system, aims[..., None])[..., 0])


def operated(text: Text, parts: Mapping[str, torch.Tensor], strength: float) -> Text:
    """x - s rho sum_k w_k away_k, and the same of pooled vectors, in prompts with a term; others bit for bit as they
    are.

    rho_k = sigmoid((likeness_k - gate_k) / slope); terms with rho_k > 1/2 are chosen, and rho is the largest of these
    (arXiv 2510.22851). Linear in s and in rho.

    Attacks differentiate through the gate as well, by a straight-through estimator (Bengio et al., arXiv 1308.3432):
    backwards the sigmoid is the line that touches it where rho is 1/2, so that a step can shut it.

    Args:
        text: x `[n, tokens, d]` and `[n, p]`; tokens behind the T of the hook stay.
        parts: Those of a `SemanticGate`, on the device of the text.
        strength: s.

    Returns:
        Text of the same shapes and dtypes; computed in float32 or float64.
    """
    if strength == 0:
        return text
    x, cast = precise(text.states, parts)
    excess = (likeness(x, cast) - cast["gate"]) / cast["slope"]
    chosen = excess.detach() > 0
    excess = torch.where(chosen, excess, torch.zeros_like(excess))
    rho = torch.sigmoid(excess).detach() + (excess - excess.detach()) / 4
    weights = strength * rho.amax(dim=1, keepdim=True) * shares(cast["away"], chosen)
    shown = chosen.any(dim=1)
    away = functional.pad(cast["away"], (0, 0, 0, max(0, x.shape[1] - cast["away"].shape[1])))[:, : x.shape[1]]
    states = (x - torch.einsum("nk,ktd->ntd", weights, away)).to(text.states.dtype)
    # Subtracting a step of zero would already change the sign of a zero.
    states = torch.where(shown[:, None, None], states, text.states)
    if text.pooled is None:
        return Text(states)
    pooled = (text.pooled.to(x.dtype) - weights @ cast["pooled"]).to(text.pooled.dtype)
    return Text(states, torch.where(shown[:, None], pooled, text.pooled))
