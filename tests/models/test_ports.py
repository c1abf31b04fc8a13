from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from erasers.models.ports import text_ports
from erasers.text.encoding import text_parts


@pytest.mark.parametrize(("family", "count", "width"), [("sd1", 8, 32), ("sd2", 8, 48), ("sdxl", 16, 40)])
def test_ports(pipes, family, count, width):
    pipe = pipes(family)
    ports = text_ports(pipe)
    assert len(ports) == len({port.name for port in ports}) == count
    assert all(port.module.in_features == width for port in ports)
    assert all(pipe.unet.get_submodule(port.name.removeprefix("unet.")) is port.module for port in ports)
    assert ports[0].parameter == f"{ports[0].name}.weight"


def test_blocks_whose_first_attention_reads_text(pipe):
    from support.tiny import make_unet

    pipe.unet = make_unet(32, only_cross_attention=(True, False))
    names = [port.name for port in text_ports(pipe)]
    assert any("attn1" in name for name in names)
    assert len(names) > 8


@pytest.mark.parametrize("pipe", [object(), None, SimpleNamespace(unet=torch.nn.Linear(2, 2), text_encoder=None)])
def test_unsupported(pipe):
    for call in (text_ports, text_parts):
        with pytest.raises(TypeError, match=r"Stable Diffusion 1\.x, 2\.x and SDXL: UNet2DConditionModel"):
            call(pipe)


def test_text_that_is_projected_first_is_refused(pipe):
    pipe.unet.encoder_hid_proj = torch.nn.Linear(32, 32)
    with pytest.raises(TypeError, match="encoder_hid_proj"):
        text_ports(pipe)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports what torch itself deprecates
def test_compiled_denoiser_is_seen_through(pipe):
    names = [port.name for port in text_ports(pipe)]
    pipe.unet = torch.compile(pipe.unet)
    assert [port.name for port in text_ports(pipe)] == names


def test_fused_quantised_and_offloaded_are_refused(pipes):
    pipe = pipes("sd1")
    pipe.fuse_qkv_projections()
    with pytest.raises(ValueError, match="fused"):
        text_ports(pipe)
    pipe = pipes("sd1")
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"mid_block.*got Identity; load the model unquantised"):
        text_ports(pipe)
    pipe = pipes("sd1")
    pipe.unet.to("meta")
    with pytest.raises(ValueError, match="not in memory"):
        text_ports(pipe)
    pipe = pipes("sd1")
    pipe.unet.enable_layerwise_casting(torch.float16, torch.float32)
    with pytest.raises(ValueError, match="hook"):
        text_ports(pipe)


def test_adapter_is_refused(pipe):
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"]))
    with pytest.raises(ValueError, match=r"adapter \(peft\)"):
        text_ports(pipe)


def test_missing_text_encoder_is_named(pipes):
    pipe = pipes("sd1")
    pipe.text_encoder = None
    with pytest.raises(ValueError, match="with a text_encoder, got None"):
        text_parts(pipe)
    pipe.tokenizer = None
    with pytest.raises(ValueError, match="with a text encoder, got None"):
        text_parts(pipe)
