"""Sparse codes of text over directions of concepts, and the hook that takes some of these directions out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from erasers.files.tensors import PatchError
from erasers.patch.hooks import Hook, TextCall, precise, refuse_address_cache, text_argument

_ITERATIONS = 200


def elastic_net(gram: torch.Tensor, products: torch.Tensor, lasso: float, ridge: float) -> torch.Tensor:
    """argmin_w |y - D'w|^2 / 2 + lasso |w|_1 + ridge |w|^2 / 2 for many y at once, over one dictionary D.

    The signs of w are found by accelerated proximal gradient steps with restarts (Beck and Teboulle 2009; O'Donoghue
    and Candes 2015), and w is then the exact solution for these signs: (G_SS + ridge I) w_S = b_S - lasso sign(w_S).
    Its gradient is that of this solution, which attacks need; no number is read back, so that it runs on any device and
    in compiled code.

    Args:
        gram: G = D D' `[n, n]`.
        products: b = D y `[..., n]`.
        lasso: Weight of the sum of |w|, at least 0.
        ridge: Weight of the sum of squares, above 0.

    Returns:
        w `[..., n]`, exactly 0 outside of its support S.
    """
    signs = _signs(gram.detach(), products.detach(), lasso, ridge)
    active = signs != 0
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    system = torch.where(active[..., :, None] & active[..., None, :], gram + ridge * eye, eye)
    aims = torch.where(active, products - lasso * signs, torch.zeros_like(products))
    solution = torch.linalg.solve(system, aims[..., None])[..., 0]
    return torch.where(solution * signs > 0, solution, torch.zeros_like(solution))


def _signs(gram: torch.Tensor, products: torch.Tensor, lasso: float, ridge: float) -> torch.Tensor:
    """The signs of the solution, 0 where it is 0."""
    # No eigenvalue of G is above its largest row sum.
    step = 1 / (gram.abs().sum(dim=1).max() + ridge)
    last = ahead = torch.zeros_like(products)
    speed = products.new_ones(products.shape[:-1] + (1,))
    for _ in range(_ITERATIONS):
        moved = ahead - step * (ahead @ gram - products + ridge * ahead)
        now = torch.sign(moved) * (moved.abs() - step * lasso).clamp(min=0)
        back = ((ahead - now) * (now - last)).sum(dim=-1, keepdim=True) > 0
        speed = torch.where(back, torch.ones_like(speed), speed)
        faster = (1 + (1 + 4 * speed * speed).sqrt()) / 2
        ahead = now + torch.where(back, torch.zeros_like(speed), (speed - 1) / faster) * (now - last)
        last, speed = now, faster
    return torch.sign(last)


def codes(vectors: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """w `[..., n]` of (x - centre) / |x - centre| over the atoms, and |x - centre| `[..., 1]`, of x `[..., v]`.

    Args:
        vectors: x.
        parts: Those of `SparseConcepts`, in one dtype.
    """
    atoms, (lasso, ridge) = parts["atoms"], parts["penalty"]
    apart = vectors - parts["centre"]
    # Where x is the centre, w is 0; the square root has no gradient there.
    norm = apart.pow(2).sum(dim=-1, keepdim=True).clamp(min=1e-24).sqrt()
    return elastic_net(atoms @ atoms.T, apart / norm @ atoms.T, lasso, ridge), norm


def without(rows: torch.Tensor, parts: Mapping[str, torch.Tensor], strength: float) -> torch.Tensor:
    """x - s sum_k w_k |x - centre| away_k in the prompts that show a concept k; every other one as it is, bit for bit.

    The code w is over all atoms, of which the first m are the concepts. A prompt shows concept k where w_k > gate_k for
    one of its vectors, and loses it in those with w_k > floor_k. A vector is a token, or all tokens of a prompt behind
    one another: as wide as atoms are. Of wider tokens the first columns count.

    Attacks differentiate through the gate by a straight-through estimator, as through `feature_hooks.gated`.

    Args:
        rows: `[prompts, T, d]` or `[prompts, d]`.
        parts: Those of `SparseConcepts`.
        strength: s.

    Returns:
        Rows of the same shape and dtype; computed in float32 or float64.
    """
    if strength == 0:
        return rows
    x, cast = precise(rows, parts)
    vectors = _vectors(x, cast["atoms"].shape[1])
    code, norm = codes(vectors, cast)
    own = code[..., : len(cast["gate"])]
    strong = torch.where(own > cast["floor"], own * norm, torch.zeros_like(own))
    shown = (own > cast["gate"]).any(dim=1, keepdim=True)
    lost = torch.where(shown, strong, torch.zeros_like(strong)) @ cast["away"]
    changed = (shown & (strong > 0)).any(dim=-1, keepdim=True)
    edited = (x - strength * _as_rows(lost, rows)).to(rows.dtype)
    output = torch.where(changed.view(-1, *changed.shape[1 : rows.ndim]), edited, rows)
    if not output.requires_grad:
        return output
    nearest = (own / cast["gate"]).flatten(1).amax(dim=1)[:, None, None]
    pull = (nearest - nearest.detach()) * (strength * (strong @ cast["away"])).detach()
    return output - _as_rows(pull, rows).to(rows.dtype)


def _vectors(x: torch.Tensor, width: int) -> torch.Tensor:
    """Vectors `[prompts, n, width]` of rows: whole prompts where they are wider than a row, else the first columns."""
    if width > x.shape[-1]:
        return x.flatten(1)[:, None]
    return (x if x.ndim == 3 else x[:, None])[..., :width]


def _as_rows(vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Changes of vectors as changes of the rows that they are from."""
    if vectors.shape[-1] > rows.shape[-1]:
        return vectors.view(rows.shape)
    return nn.functional.pad(vectors, (0, rows.shape[-1] - vectors.shape[-1])).view(rows.shape)


@dataclass(frozen=True, eq=False)
class SparseConcepts(Hook):
    """Text that a module reads loses what sparse codes say of concepts: see `without`.

    It acts on the argument that a `PromptTransform` acts on. Parts: atoms `[n, v]`, the concepts first; centre `[v]`;
    penalty `[2]`, the weights of `elastic_net`; of the m concepts away `[m, v]`, gate `[m]` and floor `[m]`.
    """

    kind = "sparse_concepts"

    def __post_init__(self) -> None:
        shapes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        size, count = shapes.get("atoms", ()), shapes.get("gate", ())
        wanted = {"atoms": size, "centre": size[1:], "penalty": (2,), "gate": count, "floor": count}
        if shapes != wanted | {"away": (*count, *size[1:])} or len(size) != 2 or 0 in (*size, *count):
            raise PatchError(
                "expected the parts atoms [n, v], centre [v], penalty [2], away [m, v], gate and floor [m] of "
                f"{self.kind}, got {shapes}"
            )
        if count[0] > size[0] or (self.parts["penalty"] < 0).any() or self.parts["penalty"][1] == 0:
            raise PatchError(f"expected at most as many concepts as atoms, and penalties of {self.kind}, got others")
        if (self.parts["floor"] < 0).any() or (self.parts["gate"] < self.parts["floor"]).any():
            raise PatchError(f"expected 0 <= floor <= gate for every concept of {self.kind}, got something else")
        if (self.parts["gate"] == 0).any():
            raise PatchError(f"expected a gate above 0 for every concept of {self.kind}, got 0")

    def check(self, module: nn.Module) -> None:
        """See `Hook.check`."""
        text_argument(self, module)
        refuse_address_cache(self.target, module)

    def install(self, module: nn.Module, strength: float, root: nn.Module) -> list[RemovableHandle]:
        """See `Hook.install`."""
        call = _SparseConcepts(self, strength, *text_argument(self, module))
        return [module.register_forward_pre_hook(call, with_kwargs=True)]


class _SparseConcepts(TextCall):
    def wanted(self, rows: Any) -> str:
        width = self.parts["atoms"].shape[1]
        if isinstance(rows, torch.Tensor) and rows.ndim in (2, 3):
            whole = rows.ndim == 3 and rows.shape[1] * rows.shape[2] == width
            if whole or width <= rows.shape[-1]:
                return ""
        return f"[prompts, tokens, d] of {width} numbers a token or a prompt"

    def changed(self, rows: torch.Tensor) -> torch.Tensor:
        return without(rows, self.parts, self.strength)
