"""LoRAs with the names of web UIs: what they do to a pipeline, and to the original checkpoint of its model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file
from support.families.all import FAMILIES
from support.families.patches import adapters, hand_patch, layers, stock_load, weight
from support.selection import cases

from erasers import Patch, PatchError, load_lora
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latents import latent_shape
from erasers.patch import kohya
from erasers.patch.forms import LORA_FILE
from erasers.patch.kohya import Place

# What trainings change in the denoiser, and the names of their layers.
TRAINED = {
    "sd1": r"attn[12]\.",
    "sd2": r"attn[12]\.|\.ff\.",
    "sdxl": r"attn2\.|^add_embedding",
    "sd3": r"blocks\..*attn\.|ff.*net|norm1\.|context_embedder|_embedder\.linear",
    "sd35": r"blocks\..*attn2?\.",
    "flux": r"^transformer_blocks\..*(attn\.|ff|norm1)",
}
NAMES = {
    "sd1": {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", "lora_te_text_model_encoder_layers_0_"},
    "sdxl": {"lora_unet_label_emb_0_0", "lora_te1_text_model_encoder_layers_0_", "lora_te2_text_model_encoder_layers_"},
    "sd3": {"lora_unet_joint_blocks_0_context_block_attn_qkv", "lora_unet_y_embedder_mlp_0", "lora_te2_text_model_"},
    "sd35": {"lora_unet_joint_blocks_0_x_block_attn2_qkv"},
    "flux": {"lora_unet_double_blocks_0_txt_attn_qkv", "lora_unet_double_blocks_0_img_mlp_0", "lora_te1_text_model_"},
}


def trained_patch(family: str, pipe: Any) -> Patch:
    """Edits of all that a training changes in the denoiser, and of every CLIP encoder."""
    names = layers(pipe, "unet" if hasattr(pipe, "unet") else "transformer", TRAINED[family])
    clips = (
        ["text_encoder"]
        if family == "flux"
        else [name for name in ("text_encoder", "text_encoder_2") if name in pipe.components]
    )
    names += [layer for part in clips for layer in layers(pipe, part, r"self_attn\.(q|k|v|out)_proj$")]
    return hand_patch(pipe, names, scale=0.02)


@torch.no_grad()
def answers(pipe: Any) -> torch.Tensor:
    """What the denoiser predicts at two times, of a prompt that the text encoders read now."""
    shape = latent_shape(pipe)
    noisy = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    asked: Condition = conditions(pipe, ["a picture of star", "a red moon"])
    return predict(pipe, noisy, torch.tensor([700, 300]), asked)


@pytest.mark.parametrize(
    ("family", "form"), cases(TRAINED, ["peft", "kohya"], default=lambda family, form: family not in ("sd2", "sd35"))
)
def test_a_lora_of_a_training_does_what_the_patch_does(family: str, form: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family].build(tmp_path / "model")
    patch, plain = trained_patch(family, pipe), answers(pipe)
    file = patch.to_lora(pipe, tmp_path / "lora", form=form)
    with patch.applied(pipe):
        baked = answers(pipe)
    if form == "kohya" and not kohya.stock_reads(pipe):
        stock_load(pipe, file.parent)
        assert not adapters(pipe), "stock diffusers reads it now: the docstring of to_lora says that it does not"
        load_lora(pipe, file)
    else:
        stock_load(pipe, file.parent)
    assert adapters(pipe) >= {name.removesuffix(".weight") for name in patch.parameters}
    assert (answers(pipe) - baked).abs().max() <= 1e-5
    assert (plain - baked).abs().max() >= 1e-2
    if form == "kohya":
        written = set(load_file(file))
        assert all(any(name.startswith(wanted) for name in written) for wanted in NAMES.get(family, ()))
        assert {name.partition(".")[2] for name in written} == {"lora_down.weight", "lora_up.weight", "alpha"}


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_load_lora_reads_what_it_wrote(family: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family].build(tmp_path / "model")
    patch = trained_patch(family, pipe)
    patch.to_lora(pipe, tmp_path / "lora", form="kohya")
    with patch.applied(pipe):
        baked = answers(pipe)
    load_lora(pipe, tmp_path / "lora")
    assert (answers(pipe) - baked).abs().max() <= 1e-5
    with pytest.raises(PatchError, match="name that is free"):
        load_lora(pipe, tmp_path / "lora")


def test_alpha_scales_what_others_wrote(tmp_path: Path) -> None:
    pipe = FAMILIES["sd3"].build(tmp_path / "model")
    path = "transformer.transformer_blocks.0.attn.add_k_proj"
    width = weight(pipe, f"{path}.weight").shape[0]
    up, down = torch.randn(3 * width, 2), torch.randn(2, width)
    name = "lora_unet_joint_blocks_0_context_block_attn_qkv"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / LORA_FILE)
    load_lora(pipe, tmp_path)
    pipe.fuse_lora()
    fresh = FAMILIES["sd3"].build(tmp_path / "fresh")
    moved = pipe.transformer.get_submodule(path.partition(".")[2]).weight - weight(fresh, f"{path}.weight")
    torch.testing.assert_close(moved, 0.5 * (up @ down)[width : 2 * width], rtol=0, atol=1e-5)


# The original checkpoints, whose names web UIs keep


def original(transformer: Any) -> dict[str, torch.Tensor]:
    """The weights of a tiny transformer of Stable Diffusion 3 as its original checkpoint has them."""
    own = {key: value.clone() for key, value in transformer.state_dict().items()}
    old = {"pos_embed": own["pos_embed.pos_embed"]}
    plain = {"t_embedder.mlp": "time_text_embed.timestep_embedder", "y_embedder.mlp": "time_text_embed.text_embedder"}
    for leaf in ("weight", "bias"):
        old[f"x_embedder.proj.{leaf}"] = own[f"pos_embed.proj.{leaf}"]
        old[f"context_embedder.{leaf}"] = own[f"context_embedder.{leaf}"]
        old[f"final_layer.linear.{leaf}"] = own[f"proj_out.{leaf}"]
        old[f"final_layer.adaLN_modulation.1.{leaf}"] = swapped(own[f"norm_out.linear.{leaf}"])
        for theirs, ours in plain.items():
            for number in (0, 2):
                old[f"{theirs}.{number}.{leaf}"] = own[f"{ours}.linear_{1 + number // 2}.{leaf}"]
        for number, block in enumerate(transformer.transformer_blocks):
            for side, projections, out, feed, norm in (
                ("x_block", "attn.to_{}", "attn.to_out.0", "ff", "norm1"),
                ("context_block", "attn.add_{}_proj", "attn.to_add_out", "ff_context", "norm1_context"),
            ):
                theirs, ours = f"joint_blocks.{number}.{side}", f"transformer_blocks.{number}"
                last = side == "context_block" and block.context_pre_only
                parts = [own[f"{ours}.{projections.format(letter)}.{leaf}"] for letter in "qkv"]
                old[f"{theirs}.attn.qkv.{leaf}"] = torch.cat(parts)
                modulation = own[f"{ours}.{norm}.linear.{leaf}"]
                old[f"{theirs}.adaLN_modulation.1.{leaf}"] = swapped(modulation) if last else modulation
                if not last:
                    old[f"{theirs}.attn.proj.{leaf}"] = own[f"{ours}.{out}.{leaf}"]
                    old[f"{theirs}.mlp.fc1.{leaf}"] = own[f"{ours}.{feed}.net.0.proj.{leaf}"]
                    old[f"{theirs}.mlp.fc2.{leaf}"] = own[f"{ours}.{feed}.net.2.{leaf}"]
    return old


def swapped(value: torch.Tensor) -> torch.Tensor:
    first, second = value.chunk(2)
    return torch.cat([second, first])


def test_a_web_ui_that_adds_it_to_the_original_checkpoint_has_the_patched_model(tmp_path: Path) -> None:
    pipe = FAMILIES["sd3"].build(tmp_path / "model")
    patch = trained_patch("sd3", pipe)
    lora = load_file(patch.to_lora(pipe, tmp_path / "lora", form="kohya"))
    old = original(pipe.transformer)
    assert convert_sd3_transformer_checkpoint_to_diffusers(dict(old)).keys() == pipe.transformer.state_dict().keys()
    keys = {f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}": key for key in old if key.endswith(".weight")}
    for name in {key.partition(".")[0] for key in lora if key.startswith("lora_unet_")}:
        down, up = lora[f"{name}.lora_down.weight"], lora[f"{name}.lora_up.weight"]
        old[keys[name]] = old[keys[name]] + up @ down * (lora[f"{name}.alpha"] / len(down))
    merged = convert_sd3_transformer_checkpoint_to_diffusers(old)
    with patch.applied(pipe):
        for key, value in pipe.transformer.state_dict().items():
            torch.testing.assert_close(merged[key], value, rtol=0, atol=1e-6)


def test_single_blocks_of_flux_are_split_by_stock_diffusers_as_they_were_fused() -> None:
    sizes, generator = (3072, 3072, 3072, 12288), torch.Generator().manual_seed(0)
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    names = [f"transformer.single_transformer_blocks.4.{part}" for part in parts]
    factors = {
        name: (torch.randn(rank, 3072, generator=generator), torch.randn(rows, rank, generator=generator))
        for name, rows, rank in zip(names[1:], sizes[1:], (2, 3, 1), strict=True)
    }
    where = {name: Place("lora_unet_single_blocks_4_linear1", part, sizes) for part, name in enumerate(names)}
    tensors = kohya.fused(factors, {name: where[name] for name in factors})
    assert tensors["lora_unet_single_blocks_4_linear1.alpha"] == len(
        tensors["lora_unet_single_blocks_4_linear1.lora_down.weight"]
    )
    state, _ = FluxPipeline.lora_state_dict(tensors, return_alphas=True)
    for name, (down, up) in factors.items():
        product = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
        torch.testing.assert_close(product, up @ down, rtol=0, atol=1e-4)
    assert not state[f"{names[0]}.lora_B.weight"].any()


def test_real_flux_has_the_names_of_its_checkpoint_for_single_blocks() -> None:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=1)

    class Pipe:
        pass

    pipe: Any = Pipe()
    pipe.transformer = transformer
    place = kohya.places(pipe, ["transformer.single_transformer_blocks.0.attn.to_v"])
    assert list(place.values()) == [Place("lora_unet_single_blocks_0_linear1", 2, (3072, 3072, 3072, 12288))]
    # Embedders, which diffusers does not read under the checkpoint's names, take all others along to its own.
    place = kohya.places(pipe, ["transformer.context_embedder", *place])
    assert [each.name for each in place.values()] == [
        "lora_transformer_context_embedder",
        "lora_transformer_single_transformer_blocks_0_attn_to_v",
    ]


@pytest.mark.parametrize(
    ("family", "part", "pattern"),
    [
        ("sd1", "unet", "time_embedding"),
        ("sd3", "transformer", r"norm_out"),  # its halves are the other way round in the original
        ("sd3", "transformer", r"1\.norm1_context"),
        ("flux", "transformer", r"norm_out"),
        ("flux", "transformer", r"context_embedder|^transformer_blocks.0.ff\."),  # of which no table has both
        ("qwenimage", "transformer", r"add_k_proj"),
    ],
)
def test_layers_without_a_name_that_all_read_are_refused_with_the_way_out(
    family: str, part: str, pattern: str, tmp_path: Path
) -> None:
    pipe = FAMILIES[family].build(tmp_path / "model")
    patch = hand_patch(pipe, layers(pipe, part, pattern))
    with pytest.raises(PatchError, match=rf"for the kohya form, got {part}\..*form='peft'.*patch\.to_delta"):
        patch.to_lora(pipe, tmp_path / "lora", form="kohya")
    assert not (tmp_path / "lora").exists()
    assert re.search("lora_A", "".join(load_file(patch.to_lora(pipe, tmp_path / "peft"))))
