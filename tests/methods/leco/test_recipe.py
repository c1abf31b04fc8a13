"""Files of other trainers: each of the three as a LoRA, and what is told of a file that is none."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from erasers.methods.leco import LECO, Pair, read_recipe

PROMPTS = """
    - target: "van gogh"
      positive: "van gogh, sunflowers"
      unconditional: "drawing"
      neutral: ""
      action: "enhance"
      guidance_scale: 2.5
      resolution: 512
      batch_size: 3
      dynamic_resolution: false
    - target: "cat"
"""
LECO_CONFIG = """
    prompts_file: "./examples/prompts.yaml"
    pretrained_model: {name_or_path: "stabilityai/stable-diffusion-2-1", v2: true, v_pred: true, clip_skip: 2}
    network: {type: "lierla", rank: 8, alpha: 2.0, training_method: "xattn"}
    train:
      precision: "bfloat16"
      noise_scheduler: "ddim"
      iterations: 300
      lr: 1e-4
      optimizer: "AdamW8bit"
      lr_scheduler: "cosine"
      max_denoising_steps: 30
    save: {name: "van_gogh", path: "./output", per_steps: 200, precision: "float16"}
    logging: {use_wandb: false}
    other: {use_xformers: true}
"""
AITOOLKIT = """
    job: extension
    config:
      name: age
      process:
        - type: concept_slider
          device: cuda:0
          slider:
            guidance_strength: 2.0
            anchor_strength: 0.5
            positive_prompt: "an old person"
            negative_prompt: "a young person"
            target_class: "person"
            anchor_class: "dog"
          network: {type: lora, linear: 16, linear_alpha: 8, conv: 4}
          train: {steps: 600, lr: 0.0002, batch_size: 2, optimizer: adamw, dtype: bf16, gradient_checkpointing: true}
          model: {name_or_path: "black-forest-labs/FLUX.1-dev", is_flux: true, quantize: true}
    meta: {version: "1.0"}
"""
KOHYA_CONFIG = """
    prompts_file = "C:\\\\recipes\\\\prompts.toml"
    pretrained_model_name_or_path = "model.safetensors"
    [network]
    network_dim = 16
    network_alpha = 8
    [training]
    learning_rate = 2e-4
    max_train_steps = 700
    max_denoising_steps = 20
    optimizer_type = "AdamW8bit"
    output_name = "my_leco"
    sdpa = true
"""
KOHYA = """
    [[prompts]]
    target = "van gogh"
    guidance_scale = 1.5
    resolution = [512, 512]
    multiplier = 0.5
    weight = 2.0
"""
SLIDER = """
    guidance_scale = 1.5
    resolution = 64
    neutrals = ["", "photo"]
    [[targets]]
    target_class = "person"
    positive = "smiling person"
    negative = "sad person"
    batch_size = 2
"""


def written(folder: Path, **files: str) -> Path:
    """Files by name, `_` for the dot; the path of the first one."""
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(textwrap.dedent(text))
    return folder / next(iter(files)).replace("_", ".", 1)


def test_prompts_of_leco(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, prompts_yaml=PROMPTS))
    assert recipe.pairs == (
        Pair(
            target="van gogh",
            positive="van gogh, sunflowers",
            unconditional="drawing",
            neutral="",
            action="enhance",
            guidance_scale=2.5,
            size=512,
            batch=3,
        ),
        Pair(target="cat", positive="cat", neutral=""),
    )
    eraser = recipe.eraser()
    assert (eraser.rank, eraser.alpha, eraser.lr, eraser.iterations, eraser.steps) == (4, 1.0, 1e-4, 500, 50)
    assert (recipe.model, recipe.unused) == ("", ())
    assert recipe.names == ["drawing", "cat"]


def test_a_configuration_of_leco(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, config_yaml=LECO_CONFIG, prompts_yaml=PROMPTS))
    assert len(recipe.pairs) == 2
    assert recipe.model == "stabilityai/stable-diffusion-2-1"
    assert recipe.eraser() == LECO(
        pairs=recipe.pairs,
        rank=8,
        alpha=2.0,
        layers="cross",
        iterations=300,
        lr=1e-4,
        schedule="cosine",
        optimizer="adamw",
        steps=30,
        clip_skip=1,
    )
    model = ["pretrained_model.v2", "pretrained_model.v_pred"]
    assert recipe.unused == (*model, "train.precision", "train.noise_scheduler", "save", "logging", "other")


def test_older_configurations_of_leco_have_size_and_batch_for_all(tmp_path: Path) -> None:
    config = LECO_CONFIG.replace("iterations: 300", "iterations: 300\n      resolution: 768\n      batch_size: 2")
    pairs = read_recipe(written(tmp_path, config_yaml=config, prompts_yaml=PROMPTS)).pairs
    assert [(pair.size, pair.batch) for pair in pairs] == [(512, 3), (768, 2)]


def test_a_slider_of_aitoolkit(tmp_path: Path) -> None:
    """Its two losses of the class have one goal, and the LoRA turned round has the opposite one."""
    recipe = read_recipe(written(tmp_path, job_yaml=AITOOLKIT))
    there = Pair(
        target="person",
        neutral="person",
        positive="an old person",
        unconditional="a young person",
        action="enhance",
        guidance_scale=2.0,
        batch=2,
        weight=2 / 3,
    )
    assert [pair.target for pair in recipe.pairs] == ["person", "dog", "person", "dog"]
    assert recipe.pairs[0] == there
    assert [pair.shift for pair in recipe.pairs[::2]] == [2.0, -2.0]
    assert [pair.multiplier for pair in recipe.pairs] == [1.0, 1.0, -1.0, -1.0]
    for anchor in recipe.pairs[1::2]:
        assert (anchor.asked, anchor.beside, anchor.weight, anchor.batch) == (("dog",), True, 0.5 / 3, 2)
    eraser = recipe.eraser()
    assert (eraser.rank, eraser.alpha, eraser.lr, eraser.iterations) == (16, 8.0, 2e-4, 600)
    assert (eraser.layers, eraser.drawn_by, eraser.clip, eraser.gradient_checkpointing) == (
        "blocks",
        "frozen",
        1.0,
        True,
    )
    assert recipe.model == "black-forest-labs/FLUX.1-dev"
    assert {"config.process[0].device", "config.process[0].network.conv", "config.process[0].train.dtype"} <= set(
        recipe.unused
    )
    assert {"job", "meta", "config.name", "config.process[0].model.quantize"} <= set(recipe.unused)
    # The LoRA moves away from it where it is on.
    assert recipe.names == ["a young person"]


def test_prompts_of_kohya(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, prompts_toml=KOHYA))
    assert recipe.pairs == (Pair(target="van gogh", guidance_scale=1.5, size=512, multiplier=0.5, weight=2.0),)
    eraser = recipe.eraser()
    assert (eraser.rank, eraser.alpha, eraser.lr, eraser.iterations, eraser.steps) == (8, 4.0, 1e-4, 500, 40)
    assert eraser.layers == "blocks"


def test_a_configuration_of_kohya(tmp_path: Path) -> None:
    """Its prompts lie beside it, whatever folder it says."""
    recipe = read_recipe(written(tmp_path, config_toml=KOHYA_CONFIG, prompts_toml=KOHYA))
    eraser = recipe.eraser(lr=1.0)
    assert (eraser.rank, eraser.alpha, eraser.lr, eraser.iterations, eraser.steps) == (16, 8.0, 1.0, 700, 20)
    assert recipe.eraser().lr == 2e-4
    assert (recipe.model, recipe.unused) == ("model.safetensors", ("output_name", "sdpa"))


def test_a_slider_of_kohya(tmp_path: Path) -> None:
    pairs = read_recipe(written(tmp_path, slider_toml=SLIDER)).pairs
    assert [(pair.neutral, pair.action, pair.multiplier) for pair in pairs] == [
        ("", "enhance", 1.0),
        ("", "erase", -1.0),
        ("photo", "enhance", 1.0),
        ("photo", "erase", -1.0),
    ]
    told = {
        (pair.target, pair.positive, pair.unconditional, pair.guidance_scale, pair.size, pair.batch) for pair in pairs
    }
    assert told == {("person", "smiling person", "sad person", 1.5, 64, 2)}


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ('positive = "smiling"', [("smiling", "enhance", 1.0), ("smiling", "erase", -1.0)]),
        ('negative = "sad"', [("sad", "erase", 1.0), ("sad", "enhance", -1.0)]),
    ],
)
def test_a_slider_of_kohya_with_one_side(tmp_path: Path, sides: str, expected: list[Any]) -> None:
    pairs = read_recipe(written(tmp_path, slider_toml=f'[[targets]]\ntarget_class = ""\n{sides}')).pairs
    assert [(pair.positive, pair.action, pair.multiplier) for pair in pairs] == expected
    assert {pair.unconditional for pair in pairs} == {""}


def config(old: str, new: str) -> dict[str, str]:
    return {"config_yaml": LECO_CONFIG.replace(old, new), "prompts_yaml": PROMPTS}


def job(old: str, new: str) -> dict[str, str]:
    return {"job_yaml": AITOOLKIT.replace(old, new)}


BAD: list[tuple[dict[str, str], str]] = [
    ({"x_yaml": "- {target: a, guidence_scale: 2}"}, "unknown keys: prompt 1.guidence_scale; known are action"),
    ({"x_yaml": "- {positive: a}"}, "expected prompt 1.target, got none"),
    ({"x_yaml": "- {target: 3}"}, "expected text as prompt 1.target, got 3"),
    ({"x_yaml": "- {target: a, guidance_scale: much}"}, "expected a number as prompt 1.guidance_scale, got 'much'"),
    ({"x_yaml": "- {target: a, guidance_scale: true}"}, "expected a number as prompt 1.guidance_scale, got True"),
    ({"x_yaml": "- {target: a, guidance_scale: '.nan'}"}, "expected a number as prompt 1.guidance_scale"),
    ({"x_yaml": "- {target: a, batch_size: 1.5}"}, "expected a whole number as prompt 1.batch_size, got 1.5"),
    ({"x_yaml": "- {target: a, resolution: 500}"}, "prompt 1: expected size as a multiple of 8, got 500"),
    ({"x_yaml": "- {target: a, action: remove}"}, "expected prompt 1.action among erase, enhance, got 'remove'"),
    ({"x_yaml": "- {target: a, dynamic_resolution: true}"}, "dynamic_resolution is not done here"),
    ({"x_yaml": "- 3"}, "expected a table as prompt 1, got '3'"),
    ({"x_yaml": "[]"}, "expected 1 to 1000 prompts in a list"),
    ({"x_yaml": "3"}, "expected LECO's list of prompts or its configuration"),
    ({"x_yaml": "a: 3"}, "got a table of a"),
    ({"x_yaml": "- {target: a"}, "expected YAML"),
    ({"x_yaml": "- !!python/object/apply:os.system ['true']"}, "expected YAML"),
    ({"x_toml": "target = "}, "expected TOML"),
    ({"x_toml": "when = 2020-01-01"}, "expected TOML, got a date"),
    (
        {"x_toml": "[[prompts]]\ntarget = 'a'\nresolution = [512, 768]"},
        "as the side of a square in pixels, got [512, 768]",
    ),
    ({"x_toml": "[[targets]]\ntarget_class = 'a'"}, "expected target 1.positive or target 1.negative, got neither"),
    (
        {"x_toml": "[[targets]]\ntarget_class = 'a'\npositive = 'b'\nprompt_file = '/etc/passwd'"},
        "prompt_file is not read",
    ),
    (config("rank: 8", "rank: 8, dora: true"), "unknown keys: network.dora"),
    (config("lierla", "c3lier"), "expected network.type among lierla, got 'c3lier'"),
    (config("xattn", "all"), "expected network.training_method among full, xattn"),
    (config("AdamW8bit", "prodigy"), "expected train.optimizer among adam, adamw, adam8bit, adamw8bit, got 'prodigy'"),
    (config("cosine", "linear"), "expected train.lr_scheduler among constant, cosine, got 'linear'"),
    (config("logging:", "lagging:"), "unknown keys: lagging"),
    (config("./examples/prompts.yaml", "../none.yaml"), "expected the prompts_file none.yaml beside it"),
    (job("concept_slider", "sd_trainer"), "expected config.process[0].type among concept_slider, got 'sd_trainer'"),
    (job("type: lora", "type: lokr"), "expected config.process[0].network.type among lora, got 'lokr'"),
    (job("anchor_class", "anchor"), "unknown keys: config.process[0].slider.anchor"),
    (job('"an old person"', '"a young person"'), "that differ, got the same"),
    (
        {"c_toml": KOHYA_CONFIG + "network_weights = 'x'", "prompts_toml": KOHYA},
        "network_weights is not read",
    ),
]


@pytest.mark.parametrize(("files", "told"), BAD, ids=[told[:40] for _, told in BAD])
def test_what_is_no_recipe_is_told_in_a_line(tmp_path: Path, files: dict[str, str], told: str) -> None:
    path = written(tmp_path, **files)
    with pytest.raises(ValueError, match="expected|unknown|not") as refused:
        read_recipe(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert told in message
    assert "\n" not in message
