"""Worlds are found by name, by folder and by registration, and nothing is loaded for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from erasers import worlds

NO_TORCH = """
import sys
from erasers import worlds
shapes = worlds.get("shapes")
assert shapes.concept("pentagram").name == "star"
assert worlds.find("some/model") is None
assert shapes.unknown_words("A red dog on a star") == ["dog"]
assert len(shapes.split_prompts("star", 3)["explicit"]) == 3
sys.exit("torch" in sys.modules)
"""


def test_worlds_are_listed_and_read_without_torch() -> None:
    assert worlds.list() == ["shapes", "shapes-sd3"]
    assert worlds.DEFAULT == "shapes"
    assert worlds.get("shapes") is worlds.get("shapes")
    assert subprocess.run([sys.executable, "-c", NO_TORCH], check=False).returncode == 0


def test_an_unknown_world_is_refused_by_the_names_of_those_there_are() -> None:
    with pytest.raises(ValueError, match="expected a world among shapes, shapes-sd3, got 'emoji'"):
        worlds.get("emoji")


def copied(name: str, folder: Path) -> Path:
    """A copy of the folder of a model without its weights."""
    return Path(shutil.copytree(worlds.get(name).folder, folder, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the model of `shapes`."""
    return copied("shapes", tmp_path / "copy")


@pytest.mark.parametrize("name", worlds.list())
def test_a_model_is_known_by_name_and_by_what_is_in_its_folder(name: str, tmp_path: Path) -> None:
    assert worlds.find(name) is worlds.find(str(copied(name, tmp_path / "copy"))) is worlds.get(name)


def test_a_folder_of_other_words_is_of_no_world(copy: Path) -> None:
    assert worlds.find("CompVis/stable-diffusion-v1-4") is None
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    assert worlds.find(copy) is None


def test_a_model_of_other_parts_with_the_same_words_is_another(copy: Path) -> None:
    """As a transformer would be that draws the same pictures."""
    (copy / "unet").rename(copy / "transformer")
    assert worlds.find(copy) is None


def test_what_a_checkout_alone_has_is_looked_for_in_its_root() -> None:
    root = worlds.get("shapes").root
    assert root
    assert (root / "benchmarks" / "reference" / "unet-without-star" / "config.json").is_file()
