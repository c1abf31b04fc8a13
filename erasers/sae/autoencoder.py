"""One sparse autoencoder: TopK (Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093) and
BatchTopK (Bussmann et al., arXiv 2412.06410).

    a = ReLU(W_e (x - b_pre) + b_lat)      z = a where it is among the k largest      x^ = W_d z + b_pre

`topk` keeps the k largest of every row. `batchtopk` keeps the k largest a row over a whole batch in training, and
whatever is above one threshold afterwards, so that a code does not depend on what else is in the batch, nor a feature
on the other features.

File: safetensors with the tensors encoder `[n, d]`, decoder `[n, d]` (rows are the columns of W_d), b_pre `[d]`,
b_lat `[n]` and threshold `[1]`; the JSON of its header says which module of which model the rows come from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import nn
from torch.nn import functional

from erasers.files import tensors as patch_file
from erasers.files.tensors import PatchError

Activation = Literal["topk", "batchtopk"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
AUXILIARY_SCALE = 1 / 32
_KIND = "sae"
_TARGET = re.compile(r"[A-Za-z_]\w*(\.\w+)+(:text)?", re.ASCII)
_SHA256 = re.compile("[0-9a-f]{64}")
_TENSORS = ("encoder", "decoder", "b_pre", "b_lat", "threshold")


class Codes(NamedTuple):
    """Sparse codes of N rows: for every active feature its row, its number and its value, sorted by row."""

    rows: torch.Tensor
    features: torch.Tensor
    values: torch.Tensor
    size: int

    def dense(self, n: int) -> torch.Tensor:
        """z `[N, n]`."""
        codes = self.values.new_zeros(self.size, n)
        return codes.index_put((self.rows, self.features), self.values)


@dataclass(frozen=True)
class Quality:
    """How well an autoencoder describes rows.

    Args:
        explained_variance: 1 - |x - x^|^2 / |x - mean|^2, summed over all rows.
        l0: Mean number of active features a row.
        dead: Share of features that are active in no row.
        rows: How many rows that was measured on.
    """

    explained_variance: float
    l0: float
    dead: float
    rows: int


class SAE(nn.Module):
    """A sparse autoencoder of rows `[N, d]`.

    Args:
        d: Width of a row.
        n: Features.
        k: Active features a row.
        activation: `topk` or `batchtopk`.
        generator: Draws the directions of the features; seed 0 when None.

    Raises:
        ValueError: Sizes that do not fit each other.
    """

    threshold: torch.Tensor

    def __init__(
        self,
        d: int,
        n: int,
        k: int,
        *,
        activation: Activation = "batchtopk",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if d < 1 or not 1 <= k <= n:
            raise ValueError(f"expected d >= 1 and 1 <= k <= n, got d={d}, n={n}, k={k}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"expected an activation among {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.k, self.activation = k, activation
        generator = generator or torch.Generator().manual_seed(0)
        directions = functional.normalize(torch.randn(n, d, generator=generator), dim=1)
        self.decoder = nn.Parameter(directions)
        self.encoder = nn.Parameter(directions.clone())
        self.b_pre = nn.Parameter(torch.zeros(d))
        self.b_lat = nn.Parameter(torch.zeros(n))
        self.register_buffer("threshold", torch.zeros(1))

    @property
    def n(self) -> int:
        """Number of features."""
        return self.encoder.shape[0]

    @property
    def d(self) -> int:
        """Width of a row."""
        return self.encoder.shape[1]

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """a `[..., n]` of rows `[..., d]`, before the choice of the largest."""
        return functional.relu(functional.linear(x - self.b_pre, self.encoder, self.b_lat))

    def encode(self, x: torch.Tensor) -> Codes:
        """Codes of rows `[N, d]`, as they are used after training."""
        a = self.activations(x)
        return _largest(a, self.k) if self.activation == "topk" else _codes(a, a > self.threshold)

    def encode_batch(self, x: torch.Tensor) -> Codes:
        """Codes of rows `[N, d]`, as they are used in training."""
        a = self.activations(x)
        if self.activation == "topk":
            return _largest(a, self.k)
        least = a.detach().flatten().topk(min(self.k * len(a), a.numel())).values[-1].clamp(min=1e-12)
        return _codes(a, a >= least)

    def decode(self, codes: Codes) -> torch.Tensor:
        """x^ `[N, d]`."""
        return self._sum(codes) + self.b_pre

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x^ of rows `[N, d]`."""
        return self.decode(self.encode(x))

    def auxiliary(self, x: torch.Tensor, error: torch.Tensor, dead: torch.Tensor, k: int) -> torch.Tensor:
        """Normalised error of what the strongest dead features make of the error that is left (arXiv 2406.04093, A.2).

        Args:
            x: Rows `[N, d]`.
            error: x - x^ without gradient.
            dead: Boolean `[n]`.
            k: Features a row; at most as many as are dead count.

        Returns:
            A scalar; 0 when nothing is dead.
        """
        numbers = dead.nonzero().flatten()
        if not len(numbers):
            return x.new_zeros(())
        a = functional.relu(functional.linear(x - self.b_pre, self.encoder[numbers], self.b_lat[numbers]))
        codes = _largest(a, min(k, len(numbers)))
        guess = self._sum(codes._replace(features=numbers[codes.features]))
        return unexplained(error, guess)

    @torch.no_grad()
    def normalise(self) -> None:
        """Make every row of the decoder a unit vector."""
        self.decoder.copy_(functional.normalize(self.decoder, dim=1))

    @torch.no_grad()
    def features_apart(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        """What some features `[m]` are told and turned down by, without all others: rows of W_e, biases with b_pre in
        them, and columns of W_d."""
        encoder = self.encoder.detach()[numbers]
        bias = self.b_lat.detach()[numbers] - encoder @ self.b_pre.detach()
        return {"encoder": encoder.clone(), "bias": bias.clone(), "decoder": self.decoder.detach()[numbers].clone()}

    def keep_norms(self) -> None:
        """Take the part of the decoder's gradient away that would change the length of its rows."""
        gradient = self.decoder.grad
        if gradient is not None:
            gradient -= (gradient * self.decoder).sum(dim=1, keepdim=True) * self.decoder

    def _sum(self, codes: Codes) -> torch.Tensor:
        """W_d z, reading the rows of active features alone."""
        starts = torch.searchsorted(codes.rows, torch.arange(codes.size, device=codes.rows.device))
        return functional.embedding_bag(
            codes.features, self.decoder, starts, mode="sum", per_sample_weights=codes.values
        )


def _largest(a: torch.Tensor, k: int) -> Codes:
    values, features = a.topk(k, dim=1)
    rows = torch.arange(len(a), device=a.device)[:, None].expand_as(features)
    active = values > 0
    return Codes(rows[active], features[active], values[active], len(a))


def _codes(a: torch.Tensor, active: torch.Tensor) -> Codes:
    rows, features = active.nonzero(as_tuple=True)
    return Codes(rows, features, a[rows, features], len(a))


def unexplained(x: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
    """|x - x^|^2 / |x - mean|^2 over rows `[N, d]`."""
    spread = (x - x.mean(dim=0)).pow(2).sum()
    return (x - guess).pow(2).sum() / spread.clamp(min=1e-12)


@torch.no_grad()
def geometric_median(rows: torch.Tensor, *, steps: int = 100, tolerance: float = 1e-6) -> torch.Tensor:
    """The point `[d]` with the least sum of distances to rows `[N, d]` (Weiszfeld's algorithm), in float64."""
    x = rows.double()
    point = x.mean(dim=0)
    for _ in range(steps):
        weights = 1 / (x - point).norm(dim=1).clamp(min=1e-12)
        last, point = point, (weights[:, None] * x).sum(dim=0) / weights.sum()
        if (point - last).norm() <= tolerance * point.norm().clamp(min=1e-12):
            break
    return point.to(rows.dtype)


@torch.no_grad()
def quality(sae: SAE, batches: Iterable[torch.Tensor]) -> Quality:
    """Measure an autoencoder on batches of rows `[N, d]`.

    Raises:
        ValueError: No rows.
    """
    error, active, count = 0.0, 0, 0
    total, squares, used = torch.zeros(sae.d).double(), 0.0, torch.zeros(sae.n, dtype=torch.bool)
    for x in batches:
        codes = sae.encode(x)
        error += float((x - sae.decode(codes)).double().pow(2).sum())
        total += x.double().sum(dim=0).cpu()
        squares += float(x.double().pow(2).sum())
        active, count = active + len(codes.values), count + len(x)
        used[codes.features.cpu()] = True
    if not count:
        raise ValueError("expected rows to measure an autoencoder on, got none")
    spread = squares - float(total.pow(2).sum()) / count
    return Quality(1 - error / spread, active / count, 1 - float(used.double().mean()), count)


def save_sae(path: str | Path, sae: SAE, *, target: str, base: Mapping[str, str], about: Mapping[str, Any]) -> None:
    """Write an autoencoder atomically; its matrices are rounded to float16.

    Args:
        path: The file.
        sae: The autoencoder.
        target: The module whose output it describes, `<component>.<module path>`; `:text` behind it is for the rows of
            the text that a block of a denoiser returns.
        base: Fingerprints of the weights that make that output, by parameter name.
        about: JSON-able facts about its training.
    """
    tensors = {name: getattr(sae, name).detach().cpu().float() for name in _TENSORS}
    tensors |= {name: tensors[name].half() for name in ("encoder", "decoder")}
    meta = {
        "format": patch_file.FORMAT,
        "kind": _KIND,
        "target": target,
        "k": sae.k,
        "activation": sae.activation,
        "base": dict(base),
        "about": dict(about),
    }
    patch_file.write(Path(path), tensors, meta)


def load_sae(path: str | Path) -> tuple[SAE, dict[str, Any]]:
    """Read an autoencoder in float32, and its metadata: target, base, about.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Truncated, damaged, or no autoencoder; shapes that do not fit each other.
    """
    name = Path(path).name
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a sparse autoencoder, got {path}, which is no file")
    try:
        tensors, meta = patch_file.read(Path(path))
    except PatchError as error:
        raise ValueError(f"expected a sparse autoencoder in {name}: {error}") from None
    _check_meta(meta, name)
    n = _check_tensors(tensors, name)
    if not 1 <= meta["k"] <= n:
        raise ValueError(f"expected k from 1 to {n} in {name}, got {meta['k']}")
    return assembled(tensors, meta["k"], meta["activation"]), meta


def assembled(tensors: Mapping[str, torch.Tensor], k: int, activation: str) -> SAE:
    """An autoencoder of these tensors, by their names in the file, in float32."""
    sae = SAE(1, 1, 1, activation=cast(Activation, activation))
    sae.k = k
    for key in ("encoder", "decoder", "b_pre", "b_lat"):
        setattr(sae, key, nn.Parameter(tensors[key].float(), requires_grad=False))
    sae.threshold = tensors["threshold"].float()
    return sae


def _check_meta(meta: Mapping[str, Any], name: str) -> None:
    if meta.get("kind") != _KIND:
        raise ValueError(f"expected a sparse autoencoder in {name}, got kind {meta.get('kind')!r:.40}; is it a patch?")
    if meta.get("format") != patch_file.FORMAT:
        raise ValueError(f"expected format {patch_file.FORMAT} in {name}, got {meta.get('format')!r:.40}")
    if type(meta.get("k")) is not int or meta.get("activation") not in ACTIVATIONS:
        raise ValueError(f"expected k and an activation among {', '.join(ACTIVATIONS)} in {name}, got something else")
    target, base = meta.get("target"), meta.get("base")
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        raise ValueError(f"expected the target of {name} as <component>.<module>, got {target!r:.80}")
    known = isinstance(base, dict) and base and isinstance(meta.get("about"), dict)
    if not known or not all(isinstance(value, str) and _SHA256.fullmatch(value) for value in base.values()):  # type: ignore[union-attr]
        raise ValueError(f"expected fingerprints and facts about the training in {name}, got none; it is damaged")


def _check_tensors(tensors: Mapping[str, torch.Tensor], name: str) -> int:
    """n."""
    if set(tensors) != set(_TENSORS):
        raise ValueError(
            f"expected the tensors {', '.join(_TENSORS)} in {name}, got {', '.join(sorted(tensors))!r:.80}"
        )
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    size = shapes["encoder"]
    wanted = {"encoder": size, "decoder": size, "b_pre": size[1:], "b_lat": size[:1], "threshold": (1,)}
    if len(size) != 2 or math.prod(size) == 0 or shapes != wanted:
        raise ValueError(f"expected tensors that fit each other in {name}, got the shapes {shapes}")
    wrong = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise ValueError(f"expected finite values in {name}, got NaN or infinity in {wrong[0]}")
    return size[0]
