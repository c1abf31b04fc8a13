"""What suits a denoiser: published settings for the UNets that they were published for, low-rank weights for others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.trained import METHODS, STAR, family_pipe

from erasers import get_eraser
from erasers.training import suiting
from erasers.training.suiting import at_most, kind_of, own_guidance


def test_a_unet_is_large_by_its_weights(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_of(pipe) == "unet"
    monkeypatch.setattr(suiting, "_LARGE", sum(weight.numel() for weight in pipe.unet.parameters()))
    assert kind_of(pipe) == "large unet"


def test_published_settings_are_for_small_unets(pipe: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    esd = get_eraser("esd")
    small = esd.suited(pipe)
    assert (small.iterations, small.lr, small.rank, small.size, small.steps, small.guidance) == (
        1000,
        1e-5,
        0,
        None,
        50,
        3.0,
    )
    flow = esd.suited(family_pipe("flux", tmp_path))
    assert (flow.iterations, flow.lr, flow.rank, flow.size, flow.steps, flow.guidance) == (200, 1e-3, 8, None, 28, 3.5)
    monkeypatch.setattr(suiting, "_LARGE", 1)
    large = esd.suited(pipe)
    assert (large.rank, large.size, large.guidance) == (8, None, 3.0)
    assert get_eraser("esd", rank=0, lr=0.5).suited(pipe).rank == 0
    assert get_eraser("doco").suited(pipe).rank == 8


def test_large_text_encoders_are_trained_with_low_rank(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, few_shot = family_pipe("sd3", tmp_path), get_eraser("few_shot")
    assert (few_shot.suited(pipe).rank, few_shot.suited(pipe).lr) == (0, 1e-5)
    encoders = (pipe.text_encoder, pipe.text_encoder_2)
    numbers = sum(weight.numel() for encoder in encoders for weight in encoder.parameters())
    for size, settings in ((numbers + 1, (0, 1e-5)), (numbers, (16, 1e-4))):
        monkeypatch.setattr(suiting, "_LARGE_TEXT", size)
        assert (few_shot.suited(pipe).rank, few_shot.suited(pipe).lr) == settings
    assert get_eraser("few_shot", rank=0, lr=0.5).suited(pipe).rank == 0


@pytest.mark.parametrize(("family", "guidance"), [("sd1", 7.5), ("sdxl", 5.0), ("sd3", 7.0), ("flux", 3.5)])
def test_pictures_are_guided_as_the_pipeline_does(family: str, guidance: float, tmp_path: Any) -> None:
    assert own_guidance(FAMILIES[family].build(tmp_path)) == guidance


def test_models_that_are_never_guided_have_a_scale_of_one(tmp_path: Any) -> None:
    pipe = FAMILIES["flux"].build(tmp_path)
    pipe.transformer.register_to_config(guidance_embeds=False)
    assert own_guidance(pipe) == 1.0


def test_pictures_are_never_larger_than_the_models_own(tmp_path: Any) -> None:
    pipe = family_pipe("flux", tmp_path)
    assert at_most(512)(pipe) is None
    pipe.default_sample_size = 1024
    assert at_most(512)(pipe) == 512
    assert at_most(16)(pipe) == 16


def test_a_smaller_size_is_drawn_and_learned_from(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, shapes = family_pipe("flux", tmp_path), set()
    monkeypatch.setattr(pipe.transformer, "forward", _watched(pipe.transformer.forward, shapes))
    for name in ("esd", "doco"):
        options = METHODS[name] | {"iterations": 2, "lr": 1e-2, "size": 8}
        get_eraser(name, **options).fit(pipe, STAR, progress=False)
    # Squares of 2 x 2 of latents of 4 x 4.
    assert shapes == {4}


def _watched(forward: Any, shapes: set[int]) -> Any:
    def watch(*args: Any, **kwargs: Any) -> Any:
        shapes.add(kwargs["hidden_states"].shape[1])
        return forward(*args, **kwargs)

    return watch


def test_a_patch_says_what_was_asked_for(tmp_path: Any) -> None:
    pipe = family_pipe("sd3", tmp_path)
    options = {key: value for key, value in METHODS["esd"].items() if key != "rank"}
    patch = get_eraser("esd", **options | {"iterations": 1}).fit(pipe, STAR, progress=False)
    assert patch.meta["config"]["rank"] == "auto"
    assert {min(tensor.shape) for tensor in patch.tensors.values()} == {8}
    assert all(isinstance(tensor, torch.Tensor) for tensor in patch.tensors.values())


@pytest.mark.parametrize(
    ("name", "option"), [("few_shot", "iterations"), ("adv_unlearn", "lr"), ("robust_ablation", "rank")]
)
def test_a_method_that_knows_no_better_takes_no_auto(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"expected {option} as a (whole )?number, got 'auto'"):
        get_eraser(name, **{option: "auto"})
