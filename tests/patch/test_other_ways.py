"""Layers that look like ports and are none, and what reads the prompt beside the ports."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw
from support.families.patches import layers
from support.tiny import same, weights

from erasers import Concept, Patch, get_eraser
from erasers.models.ports import KINDS, port_groups

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")

STAR = Concept("star", anchor="circle", preserve=["moon"])


def fit(pipe: Any) -> Patch:
    """A patch that moves the prompt a long way."""
    return get_eraser("uce", rows="all", preserve_rows="all", ridge=1e-4, cache=False).fit(pipe, STAR)


def picture(pipe: Any, family: str = "sd1", **options: Any) -> torch.Tensor:
    return draw(pipe, "a picture of star", FAMILIES[family].options, **options)


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left - right).abs().max().item()


# What is no port

PICTURE = {
    "sd35": r"attn2\.",
    "flux": r"^single_transformer_blocks",
    "chroma": r"^single_transformer_blocks",
    "auraflow": r"^single_transformer_blocks",
    "flux2": r"to_qkv_mlp_proj$",
    "prx": r"txt_kv_proj$|img_qkv_proj$",
    "lumina2": r"^layers\.",
    "zimage": r"^layers\.",
    "cogview4": r"attn1\.",
    "wan": r"attn1\.",
}


@pytest.mark.parametrize("family", PICTURE)
def test_layers_that_are_no_ports(tmp_path, family):
    pipe = FAMILIES[family].build(tmp_path)
    apart = set(layers(pipe, "transformer", PICTURE[family]))
    assert apart
    for kind in KINDS:
        try:
            groups = port_groups(pipe, (kind,))
        except ValueError as error:
            assert f"got '{kind}', which it does not have" in str(error)  # noqa: PT017
            continue
        assert not apart & {port.name for group in groups for port in group.ports}


def test_attn2_of_sd35_reads_the_picture(tmp_path):
    pipe = FAMILIES["sd35"].build(tmp_path)
    seen: list[torch.Size] = []
    layer = pipe.transformer.transformer_blocks[0].attn2.to_k
    layer.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    picture(pipe, "sd35")
    pixels = (16 // pipe.vae_scale_factor // pipe.transformer.config.patch_size) ** 2
    assert {shape[1] for shape in seen} == {pixels}


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("unet", "I2VGenXLUNet"),
        ("unet", "Kandinsky3UNet"),
        ("unet", "StableCascadeUNet"),
        ("unet", "UNet3DConditionModel"),
        # It is a subclass of the class of Stable Diffusion, with another text encoder and other blocks.
        ("unet", "DreamLiteUNetModel"),
        ("transformer", "HunyuanVideoTransformer3DModel"),
        ("transformer", "LTXVideoTransformer3DModel"),
        ("transformer", "MochiTransformer3DModel"),
        ("transformer", "Kandinsky5Transformer3DModel"),
    ],
)
def test_classes_that_are_not_in_the_table_are_refused(pipe, attribute, name):
    cls = getattr(diffusers, name)
    denoiser = cls.__new__(cls)
    torch.nn.Module.__init__(denoiser)
    parts = SimpleNamespace(**{attribute: denoiser, "text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer})
    for call in (port_groups, fit):
        with pytest.raises(TypeError, match=r"Stable Diffusion 1\.x.*FLUX\.1.*PRX.*got SimpleNamespace"):
            call(parts)


def test_subclasses_of_the_user_are_accepted(pipe):
    class Mine(diffusers.UNet2DConditionModel): ...

    names = [port.name for group in port_groups(pipe) for port in group.ports]
    pipe.unet.__class__ = Mine
    assert [port.name for group in port_groups(pipe) for port in group.ports] == names


# Other ways in


def control_net(unet: Any) -> Any:
    torch.manual_seed(3)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return net.eval()


def test_control_nets_read_the_prompt_unedited_and_are_warned_of(pipe):
    patch = fit(pipe)
    parts = {**pipe.components, "controlnet": control_net(pipe.unet)}
    pipe = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    depth = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    fitted = fit(pipe)
    assert fitted.digest == patch.digest
    assert all(name.startswith("unet.") for name in fitted.parameters)
    before, plain = weights(pipe), picture(pipe, image=depth)
    with pytest.warns(UserWarning, match=r"also reaches pipe\.controlnet.*not edited"):
        patch.apply(pipe)
    now = weights(pipe)
    assert {name for name in before if not torch.equal(before[name], now[name])} == set(patch.parameters)
    erased = picture(pipe, image=depth)
    assert distance(plain, erased) > 1e-2
    # What the warning means: the net's own layers for text still change the picture with the word.
    net = pipe.controlnet
    for name in (name for name in patch.parameters if net.state_dict().get(name.removeprefix("unet.")) is not None):
        net.get_parameter(name.removeprefix("unet.")).data = pipe.unet.get_parameter(name.removeprefix("unet.")).data
    assert distance(picture(pipe, image=depth), erased) > 1e-4


def test_priors_are_warned_of(pipe):
    parts = SimpleNamespace(
        **{name: part for name, part in pipe.components.items() if part}, prior=torch.nn.Linear(2, 2)
    )
    with pytest.warns(UserWarning, match=r"also reaches pipe\.prior"):
        fit(pipe).apply(parts)


def ip_adapter(unet: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of an IP-Adapter of random values, as its files have them."""
    generator = torch.Generator().manual_seed(4)
    cross = [name for name in unet.attn_processors if "attn2" in name]
    width = unet.config.cross_attention_dim
    image = {"proj.weight": (4 * width, 8), "proj.bias": (4 * width,), "norm.weight": (width,), "norm.bias": (width,)}
    layers = {}
    for index, name in enumerate(cross):
        out = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        layers |= {f"{2 * index + 1}.to_{part}_ip.weight": (out, width) for part in "kv"}
    return {
        kind: {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for kind, shapes in {"image_proj": image, "ip_adapter": layers}.items()
    }


@pytest.mark.parametrize("first", ["patch", "adapter"])
def test_ip_adapters(pipe, first):
    """The text keeps its own keys and values beside those of the picture, so that a patch goes on erasing it."""
    patch, options = fit(pipe), {"ip_adapter_image_embeds": [torch.ones(2, 1, 8)]}
    state = ip_adapter(pipe.unet)

    def load() -> None:
        pipe.unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)

    load()
    plain = picture(pipe, **options)
    with pytest.raises(TypeError, match=r"encoder_hid_proj.*unload IP-Adapter"):
        fit(pipe)
    patch.apply(pipe)
    erased = picture(pipe, **options)
    assert distance(plain, erased) > 1e-2
    patch.remove(pipe)
    assert torch.equal(picture(pipe, **options), plain)
    pipe.unload_ip_adapter()
    assert fit(pipe).digest == patch.digest
    for step in (lambda: patch.apply(pipe), load)[:: 1 if first == "patch" else -1]:
        step()
    assert torch.equal(picture(pipe, **options), erased)


def test_another_text_encoder_is_fitted_anew(pipes):
    """What the disk remembers of preserved prompts belongs to the encoders that read them."""
    pipe, words = pipes("sdxl"), ("red", "blue", "van", "gogh", "moon", "ring")
    concept = Concept("star", anchor="circle", preserve=[f"{a} {b}" for a in words for b in words])
    first = get_eraser("uce").fit(pipe, concept)
    for parameter in pipe.text_encoder_2.parameters():
        parameter.data *= 1.1
    second = get_eraser("uce").fit(pipe, concept)
    uncached = get_eraser("uce", cache=False).fit(pipe, concept)
    assert same(dict(second.tensors), dict(uncached.tensors))
    assert not same(dict(first.tensors), dict(second.tensors))
