from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from erasers import Concept, get_eraser
from erasers.files.cache import cache_dir, cached
from erasers.files.hashing import module_hash, tensor_hash, tensor_hashes

MANY = Concept("star", preserve=[f"moon {first}{second}" for first in "abcdef" for second in "ghijkl"])


def files() -> list[Path]:
    return sorted(cache_dir().glob("*"))


def test_computed_once(caplog):
    calls = []

    def make() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": torch.arange(1000.0)}

    assert torch.equal(cached("k", ("a", 1), make)["x"], cached("k", ("a", 1), make)["x"])
    assert len(calls) == 1
    cached("k", ("a", 2), make)
    assert len(calls) == 2
    path = files()[0]
    whole = path.read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    for damage in (b"", whole[:50], whole[:-1], flipped, b"junk" * 100):
        path.write_bytes(damage)
        values = [cached("k", ("a", key), make)["x"] for key in (1, 2)]
        assert all(torch.equal(value, torch.arange(1000.0)) for value in values)
        assert path.read_bytes() == whole
    assert len(calls) == 7
    assert "damaged cache file" in caplog.text


def test_folder(monkeypatch):
    monkeypatch.delenv("ERASERS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/erasers")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "erasers"


def test_without_a_home_nothing_is_cached(monkeypatch, caplog):
    for name in ("ERASERS_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    # As where a container's user has no entry of its own.
    monkeypatch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    with pytest.raises(ValueError, match="no home folder for '~'"):
        cache_dir()
    assert cached("k", 1, lambda: {"x": torch.ones(1)})["x"] == 1
    assert "nothing is cached" in caplog.text


def test_unwritable_folder_is_no_error(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ERASERS_CACHE", str(tmp_path / "file"))
    assert cached("k", 1, lambda: {"x": torch.ones(1)})["x"] == 1
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("name", ["uce", "uce-v2", "rece"])
def test_cached_fit_is_the_same(pipe, monkeypatch, name):
    plain = get_eraser(name, cache=False).fit(pipe, MANY)
    assert files() == []
    first, second = (get_eraser(name).fit(pipe, MANY) for _ in range(2))
    assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)
    for key in plain.tensors:
        torch.testing.assert_close(plain.tensors[key], first.tensors[key], rtol=1e-5, atol=1e-6)
    assert [path.name.partition("-")[0] for path in files()] == ["gram", "preserve"][name != "rece" :]


def test_preserve_cache_knows_the_text_encoder(pipe):
    get_eraser("uce").fit(pipe, MANY)
    pipe.text_encoder.final_layer_norm.weight.data *= 1.5
    get_eraser("uce").fit(pipe, MANY)
    assert len(files()) == 2


def test_fingerprints():
    value = torch.randn(4, 5)
    assert tensor_hash(value) == tensor_hash(value.half().float()) == tensor_hash(value.T.contiguous().T)
    assert tensor_hash(value) != tensor_hash(value.reshape(5, 4))
    assert tensor_hash(value) != tensor_hash(value + 0.01)
    assert tensor_hash(torch.zeros(0, 3)) != tensor_hash(torch.zeros(3, 0))
    layer = torch.nn.Linear(5, 5)
    before = module_hash(layer)
    assert before == module_hash(layer)
    layer.weight.data += 0.01
    assert module_hash(layer) != before
    assert tensor_hashes({"x": value}) == {"x": tensor_hash(value)}


def test_nothing_is_left_beside_a_cache_file():
    cached("k", 1, lambda: {"x": torch.ones(1)})
    assert [path.suffix for path in files()] == [".safetensors"]
    assert not any(name.endswith(".tmp") for name in os.listdir(cache_dir()))
