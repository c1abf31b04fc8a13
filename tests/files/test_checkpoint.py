"""Checkpoints: what is written, how much of it is in memory twice, and how much of the time that takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.trained import NOW

from erasers import Concept, get_eraser
from erasers.files import checkpoint
from erasers.files.checkpoint import CheckpointFile, write_streamed

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


def test_streamed_tensors_come_back_bit_for_bit(tmp_path):
    tensors = {f"kind/{number}": (torch.arange(15).reshape(3, 5) % 2).to(kind) for number, kind in enumerate(KINDS)}
    tensors |= {"turned": torch.randn(6, 4).T, "number": torch.tensor(3.5), "none": torch.empty(0, 3)}
    tensors["part"] = torch.randn(8, 8)[2:5, 1:]
    write_streamed(tmp_path / "state", tensors, {"a": "b"})
    read = load_file(tmp_path / "state")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in tensors.items())
    with safe_open(tmp_path / "state", "pt") as file:
        assert file.metadata().pop("a") == "b"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_no_tensor_is_in_memory_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_CHUNK", 1024)
    taken = []
    append = checkpoint._append

    def watched(file, value):
        append(SimpleNamespace(write=lambda data: taken.append(len(data)) or file.write(data)), value)

    monkeypatch.setattr(checkpoint, "_append", watched)
    tensors = {"first": torch.randn(3000), "second": torch.randn(70, 30)[:, ::2]}
    write_streamed(tmp_path / "state", tensors, {})
    assert max(taken) == 1024
    assert sum(taken) == sum(value.nbytes for value in tensors.values())
    assert torch.equal(load_file(tmp_path / "state")["second"], tensors["second"])


@pytest.mark.parametrize(("seconds", "nbytes"), [(60.0, 11e9), (200.0, 11e9), (0.1, 1e6), (2.0, 1e3)])
def test_writing_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch, seconds, nbytes):
    clock, writes = [0.0], []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])

    def write(path, tensors, header):
        writes.append(clock[0])
        clock[0] += seconds

    monkeypatch.setattr(checkpoint, "write_streamed", write)
    file, state = CheckpointFile(tmp_path / "state", "id", 10.0), {"all": SimpleNamespace(nbytes=int(nbytes))}
    while clock[0] < 4 * 3600:
        clock[0] += 0.7
        file.save(lambda: state)
    assert len(writes) > 2
    # A disk that is slower than is taken for granted costs more the first time.
    assert len(writes[1:]) * seconds <= 0.05 * (clock[0] - writes[0])
    assert len(writes) * seconds <= 0.05 * clock[0] or seconds > nbytes / checkpoint._BYTES_A_SECOND
    if seconds < 0.5:
        assert writes[1] - writes[0] < 12


def test_only_what_changes_is_written(pipe, tmp_path):
    names = {}
    for drawn_by in ("frozen", "student"):
        path = tmp_path / drawn_by
        eraser = get_eraser("esd", iterations=2, steps=2, pictures=2, drawn_by=drawn_by, train_method="x-strict")
        eraser.fit(pipe, Concept("star", anchor="circle"), checkpoint=path, **NOW)
        names[drawn_by] = set(load_file(path))
    bank = {name for name in names["student"] if name.startswith("tensors/")}
    # What the frozen model drew is drawn again.
    assert bank
    assert names["student"] - names["frozen"] == bank


@pytest.mark.parametrize("change", ["nothing", "a pixel", "their order", "the file format", "templates"])
def test_a_checkpoint_is_of_the_pictures_that_it_was_trained_on(pipe, tmp_path, change):
    eraser = get_eraser("few_shot", iterations=2, max_drift=None)
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "red.png")
    star = Concept("star", anchor="circle", templates=("a {}",), images=[red, blue])
    eraser.fit(pipe, star, checkpoint=tmp_path / "half", **NOW)
    other = blue.copy()
    other.putpixel((3, 3), (0, 0, 254))
    changed = {
        "a pixel": {"images": [red, other]},
        "their order": {"images": [blue, red]},
        "the file format": {"images": [tmp_path / "red.png", blue]},
        "templates": {"templates": ("the {}",)},
    }.get(change, {})
    if change in ("nothing", "the file format"):
        eraser.fit(pipe, replace(star, **changed), checkpoint=tmp_path / "half", **NOW)
        return
    with pytest.raises(ValueError, match="expected a checkpoint of this training"):
        eraser.fit(pipe, replace(star, **changed), checkpoint=tmp_path / "half", **NOW)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path):
    path = tmp_path / "state"
    with CheckpointFile(path, "one").read("another") as tensors:
        assert not tensors
    CheckpointFile(path, "one", 0.0).save(lambda: {"x": torch.ones(3)})
    with CheckpointFile(path, "one").read("another") as tensors:
        assert list(tensors) == ["x"]
        assert torch.equal(tensors["x"], torch.ones(3))
        with pytest.raises(KeyError):
            tensors["y"]
    with (
        pytest.raises(ValueError, match="of this training in .*, got one of another; delete"),
        CheckpointFile(path, "two").read("another"),
    ):
        pass
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="got a damaged file"), CheckpointFile(path, "one").read("another"):
        pass


@pytest.mark.parametrize("change", ["zeroed", "lost"])
def test_a_checkpoint_that_was_changed_is_refused(tmp_path, change):
    path = tmp_path / "state"
    tensors = {"student/weight": torch.ones(300), "optimizers/adam/0/exp_avg": torch.ones(300)}
    file = CheckpointFile(path, "id", 0.0)
    file.save(lambda: tensors)
    with file.read("another") as kept:
        assert torch.equal(kept["student/weight"], tensors["student/weight"])
    with safe_open(path, "pt") as saved:
        header = saved.metadata()
    changed = {name: value.clone() for name, value in tensors.items()}
    if change == "zeroed":
        changed["student/weight"].zero_()
    else:
        del changed["optimizers/adam/0/exp_avg"]
    save_file(changed, path, metadata=header)
    with pytest.raises(ValueError, match=r"damaged file \(its checksum is another\); delete it"), file.read("another"):
        pass


def test_processes_write_together(tmp_path):
    asked = []

    def agree(due: bool) -> bool:
        asked.append(due)
        return True

    CheckpointFile(tmp_path / "state", "id", 1000.0).save(lambda: {"a": torch.ones(1)}, agree)
    assert (asked, (tmp_path / "state").is_file()) == ([False], True)
    file = CheckpointFile(tmp_path / "state", "id", 0.0)
    file.save(lambda: {"a": torch.ones(1)}, lambda due: asked.append(due) or False)
    assert asked == [False, True]
