"""IP-Adapters: they say what diffusers' own loading says, in a context alone, and a text refines their tokens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.adapters import TOKENS, save_adapter, tiny_adapter
from support.tiny import draw, same, weights
from support.trained import family_pipe

from erasers import worlds
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.diffusion.image_adapter import ImageAdapter, adapter_file, refined
from erasers.models.families import UnsupportedPipeline

PICTURE = Image.effect_noise((16, 16), 60).convert("RGB")


def said(pipe: Any, condition: Condition) -> torch.Tensor:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return predict(pipe, noisy, torch.tensor([10, 70]), condition)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_it_draws_what_diffusers_own_loading_draws_and_is_gone_after(pipes, family, tmp_path):
    pipe, stock = pipes(family), pipes(family)
    file = save_adapter(pipe.unet, tmp_path)
    stock.load_ip_adapter(str(tmp_path), subfolder="", weight_name=file.name, image_encoder_folder="image_encoder")
    stock.set_ip_adapter_scale(0.7)
    before, plain, config = weights(pipe), draw(pipe), dict(pipe.config)
    kinds = {name: type(value) for name, value in pipe.unet.attn_processors.items()}
    adapter = ImageAdapter(pipe, file)
    with adapter.placed(pipe, scale=0.7):
        shown = draw(pipe, ip_adapter_image=PICTURE)
    assert torch.equal(shown, draw(stock, ip_adapter_image=PICTURE))
    assert (shown - plain).abs().max() > 1e-3
    assert torch.equal(draw(pipe), plain)
    assert same(before, weights(pipe))
    assert {name: type(value) for name, value in pipe.unet.attn_processors.items()} == kinds
    assert (pipe.image_encoder, pipe.unet.encoder_hid_proj, pipe.unet.config.encoder_hid_dim_type) == (None,) * 3
    assert dict(pipe.config) == config


def test_tokens_say_what_the_picture_says_and_nothing_at_scale_0(pipe):
    adapter, named = ImageAdapter(pipe, tiny_adapter()), conditions(pipe, ["a star"])
    tokens = adapter.tokens(pipe, [PICTURE, Image.new("RGB", (16, 16), "red")])
    assert tokens.shape == (2, TOKENS, 32)
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3)
    noisy, times = torch.randn(1, 4, 8, 8), torch.tensor([30])
    with adapter.placed(pipe), torch.no_grad():
        embedding, _ = pipe.encode_image([PICTURE], "cpu", 1)
        by_picture = pipe.unet(
            noisy, times, named.states, added_cond_kwargs={"image_embeds": [embedding[:, None]]}
        ).sample
    with adapter.placed(pipe, projected=True), torch.no_grad():
        by_tokens = predict(pipe, noisy, times, named._replace(image=tokens[:1]))
    torch.testing.assert_close(by_tokens, by_picture)
    twice = named.expand(2)
    with adapter.placed(pipe, scale=0.0, projected=True):
        silent = said(pipe, twice._replace(image=tokens))
    torch.testing.assert_close(silent, said(pipe, twice), rtol=0, atol=0)


def test_nothing_stays_when_drawing_fails(pipe):
    adapter, plain = ImageAdapter(pipe, tiny_adapter()), draw(pipe)
    with pytest.raises(KeyboardInterrupt), adapter.placed(pipe):
        raise KeyboardInterrupt
    assert torch.equal(draw(pipe), plain)


def test_it_stands_beside_another_unet_of_that_shape(pipes):
    pipe, other = pipes("sd1"), pipes("sd1")
    adapter = ImageAdapter(pipe, tiny_adapter())
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.mul_(1.1)
    pipe.unet = other.unet
    plain = draw(pipe)
    with adapter.placed(pipe):
        assert (draw(pipe, ip_adapter_image=PICTURE) - plain).abs().max() > 1e-3
    assert torch.equal(draw(pipe), plain)


def test_refined_tokens_are_means_of_tokens_of_the_text():
    generator = torch.Generator().manual_seed(0)
    tokens, states = (torch.randn(2, count, 6, generator=generator) for count in (4, 9))
    shares = (tokens @ states.transpose(1, 2) / 6**0.5).softmax(-1)
    torch.testing.assert_close(refined(tokens, states), shares @ states)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 4))
    assert (refined(tokens, states).amax(1) <= states.amax(1)).all()
    assert (refined(tokens, states).amin(1) >= states.amin(1)).all()
    # A text of one token leaves the picture no choice.
    torch.testing.assert_close(refined(tokens, states[:, :1]), states[:, :1].expand(2, 4, 6))


def test_a_folder_with_one_adapter_is_that_adapter(pipe, tmp_path):
    file = save_adapter(pipe.unet, tmp_path)
    assert adapter_file(pipe, tmp_path) == adapter_file(pipe, str(file)) == file
    save_adapter(pipe.unet, tmp_path, "ip-adapter_other.safetensors")
    with pytest.raises(ValueError, match="expected one IP-Adapter in .*, got 2; name the file"):
        adapter_file(pipe, tmp_path)
    for missing in (tmp_path / "image_encoder" / "nothing", tmp_path / "ip-adapter.bin"):
        with pytest.raises(FileNotFoundError, match="expected an IP-Adapter as a .safetensors file"):
            adapter_file(pipe, missing)


def test_the_adapter_of_an_embedded_model_is_not_that_of_another(pipe):
    with pytest.raises(ValueError, match="expected an IP-Adapter for this model, got none.*pass adapter=FILE"):
        ImageAdapter(pipe, "auto")


def changed(file: Path, change: Any) -> Path:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("image_proj.proj.weight"), "an IP-Adapter of pictures"),
        (lambda tensors: tensors.update({"ip_adapter.0.to_q_lora.down.weight": torch.ones(1)}), "one of faces"),
        (lambda tensors: tensors.pop("ip_adapter.1.to_k_ip.weight"), "for this UNet"),
        (lambda tensors: tensors.update({"ip_adapter.1.to_k_ip.weight": torch.ones(2, 3)}), "for this UNet"),
    ],
)
def test_another_file_is_refused_and_the_pipeline_left_alone(pipe, tmp_path, change, message):
    plain = draw(pipe)
    with pytest.raises(ValueError, match=message):
        ImageAdapter(pipe, changed(save_adapter(pipe.unet, tmp_path), change))
    assert torch.equal(draw(pipe), plain)


def test_a_damaged_file_and_a_missing_encoder_are_refused(pipe, tmp_path):
    file = save_adapter(pipe.unet, tmp_path)
    shutil.rmtree(tmp_path / "image_encoder")
    with pytest.raises(FileNotFoundError, match="expected the encoder of pictures in .*image_encoder"):
        ImageAdapter(pipe, file)
    file.write_bytes(b"pickle")
    with pytest.raises(ValueError, match="expected safetensors in ip-adapter_tiny.safetensors"):
        ImageAdapter(pipe, file)


def test_pipelines_that_take_none_are_refused(pipe, tmp_path):
    with pytest.raises(UnsupportedPipeline, match="whose UNet takes an IP-Adapter"):
        ImageAdapter(family_pipe("sd3", tmp_path), tiny_adapter())
    pipe.load_ip_adapter(str(Path(tiny_adapter()).parent), subfolder="", weight_name=Path(tiny_adapter()).name)
    with pytest.raises(ValueError, match="got one that has it"):
        ImageAdapter(pipe, tiny_adapter())


def test_an_adapter_is_of_a_model_and_not_of_all_that_draw_its_pictures():
    adapters = {name: worlds.get(name).ip_adapter for name in ("shapes", "shapes-sd3")}
    assert adapters == {"shapes": worlds.get("shapes").folder.parent / "ip_adapter", "shapes-sd3": None}
