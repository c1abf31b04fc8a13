"""The store: what is kept is whole, found again, and never written twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from erasers import Patch, get_eraser
from erasers.evaluation.store import Journal, Store, Verdicts, canonical, key_of
from erasers.judges import Verdict

KEY = "ab" + 62 * "0"
JUDGE = 64 * "c"


def test_canonical_json_knows_no_order() -> None:
    assert canonical({"b": 0.1, "a": [1, None]}) == '{"a":[1,null],"b":0.1}' == canonical({"a": [1, None], "b": 0.1})
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(float("nan"))


def test_a_picture_is_kept_as_it_is_and_once(tmp_path: Path) -> None:
    store, image = Store(tmp_path), Image.effect_noise((8, 8), 50).convert("RGB")
    assert not store.has_image(KEY)
    store.add_image(KEY, image)
    assert store.read_image(KEY).tobytes() == image.tobytes()
    assert store.image_path(KEY) == tmp_path / "images" / "ab" / f"{KEY}.png"
    store.add_image(KEY, Image.new("RGB", (8, 8)))
    assert store.read_image(KEY).tobytes() == image.tobytes()
    assert [path.name for path in store.image_path(KEY).parent.iterdir()] == [f"{KEY}.png"]


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_image(KEY, Image.effect_noise((64, 64), 50).convert("RGB"))
    content = store.image_path(KEY).read_bytes()
    for part in (b"", b"no picture", content[: len(content) // 2]):
        store.image_path(KEY).write_bytes(part)
        with pytest.raises(ValueError, match=f"{KEY}.png is damaged.*delete it"):
            store.read_image(KEY)


def test_verdicts_are_found_again_by_picture_and_wants(tmp_path: Path) -> None:
    first = Verdicts(tmp_path, JUDGE)
    star, plain = {"object": "star", "colour": "red"}, {"object": "star"}
    first.add([("a", star, Verdict(True, 0.1 + 0.2)), ("a", plain, Verdict(None, None, "broken"))])
    first.add([("b", plain, Verdict(False, 0.0))])
    again = Verdicts(tmp_path, JUDGE)
    for verdicts in (first, again):
        assert verdicts.get("a", dict(reversed(star.items()))) == Verdict(True, 0.1 + 0.2)
        assert verdicts.get("a", plain) == Verdict(None, None, "broken")
        assert verdicts.get("b", plain) == Verdict(False, 0.0)
        assert verdicts.get("b", star) is None
    assert Verdicts(tmp_path, 64 * "d").get("b", plain) is None
    assert [path.parent.name for path in tmp_path.rglob("*.jsonl")] == [16 * "c"]


def test_processes_see_each_other_and_share_no_file(tmp_path: Path) -> None:
    one, two = Verdicts(tmp_path, JUDGE), Verdicts(tmp_path, JUDGE)
    one.add([("a", {}, Verdict(True))])
    two.add([("b", {}, Verdict(True))])
    assert one.get("b", {}) is None
    one.refresh()
    assert one.get("b", {}) == Verdict(True)
    assert len(list(one.folder.iterdir())) == 2


def test_a_torn_last_line_does_not_count(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path, JUDGE)
    verdicts.add([("a", {}, Verdict(True)), ("b", {}, Verdict(True))])
    shard = next(verdicts.folder.iterdir())
    whole = shard.read_bytes()
    late = Verdicts(tmp_path, 64 * "d")
    late.folder = verdicts.folder
    for size in range(len(whole)):
        shard.write_bytes(whole[:size])
        found = Verdicts(tmp_path, JUDGE)
        assert (found.get("a", {}) is not None) == (size >= whole.index(b"\n") + 1)
        assert found.get("b", {}) is None
        late.refresh()
    # What was torn when it was first read is read when it is whole.
    shard.write_bytes(whole)
    late.refresh()
    assert late.get("b", {}) == Verdict(True)


def test_a_whole_line_that_is_no_verdict_is_named(tmp_path: Path) -> None:
    folder = Verdicts(tmp_path, JUDGE).folder
    folder.mkdir(parents=True)
    for line in ("{}", "[1]", "no", json.dumps({"image": "a", "wants": {}, "value": True})):
        (folder / "x.jsonl").write_text(line + "\n")
        with pytest.raises(ValueError, match=r"x.jsonl has a line that is no verdict"):
            Verdicts(tmp_path, JUDGE)


def test_a_journal_keeps_the_first_value_of_a_key(tmp_path: Path) -> None:
    one, two = Journal(tmp_path / "numbers"), Journal(tmp_path / "numbers")
    one.add([("a", 0.1 + 0.2), ("b", {"x": [1, None]})])
    two.add([("a", 5.0), ("c", 0)])
    one.refresh()
    assert [one.get(key) for key in "abcd"] == [0.1 + 0.2, {"x": [1, None]}, 0, None]
    with pytest.raises(ValueError, match="JSON compliant"):
        one.add([("d", 1.0), ("e", float("nan"))])
    assert [one.get("d"), Journal(tmp_path / "numbers").get("d")] == [None, None]
    assert Journal(tmp_path / "other").get("a") is None
    (one.folder / "torn.jsonl").write_text('{"key":"x"}\n')
    with pytest.raises(ValueError, match=r"torn.jsonl has a line that is no entry"):
        one.refresh()


def test_the_first_patch_stays(tmp_path: Path, pipe: Any) -> None:
    store = Store(tmp_path)
    star, ring = (get_eraser("uce").fit(pipe, word) for word in ("star", "ring"))
    assert store.read_patch(KEY) is None
    store.add_patch(KEY, star, 1.5)
    store.add_patch(KEY, ring, 2.5)
    found = store.read_patch(KEY)
    assert found is not None
    patch, facts = found
    assert patch.digest == star.digest
    assert facts == {"bytes": (tmp_path / "patches" / f"{KEY}.safetensors").stat().st_size, "edit_seconds": 1.5}
    assert sorted(path.suffix for path in (tmp_path / "patches").iterdir()) == [".json", ".safetensors"]
    assert all(torch.equal(patch.tensors[name], tensor) for name, tensor in star.tensors.items())


def test_a_patch_whose_facts_were_never_written_is_fitted_again(tmp_path: Path, pipe: Any) -> None:
    store, patch = Store(tmp_path), get_eraser("uce").fit(pipe, "star")
    store.add_patch(KEY, patch, 1.5)
    (tmp_path / "patches" / f"{KEY}.json").unlink()
    assert store.read_patch(KEY) is None
    store.add_patch(KEY, patch, 2.5)
    found = store.read_patch(KEY)
    assert found is not None
    assert found[1]["edit_seconds"] == 2.5
    assert isinstance(found[0], Patch)
