"""What can be done to a patch file: a mutation takes hypothesis' `draw` and the bytes of a valid file."""

from __future__ import annotations

import copy
import json
import math
import re
import struct
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load

from erasers.files.tensors import FORMAT, KEY
from support.patch_files import KINDS, LAYER, PORTS, Parts, put_together, take_apart

Draw = Callable[..., Any]

HUGE = [0, 1, 2, 7, 8, 2**15, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**4000]
ODD: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1.0,
    2.5,
    1e308,
    "",
    "3",
    "x\ny",
    "\x1b[2J",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
]
VALUES = st.one_of(st.sampled_from(ODD), st.sampled_from(HUGE), st.lists(st.sampled_from(ODD), max_size=3))
DTYPES = ["F16", "BF16", "F32", "F64", "I64", "BOOL", "U8", "F8_E4M3", "F8_E5M2", "f32", "", "F128", None, 4, ["F32"]]
NAMES = [
    "transform/../x/A",
    "transform/text/../../A",
    "transform//A",
    "transform/text/C",
    "transform/text",
    "transform/text/A/",
    "dense/unet.../..",
    "dense/../../etc/passwd",
    "dense//etc/passwd",
    "/etc/passwd",
    "C:\\dense\\unet.x",
    "dense/unet.conv_in.bias\x00",
    "dense/unet.conv_in.bias\n",
    "dense/\nunet.conv_in.bias",
    "dense/unet.conv\u200b_in.bias",
    "dense/un\u0435t.conv_in.bias",
    "dense/unet\uff0econv_in\uff0ebias",
    "dense/unet.\x1b[2Jx",
    "dense/unet." + "x" * 100_000,
    "dense/" + ".".join("x" * 10_000),
    "dense/unet.conv_in.\ud800",
    "dense/unet.__class__.x",
    "dense/unet._erasers_state.x",
    "dense/unet._erasers_hashes.x",
    "dense/unet._modules.conv_in.bias",
    "dense/unet.conv_in._parameters.bias",
    "dense/unet.conv_in.bias.data",
    "dense/unet.conv_in.bias.grad",
    "dense/unet.conv_in..bias",
    "dense/unet",
    "dense/unet.",
    "dense/.unet.conv_in.bias",
    "dense/",
    "dense/scheduler.betas",
    "dense/tokenizer.x",
    "dense/components.unet.x",
    "dense/config.x",
    "dense/requires_safety_checker.x",
    "dense/_execution_device.x",
    "dense/__class__.x",
    "dense/__dict__.unet.x",
    "dense/safety_checker.x",
    "dense/text_encoder.base_model.final_layer_norm.weight",
    "dense/text_encoder.text_model.final_layer_norm.weight",
    "dense/text_encoder.final_layer_norm.weight",
    "dense/text_encoder.final_layer_norm.bias",
    "dense/text_encoder.embeddings.position_ids",
    "lowrank/vae.encoder.../A",
    "lowrank/vae.encoder.conv_in/A",
    "lowrank/unet.conv_in/A",
    "lowrank/unet.mid_block/A",
    "lowrank/unet/A",
    "lowrank//A",
    f"lowrank/{LAYER}/T",
    f"lowrank/{PORTS[0]}/A",
    f"lowrank/{PORTS[0]}/B",
    f"dense/{PORTS[0]}.weight",
    f"dense/{LAYER}.weight",
    *[
        f"dense/vae.decoder.{path}"
        for path in ("mid_block.resnets.0.norm1.weight", "conv_norm_out.bias", "conv_in.bias")
    ],
    "hook/unet/unknown_kind/A",
    "hook/unet/prompt_transform/C",
    "hook/unet/prompt_transform/T",
    "hook/unet.mid_block/prompt_transform/A",
    "hook/unet.mid_block/prompt_transform/T",
    "hook/vae/prompt_transform/T",
    f"hook/{PORTS[0]}/prompt_transform/T",
    "hook/unet/prompt_transform/../A",
    "hook/unet/__init__/A",
    "hook/scheduler/prompt_transform/A",
    "unknown/x",
    "",
    "__metadata__",
    KEY,
]


def change_bytes(draw: Draw, whole: bytes) -> bytes:
    """Random bytes, flipped bits, and pieces cut, doubled or added."""
    data = bytearray(whole)
    length = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(draw(st.integers(1, 4))):
        low, high = draw(st.sampled_from([(0, 8), (8, length), (length, len(whole)), (0, len(whole))]))
        at = min(draw(st.integers(low, high - 1)), len(data))
        what = draw(st.sampled_from(["flip", "flip", "set", "cut", "insert", "tail"]))
        if what == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif what == "cut":
            del data[at : at + draw(st.sampled_from([1, 4, 8, 64, len(whole)]))]
        elif what == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        else:
            data += draw(st.binary(min_size=1, max_size=16))
    return bytes(data)


def change_length(draw: Draw, whole: bytes) -> bytes:
    length = int.from_bytes(whole[:8], "little")
    near = st.integers(-9, 9).map(lambda step: length + step)
    other = draw(st.one_of(near, st.sampled_from(HUGE[:-1]), st.integers(0, 2**64 - 1), st.integers(0, len(whole))))
    return struct.pack("<Q", other) + whole[8:]


def change_entries(draw: Draw, whole: bytes) -> bytes:
    """Shapes, offsets and dtypes that are wrong, huge, negative, no numbers, or of another kind."""
    parts = take_apart(whole)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(parts.entries)))
        entry = parts.entries[name]
        what = draw(st.sampled_from(["shape", "data_offsets", "dtype", "entry"]))
        if what == "entry" or not isinstance(entry, dict) or not isinstance(entry.get(what), (list, str)):
            key = draw(st.sampled_from(["shape", "data_offsets", "dtype", "extra"]))
            parts.entries[name] = draw(st.one_of(VALUES, st.just({key: draw(VALUES)}), st.just({**ENTRY, "x": 1})))
        elif what == "dtype":
            entry["dtype"] = draw(st.sampled_from(DTYPES))
        else:
            entry[what] = change_numbers(draw, entry[what], len(parts.body))
    return parts.whole()


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def change_numbers(draw: Draw, numbers: list[Any], size: int) -> Any:
    if not isinstance(numbers, list) or not numbers or draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    numbers = list(numbers)
    at = draw(st.integers(0, len(numbers) - 1))
    old = numbers[at]
    exact = [float(min(old, 2**60)), str(old), [old], bool(old), -old, old + 4, old - 4] if type(old) is int else [0]
    other = draw(st.one_of(st.sampled_from(exact), VALUES, st.integers(0, size)))
    what = draw(st.sampled_from(["set", "set", "add", "drop", "swap", "many"]))
    if what == "set":
        numbers[at] = other
    elif what == "add":
        numbers.insert(at, draw(st.sampled_from([1, 0, -1, other])))
    elif what == "drop":
        del numbers[at]
    elif what == "swap":
        numbers.reverse()
    else:
        numbers += [draw(st.sampled_from([0, 1, 2, 2**20, 10**4000]))] * draw(st.sampled_from([5, 70]))
    return numbers


def change_layout(draw: Draw, whole: bytes) -> bytes:
    """Tensors that overlap, leave gaps, are doubled, left out or in another order; JSON written in another way."""
    parts = take_apart(whole)
    names = draw(st.permutations(sorted(parts.entries)))
    parts.entries = {name: parts.entries[name] for name in names}
    what = draw(st.sampled_from(["order", "overlap", "gap", "drop", "alias", "repeat", "text", "deep", "shift"]))
    first = names[0]
    start, stop = parts.entries[first]["data_offsets"]
    if what == "overlap":
        parts.entries["dense/unet.conv_out.bias"] = {**ENTRY, "data_offsets": [start, start + 4]}
    elif what == "gap":
        hole = draw(st.sampled_from([1, 4, 64, 4096]))
        at = draw(st.sampled_from([0, start, stop, len(parts.body)]))
        parts.body = parts.body[:at] + bytes(hole) + parts.body[at:]
        for entry in parts.entries.values():
            entry["data_offsets"] = [end + hole if end > at else end for end in entry["data_offsets"]]
    elif what == "drop":
        del parts.entries[first]
    elif what == "alias":
        parts.entries[draw(st.sampled_from(NAMES))] = copy.deepcopy(parts.entries[first])
    elif what == "shift":
        step = draw(st.sampled_from([-4, 4, -1, 1, 2**40]))
        parts.entries[first]["data_offsets"] = [start + step, stop + step]
    header = json.dumps({"__metadata__": {KEY: json.dumps(parts.meta), "format": "pt"}, **parts.entries})
    if what == "repeat":
        twin = json.dumps(draw(st.sampled_from([parts.entries[first], ENTRY, None])))
        key = draw(st.sampled_from([first, "__metadata__", "dense/unet.conv_out.bias"]))
        return parts.whole(header[:-1] + f", {json.dumps(key)}: {twin}, {json.dumps(key)}: {twin}}}")
    if what == "deep":
        depth = draw(st.sampled_from([2, 15, 17, 200, 950, 5000, 100_000]))
        bomb = draw(st.sampled_from(["[" * depth + "]" * depth, '{"a":' * depth + "0" + "}" * depth, "[" * depth]))
        return parts.whole(header[:-1] + f', "x": {bomb}}}')
    if what == "text":
        return parts.whole(draw(st.sampled_from(SPELLINGS))(header))
    return parts.whole(header)


SPELLINGS: list[Callable[[str], str | bytes]] = [
    lambda header: header + "   \n",
    lambda header: header.replace('"format": "pt"', '"format": ["pt"]'),
    lambda header: header.replace('"format": "pt"', '"format": null'),
    lambda header: "  " + header,
    lambda header: json.dumps(json.loads(header), indent=3),
    lambda header: header.replace("t", "\\u0074").replace("\\\\u0074", "t"),
    lambda header: header.encode("utf-16"),
    lambda header: header.encode("utf-32-le"),
    lambda header: b"\xef\xbb\xbf" + header.encode(),
    lambda header: header.encode() + b"\xff",
    lambda header: header + "\x00",
    lambda header: header + header,
    lambda header: f"[{header}]",
    lambda header: header[:-1] + ",}",
    lambda header: header[:-1] + ', "x": NaN}',
    lambda header: header[:-1] + ', "x": Infinity}',
    lambda header: header[:-1] + ', "x": ' + "9" * 100_000 + "}",
    lambda header: header.replace('"F32"', "'F32'"),
]


def change_names(draw: Draw, whole: bytes) -> bytes:
    """Names that lead elsewhere; the metadata vouches for whatever they may name."""
    parts = take_apart(whole)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(parts.entries)))
        tricks = [name + "/", name + "\x00", name.upper(), name.replace("/", "//"), name.replace(".", "/"), f"/{name}"]
        new = draw(st.one_of(st.sampled_from(NAMES), st.sampled_from(tricks), st.text(max_size=20)))
        if new in parts.entries:
            continue
        parts.entries[new] = parts.entries.pop(name)
        if draw(st.booleans()) and isinstance(parts.entries[new], dict):
            count = math.prod(parts.entries[new]["shape"])
            parts.entries[new]["shape"] = draw(st.sampled_from([[count], [count, 1], [1, count], [2, count // 2]]))
    vouch(parts)
    return parts.whole()


def vouch(parts: Parts) -> None:
    for name in parts.entries:
        target = name.partition("/")[2]
        for parameter in (target, f"{target.rpartition('/')[0]}.weight"):
            if re.fullmatch(r"[\w.-]+", parameter, re.ASCII):
                parts.meta["base"].setdefault(parameter, "0" * 64)


def change_meta(draw: Draw, whole: bytes) -> bytes:
    """Metadata of wrong types, future formats, missing fingerprints, groups that name other layers."""
    parts = take_apart(whole)
    meta = parts.meta
    what = draw(st.sampled_from(["value", "inner", "drop", "format", "base", "groups", "text"]))
    if what == "value":
        meta[draw(st.sampled_from([*sorted(meta), "extra"]))] = draw(VALUES)
    elif what == "inner":
        key = draw(st.sampled_from(["config", "base", "groups"]))
        meta[key][draw(st.sampled_from([*sorted(meta[key]), "text", "extra", "[/x]", "\x1b[2J"]))] = draw(VALUES)
        meta["concepts"][0][draw(st.sampled_from(["name", "anchor", "[bold]"]))] = draw(VALUES)
    elif what == "drop":
        del meta[draw(st.sampled_from(sorted(meta)))]
    elif what == "format":
        meta["format"] = draw(st.one_of(st.sampled_from([FORMAT + 1, 0, -1, True, 1.0, "1", None, 10**30]), VALUES))
    elif what == "base":
        key = draw(st.sampled_from(sorted(meta["base"])))
        value = meta["base"].pop(key)
        others = [
            {},
            {key: "0" * 64},
            {key: value.upper()},
            {key: [value]},
            {key: value, **dict.fromkeys(meta["base"], "")},
        ]
        others += [{key: value, name: value} for name in ("unet.x", "unet.x\n\x1b[2J", "scheduler.x", "x" * 9000)]
        meta["base"] |= draw(st.sampled_from(others))
    elif what == "groups":
        ports = draw(st.lists(st.sampled_from([*PORTS, LAYER, "unet.conv_in", "unet", "", *GROUPED]), max_size=4))
        meta["groups"]["text"] = ports * draw(st.sampled_from([1, 1, 1, 2, 5000]))
        if draw(st.booleans()):
            meta["base"] |= {f"{port}.weight": "0" * 64 for port in ports if isinstance(port, str)}
    else:
        return parts.whole(text=draw(st.sampled_from(TEXTS))(json.dumps(meta)))
    return parts.whole()


GROUPED: list[Any] = [
    None,
    3,
    ["x"],
    f"{PORTS[0]}.",
    f"{PORTS[0]}/../x",
    "text_encoder.base_model.x",
    "scheduler.x",
    "x\ny",
]
TEXTS: list[Callable[[str], str]] = [
    lambda text: "",
    lambda text: "null",
    lambda text: "[]",
    lambda text: f"[{text}]",
    lambda text: json.dumps(text),
    lambda text: text[:-1],
    lambda text: text + text,
    lambda text: text[:-1] + ', "format": 1}',
    lambda text: text[:-1] + ', "x": 1, "x": 1}',
    lambda text: text[:-1] + ', "x": NaN}',
    lambda text: text[:-1] + ', "x": 1e999}',
    lambda text: text[:-1] + ', "x": ' + "9" * 5000 + "}",
    *[
        lambda text, depth=depth: text[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}"  # type: ignore[misc]
        for depth in (3, 15, 16, 200, 900, 980, 2000, 100_000)
    ],
    *[
        lambda text, depth=depth: text[:-1] + ', "x": ' + '{"a":' * depth + "1" + "}" * (depth + 1)  # type: ignore[misc]
        for depth in (3, 15, 16, 200, 900, 980, 2000, 100_000)
    ],
]


def change_values(draw: Draw, whole: bytes) -> bytes:
    """NaN, infinities, subnormal and huge values in every floating-point type."""
    parts, tensors = take_apart(whole), load(whole)
    for name in draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, unique=True)):
        dtype = draw(st.sampled_from(list(KINDS)))
        tensor = tensors[name].to(dtype)
        limits = torch.finfo(dtype)
        special = [math.nan, math.inf, -math.inf, limits.max, limits.min, limits.tiny, limits.tiny / 2, -0.0, 0.0]
        special.append(min(1e30, limits.max))
        if draw(st.integers(0, 4)):
            value = draw(st.sampled_from(special))
            at = draw(st.integers(0, tensor.numel() - 1))
            tensor.view(-1)[at : draw(st.sampled_from([at + 1, tensor.numel()]))] = value
        tensors[name] = tensor
    return put_together(tensors, parts.meta)


MUTATIONS = [
    change_bytes,
    change_length,
    change_entries,
    change_layout,
    change_names,
    change_meta,
    change_values,
]
