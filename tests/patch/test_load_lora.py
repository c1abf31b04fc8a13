"""Loading a LoRA with a check that all of it was loaded."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import safetensors.torch
import torch
from support.families.all import FAMILIES
from support.families.base import draw
from support.families.patches import TEXT, adapters, hand_patch, layers, stock_load, transform_patch

from erasers import PatchError, load_lora
from erasers.patch.forms import LORA_FILE

SHORT = FAMILIES["sd1"].options
CROSS = TEXT["sd1"]


@pytest.mark.parametrize("form", ["peft", "kohya"])
@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_load_lora(tmp_path, name, form):
    pipe = FAMILIES[name].build(tmp_path)
    patch = hand_patch(pipe, layers(pipe, "unet" if name == "sdxl" else "transformer", TEXT[name]))
    picture = partial(draw, pipe, "a picture of star", FAMILIES[name].options)
    file = patch.to_lora(pipe, tmp_path / "lora", form=form).rename(tmp_path / "star.safetensors")
    with patch.applied(pipe):
        baked = picture()
    assert load_lora(pipe, file) is pipe
    assert pipe.get_active_adapters() == ["erasure"]
    assert (picture() - baked).abs().max() <= 2e-5
    with pytest.raises(PatchError, match="a adapter name that is free|name that is free, got 'erasure'"):
        load_lora(pipe, file)
    assert pipe.get_active_adapters() == ["erasure"]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_load_lora_keeps_what_was_on(pipe, tmp_path):
    picture = partial(draw, pipe, "a picture of star", SHORT)
    style = hand_patch(pipe, layers(pipe, "unet", r"attn1\.to_[qk]$"))
    style.to_lora(pipe, tmp_path / "style")
    patch = transform_patch(pipe, 2)
    patch.to_lora(pipe, tmp_path / "erasure")
    with style.applied(pipe), patch.applied(pipe):
        both = picture()
    stock_load(pipe, tmp_path / "style")
    load_lora(pipe, tmp_path / "erasure")
    assert (picture() - both).abs().max() <= 2e-5
    # The other order is stock loading, which switches the erasure off.
    pipe.unload_lora_weights()
    load_lora(pipe, tmp_path / "erasure")
    stock_load(pipe, tmp_path / "style")
    assert (picture() - both).abs().max() > 1e-2


def test_load_lora_notices_what_was_not_loaded(pipe, tmp_path, monkeypatch):
    picture = partial(draw, pipe, "a picture of star", SHORT)
    transform_patch(pipe, 2).to_lora(pipe, tmp_path)
    plain = picture()
    monkeypatch.setattr(type(pipe), "load_lora_weights", lambda self, *_, **__: None)
    with pytest.raises(PatchError, match=r"did not load unet\..*8 of 8 layers"):
        load_lora(pipe, tmp_path)
    monkeypatch.undo()
    tensors = safetensors.torch.load_file(tmp_path / LORA_FILE)
    first = {name: value for name, value in tensors.items() if name.startswith("unet.mid")}
    stock = type(pipe).load_lora_weights
    part = lambda self, *_, adapter_name, **__: stock(self, first, adapter_name=adapter_name)  # noqa: E731
    monkeypatch.setattr(type(pipe), "load_lora_weights", part)
    with pytest.raises(PatchError, match="6 of 8 layers"):
        load_lora(pipe, tmp_path)
    assert not adapters(pipe)
    torch.testing.assert_close(picture(), plain, rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_load_lora_that_fails_leaves_other_loras_as_they_were(pipe, tmp_path, monkeypatch):
    picture = partial(draw, pipe, "a picture of star", SHORT)
    hand_patch(pipe, layers(pipe, "unet", r"attn[12]\.to_[qk]$")).to_lora(pipe, tmp_path / "style")
    transform_patch(pipe, 2).to_lora(pipe, tmp_path)
    stock_load(pipe, tmp_path / "style")
    pipe.set_adapters("default_0", 0.5)
    before, stock = picture(), type(pipe).load_lora_weights

    def fail(self: Any, *_: Any, **options: Any) -> None:
        stock(self, *_, **options)
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(pipe), "load_lora_weights", fail)
    with pytest.raises(PatchError, match="no memory"):
        load_lora(pipe, tmp_path)
    assert pipe.get_list_adapters() == {"unet": ["default_0"]}
    torch.testing.assert_close(picture(), before, rtol=0, atol=2e-5)


def test_load_lora_refuses_other_models_and_files(pipes, tmp_path):
    pipe, other = pipes("sd1"), pipes("sdxl")
    hand_patch(other, layers(other, "unet", CROSS)).to_lora(other, tmp_path)
    with pytest.raises(PatchError, match="another model"):
        load_lora(pipe, tmp_path)
    with pytest.raises(FileNotFoundError, match=LORA_FILE):
        load_lora(pipe, tmp_path / "none")
    delta = transform_patch(pipe, 2).to_delta(pipe, tmp_path)
    with pytest.raises(PatchError, match="as a LoRA, got the tensor 'unet"):
        load_lora(pipe, delta)
    half = tmp_path / "half.safetensors"
    safetensors.torch.save_file({"unet.mid_block.x.lora_A.weight": torch.ones(1, 2)}, half)
    with pytest.raises(PatchError, match="both factors"):
        load_lora(pipe, half)
    safetensors.torch.save_file({"unet.mid_block.x.alpha": torch.ones(1)}, half)
    with pytest.raises(PatchError, match="got none"):
        load_lora(pipe, half)
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"unet.x.lora_A.weight": torch.ones(1)}, pickled)
    with pytest.raises(PatchError, match="as a safetensors file"):
        load_lora(pipe, pickled)
    named = transform_patch(pipe, 2).to_lora(pipe, tmp_path / "named").rename(tmp_path / "named.bin")
    with pytest.raises(PatchError, match=r"in a \.safetensors file, got named\.bin"):
        load_lora(pipe, named)
    assert not adapters(pipe)
    with pytest.raises(PatchError, match="no LoRA loader for PixArt"):
        load_lora(FAMILIES["pixart"].build(tmp_path), tmp_path)
