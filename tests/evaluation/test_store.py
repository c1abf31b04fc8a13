"""The store: what is kept is whole, found again, and never written twice."""

from __future__ import annotations

import json
import random
from io import BytesIO
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


def noise(seed: int) -> Image.Image:
    return Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(192))


def encoded(image: Image.Image, kind: str) -> bytes:
    content = BytesIO()
    image.save(content, format=kind)
    return content.getvalue()


@pytest.mark.parametrize("damage", ["empty", "junk", "cut", "flipped", "other", "swapped", "pixels", "bmp", "eps"])
def test_a_picture_that_is_not_what_was_kept_is_drawn_again_and_counted(tmp_path: Path, damage: str) -> None:
    store, other = Store(tmp_path), "cd" + 62 * "1"
    store.add_image(KEY, noise(1))
    store.add_image(other, noise(2))
    path, whole = store.image_path(KEY), store.image_path(KEY).read_bytes()
    middle = len(whole) // 2
    damaged = {
        "empty": b"",
        "junk": b"no picture",
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "other": encoded(noise(3), "PNG"),
        "swapped": store.image_path(other).read_bytes(),
        "pixels": encoded(noise(1).point(lambda value: value ^ 1), "PNG"),
        "bmp": encoded(noise(1), "BMP"),
        "eps": encoded(noise(1), "EPS"),
    }
    path.write_bytes(damaged[damage])
    if damage == "swapped":
        store.image_path(other).write_bytes(whole)
    again = Store(tmp_path)
    with pytest.raises(ValueError, match=f"{KEY}.png is damaged"):
        again.read_image(KEY)
    assert not again.has_image(KEY)
    assert again.damage == 1
    again.add_image(KEY, noise(1))
    assert Store(tmp_path).read_image(KEY).tobytes() == noise(1).tobytes()
    assert Store(tmp_path).has_image(other) == (damage != "swapped")


def test_a_picture_without_a_hash_is_drawn_again(tmp_path: Path) -> None:
    path = Store(tmp_path).image_path(KEY)
    path.parent.mkdir(parents=True)
    noise(1).save(path)
    store = Store(tmp_path)
    assert not store.has_image(KEY)
    assert store.damage == 1


def test_a_picture_that_another_process_draws_differently_is_whole(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    assert not one.has_image(KEY)
    assert not two.has_image(KEY)
    one.add_image(KEY, noise(1))
    assert two.has_image(KEY)
    path = one.image_path(KEY)
    path.unlink()
    Store(tmp_path).add_image(KEY, noise(2))
    assert one.read_image(KEY).tobytes() == two.read_image(KEY).tobytes() == noise(2).tobytes()
    assert (one.damage, two.damage) == (0, 0)


@pytest.mark.parametrize("damage", ["bit", "other", "both", "facts", "key", "old", "junk"])
def test_a_patch_that_is_not_what_was_kept_is_fitted_again_and_counted(tmp_path: Path, pipe: Any, damage: str) -> None:
    store, other = Store(tmp_path), "cd" + 62 * "1"
    star, ring = (get_eraser(name).fit(pipe, "star") for name in ("uce", "rece"))
    store.add_patch(KEY, star, 1.5)
    store.add_patch(other, ring, 2.5)
    file, facts = (tmp_path / "patches" / f"{KEY}{ending}" for ending in (".safetensors", ".json"))
    theirs = [tmp_path / "patches" / f"{other}{ending}" for ending in (".safetensors", ".json")]
    content, said = bytearray(file.read_bytes()), json.loads(facts.read_text())
    if damage == "bit":
        content[-5] ^= 1
        file.write_bytes(content)
    if damage in ("other", "both"):
        file.write_bytes(theirs[0].read_bytes())
    if damage == "both":
        facts.write_bytes(theirs[1].read_bytes())
    changes: dict[str, Any] = {"facts": said | {"edit_seconds": 0.0}, "key": said | {"key": other}, "junk": [1]}
    changes["old"] = {"bytes": len(content), "edit_seconds": 1.5}
    if damage in changes:
        facts.write_text(json.dumps(changes[damage]))
    again = Store(tmp_path)
    assert again.read_patch(KEY) is None
    assert again.damage == 1
    again.add_patch(KEY, star, 3.5)
    found = Store(tmp_path).read_patch(KEY)
    assert found is not None
    assert (found[0].digest, found[1]["edit_seconds"]) == (star.digest, 3.5)
    assert Store(tmp_path).read_patch(other) is not None


def test_verdicts_are_found_again_by_picture_and_wants(tmp_path: Path) -> None:
    first = Verdicts(tmp_path, JUDGE)
    star, plain = {"object": "star", "colour": "red"}, {"object": "star"}
    first.add([("a", star, Verdict(True, 0.1 + 0.2), "p"), ("a", plain, Verdict(None, None, "broken"), "q")])
    first.add([("b", plain, Verdict(False, 0.0), "r")])
    again = Verdicts(tmp_path, JUDGE)
    for verdicts in (first, again):
        assert verdicts.get("a", dict(reversed(star.items()))) == Verdict(True, 0.1 + 0.2)
        assert verdicts.get("a", plain) == Verdict(None, None, "broken")
        assert verdicts.get("b", plain) == Verdict(False, 0.0)
        assert verdicts.get("b", star) is None
        assert [verdicts.pixels("a", star), verdicts.pixels("b", plain), verdicts.pixels("b", star)] == ["p", "r", ""]
    assert Verdicts(tmp_path, 64 * "d").get("b", plain) is None
    assert [path.parent.name for path in tmp_path.rglob("*.jsonl")] == [16 * "c"]


def test_processes_see_each_other_and_share_no_file(tmp_path: Path) -> None:
    one, two = Verdicts(tmp_path, JUDGE), Verdicts(tmp_path, JUDGE)
    one.add([("a", {}, Verdict(True), "p")])
    two.add([("b", {}, Verdict(True), "p")])
    assert one.get("b", {}) is None
    one.refresh()
    assert one.get("b", {}) == Verdict(True)
    assert len(list(one.folder.iterdir())) == 2


def test_a_torn_last_line_does_not_count(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path, JUDGE)
    verdicts.add([("a", {}, Verdict(True), "p"), ("b", {}, Verdict(True), "p")])
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


def test_a_whole_line_that_is_no_verdict_is_counted(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path, JUDGE)
    verdicts.add([("a", {}, Verdict(True), "p"), ("b", {}, Verdict(False), "q")])
    shard = next(verdicts.folder.iterdir())
    first, second, _ = shard.read_text().split("\n")
    old = json.dumps({"image": "c", "wants": {}, "value": True, "probability": None, "reason": ""})
    swapped = [json.dumps(json.loads(one) | {"image": image}) for one, image in ((first, "b"), (second, "a"))]
    flipped = first.replace('"value":true', '"value":false')
    for lines in (
        ["{}"],
        ["[1]"],
        ["no"],
        ["[" * 9999],
        [old],
        [flipped],
        swapped,
        [first.replace('"p"', '"q"')],
    ):
        (verdicts.folder / "x.jsonl").write_text("".join(line + "\n" for line in lines))
        shard.write_text(second + "\n")
        again = Verdicts(tmp_path, JUDGE)
        assert (again.damaged, again.get("a", {}), again.get("b", {})) == (len(lines), None, Verdict(False))
        # It is judged again.
        again.add([("a", {}, Verdict(True), "p")])
        last = Verdicts(tmp_path, JUDGE)
        assert (last.damaged, last.get("a", {})) == (len(lines), Verdict(True))
        (again.folder / again._mine).unlink()


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
    one.refresh()
    assert (one.damaged, one.get("x")) == (1, None)


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
