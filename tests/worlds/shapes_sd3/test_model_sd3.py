"""The shipped `shapes-sd3`: plain diffusers loads it, it draws what it is asked for, and a closed form erases there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from support import REPOSITORY
from support.shown import share

from erasers import get_eraser, worlds
from erasers.cli.app import run
from erasers.diffusion.conditions import conditions
from erasers.patch import Patch

MIB = 2**20
WORLD = worlds.get("shapes-sd3")
REFERENCES = REPOSITORY / "benchmarks" / "reference"


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The shipped folder as plain diffusers loads it."""
    loaded = StableDiffusion3Pipeline.from_pretrained(WORLD.folder, text_encoder_3=None, tokenizer_3=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_plain_diffusers_loads_the_folder_in_one_dtype(pipe: Any) -> None:
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    assert {part.dtype for part in parts} == {torch.float32}
    assert {str(t.dtype) for part in parts for t in part.state_dict().values()} == {"torch.float32"}


def test_what_is_shipped_stays_small() -> None:
    folders = [WORLD.folder, *REFERENCES.glob("transformer-without-*")]
    sizes = [file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert max(sizes) <= 16 * MIB
    assert sum(sizes) <= 24 * MIB


def test_the_world_shares_words_and_judge_and_nothing_else() -> None:
    shapes = worlds.get("shapes")
    assert (WORLD.judge, WORLD.judges, WORLD.vocabulary) == (shapes.judge, False, shapes.vocabulary)
    assert (WORLD.denoiser_block, WORLD.unrecorded) == (None, None)
    assert WORLD.sae != shapes.sae


def test_the_command_leaves_a_patch_a_picture_and_numbers(tmp_path: Path) -> None:
    out, report = tmp_path / "star.safetensors", tmp_path / "report"
    erase = ["--concept", "star", "--method", "uce", "--model", "shapes-sd3", "--out", str(out)]
    assert run([*erase, "--report", str(report), "--samples", "1"]) == 0
    assert set(Patch.load(out).meta["groups"]) == {"text", "pooled"}
    assert (report / "grid.png").is_file()
    facts = json.loads((report / "summary.json").read_text())
    assert facts["model"] == "shapes-sd3"
    assert {split for split, share in facts["splits"].items() if share["before"]["n"] == share["after"]["n"] == 1} == {
        "explicit",
        "synonym",
        "neighbour",
        "unrelated",
    }


@pytest.mark.full
def test_uce_erases_and_keeps(pipe: Any) -> None:
    splits = WORLD.split_prompts("star", 12)
    before = {split: share(pipe, asks, WORLD.tokens) for split, asks in splits.items()}
    assert min(before.values()) >= 0.8
    with get_eraser("uce").fit(pipe, WORLD.concept("star")).applied(pipe):
        after = {split: share(pipe, asks, WORLD.tokens) for split, asks in splits.items()}
    assert after["explicit"] <= 0.35
    assert min(after["neighbour"], after["unrelated"]) >= 0.8


def test_an_autoencoder_for_each_text_encoder_finds_the_concept_in_both(pipe: Any) -> None:
    patch = get_eraser("itd-shapes").fit(pipe, WORLD.concept("star"))
    assert [hook.target.partition(".")[0] for hook in patch.hooks] == ["text_encoder", "text_encoder_2"]
    texts = {split: [ask.text for ask in asks] for split, asks in WORLD.split_prompts("star", 20).items()}
    plain = {split: conditions(pipe, prompts) for split, prompts in texts.items()}
    with patch.applied(pipe):
        for split, prompts in texts.items():
            states, pooled = (
                (now == before).flatten(1).all(dim=1).double().mean()
                for now, before in zip(conditions(pipe, prompts)[:2], plain[split][:2], strict=True)
            )
            assert states == pooled
            assert states <= 0.01 if split in ("explicit", "synonym") else states >= 0.95


@pytest.mark.full
def test_itd_erases_and_keeps(pipe: Any) -> None:
    splits = WORLD.split_prompts("star", 12)
    with get_eraser("itd-shapes").fit(pipe, WORLD.concept("star")).applied(pipe):
        after = {split: share(pipe, asks, WORLD.tokens) for split, asks in splits.items()}
    assert max(after["explicit"], after["synonym"]) <= 0.2
    assert min(after["neighbour"], after["unrelated"]) >= 0.8
