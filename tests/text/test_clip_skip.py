"""Trainings and features for pictures that are drawn with `clip_skip`: what they read of prompts and what not."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from support.saes import save_saes
from support.selection import only, rows
from support.trained import METHODS, STAR

from erasers import get_eraser
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.clip import encode
from erasers.diffusion.conditions import conditions
from erasers.diffusion.tokens import tokenise
from erasers.methods.few_shot import trained_names
from erasers.methods.itd import eraser as itd
from erasers.methods.itd.denoiser_features import Measuring
from erasers.sae.autoencoder import SAE, save_sae
from erasers.sae.denoiser_block import find_denoiser_block
from erasers.sae.text_blocks import find_block

PATH = "down_blocks.0.attentions.0"
QUICK = {"iterations": 3, "lr": 1e-2}


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance goes by zeros: what a pipeline guides with reads every layer, whatever `clip_skip`."""

    def zeros(pipe: Any) -> Condition:
        return Condition(torch.zeros_like(conditions(pipe, [""]).states))

    for name, module in list(sys.modules.items()):
        if name.startswith("erasers.") and hasattr(module, "unprompted"):
            monkeypatch.setattr(module, "unprompted", zeros)


def with_other_last_layer(pipe: Any) -> Any:
    """The pipeline with noise in the last layer of its text encoder."""
    for parameter in pipe.text_encoder.encoder.layers[-1].parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    return pipe


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_prompts_are_read_as_the_pipeline_reads_them(pipes, family):
    pipe, text = pipes(family), "a red star"
    with torch.no_grad():
        found, plain = conditions(pipe, [text], 1), conditions(pipe, [text])
        if family == "sdxl":
            options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
            states, _, pooled, _ = pipe.encode_prompt(text, clip_skip=1, **options)
            assert torch.equal(found.pooled, pooled)
        else:
            ids = tokenise(pipe, text)
            layers = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
            states = pipe.text_encoder.final_layer_norm(layers[-2])
            torch.testing.assert_close(encode(pipe, ids, 0), encode(pipe, ids))
    torch.testing.assert_close(found.states, states)
    assert not torch.allclose(plain.states, states, atol=1e-3)


METHODS_TOO = [
    *METHODS.items(),
    ("robust_ablation", METHODS["robust_ablation"] | {"start": "uce", "rank": 0}),
    ("esd", METHODS["esd"] | {"from_concept": "moon"}),
    ("adv_unlearn", METHODS["adv_unlearn"] | {"toward": "anchor", "clean": True}),
    ("few_shot", METHODS["few_shot"] | {"max_drift": "auto", "lr": 1e-4}),
]


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(("name", "options"), rows(METHODS_TOO, default=lambda name, _: name in ("doco", "esd")))
def test_nothing_is_learned_from_layers_that_are_left_out(pipes, name, options):
    found: dict[int | None, list[Any]] = {}
    for skip in (None, 1):
        eraser = get_eraser(name, **QUICK | options | {"clip_skip": skip})
        pair = pipes("sd1"), with_other_last_layer(pipes("sd1"))
        found[skip] = [eraser.fit(pipe, STAR, progress=False).tensors for pipe in pair]
    same = {
        skip: first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
        for skip, (first, second) in found.items()
    }
    assert same == {None: False, 1: True}


@pytest.mark.parametrize("name", only(["adv_unlearn", "few_shot"], "few_shot"))
def test_layers_that_are_left_out_are_not_trained(pipe, name):
    eraser = get_eraser(name, **METHODS[name] | QUICK | {"clip_skip": 1})
    moved = eraser.fit(pipe, STAR, progress=False).parameters
    assert moved
    assert not any("layers.1." in parameter for parameter in moved)
    assert eraser.foretell(pipe, STAR).memory(1) < get_eraser(name, **METHODS[name]).foretell(pipe, STAR).memory(1)


def test_names_of_layers_that_are_left_out_are_not_taken(pipe):
    assert {part for part in trained_names(pipe, 1) if "self_attn" in part} == {
        part.replace("layers.1.", "layers.0.") for part in trained_names(pipe) if "self_attn" in part
    }


@pytest.mark.parametrize("name", METHODS)
def test_more_layers_than_there_are_are_refused(pipe, name):
    eraser = get_eraser(name, **METHODS[name] | QUICK | {"clip_skip": 3})
    for refused in (eraser.fit, eraser.foretell):
        with pytest.raises(
            ValueError, match="clip_skip of at most the 2 layers that are read of the text_encoder, got 3"
        ):
            refused(pipe, STAR)
    with pytest.raises(ValueError, match="expected clip_skip of at least 0, got -1"):
        get_eraser(name, clip_skip=-1)


def test_a_pipeline_that_leaves_no_layer_out_is_refused(pipe, monkeypatch):
    def encode_prompt(self: Any, prompt: Any, device: Any = None, num_images_per_prompt: int = 1) -> None: ...

    monkeypatch.setattr(type(pipe), "encode_prompt", encode_prompt)
    for eraser in (get_eraser("esd", clip_skip=1), get_eraser("itd", clip_skip=1)):
        with pytest.raises(ValueError, match="expected no clip_skip, which StableDiffusionPipeline does not take"):
            eraser.fit(pipe, STAR)


def test_autoencoders_of_blocks_that_are_not_read_are_refused(pipes, tmp_path):
    pipe = pipes("sd1")
    (behind,) = save_saes(pipe, tmp_path)
    with pytest.raises(
        ValueError, match="one of the 1 first blocks of the text_encoder.*clip_skip 1, got one of block 1"
    ):
        get_eraser("itd", sae=(behind,), clip_skip=1).fit(pipe, STAR)
    block = find_block(pipe, "text_encoder.encoder.layers.0")
    save_sae(tmp_path / "x", SAE(block.width, 8, 2), target=block.target, base=block.fingerprints(), about={})
    with pytest.raises(ValueError, match="expected features of text_encoder.encoder.layers.0 that fire"):
        get_eraser("itd", sae=(str(tmp_path / "x"),), clip_skip=1).fit(pipe, STAR)


@pytest.mark.full
@pytest.mark.usefixtures("empty")
def test_features_of_a_denoiser_are_measured_in_such_pictures(pipes, tmp_path, monkeypatch):
    means: dict[int | None, list[torch.Tensor]] = {}

    def measured(measuring: Measuring, *rest: Any) -> None:
        means.setdefault(measuring.clip_skip, []).append(measuring.means(["a star"]).mu)
        raise InterruptedError

    monkeypatch.setattr(itd, "step_parts", measured)
    block = find_denoiser_block(pipes("sd1"), PATH)
    torch.manual_seed(0)
    sae = SAE(block.width, 16, 4)
    save_sae(tmp_path / "x", sae, target=block.target, base=block.fingerprints(), about={})
    for skip in (None, 1):
        eraser = get_eraser("itd", sae=(str(tmp_path / "x"),), clip_skip=skip, steps=2, pictures=1)
        for pipe in (pipes("sd1"), with_other_last_layer(pipes("sd1"))):
            with pytest.raises(InterruptedError):
                eraser.fit(pipe, STAR, progress=False)
    assert [torch.equal(*means[skip]) for skip in (None, 1)] == [False, True]
