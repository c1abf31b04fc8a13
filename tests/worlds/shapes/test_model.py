from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from support import REPOSITORY
from support.selection import only, rows
from support.shown import share

from erasers import get_eraser
from erasers.worlds.shapes import MODEL_DIR
from erasers.worlds.shapes.prompts import concept_for, split_prompts

MIB = 2**20


@pytest.fixture(scope="module")
def shapes() -> Any:
    """The shipped folder as plain diffusers loads it."""
    pipe = StableDiffusionPipeline.from_pretrained(MODEL_DIR)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_plain_diffusers_loads_the_folder_in_one_dtype(shapes: Any) -> None:
    parts = (shapes.unet, shapes.vae, shapes.text_encoder)
    assert {part.dtype for part in parts} == {torch.float32}
    assert {str(t.dtype) for part in parts for t in part.state_dict().values()} == {"torch.float32"}


def test_the_package_data_stay_small() -> None:
    files = [file for file in MODEL_DIR.parent.rglob("*") if file.suffix in (".safetensors", ".json")]
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) <= 16 * MIB
    assert sum(sizes) <= 40 * MIB


@pytest.mark.parametrize(
    ("word", "anchor"),
    rows([("star", "circle"), ("red", "green"), ("zorblat", "")], default=lambda word, _: word == "star"),
)
def test_rece_erases_and_keeps(shapes: Any, word: str, anchor: str) -> None:
    concept, splits = concept_for(word), split_prompts(word, 12)
    assert concept.anchor == anchor
    before = {split: share(shapes, prompts) for split, prompts in splits.items()}
    assert min(before.values()) >= 0.8
    patch = get_eraser("rece").fit(shapes, concept)
    with patch.applied(shapes):
        after = {split: share(shapes, prompts) for split, prompts in splits.items()}
    assert max(after["explicit"], after["synonym"]) <= 0.1
    assert min(after["neighbour"], after["unrelated"]) >= 0.8
    assert patch.nbytes <= 8192


@pytest.mark.parametrize("word", only(["star", "zorblat"], "star"))
def test_a_reference_never_saw_its_concept(shapes: Any, word: str) -> None:
    reference = UNet2DConditionModel.from_pretrained(REPOSITORY / "benchmarks" / "reference" / f"unet-without-{word}")
    pipe = StableDiffusionPipeline(**{**shapes.components, "unet": reference}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    splits = split_prompts(word, 12)
    assert share(pipe, splits["explicit"]) <= 0.25
    assert share(pipe, splits["unrelated"]) >= 0.75
