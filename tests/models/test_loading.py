"""How a model is loaded: whole, from hooked import PIPELINES
from safetensors alone, and without running code that lies beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families.all import FAMILIES
from support.hooked import PIPELINES, hook_patch, weight_patch
from support.tiny import make_pipe

from erasers import Concept, ErasedPipeline, ModelNotFound, get_eraser, load_pipeline
from erasers.cli import app as cli
from erasers.evaluation.run.states import reference

PROCESSORS = ("SiglipProcessor", "LlavaProcessor", "CLIPProcessor", "PaliGemmaProcessor", "Florence2Processor")
OTHERS = ("Blip2Processor", "CLIPTokenizer", "T5TokenizerFast", "CLIPImageProcessor", "CLIPTextModel", "LlamaModel")
AUTO = ("Config", "Tokenizer", "Processor", "ImageProcessor", "FeatureExtractor", "VideoProcessor", "Model")
PICKLE = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.bin"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_pipe("sd1", folder / "files").save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "model"))


def edit(path: Path, **entries: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | entries))


def plant(folder: Path, name: str, marker: Path) -> None:
    """Code in a component's folder, named by every configuration that transformers looks into."""
    part = folder / name
    part.mkdir(exist_ok=True)
    (part / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: ...\n")
    named = {f"Auto{kind}": ["evil.Evil", "evil.Evil"] if kind == "Tokenizer" else "evil.Evil" for kind in AUTO}
    for file in ("config", "tokenizer_config", "processor_config", "preprocessor_config", "generation_config"):
        edit(part / f"{file}.json", auto_map=named, model_type="evil")


def erase(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, with somebody at the terminal who agrees to everything."""
    command = [sys.executable, "-c", "import sys; from erasers.cli.app import run; sys.exit(run(sys.argv[1:]))"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cwd / "modules")}
    return subprocess.run(
        [*command, *arguments], input="y\n" * 100, capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


@pytest.mark.parametrize("cls", [*PROCESSORS, *OTHERS])
def test_code_in_the_folder_of_a_component_is_not_run(
    cls: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"CLIPTokenizer": "tokenizer", "CLIPTextModel": "text_encoder"}.get(cls, "feature_extractor")
    plant(folder, name, tmp_path / "marker")
    edit(folder / "model_index.json", **{name: ["transformers", cls]})
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with suppress(ModelNotFound):
        load_pipeline(folder)
    assert not (tmp_path / "marker").exists()


@pytest.mark.full
def test_the_command_asks_nothing_and_runs_nothing(folder: Path, tmp_path: Path) -> None:
    plant(folder, "feature_extractor", tmp_path / "marker")
    edit(folder / "model_index.json", feature_extractor=["transformers", "SiglipProcessor"])
    done = erase("generate", "a red star", "--model", "model", "--steps", "1", "--n", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "code of its own" in done.stderr
    assert "run the custom code" not in done.stdout + done.stderr
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "value", [["evil", "Evil"], ["diffusers.evil", "Evil"], "ev", {"evil": 1, "Evil": 2}, ["evil"], ["evil", None]]
)
def test_a_component_of_another_library_is_refused_before_an_import(
    value: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for place in (tmp_path, folder / "unet"):
        for name in ("evil", "ev", "e"):
            (place / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\nclass Evil: ...\n")
    edit(folder / "model_index.json", unet=value)
    with pytest.raises(ModelNotFound, match="'unet' is .* which is not run"):
        load_pipeline(folder)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", [["evil", "Evil"], "Evil", "evil.Evil", "UNet2DModel", 3, None])
def test_a_pipeline_class_of_its_own_is_refused(name: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
    (folder / "None.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
    edit(folder / "model_index.json", _class_name=name)
    with pytest.raises(ModelNotFound, match=r"code of its own|does not have"):
        load_pipeline(folder)
    assert not (tmp_path / "marker").exists()


def test_classes_that_load_nothing_from_a_folder_are_refused(folder: Path) -> None:
    for value in (["diffusers", "DiffusionPipeline"], ["transformers", "AutoModel"], ["stable_diffusion", "torch"]):
        edit(folder / "model_index.json", feature_extractor=value)
        with pytest.raises(ModelNotFound, match=r"no class that is loaded|cannot load"):
            load_pipeline(folder)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("unet/diffusion_pytorch_model.safetensors.index.json", PICKLE, "pickles can run code"),
        ("unet/any.index.json", {"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}}, "beside it"),
        ("unet/any.index.json", {"weight_map": {"a": ["x"]}}, "beside it"),
        ("text_encoder/config.json", {"transformers_weights": "../unet/x.safetensors"}, "beside it"),
        ("text_encoder/adapter_config.json", {"base_model_name_or_path": "x/y"}, "load another model"),
        ("text_encoder/config.json", {"attn_implementation": "evil/kernel"}, "kernel 'evil/kernel'"),
        (
            "text_encoder/config.json",
            {"a": {"_attn_implementation": {"b": 1}, "c": {"attn_implementation": "e/k"}}},
            "e/k",
        ),
    ],
)
def test_a_folder_that_would_bring_in_more_is_refused(file: str, content: Any, words: str, folder: Path) -> None:
    edit(folder / file, **content)
    with pytest.raises(ModelNotFound, match=words):
        load_pipeline(folder)


def test_an_index_that_two_parsers_read_apart_is_refused(folder: Path) -> None:
    text = '{"weight_map": {"a": "x.bin"}, "weight_map": {"a": "diffusion_pytorch_model.safetensors"}}'
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelNotFound, match="weight_map"):
        load_pipeline(folder)


def test_an_index_that_names_a_pickle_never_reaches_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (weights,) = (folder / part).glob("*.safetensors")
        tensors = load_file(weights)
        weights.unlink()
        torch.save(tensors, folder / part / f"{name}-00001-of-00001.bin")
        names = dict.fromkeys(tensors, f"{name}-00001-of-00001.bin")
        (folder / part / f"{name}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
        with pytest.raises(ModelNotFound, match="pickles can run code"):
            load_pipeline(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_weights_in_pickles_get_the_reason_and_the_way_out(part: str, folder: Path) -> None:
    (weights,) = (folder / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        ModelNotFound, match="pickles, which can run code and are not read; .*save_pretrained"
    ) as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize("fault", ["lacks", "holds, without a place", "holds in another shape"])
def test_weights_that_do_not_fit_the_model_are_refused(fault: str, part: str, folder: Path) -> None:
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(name for name in tensors if tensors[name].ndim == 2)[0]
    if fault == "lacks":
        del tensors[name]
    elif fault == "holds in another shape":
        tensors[name] = torch.zeros(3, 3)
    else:
        tensors["more.weight"] = torch.zeros(2)
        name = "more.weight"
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelNotFound) as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value)
    if fault != "holds in another shape":  # which the libraries refuse in their own words
        assert f"it {fault}" in str(caught.value)
        assert name in str(caught.value)


def test_old_buffers_are_no_fault(folder: Path) -> None:
    (path,) = (folder / "text_encoder").glob("*.safetensors")
    save_file({**load_file(path), "text_model.embeddings.position_ids": torch.arange(16)[None]}, path, {"format": "pt"})
    load_pipeline(folder)


@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_loads_whole(family: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family].build(tmp_path / "files")
    pipe.save_pretrained(tmp_path / "model")
    again = load_pipeline(tmp_path / "model")
    assert type(again) is type(pipe)
    assert again.components.keys() == pipe.components.keys()
    for name, module in pipe.components.items():
        assert isinstance(again.components[name], type(module))
        if isinstance(module, torch.nn.Module):
            expected, got = module.state_dict(), again.components[name].state_dict()
            assert expected.keys() == got.keys()
            assert all(torch.equal(expected[key], got[key]) for key in expected)
            assert not again.components[name].training


@pytest.mark.parametrize(
    "options", [{"device_map": "balanced"}, {"quantization_config": object()}, {"variant": "unerased"}]
)
def test_options_that_would_be_lost_are_refused(options: dict[str, Any], folder: Path) -> None:
    with pytest.raises(ValueError, match="load the pipeline with diffusers"):
        load_pipeline(folder, **options)


@pytest.mark.parametrize("by_hooks", [False, True])
def test_a_pipeline_that_was_saved_without_an_encoder_loads_without_it(by_hooks: bool, tmp_path: Path) -> None:
    pipe = FAMILIES["sd3"].build(tmp_path)
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    (hook_patch if by_hooks else weight_patch)(pipe).apply(pipe)
    ErasedPipeline.save_pretrained(pipe, tmp_path / "model")
    loaded: Any = load_pipeline(tmp_path / "model")
    assert type(loaded) is diffusers.StableDiffusion3Pipeline
    assert (loaded.text_encoder_3, loaded.tokenizer_3) == (None, None)


def test_components_can_be_given(folder: Path, pipes: Callable[[str], Any]) -> None:
    unet = pipes("sd1").unet
    shutil.rmtree(folder / "unet")
    assert load_pipeline(folder, unet=unet).unet is unet
    assert load_pipeline(folder, unet=unet, text_encoder=None).text_encoder is None


@pytest.mark.parametrize("value", [["transformers", "SiglipProcessor"], ["evil", "Evil"]])
def test_a_single_file_pipeline_lends_its_trust_to_no_other_code(
    value: list[str], folder: Path, pipes: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = get_eraser("uce").fit(pipes("sd1"), Concept("star", anchor="circle"), progress=False)
    plant(folder, "feature_extractor", tmp_path / "marker")
    edit(folder / "model_index.json", feature_extractor=value)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 15)
    custom = {"custom_pipeline": str(PIPELINES / "erased_stable_diffusion.py"), "trust_remote_code": True}
    with pytest.raises((ValueError, OSError), match="code"):
        diffusers.DiffusionPipeline.from_pretrained(folder, **custom, erasure=patch)
    assert not (tmp_path / "marker").exists()


def fp16_only(folder: Path, parts: tuple[str, ...] = ("unet", "vae", "text_encoder"), variant: str = "fp16") -> Path:
    for part in parts:
        (path,) = (folder / part).glob("*.safetensors")
        path.rename(path.with_suffix(f".{variant}.safetensors"))
    return folder


@pytest.mark.parametrize("parts", [("unet", "vae", "text_encoder"), ("unet",)])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder_of_one_variant_loads(parts: tuple[str, ...], variant: str | None, base: Path, folder: Path) -> None:
    expected, got = load_pipeline(base), load_pipeline(fp16_only(folder, parts), variant=variant)
    for name in ("unet", "text_encoder", "vae"):
        pairs = zip(expected.components[name].parameters(), got.components[name].parameters(), strict=True)
        assert all(torch.equal(left, right) for left, right in pairs)


def test_the_variant_that_is_asked_for_is_taken(folder: Path) -> None:
    (plain,) = (folder / "unet").glob("*.safetensors")
    save_file({key: 2 * value for key, value in load_file(plain).items()}, plain.with_suffix(".ema.safetensors"))
    single, double = (load_pipeline(folder, variant=variant).unet for variant in (None, "ema"))
    assert torch.equal(2 * single.conv_in.weight, double.conv_in.weight)
    plain.rename(plain.with_suffix(".fp16.safetensors"))
    with pytest.raises(ModelNotFound, match="got those of ema, fp16; choose one: --variant ema"):
        load_pipeline(folder)
    with pytest.raises(ModelNotFound, match="of the variant 'bf16', got those of ema, fp16"):
        load_pipeline(folder, variant="bf16")


def test_a_variant_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ModelNotFound, match="expected weights of the variant 'fp16', got none"):
        load_pipeline(folder, variant="fp16")


def test_the_weights_of_an_erased_folder_never_load_by_themselves(folder: Path) -> None:
    with pytest.raises(ModelNotFound, match="cannot load"):
        load_pipeline(fp16_only(folder, variant="unerased"))


def test_a_revision_is_for_the_hub(folder: Path) -> None:
    with pytest.raises(ModelNotFound, match="revision= for a model on the Hub"):
        load_pipeline(folder, revision="main")


def test_the_command_takes_variants_and_revisions(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fp16_only(folder).parent)
    draw = ["generate", "a star", "--n", "1", "--steps", "2", "--size", "16", "--model", "model"]
    assert cli.run(["--concept", "star", "--anchor", "circle", "--model", "model", "--out", "a.safetensors"]) == 0
    assert cli.run([*draw, "--variant", "fp16", "--out", "a.png"]) == 0
    assert cli.run(["apply", "a.safetensors", "--model", "model", "--variant", "fp16", "--save", "erased"]) == 0
    assert cli.run([*draw, "--variant", "bf16", "--out", "b.png"]) == 2
    assert "choose one: --variant fp16" in capsys.readouterr().err
    assert cli.run([*draw, "--revision", "main", "--out", "b.png"]) == 2
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("erasers.pipeline.load_pipeline", lambda model, **options: asked.append(options) or 1 / 0)
    assert cli.run(["export", "a.safetensors", "--model", "x/y", "--revision", "v1", "--out", "lora"]) == 1
    assert asked[0]["revision"] == "v1"


def test_the_reference_of_a_task_is_loaded_with_the_same_care(folder: Path, pipes: Callable[[str], Any]) -> None:
    pipe = pipes("sd1")
    before = pipe.unet
    with reference(pipe, folder / "unet"):
        assert torch.equal(pipe.unet.conv_in.weight, before.conv_in.weight)
        assert pipe.unet is not before
    edit(folder / "unet" / "diffusion_pytorch_model.safetensors.index.json", **PICKLE)
    with pytest.raises(ModelNotFound, match="pickles can run code"), reference(pipe, folder / "unet"):
        pass
    assert pipe.unet is before


def with_safety_checker(folder: Path) -> Path:
    """A folder as Stable Diffusion 1 was published: a component of a pipeline's own module, and a class of old name."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config={**sizes, "image_size": 8, "patch_size": 4}, text_config=sizes, projection_dim=4)
    StableDiffusionSafetyChecker(config).save_pretrained(folder / "safety_checker")
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")
    edit(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPFeatureExtractor"],
    )
    return folder


def test_an_old_folder_with_a_safety_checker_loads(folder: Path) -> None:
    with_safety_checker(folder)
    (path,) = (folder / "safety_checker").glob("*.safetensors")
    old = {"vision_model.vision_model.embeddings.position_ids": torch.arange(5)[None]}
    save_file({**load_file(path), **old}, path, {"format": "pt"})
    pipe = load_pipeline(folder)
    assert type(pipe.safety_checker).__name__ == "StableDiffusionSafetyChecker"
    assert type(pipe.feature_extractor).__name__.startswith("CLIPImageProcessor")
    assert load_pipeline(folder, safety_checker=None).safety_checker is None


def test_an_autoencoder_with_names_of_before_loads(base: Path, folder: Path) -> None:
    (path,) = (folder / "vae").glob("*.safetensors")
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for name, value in load_file(path).items():
        old = next((name.replace(new, was) for new, was in names.items() if new in name), name)
        tensors[old] = value
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, path, {"format": "pt"})
    expected, got = load_pipeline(base).vae.state_dict(), load_pipeline(folder).vae.state_dict()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_several_files_load(variant: str | None, base: Path, tmp_path: Path) -> None:
    load_pipeline(base).save_pretrained(tmp_path / "model", max_shard_size="20KB", variant=variant)
    assert len(list((tmp_path / "model" / "unet").glob("*-of-*.safetensors"))) > 1
    assert len(list((tmp_path / "model" / "text_encoder").glob("*-of-*.safetensors"))) > 1
    expected, got = load_pipeline(base), load_pipeline(tmp_path / "model")
    for name in ("unet", "text_encoder", "vae"):
        pairs = zip(expected.components[name].parameters(), got.components[name].parameters(), strict=True)
        assert all(torch.equal(left, right) for left, right in pairs)
    next((tmp_path / "model" / "unet").glob("*00002-of-*.safetensors")).unlink()
    with pytest.raises(ModelNotFound, match="cannot load"):
        load_pipeline(tmp_path / "model")


def test_the_heads_of_the_whole_model_are_no_fault(folder: Path) -> None:
    (path,) = (folder / "text_encoder").glob("*.safetensors")
    tensors = load_file(path)
    heads = {"logit_scale": torch.ones(()), "vision_model.post_layernorm.weight": torch.ones(3)}
    save_file({**tensors, **heads}, path, {"format": "pt"})
    load_pipeline(folder)
    layers = {
        f"text_model.encoder.layers.7.{part}": torch.ones(3) for part in ("layer_norm1.weight", "layer_norm1.bias")
    }
    save_file({**tensors, **layers}, path, {"format": "pt"})
    with pytest.raises(ModelNotFound, match="without a place in the model"):
        load_pipeline(folder)
