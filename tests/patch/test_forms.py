"""Patches as files that stock diffusers loads: LoRAs and the edited weights, for every family."""

from __future__ import annotations

import copy
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from support.families.all import FAMILIES
from support.families.base import draw
from support.families.patches import TEXT, adapters, hand_patch, layers, stock_load, transform_patch, weight
from support.selection import only
from support.tiny import same, weights

from erasers import Patch, PatchError, get_eraser, load_lora
from erasers.cli import app as cli
from erasers.files.tensors import KEY
from erasers.models.ports import text_ports
from erasers.patch.forms import DELTA_FILE, LORA_FILE

SHORT, CROSS = FAMILIES["sd1"].options, TEXT["sd1"]
# Guidance multiplies what rounding does.
UNGUIDED = {"guidance_scale": 1.0}
WITHOUT_LORA = {"pixart", "pixart-sigma", "hunyuandit", "luminanext", "prx"}
KOHYA = {"sd1", "sd2", "sdxl", "sd3", "sd35", "flux", "animatediff"}


# Every family


@pytest.fixture(params=only(FAMILIES, "sd1", "sd3", "pixart", "wan"))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def built(family: str, tmp_path: Path) -> Any:
    pipe = FAMILIES[family].build(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def patch(family: str, built: Any) -> Patch:
    return hand_patch(built, layers(built, "unet" if hasattr(built, "unet") else "transformer", TEXT[family]))


def test_lora_is_exact_or_refused(family, built, patch, tmp_path):
    picture = partial(draw, built, "a picture of star", {**FAMILIES[family].options, **UNGUIDED})
    if family in WITHOUT_LORA:
        with pytest.raises(PatchError, match=r"no LoRA into transformer\..*patch\.to_delta"):
            patch.to_lora(built, tmp_path / "lora")
        assert not (tmp_path / "lora").exists()
        return
    patch.to_lora(built, tmp_path / "lora")
    plain = picture()
    with patch.applied(built):
        baked = picture()
    stock_load(built, tmp_path / "lora")
    assert adapters(built) == {name.removesuffix(".weight") for name in patch.parameters}
    assert (picture() - baked).abs().max() <= 2e-5
    assert (plain - baked).abs().max() >= 1e-2
    built.unload_lora_weights()
    torch.testing.assert_close(picture(), plain, rtol=0, atol=2e-5)


def test_lora_differs_by_rounding_alone(family, built, patch, tmp_path):
    if family in WITHOUT_LORA:
        return
    picture = partial(draw, built.to(torch.float64), "a picture of star", FAMILIES[family].options)
    patch.to_lora(built, tmp_path)
    plain = picture()
    with patch.applied(built):
        baked = picture()
    stock_load(built, tmp_path)
    assert (picture() - baked).abs().max() <= 1e-12
    assert (plain - baked).abs().max() >= 1e-2


def test_kohya_is_exact_or_refused(family, built, patch, tmp_path):
    if family not in KOHYA:
        with pytest.raises(PatchError, match=r"no LoRA into|for the kohya form, got transformer\..*patch\.to_delta"):
            patch.to_lora(built, tmp_path, form="kohya")
        return
    picture = partial(draw, built, "a picture of star", FAMILIES[family].options)
    file = patch.to_lora(built, tmp_path / "lora", form="kohya")
    names = set(safetensors.torch.load_file(file))
    assert {name.partition(".")[2] for name in names} == {"lora_down.weight", "lora_up.weight", "alpha"}
    # FLUX.1 has this name where a patch edits its embedders, too.
    assert all(name.startswith("lora_transformer_" if family == "flux" else "lora_unet_") for name in names)
    plain = picture()
    with patch.applied(built):
        baked = picture()
    (load_lora if family in ("sd3", "sd35") else stock_load)(built, tmp_path / "lora")
    assert adapters(built) == {name.removesuffix(".weight") for name in patch.parameters}
    difference = (picture() - baked).abs().max().item()
    assert difference <= 2e-5
    assert (plain - baked).abs().max() >= 1e-2


def test_delta_is_the_baked_patch(family, built, patch, tmp_path):
    plain = weights(built)
    file = patch.to_delta(built, tmp_path / "delta")
    assert file == tmp_path / "delta" / DELTA_FILE
    assert same(plain, weights(built))
    with patch.applied(built):
        baked = weights(built)
    delta = safetensors.torch.load_file(file)
    assert sorted(delta) == patch.parameters
    load_delta(built, delta)
    assert same(baked, weights(built))
    assert not same(plain, baked)


def load_delta(pipe: Any, delta: dict[str, torch.Tensor]) -> None:
    """As the docstring of `to_delta` has it."""
    for part in {name.partition(".")[0] for name in delta}:
        mine = {name.removeprefix(f"{part}."): value for name, value in delta.items() if name.startswith(f"{part}.")}
        assert not getattr(pipe, part).load_state_dict(mine, strict=False).unexpected_keys


# LoRAs


@pytest.mark.parametrize("rank", [2, 20, 0])
@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_lora_of_a_transform(pipe, tmp_path, rank, form):
    patch, picture = transform_patch(pipe, rank), partial(draw, pipe, "a picture of star", SHORT)
    path = patch.to_lora(pipe, tmp_path / "lora", form=form)
    assert path == tmp_path / "lora" / LORA_FILE
    plain = picture()
    with patch.applied(pipe):
        baked = picture()
        assert patch.to_lora(pipe, tmp_path / "again", form=form).read_bytes() == path.read_bytes()
    stock_load(pipe, path.parent)
    assert (picture() - baked).abs().max() <= 2e-5
    assert (plain - baked).abs().max() > 1e-2
    with pytest.raises(PatchError, match=r"adapter \(peft\)"):
        patch.apply(pipe)
    pipe.unload_lora_weights()
    patch.apply(pipe)


def test_lora_of_a_method(pipes, tmp_path):
    pipe = pipes("sdxl")
    patch, picture = get_eraser("uce-v2").fit(pipe, "star"), partial(draw, pipe, "a picture of star", SHORT)
    patch.to_lora(pipe, tmp_path)
    with patch.applied(pipe):
        baked = picture()
    stock_load(pipe, tmp_path)
    assert (picture() - baked).abs().max() <= 2e-5


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_kohya_names_of_all_layers_it_takes(pipes, tmp_path, family):
    pipe = pipes(family)
    patch = hand_patch(pipe, layers(pipe, "unet", r"\.attentions\.|^add_embedding"), scale=0.01)
    assert len({name.split(".")[-2] for name in patch.parameters}) > 6
    picture = partial(draw, pipe, "a picture of star", SHORT)
    patch.to_lora(pipe, tmp_path, form="kohya")
    with patch.applied(pipe):
        baked = picture()
    stock_load(pipe, tmp_path)
    assert (picture() - baked).abs().max() <= 2e-5


def test_lora_of_text_encoders(tmp_path):
    for name in ("sdxl", "sd3", "flux"):
        pipe = FAMILIES[name].build(tmp_path / name)
        parts = ["text_encoder"] if name == "flux" else ["text_encoder", "text_encoder_2"]
        patch = hand_patch(pipe, [layer for part in parts for layer in layers(pipe, part, r"self_attn\.[kv]_proj$")])
        picture = partial(draw, pipe, "a picture of star", FAMILIES[name].options)
        patch.to_lora(pipe, tmp_path / "lora")
        plain = picture()
        with patch.applied(pipe):
            baked = picture()
        load_lora(pipe, tmp_path / "lora")
        assert (picture() - baked).abs().max() <= 2e-5
        assert (plain - baked).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("family", "part", "pattern"),
    [
        ("sd1", "text_encoder", "mlp.fc1$"),  # diffusers fails on it when it stands alone
        ("sdxl", "text_encoder_2", "text_projection$"),
        ("flux", "text_encoder_2", r"SelfAttention\.k$"),  # passed over without a word
        ("wan", "text_encoder", r"SelfAttention\.k$"),
        ("zimage", "text_encoder", r"self_attn\.k_proj$"),
        ("sd1", "vae", "to_k$"),
    ],
)
def test_lora_of_what_diffusers_does_not_load_is_refused(tmp_path, family, part, pattern):
    pipe = FAMILIES[family].build(tmp_path)
    patch = hand_patch(pipe, layers(pipe, part, pattern))
    with pytest.raises(PatchError, match=rf"no LoRA into {part}\..*patch\.to_delta"):
        patch.to_lora(pipe, tmp_path)
    patch.to_delta(pipe, tmp_path)


def test_lora_of_the_second_transformer_of_wan_is_refused(tmp_path):
    pipe = FAMILIES["wan"].build(tmp_path)
    pipe.register_modules(transformer_2=copy.deepcopy(pipe.transformer))
    patch = hand_patch(pipe, layers(pipe, "transformer_2", TEXT["wan"]))
    with pytest.raises(PatchError, match=r"no LoRA into transformer_2\..*patch\.to_delta"):
        patch.to_lora(pipe, tmp_path)
    key = f"{patch.parameters[0].removesuffix('.weight')}.lora_"
    out, width = weight(pipe, patch.parameters[0]).shape
    pipe.load_lora_weights({f"{key}A.weight": torch.ones(1, width), f"{key}B.weight": torch.ones(out, 1)})
    assert not adapters(pipe)


def test_lora_needs_a_denoiser_that_takes_one(tmp_path, monkeypatch):
    pipe = FAMILIES["prx"].build(tmp_path)
    monkeypatch.setattr(type(pipe), "_lora_loadable_modules", ["transformer"])
    with pytest.raises(PatchError, match=r"no LoRA into transformer\..*patch\.to_delta"):
        hand_patch(pipe, layers(pipe, "transformer", TEXT["prx"])).to_lora(pipe, tmp_path)


def test_lora_of_dense_edits_is_refused(pipe, tmp_path):
    bias = weight(pipe, "unet.conv_in.bias")
    patch = hand_patch(pipe, [], **{"dense/unet.conv_in.bias": bias + 1})
    with pytest.raises(PatchError, match=r"unet\.conv_in\.bias is dense.*patch\.to_delta"):
        patch.to_lora(pipe, tmp_path)


@pytest.mark.parametrize("write", [Patch.to_lora, Patch.to_delta])
def test_hooks_are_refused(pipe, tmp_path, write):
    patch = transform_patch(pipe, 2).to_hooks(pipe)
    with pytest.raises(PatchError, match="with hooks"):
        write(patch, pipe, tmp_path)


def test_bad_form_is_refused(pipe, tmp_path):
    with pytest.raises(PatchError, match="peft or kohya, got 'lycoris'"):
        transform_patch(pipe, 2).to_lora(pipe, tmp_path, form="lycoris")


@pytest.mark.parametrize("write", [Patch.to_lora, Patch.to_delta])
def test_forms_need_their_base_and_folder(pipe, tmp_path, write):
    patch = transform_patch(pipe, 2)
    with pytest.raises(FileNotFoundError, match="create it first"):
        write(patch, pipe, tmp_path / "no" / "where")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="got the file"):
        write(patch, pipe, tmp_path / "file")
    text_ports(pipe)[0].module.weight.data += 0.01
    with pytest.raises(PatchError, match="other weights"):
        write(patch, pipe, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    write(patch, pipe, tmp_path / "new", force=True)


# The edited weights


def test_delta_of_dense_edits_in_half_precision(pipe, tmp_path):
    pipe.unet.half()
    bias = weight(pipe, "unet.conv_in.bias")
    patch = hand_patch(pipe, layers(pipe, "unet", CROSS), **{"dense/unet.conv_in.bias": bias.float() + 0.1})
    delta = safetensors.torch.load_file(patch.to_delta(pipe, tmp_path))
    assert {value.dtype for value in delta.values()} == {torch.float16}
    with patch.applied(pipe):
        baked = weights(pipe)
    load_delta(pipe, delta)
    assert same(baked, weights(pipe))


def test_delta_loads_as_its_docstring_says(family, built, patch, tmp_path, monkeypatch):
    lines = re.findall(r"^ {12}(\w.*)$", str(Patch.to_delta.__doc__), re.MULTILINE)[:3]
    if hasattr(built, "unet"):
        lines = [line.replace("transformer", "unet") for line in lines]
    monkeypatch.chdir(tmp_path)
    patch.to_delta(built, "folder")
    with patch.applied(built):
        baked = weights(built)
    exec("\n".join(lines), {"safetensors": safetensors, "pipe": built})
    assert same(baked, weights(built))


def test_delta_says_what_it_erases_and_is_no_patch(pipe, tmp_path):
    file = transform_patch(pipe, 2).to_delta(pipe, tmp_path)
    with safetensors.safe_open(file, framework="pt") as opened:
        meta = json.loads(opened.metadata()[KEY])
    assert (meta["form"], meta["method"], meta["concepts"]) == ("delta", "by hand", [{"name": "star"}])
    with pytest.raises(PatchError, match="format"):
        Patch.load(file)


def test_delta_that_overflows_is_refused(pipe, tmp_path):
    pipe.unet.half()
    patch = hand_patch(pipe, layers(pipe, "unet", CROSS), scale=1e7)
    with pytest.raises(PatchError, match=r"does not fit torch\.float16"):
        patch.to_delta(pipe, tmp_path)


# The command


@pytest.fixture
def saved(pipe, tmp_path, monkeypatch):
    """A folder with a model and a patch of it."""
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("model")
    transform_patch(pipe, 2).save("star.safetensors")
    return pipe


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr with which an export ends."""
    capsys.readouterr()
    assert cli.run(["export", "star.safetensors", "--model", "model", "--out", "out", *arguments]) == 2
    output, error = capsys.readouterr()
    assert (output, len(error.strip().splitlines())) == ("", 1)
    return error


@pytest.mark.parametrize(("form", "file"), [("lora", LORA_FILE), ("kohya", LORA_FILE), ("delta", DELTA_FILE)])
def test_export(saved, capsys, form, file):
    patch = Patch.load("star.safetensors")
    write = partial(patch.to_lora, form="kohya") if form == "kohya" else patch.to_lora
    expected = (patch.to_delta if form == "delta" else write)(saved, "expected").read_bytes()
    command = ["export", "star.safetensors", "--model", "model", "--device", "cpu", "--out", "out", "--form", form]
    assert cli.run(command) == 0
    assert f"{form} in out/{file}" in capsys.readouterr().out
    assert Path("out", file).read_bytes() == expected


def test_export_of_bad_input_is_one_line(saved, capsys):
    assert "expected lora, kohya, delta" in refused(capsys, "--form", "lra")
    assert "did you mean 'lora'" in refused(capsys, "--form", "lra")
    assert "unknown device" in refused(capsys, "--device", "tpu")
    assert "create it first" in refused(capsys, "--out", "no/where")
    assert "got the file star.safetensors" in refused(capsys, "--out", "star.safetensors")
    assert "no model folder './none'" in refused(capsys, "--model", "./none")
    bias = weight(saved, "unet.conv_in.bias")
    hand_patch(saved, [], **{"dense/unet.conv_in.bias": bias}).save("star.safetensors")
    assert "instead: --form delta" in refused(capsys)
    hand_patch(saved, layers(saved, "unet", "time_embedding")).save("star.safetensors")
    assert "write --form lora, or" in refused(capsys, "--form", "kohya")
    assert not Path("out").exists()


def test_export_of_a_patch_for_other_weights_needs_force(saved, capsys):
    saved.unet.conv_in.bias.data += 1
    text_ports(saved)[0].module.weight.data += 1
    saved.save_pretrained("model")
    assert "other weights" in refused(capsys)
    assert "or pass --force" in refused(capsys)
    assert cli.run(["export", "star.safetensors", "--model", "model", "--out", "out", "--force"]) == 0
