"""Pipelines in a state that is not supported: one error that says so, before any work, and never for a bug."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.families.all import FAMILIES
from support.families.variants import unet_net
from support.families.variants import with_class as variant
from support.tiny import make_unet, same

from erasers import Concept, UnsupportedPipeline, get_eraser
from erasers.cli import app as cli
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.diffusion.supported import check_drawable
from erasers.sae.text_blocks import readable_encoders

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

STAR = Concept("star", anchor="circle")
TRAINED = (
    *("esd", "safe", "co_erasing", "concept_slider", "doco", "few_shot", "geom_erasing", "adv_unlearn"),
    *("robust_ablation", "ablation", "salun", "receler", "spm", "hirm", "stereo", "eraseflow", "mace"),
)
BRIEF: dict[str, Any] = {"iterations": 1, "steps": 2}


class Own(torch.nn.Module):
    """A wrapper of the user's."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.counter, self.inner = torch.nn.Linear(1, 1), unet


def adapted(model: Any, layer: str) -> Any:
    return get_peft_model(model, LoraConfig(target_modules=[layer], r=2))


WRAPPERS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "adapter": ("unet", lambda unet: adapted(unet, "to_q"), r"PeftModel.*unet = pipe\.unet\.merge_and_unload\(\)"),
    "devices": ("unet", torch.nn.DataParallel, r"DataParallel.*pipe\.unet = pipe\.unet\.module"),
    "own": ("unet", Own, r"Own around it.*pipe\.unet = pipe\.unet\.inner"),
    "text": (
        "text_encoder",
        lambda model: adapted(model, "q_proj"),
        r"PeftModel.*text_encoder = pipe\.text_encoder\.merge_and_unload\(\)",
    ),
    "text devices": ("text_encoder", torch.nn.DataParallel, r"text_encoder = pipe\.text_encoder\.module"),
}


@pytest.mark.parametrize("case", WRAPPERS)
def test_a_wrapped_model_is_named_with_the_way_out(pipe, case):
    name, wrap, words = WRAPPERS[case]
    setattr(pipe, name, wrap(getattr(pipe, name)))
    for method, options in {"rece": {}, "esd": BRIEF, "few_shot": BRIEF}.items():
        with pytest.raises(UnsupportedPipeline, match=rf"expected a plain model as pipe\.{name}, got a .*{words}"):
            get_eraser(method, **options).fit(pipe, STAR, progress=False)


def test_a_wrapped_transformer_is_named(tmp_path):
    pipe = FAMILIES["flux"].build(tmp_path)
    pipe.transformer = torch.nn.DataParallel(pipe.transformer)
    with pytest.raises(UnsupportedPipeline, match=r"pipe\.transformer = pipe\.transformer\.module"):
        get_eraser("uce").fit(pipe, STAR)


def test_the_way_out_of_an_adapter_leads_out(pipe):
    pipe.unet = adapted(pipe.unet, "to_q")
    pipe.unet = pipe.unet.merge_and_unload()
    assert get_eraser("uce", cache=False).fit(pipe, STAR).parameters


UNETS: dict[str, tuple[dict[str, Any], str]] = {
    "inpainting": ({"in_channels": 9}, "reads 9 channels: a picture"),
    "depth": ({"in_channels": 5}, "reads 5 channels"),
    "editing": ({"in_channels": 8}, "reads 8 channels"),
    "upscaling": ({"num_class_embeds": 3}, "a noise level"),
    "consistency": ({"time_cond_proj_dim": 4}, r"distilled \(LCM\)"),
}


@pytest.mark.parametrize("kind", UNETS)
def test_a_unet_that_reads_more_than_a_prompt(pipe, kind):
    options, words = UNETS[kind]
    pipe.unet = make_unet(32, **options)
    assert get_eraser("rece", cache=False).fit(pipe, STAR).parameters
    for method in (method for method in TRAINED if method != "hirm"):
        with pytest.raises(UnsupportedPipeline, match=words):
            get_eraser(method).fit(pipe, STAR, progress=False)
    with pytest.raises(UnsupportedPipeline, match=words):
        check_drawable(pipe)
    # What reads text encoders alone goes on, as hirm does.
    assert readable_encoders(pipe) == ["text_encoder"]


# Pipelines of Stable Diffusion XL that draw from pictures

XL = ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"]


def with_class(pipe: Any, name: str) -> Any:
    return getattr(diffusers, name)(**pipe.components, add_watermarker=False)


@pytest.mark.parametrize("name", XL)
def test_esd_trains_pipelines_that_draw_from_pictures_as_their_text_to_image(pipes, name):
    options = {**BRIEF, "pictures": 1}
    plain = pipes("sdxl")
    patches = [get_eraser("esd", **options).fit(p, STAR, progress=False) for p in (plain, with_class(plain, name))]
    assert patches[0].parameters
    assert same(dict(patches[0].tensors), dict(patches[1].tensors))


@pytest.mark.parametrize(("scored", "ids"), [(False, [16, 16, 0, 0, 16, 16]), (True, [16, 16, 0, 0, 6.0])])
def test_the_sizes_that_the_unet_reads_are_those_of_the_class(pipes, scored, ids):
    plain = pipes("sdxl")
    unet = make_unet(
        40,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 4 * len(ids),
        transformer_layers_per_block=2,
    )
    plain.register_modules(unet=unet)
    pipe = with_class(plain, XL[0])
    pipe.register_to_config(requires_aesthetics_score=scored)
    seen: list[torch.Tensor] = []
    unet.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    noisy, times = torch.zeros(1, 4, 8, 8), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        predict(pipe, noisy, times, conditions(pipe, ["star"]))
    assert seen[0].tolist() == [ids]


@pytest.mark.full
@pytest.mark.parametrize("method", ["esd", "few_shot"])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("StableDiffusionImg2ImgPipeline", lambda pipe: {}),
        ("StableDiffusionInpaintPipeline", lambda pipe: {}),
        ("StableDiffusionControlNetPipeline", unet_net),
    ],
)
def test_pipelines_around_one_unet_train_to_one_patch(pipe, method, name, more):
    """The net of a ControlNet is not called: what is trained is the UNet, by prompts alone."""
    other = variant(name, {**pipe.components, **more(pipe)})
    options = {**BRIEF, "pictures": 1}
    patches = [get_eraser(method, **options).fit(part, STAR, progress=False) for part in (pipe, other)]
    assert patches[0].parameters
    assert same(dict(patches[0].tensors), dict(patches[1].tensors))


def test_the_refiner_of_xl_is_trained(pipes):
    parts = {**pipes("sdxl").components, "text_encoder": None, "tokenizer": None}
    unet = make_unet(
        16,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 5 * 4,
        transformer_layers_per_block=2,
    )
    pipe = variant(XL[0], {**parts, "unet": unet}, requires_aesthetics_score=True)
    for method, options in {"uce": {"cache": False}, "esd": {**BRIEF, "pictures": 1}}.items():
        assert get_eraser(method, **options).fit(pipe, STAR, progress=False).parameters


# Text that enters elsewhere


@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
def test_phrases_for_boxes_are_warned_of(pipes):
    patch = get_eraser("uce", cache=False).fit(pipes("sd1"), STAR)
    parts = {name: part for name, part in pipes("sd1").components.items() if name != "image_encoder"}
    gated = make_unet(32, attention_type="gated")
    gated.load_state_dict(parts["unet"].state_dict(), strict=False)
    pipe = diffusers.StableDiffusionGLIGENPipeline(**parts | {"unet": gated}, requires_safety_checker=False)
    with pytest.warns(UserWarning, match=r"phrases for boxes \(GLIGEN\) reach pipe\.unet\.position_net.*not edited"):
        patch.apply(pipe)


# The command


def saved(pipe: Any, folder: Any) -> str:
    pipe.save_pretrained(folder)
    return str(folder)


def test_a_type_error_of_a_bug_is_not_bad_input(pipe, tmp_path, monkeypatch, capsys):
    def broken(*_: Any, **__: Any) -> None:
        raise TypeError("unsupported operand")

    model = saved(pipe, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("erasers.methods.text_maps.port_groups", broken)
    capsys.readouterr()
    assert cli.run(["--concept", "star", "--model", model, "--method", "uce"]) == 1
    assert "TypeError: unsupported operand; set ERASERS_DEBUG=1" in capsys.readouterr().err


def test_an_unsupported_state_is_bad_input(pipes, tmp_path, monkeypatch, capsys):
    pipe = pipes("sd1")
    parts = {**copy.copy(pipe.components), "unet": make_unet(32, in_channels=9)}
    pipe = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    model = saved(pipe, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli.run(["--concept", "star", "--model", model, "--method", "esd", "--set", "iterations=1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: expected a denoiser that reads latents")
    assert len(error.splitlines()) == 1
