"""Models of transformers beside pipelines of diffusers: taken where a method is for them, refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.language import make_janus
from support.selection import only
from torch import nn

from erasers import (
    Concept,
    ErasedPipeline,
    ModelNotFound,
    ModelPipeline,
    Patch,
    PatchError,
    UnsupportedPipeline,
    get_eraser,
    list_erasers,
    load_pipeline,
)
from erasers.cli import app as cli
from erasers.diffusion.supported import check_drawable
from erasers.eraser import ModelEraser, eraser_class
from erasers.models.fingerprints import weight_hashes
from erasers.models.model_pipeline import model_pipeline
from erasers.patch.build import patch_meta
from erasers.patch.card import Facts, model_card

STAR = Concept("star", anchor="circle")
NAME = "model.lm_head.weight"


@pytest.fixture(scope="module")
def janus() -> ModelPipeline:
    return make_janus(side=2, layers=2)


def patch_of(pipe: ModelPipeline) -> Patch:
    """Zeroes a weight."""
    weight = pipe.model.lm_head.weight.data
    meta = patch_meta("none", {}, [STAR], weight_hashes(pipe, {NAME: weight}), weight.dtype, weights={NAME: weight})
    return Patch({f"dense/{NAME}": torch.zeros_like(weight)}, meta)


def test_a_patch_edits_the_model_that_a_pipeline_holds(janus: ModelPipeline, tmp_path: Path) -> None:
    weight, before = janus.model.lm_head.weight, janus.model.lm_head.weight.clone()
    patch_of(janus).save(tmp_path / "patch.safetensors")
    patch = Patch.load(tmp_path / "patch.safetensors")
    with patch.applied(ModelPipeline(janus.model, janus.processor)):
        assert not weight.any()
        assert patch.is_applied(janus)
    assert torch.equal(weight, before)


def test_a_patch_is_held_against_the_weights_of_the_model(janus: ModelPipeline) -> None:
    other = make_janus(side=2, layers=2)
    other.model.lm_head.weight.data += 1
    with pytest.raises(PatchError, match=f"fitted on other weights: {NAME}"):
        patch_of(janus).apply(other)


def test_a_model_alone_is_told_where_it_goes(janus: ModelPipeline) -> None:
    with pytest.raises(PatchError, match="got JanusForConditionalGeneration without one; .*ModelPipeline"):
        patch_of(janus).apply(janus.model)
    with pytest.raises(UnsupportedPipeline, match=r"alone; hold both: erasers\.ModelPipeline\(model, processor\)"):
        model_pipeline(janus.model, ["JanusForConditionalGeneration"])


def test_what_is_no_model_of_the_class_is_refused(janus: ModelPipeline) -> None:
    with pytest.raises(UnsupportedPipeline, match="expected a Other .* got ModelPipeline of a JanusForConditional"):
        model_pipeline(janus, ["Other"])
    with pytest.raises(UnsupportedPipeline, match="got int"):
        model_pipeline(3, ["Other"])
    with pytest.raises(UnsupportedPipeline, match="which has a tokenizer, got Linear and NoneType"):
        ModelPipeline(nn.Linear(1, 1), None)


@pytest.mark.parametrize("method", list_erasers("models"))
def test_methods_for_models_refuse_pipelines(method: str, pipe: Any) -> None:
    assert issubclass(eraser_class(method), ModelEraser)
    with pytest.raises(UnsupportedPipeline, match="in erasers.ModelPipeline, got StableDiffusionPipeline"):
        get_eraser(method).fit(pipe, STAR)


@pytest.mark.parametrize("method", only(list_erasers(), "uce", "esd", "itd"))
def test_methods_for_pipelines_refuse_models(method: str, janus: ModelPipeline) -> None:
    with pytest.raises(UnsupportedPipeline, match="got ModelPipeline"):
        get_eraser(method).fit(janus, STAR)


def save(pipe: ModelPipeline, folder: Path) -> None:
    ErasedPipeline.save_pretrained(pipe, folder / "saved")


def load(pipe: ModelPipeline, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    load_pipeline(folder)


def to_lora(pipe: ModelPipeline, folder: Path) -> None:
    patch_of(pipe).to_lora(pipe, folder / "lora")


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (save, UnsupportedPipeline, "expected a pipeline of diffusers, got ModelPipeline; .* save_pretrained"),
        (load, ModelNotFound, "no model_index.json; load one of transformers there, for erasers.ModelPipeline"),
        (to_lora, PatchError, r"patch\.to_delta\(pipe, folder\)"),
        (lambda pipe, folder: check_drawable(pipe), UnsupportedPipeline, "got ModelPipeline"),
    ],
)
def test_what_is_for_pipelines_refuses_models(
    use: Callable[[Any, Path], None], error: type[Exception], words: str, janus: ModelPipeline, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        use(janus, tmp_path)


@pytest.mark.parametrize("method", list_erasers("models"))
def test_the_command_says_where_methods_for_models_are(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--concept", "star", "--model", "shapes", "--method", method]) == 2
    assert "erases models of transformers" in capsys.readouterr().err
    assert cli.run(["methods"]) == 0
    assert eraser_class(method).presets.keys() <= set(capsys.readouterr().out.replace(",", " ").split())


@pytest.mark.parametrize("name", list_erasers("models"))
def test_every_method_for_models_says_what_it_is(name: str) -> None:
    said = vars(eraser_class(name))
    assert all(said.get(field, "").strip() for field in ("paper", "family", "strengths", "limits"))
    assert any(word in eraser_class(name).__doc__.lower() for word in ("faithful", "corrected", "reconstruct"))


def test_a_card_says_how_a_patch_of_a_model_is_used(janus: ModelPipeline) -> None:
    patch = patch_of(janus)
    card = model_card(Facts(patch.meta, 1, 0, patch.nbytes), repo_id="maker/patch")
    assert "- transformers" in card
    assert "A patch for a model of transformers" in card
    assert "erasers.ModelPipeline(model, processor)" in card
    assert "diffusers" not in card
