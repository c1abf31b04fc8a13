"""What a patch file must not be able to do: change after it was checked, take all memory, name what is not its own."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from support.patch_files import BIAS, LAYER, PORTS, Parts, make_seeds, put_together, take_apart
from support.tiny import same, weights

from erasers import Patch, PatchError
from erasers.files import tensors as patch_file
from erasers.files.hashing import tensor_hash
from erasers.files.tensors import KEY


@pytest.fixture
def seeds(pipe: Any) -> dict[str, bytes]:
    return make_seeds(weights(pipe))


@pytest.fixture
def load_bytes(tmp_path: Path) -> Callable[[bytes], Patch]:
    def load_one(whole: bytes) -> Patch:
        (tmp_path / "x.safetensors").write_bytes(whole)
        return Patch.load(tmp_path / "x.safetensors")

    return load_one


def dense_patch(seed: bytes, parameters: dict[str, torch.Tensor]) -> Patch:
    """A patch that sets parameters to 7, with the fingerprints of what they are."""
    meta = take_apart(seed).meta | {"base": {name: tensor_hash(value) for name, value in parameters.items()}}
    return Patch({f"dense/{name}": torch.full_like(value.detach(), 7) for name, value in parameters.items()}, meta)


# One reading


def test_a_file_that_is_exchanged_while_it_is_read(seeds, load_bytes, tmp_path, monkeypatch):
    other, find_meta = tmp_path / "other", patch_file._find_meta
    other.write_bytes(seeds["dense"])

    def exchange(*arguments: Any) -> dict[str, Any]:
        if other.exists():
            os.replace(other, tmp_path / "x.safetensors")
        return find_meta(*arguments)

    monkeypatch.setattr(patch_file, "_find_meta", exchange)
    assert load_bytes(seeds["factors"]).digest == load_bytes(seeds["factors"]).digest


def test_a_file_that_is_cut_while_it_is_read(seeds, load_bytes, tmp_path, monkeypatch):
    find_meta = patch_file._find_meta

    def cut(*arguments: Any) -> dict[str, Any]:
        os.truncate(tmp_path / "x.safetensors", len(seeds["transform"]) - 8)
        return find_meta(*arguments)

    monkeypatch.setattr(patch_file, "_find_meta", cut)
    with pytest.raises(PatchError, match="became shorter"):
        load_bytes(seeds["transform"])


def test_a_file_that_is_changed_after_it_was_read(seeds, load_bytes, tmp_path):
    patch = load_bytes(seeds["transform"])
    with open(tmp_path / "x.safetensors", "r+b") as file:
        file.seek(len(seeds["transform"]) - 4096)
        file.write(bytes(4096))
    assert (load(seeds["transform"])["transform/text/T"] == patch.tensors["transform/text/T"]).all()


@pytest.mark.parametrize(
    "spell",
    [
        lambda header: header + "   \n",
        lambda header: json.dumps(json.loads(header), indent=1),
        lambda header: json.dumps(dict(reversed(json.loads(header).items()))),
        lambda header: header.replace("dense", "\\u0064ense"),
        lambda header: header.replace('{"__metadata__": {', '{"__metadata__": {"format": "pt", '),
    ],
)
def test_another_spelling_is_the_same_patch(pipe, seeds, load_bytes, spell):
    parts, patch = take_apart(seeds["mixed"]), load_bytes(seeds["mixed"])
    header = json.dumps({"__metadata__": {KEY: json.dumps(parts.meta)}, **parts.entries})
    other = load_bytes(parts.whole(spell(header)))
    assert parts.whole(spell(header)) != seeds["mixed"]
    assert other.digest == patch.digest
    with patch.applied(pipe):
        expected = weights(pipe)
    with other.applied(pipe):
        assert same(expected, weights(pipe))


def test_tensors_may_lie_in_any_order(seeds, load_bytes):
    tensors = load(seeds["mixed"])
    for names in (sorted(tensors), sorted(tensors, reverse=True)):
        whole = put_together({name: tensors[name] for name in names}, take_apart(seeds["mixed"]).meta)
        assert load_bytes(whole).digest == load_bytes(seeds["mixed"]).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [True, 16]}, "to fit 128 bytes"),
        ({"shape": [1.0, 16]}, "to fit 128 bytes"),
        ({"shape": ["1", 16]}, "to fit 128 bytes"),
        ({"shape": [-1, -16]}, "to fit 128 bytes"),
        ({"shape": [1] * 8 + [16]}, "to fit 128 bytes"),
        ({"shape": [0], "data_offsets": [0, 0]}, "to fit 128 bytes"),
        ({"shape": [1, 15]}, "got 64 bytes"),
        ({"data_offsets": [False, 64]}, "within 128 bytes"),
        ({"data_offsets": [0, 64, 64]}, "within 128 bytes"),
        ({"data_offsets": [-64, 0]}, "within 128 bytes"),
        ({"data_offsets": [128, 192]}, "within 128 bytes"),
        ({"data_offsets": [64, 128]}, "at byte 0, got 64"),
        ({"dtype": ["F32"]}, "one of F16, BF16, F32, F64, got"),
        ({"dtype": "I32"}, "one of F16, BF16, F32, F64, got"),
        ({"extra": 1}, "got something else"),
    ],
)
def test_entries_of_the_header_are_exact(seeds, load_bytes, change, message):
    parts = take_apart(seeds["lowrank"])
    name = f"lowrank/{LAYER}/A"
    assert parts.entries[name] == {"dtype": "F32", "shape": [1, 16], "data_offsets": [0, 64]}
    parts.entries[name] |= change
    with pytest.raises(PatchError, match=message):
        load_bytes(parts.whole())


@pytest.mark.parametrize("ports", [None, "unet.x", [], [3], [None], ["unet.x", ["unet.x"]], {"unet.x": 1}])
def test_groups_are_lists_of_names(seeds, load_bytes, ports):
    parts = take_apart(seeds["lowrank"])
    parts.meta["groups"]["other"] = ports
    with pytest.raises(PatchError, match="expected the ports of group 'other' as names"):
        load_bytes(parts.whole())


@pytest.mark.parametrize("version", [True, 1.0, "1", None, 0, -1, 2, 10**30])
def test_formats_are_whole_numbers(seeds, load_bytes, version):
    parts = take_apart(seeds["lowrank"])
    parts.meta["format"] = version
    with pytest.raises(PatchError, match="expected a patch of format 1 to 1, got"):
        load_bytes(parts.whole())


# Memory and time

MEASURE = """
import resource, sys, time
import torch
from erasers import Patch, PatchError
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
for path in sys.argv[1:]:
    started = time.process_time()
    try:
        result = Patch.load(path)
    except PatchError as error:
        result = error
    print(f"{time.process_time() - started:.1f} {result}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_hostile_files_take_little_memory_and_time(seeds, tmp_path):
    """400 MB above what Python takes, and seconds, for what asks for terabytes and hours."""
    parts = take_apart(seeds["factors"])
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    most = patch_file._MAX_HEADER - 2**12
    text = json.dumps(parts.meta)[:-1]
    digits = ("9" * 4200 + ",") * 900
    files = {
        "length": struct.pack("<Q", 2**63) + b"{}",
        "shape": Parts({"dense/unet.x": entry}, parts.meta, bytes(8)).whole(),
        "wide": Parts({"dense/unet.x": entry | {"data_offsets": [0, 8]}}, parts.meta, bytes(8)).whole(),
        "digits": parts.whole(json.dumps({"x": entry | {"shape": [0]}}).replace("[0]", f"[{digits}1]")),
        "header": parts.whole('{"x": [%s0]}' % ("[]," * 2**24)),
        "lists": parts.whole('{"x": [%s0]}' % ("[]," * (most // 3))),
        "objects": parts.whole(text=text + ', "x": [%s0]}' % ("{}," * (most // 3))),
        "deep": parts.whole("[" * most),
        "number": parts.whole('{"x": %s}' % ("9" * most)),
        "entries": Parts({f"{i}": entry for i in range(most // 80)}, parts.meta, b"").whole(),
        "ports": Parts(parts.entries, parts.meta | {"groups": {"text": ["unet"] * (most // 16)}}, parts.body).whole(),
        "base": Parts(parts.entries, parts.meta | {"base": {str(i): "x" for i in range(most // 20)}}, b"").whole(),
    }
    paths = []
    for name, whole in files.items():
        (tmp_path / name).write_bytes(whole)
        paths.append(str(tmp_path / name))
    command = [sys.executable, "-c", MEASURE, *paths]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = dict(zip(files, (line.split(maxsplit=1) for line in done.stdout.splitlines()), strict=True))
    assert all(float(seconds) < 20 for seconds, _ in results.values()), results
    # Metadata that nobody asks for is carried along.
    assert [name for name, (_, result) in results.items() if result.startswith("Patch")] == ["objects"]


def test_what_is_saved_can_be_loaded(seeds, load_bytes, tmp_path):
    patch = load_bytes(seeds["factors"])

    def changed(**config: Any) -> Patch:
        return Patch(patch.tensors, {**patch.meta, "config": config})

    nested: Any = 0
    for _ in range(13):
        nested = [nested]
    changed(x=nested).save(tmp_path / "y.safetensors")
    assert Patch.load(tmp_path / "y.safetensors").meta["config"] == {"x": nested}
    before = (tmp_path / "y.safetensors").read_bytes()
    for config in ({"x": [[[[nested]]]]}, {"x": "x" * patch_file._MAX_HEADER}):
        with pytest.raises(PatchError, match="expected"):
            changed(**config).save(tmp_path / "y.safetensors")
    assert (tmp_path / "y.safetensors").read_bytes() == before
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(PatchError, match="JSON"):
        changed(x=nested)


# Names


def test_every_parameter_has_one_name(pipe, seeds):
    """A parameter that is edited under two names could not be restored."""
    pipe.unet.twin = pipe.unet.conv_in
    before, bias = weights(pipe), pipe.unet.conv_in.bias
    one, two = (dense_patch(seeds["dense"], {name: bias}) for name in (BIAS, "unet.twin.bias"))
    with pytest.raises(PatchError, match="got two for"):
        dense_patch(seeds["dense"], {BIAS: bias, "unet.twin.bias": bias}).apply(pipe)
    with one.applied(pipe), pytest.raises(PatchError, match="expected one name for"):
        two.apply(pipe, force=True)
    assert same(before, weights(pipe))
    with two.applied(pipe):
        assert (bias == 7).all()
    assert same(before, weights(pipe))


@pytest.mark.parametrize("alias", ["base_model.{}", "__dict__._modules.{}", "_modules.{}", "device.{}", "__class__.{}"])
def test_attributes_are_no_modules(pipe, seeds, alias):
    name, parameter = next(pipe.text_encoder.named_parameters())
    assert pipe.text_encoder.base_model.get_parameter(name) is parameter
    with dense_patch(seeds["dense"], {f"text_encoder.{name}": parameter}).applied(pipe):
        assert (parameter == 7).all()
    with pytest.raises(PatchError, match="without it"):
        dense_patch(seeds["dense"], {f"text_encoder.{alias.format(name)}": parameter}).apply(pipe, force=True)


@pytest.mark.parametrize(
    "name", ["scheduler", "tokenizer", "components", "config", "requires_safety_checker", "device"]
)
def test_only_modules_are_components(pipe, seeds, name):
    patch = dense_patch(seeds["dense"], {f"{name}.x": torch.zeros(2)})
    with pytest.raises(PatchError, match=f"with a {name}, got"):
        patch.apply(pipe, force=True)
    with pytest.raises(PatchError, match=f"with a {name}, got"):
        patch.remove(pipe)


@pytest.mark.parametrize("name", ["unet.x\n", "unet.\x1b[2J", "un\u0435t.x", "../unet.x", "unet.x\x00", "x" * 600, ""])
def test_names_are_plain(seeds, name):
    parts = take_apart(seeds["factors"])
    tensors = load(seeds["factors"])
    digest = parts.meta["base"][f"{PORTS[0]}.weight"]
    with pytest.raises(PatchError, match="expected tensors named"):
        Patch({f"dense/{name}": torch.zeros(2)}, parts.meta)
    with pytest.raises(PatchError, match="expected tensors named"):
        Patch({f"hook/{name}/prompt_transform/T": torch.eye(2)}, parts.meta)
    with pytest.raises(PatchError, match="ports of group 'text'"):
        Patch(tensors, parts.meta | {"groups": {"text": [*PORTS, name]}})
    with pytest.raises(PatchError, match="fingerprint"):
        Patch(tensors, parts.meta | {"base": {**parts.meta["base"], name: digest}})


# Force


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_force_lets_no_such_values_pass(seeds, load_bytes, dtype, value):
    for form in ("factors", "transform", "lowrank", "dense", "hooks"):
        tensors = {name: tensor.to(dtype) for name, tensor in load(seeds[form]).items()}
        next(reversed(tensors.values())).view(-1)[-1] = value
        with pytest.raises(PatchError, match="NaN or infinity"):
            load_bytes(put_together(tensors, take_apart(seeds[form]).meta))


def test_force_lets_no_overflow_pass(pipe, seeds):
    before = weights(pipe)
    tensors = {name: tensor.double() for name, tensor in load(seeds["mixed"]).items()}
    for name in tensors:
        if not name.startswith("hook/"):
            patch = Patch(tensors | {name: torch.full_like(tensors[name], 1e300)}, take_apart(seeds["mixed"]).meta)
            with pytest.raises(PatchError, match=r"does not fit torch\.float32; its values are too large"):
                patch.apply(pipe, force=True)
            assert same(before, weights(pipe))


def test_force_lets_no_missing_fingerprint_pass(seeds):
    meta = take_apart(seeds["lowrank"]).meta
    with pytest.raises(PatchError, match=f"expected the fingerprint of {LAYER}.weight"):
        Patch(load(seeds["lowrank"]), meta | {"base": {}})
    with pytest.raises(PatchError, match="64 hexadecimal digits"):
        Patch(load(seeds["lowrank"]), meta | {"base": {f"{LAYER}.weight": None}})


def test_a_patch_has_no_empty_tensors(seeds):
    meta = take_apart(seeds["dense"]).meta
    with pytest.raises(PatchError, match="expected values"):
        Patch({f"dense/{BIAS}": torch.zeros(0)}, meta)


@pytest.mark.parametrize("shape", [(9, 1), (1, 9), (3,), (2, 2, 2)])
def test_force_lets_no_other_shape_pass(pipe, seeds, shape):
    before, meta = weights(pipe), take_apart(seeds["dense"]).meta
    with pytest.raises(PatchError, match="another model"):
        Patch({f"dense/{BIAS}": torch.zeros(shape)}, meta).apply(pipe, force=True)
    assert same(before, weights(pipe))
