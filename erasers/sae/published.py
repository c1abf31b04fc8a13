"""Autoencoders of others: their tensors by the names that public code gives them, brought into this library's form.

Names and shapes are read from the header of the safetensors file and checked before any tensor is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from erasers.files.reading import read_json
from erasers.sae.autoencoder import ACTIVATIONS, SAE, assembled

_FLOATS = ("F16", "BF16", "F32", "F64")
_PART_OF_CONFIG = 1 << 20


@dataclass(frozen=True)
class Layout:
    """How some code names and lays out the tensors of x^ = W_d ReLU(W_e (x - b_pre) + b_lat) + b_pre.

    Args:
        code: Whose.
        encoder: Name of W_e.
        decoder: Name of W_d.
        b_pre: Name.
        b_lat: Name.
        turned: Which of the two matrices lie transposed: W_e as `[d, n]`, W_d as `[d, n]`.
    """

    code: str
    encoder: str
    decoder: str
    b_pre: str
    b_lat: str
    turned: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tensors that are needed."""
        return self.encoder, self.decoder, self.b_pre, self.b_lat


LAYOUTS = (
    Layout(
        "sparse_autoencoder, ItD and Concept Steerers",
        "encoder.weight",
        "decoder.weight",
        "pre_bias",
        "latent_bias",
        ("decoder.weight",),
    ),
    Layout("sparsify and SAeUron", "encoder.weight", "W_dec", "b_dec", "encoder.bias"),
    Layout("SAELens", "W_enc", "W_dec", "b_dec", "b_enc", ("W_enc",)),
    Layout("dictionary_learning", "encoder.weight", "decoder.weight", "b_dec", "encoder.bias", ("decoder.weight",)),
)


class Entry(NamedTuple):
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Imported:
    """An autoencoder, and whose layout its file has."""

    sae: SAE
    code: str


def import_sae(path: Path, *, width: int, k: int | None = None, activation: str | None = None) -> Imported:
    """Read an autoencoder of another's code.

    A `cfg.json` beside the file may say k, and how SAELens scales and centres what it reads.

    Args:
        path: A safetensors file.
        width: d of the rows that it is to describe.
        k: Active features a row; None takes what the file or `cfg.json` says.
        activation: `topk`, or `batchtopk` for a threshold, which is 0, plain ReLU, where the file has none; None
            takes `batchtopk` where the file has a threshold.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No safetensors, tensors that are lacking or do not fit, or a k that nobody says.
    """
    header = _header(path)
    layout = find_layout(list(header), path.name)
    n = check_shapes(layout, header, width, path.name)
    config = _config(path)
    names = [*layout.names, *(name for name in ("threshold", "k") if name in header)]
    tensors = _tensors(path, names)
    kind = activation or ("batchtopk" if "threshold" in tensors else "topk")
    if kind not in ACTIVATIONS:
        raise ValueError(f"expected an activation among {', '.join(ACTIVATIONS)}, got {kind!r:.40}")
    count = _k(k, tensors, config, n, path.name)
    threshold = _threshold(tensors, path.name) if kind == "batchtopk" else torch.zeros(1)
    sae = assembled(own_form(layout, tensors, config) | {"threshold": threshold}, count, kind)
    return Imported(sae, layout.code)


def find_layout(names: Sequence[str], file: str) -> Layout:
    """The layout whose tensors are all there.

    Raises:
        ValueError: Names what the nearest one lacks.
    """
    for layout in LAYOUTS:
        if set(layout.names) <= set(names):
            return layout
    nearest = min(LAYOUTS, key=lambda layout: len(set(layout.names) - set(names)))
    lacking = [name for name in nearest.names if name not in names]
    if len(lacking) == len(nearest.names):
        known = "; ".join(f"{layout.code}: {', '.join(layout.names)}" for layout in LAYOUTS)
        raise ValueError(f"expected the tensors of an autoencoder in {file} ({known}), got {_listed(names)}")
    raise ValueError(
        f"expected {', '.join(nearest.names)} in {file}, as {nearest.code} names them; it lacks {', '.join(lacking)}"
    )


def check_shapes(layout: Layout, header: Mapping[str, Entry], width: int, file: str) -> int:
    """n, where all tensors fit each other and rows of that width.

    Raises:
        ValueError: Names the tensor, what it is and what was expected.
    """
    shape = header[layout.encoder].shape
    n = shape[1 if layout.encoder in layout.turned else 0] if len(shape) == 2 else 0
    wanted = {layout.encoder: (n, width), layout.decoder: (n, width), layout.b_pre: (width,), layout.b_lat: (n,)}
    for name, size in wanted.items():
        right = size[::-1] if name in layout.turned else size
        entry = header[name]
        if n < 1 or entry.shape != right:
            raise ValueError(
                f"expected {name} in {file} as {list(right) if n else f'[features, {width}]'}, for rows of the width "
                f"{width} of this block, got {list(entry.shape)}"
            )
        if entry.dtype not in _FLOATS:
            raise ValueError(f"expected {name} in {file} as {', '.join(_FLOATS)}, got {entry.dtype}")
    for name in (name for name in ("threshold", "k") if name in header):
        if math.prod(header[name].shape) not in (1, n):
            raise ValueError(f"expected {name} in {file} as one number, got the shape {list(header[name].shape)}")
    return n


def own_form(
    layout: Layout, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    """encoder `[n, d]`, decoder `[n, d]`, b_pre `[d]` and b_lat `[n]`.

    SAELens may read x itself, not x - b_pre: then W_e x + b = W_e (x - b_pre) + (b + W_e b_pre).
    """

    def matrix(name: str) -> torch.Tensor:
        return tensors[name].T.contiguous() if name in layout.turned else tensors[name]

    encoder, b_pre, b_lat = matrix(layout.encoder), tensors[layout.b_pre], tensors[layout.b_lat]
    if (config or {}).get("apply_b_dec_to_input") is False:
        b_lat = b_lat + encoder @ b_pre
    return {"encoder": encoder, "decoder": matrix(layout.decoder), "b_pre": b_pre, "b_lat": b_lat}


def _header(path: Path) -> dict[str, Entry]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"expected an autoencoder, got {path}, which is no file")
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {name: Entry(part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except SafetensorError as error:
        raise ValueError(
            f"expected a safetensors file, got {path} ({error}); a .pt or .bin file is a pickle, which can run code "
            "when it is read: convert it where that does no harm, with torch.load(..., weights_only=True) and "
            "safetensors.torch.save_file"
        ) from None


def _tensors(path: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in names}
    for name, value in tensors.items():
        # Matrices are kept in float16.
        if not torch.isfinite(value.half() if value.dim() == 2 else value).all():
            raise ValueError(f"expected finite values in {path.name} that float16 reaches, got others in {name}")
    return tensors


def _config(path: Path) -> Mapping[str, Any]:
    beside = path.with_name("cfg.json")
    if not beside.is_file():
        return {}
    config = read_json(beside, most=_PART_OF_CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"expected keys and values in {beside}, got {type(config).__name__}")
    scaled = config.get("normalize_activations", "none")
    if scaled not in ("none", None, False):
        raise ValueError(
            f"expected an autoencoder that reads rows as they are, got normalize_activations {scaled!r:.40} in {beside}"
        )
    return config


def _k(given: int | None, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], n: int, file: str) -> int:
    nested = config.get("activation_fn_kwargs")
    said = [given, tensors["k"].flatten()[0].item() if "k" in tensors else None, config.get("k")]
    said.append(nested.get("k") if isinstance(nested, dict) else None)
    value = next((one for one in said if one is not None), None)
    if value is None:
        raise ValueError(f"expected k, the active features a row, got none in {file} or cfg.json beside it; pass --k")
    if not isinstance(value, (int, float)) or not 1 <= value <= n or value != int(value):
        raise ValueError(f"expected k as a whole number from 1 to {n}, got {value!r:.40}")
    return int(value)


def _threshold(tensors: Mapping[str, torch.Tensor], file: str) -> torch.Tensor:
    values = tensors.get("threshold", torch.zeros(1)).flatten()
    if (values != values[0]).any():
        raise ValueError(f"expected one threshold for all features in {file}, got one for each, as JumpReLU has")
    if values[0] < 0:
        raise ValueError(f"expected a threshold of at least 0 in {file}, got {float(values[0])}")
    return values[:1].clone()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:8])
    return f"{shown:.200}" + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"
