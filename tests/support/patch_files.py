"""Patch files of every form, taken apart and put together without the checks of the library."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import torch

from erasers.files.hashing import raw_bytes, tensor_hash
from erasers.files.tensors import FORMAT, KEY

BLOCK = "unet.mid_block.attentions.0.transformer_blocks.0"
PORTS = [f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.to_v"]
LAYER, BIAS, NORM = f"{BLOCK}.attn1.to_q", "unet.conv_in.bias", "vae.decoder.conv_norm_out.weight"
KINDS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}


@dataclass
class Parts:
    """A patch file taken apart: entries of the header, metadata of the patch, bytes of the tensors."""

    entries: dict[str, Any]
    meta: dict[str, Any]
    body: bytes

    def whole(self, header: str | bytes | None = None, text: str | None = None) -> bytes:
        """The file, with another header or another text for the metadata when given."""
        text = json.dumps(self.meta) if text is None else text
        header = json.dumps({"__metadata__": {KEY: text}, **self.entries}) if header is None else header
        header = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
        return struct.pack("<Q", len(header)) + header + self.body


def take_apart(whole: bytes) -> Parts:
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    return Parts(header, json.loads(header.pop("__metadata__")[KEY]), whole[8 + length :])


def put_together(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> bytes:
    """A file of any tensors and metadata, without the checks of `Patch.save`."""
    entries, body = {}, b""
    for name, tensor in tensors.items():
        data = bytes(raw_bytes(tensor)) if tensor.numel() else b""
        offsets = [len(body), len(body) + len(data)]
        entries[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        body += data
    return Parts(entries, meta, body).whole()


def make_seeds(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """A valid file of each form of edit, and one of all, for the pipeline with this state."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    width, inner = state[f"{PORTS[0]}.weight"].shape[1], state[f"{LAYER}.weight"].shape[0]
    factors = {"A": noise(2, width), "B": noise(width, 2)}
    transform = torch.eye(width) + noise(width, width)
    shared = {f"transform/text/{part}": tensor for part, tensor in factors.items()}
    lowrank = {f"lowrank/{LAYER}/A": noise(1, inner), f"lowrank/{LAYER}/B": noise(inner, 1)}
    dense = {f"dense/{BIAS}": noise(*state[BIAS].shape), f"dense/{NORM}": noise(*state[NORM].shape).double()}
    hooks = {f"hook/unet/prompt_transform/{part}": tensor for part, tensor in factors.items()}
    forms: dict[str, tuple[dict[str, torch.Tensor], list[str], list[str]]] = {
        "factors": (shared, PORTS, []),
        "transform": ({"transform/text/T": transform}, PORTS, []),
        "lowrank": (lowrank, [], [f"{LAYER}.weight"]),
        "dense": (dense, [], [BIAS, NORM]),
        "hooks": (hooks | {f"hook/{PORTS[1]}/prompt_transform/T": transform}, [], [BIAS]),
        "mixed": (shared | lowrank | dense | hooks, PORTS[:1], [f"{LAYER}.weight", BIAS, NORM]),
    }
    seeds = {}
    for name, (tensors, ports, others) in forms.items():
        base = {key: tensor_hash(state[key]) for key in [*(f"{port}.weight" for port in ports), *others]}
        meta = {
            "format": FORMAT,
            "library": "0.1.0",
            "method": "uce",
            "config": {"ridge": 0.5, "rows": "all", "preserve": ["moon"]},
            "concepts": [{"name": "star", "anchor": "circle", "images": 0}],
            "groups": {"text": ports} if ports else {},
            "base": base,
            "base_dtype": "float32",
        }
        seeds[name] = put_together(tensors, meta)
    return seeds
