"""Features that itd makes of prompts: the difference of means, a codebook and semi-nonnegative factors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.saes import embed
from support.tiny import same, weights
from torch.nn import functional

from erasers import Patch, get_eraser, load_pipeline, worlds
from erasers.cli import app as cli
from erasers.methods.itd.dictionaries import dictionary_of, means_sae
from erasers.methods.itd.explaining import explanations
from erasers.sae.text_blocks import find_blocks
from erasers.text.contexts import kept_prompts

MADE = ("itd-snmf", "itd-codebook", "itd-means")
WORLD = worlds.get("shapes")
STAR = replace(WORLD.concept("star"), preserve=WORLD.concept("star").preserve[:80])
KEPT = (*STAR.preserve[:12], "a circle", "")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline("shapes")


@pytest.fixture(scope="module")
def patches(pipe) -> dict[str, Patch]:
    return {name: get_eraser(name).fit(pipe, STAR, progress=False) for name in MADE}


def test_means_are_the_difference_of_means():
    generator = torch.Generator().manual_seed(0)
    star, moon, kept = (torch.randn(9, 6, generator=generator) + shift for shift in (3, -2, 1))
    sae = means_sae([star, moon], kept)
    for number, rows in enumerate((star, moon)):
        expected = functional.normalize(rows.mean(dim=0) - kept.mean(dim=0), dim=0)
        torch.testing.assert_close(sae.decoder[number].detach(), expected)
        # Activity is the way along it, from the mean without.
        along = sae.activations(kept.mean(dim=0) + 2 * expected)[number]
        torch.testing.assert_close(along, torch.tensor(2.0))
    assert dictionary_of("means", [star, moon], kept, 5, generator).n == 2


@pytest.mark.parametrize("kind", ["snmf", "codebook"])
def test_of_very_many_rows_some_are_taken(kind, monkeypatch):
    monkeypatch.setattr("erasers.methods.itd.dictionaries._ROWS", 40)
    rows = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    made = [dictionary_of(kind, [rows[:100]], rows[100:], 8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert [sae.n for sae in made] == [8, 8, 8]
    assert torch.equal(made[0].encoder, made[1].encoder)
    assert not torch.equal(made[0].encoder, made[2].encoder)


@pytest.mark.parametrize("name", MADE)
def test_the_concept_moves_and_nothing_else_does(pipe, patches, name, tmp_path):
    before, kept = weights(pipe), embed(pipe, *KEPT)
    patch, asked = patches[name], ("star", "a red star", "a pentagram")
    assert [hook.kind for hook in patch.hooks] == ["feature_gate"]
    assert patch.meta["config"]["dictionary"] == name.partition("-")[2]
    assert "sae" not in patch.meta
    plain = embed(pipe, *asked)
    patch.save(tmp_path / "star.safetensors")
    with Patch.load(tmp_path / "star.safetensors").applied(pipe):
        assert torch.equal(embed(pipe, *KEPT).view(torch.uint8), kept.view(torch.uint8))
        moved = embed(pipe, *asked)
        assert torch.equal(moved[:, 0], plain[:, 0])
        assert (moved != plain).flatten(1).any(dim=1).all()
    assert same(weights(pipe), before)


def test_rows_of_other_codes_are_left_alone_where_the_gate_is_open(pipe, patches):
    (block,) = find_blocks(pipe)
    parts = {part.rpartition("/")[2]: tensor for part, tensor in patches["itd-codebook"].tensors.items()}
    plain = block.outputs(["a red star"])[0]
    active = (torch.relu(plain @ parts["encoder"].T + parts["bias"]) > parts["floor"]).any(dim=1)[1:]
    with patches["itd-codebook"].applied(pipe):
        moved = (block.outputs(["a red star"])[0] != plain).any(dim=1)
    assert active.any()
    assert not active.all()
    assert torch.equal(moved[1:], active)
    assert not moved[0]


def test_a_fit_gives_the_same_twice(pipe, patches):
    assert get_eraser("itd-codebook").fit(pipe, STAR, progress=False).digest == patches["itd-codebook"].digest


def test_every_name_has_a_direction_of_its_own(pipe):
    kept = [text for text in STAR.preserve[:20] if "heart" not in text]
    concepts = [replace(WORLD.concept(name), preserve=kept) for name in ("star", "heart")]
    eraser = get_eraser("itd-means")
    (encoder,) = (
        tensor
        for name, tensor in eraser.fit(pipe, concepts, progress=False).tensors.items()
        if name.endswith("/encoder")
    )
    (block,) = find_blocks(pipe)
    near, others = kept_prompts(concepts, eraser.templates)
    named = [block.counted(block.outputs(prompts)).flatten(0, 1) for _, prompts in eraser.asked(concepts)]
    expected = means_sae(named, block.counted(block.outputs([*near, *others])).flatten(0, 1)).encoder
    assert encoder.shape[0] == len(named)
    torch.testing.assert_close(encoder, expected.detach())


def test_features_are_explained(pipe):
    (explanation,) = explanations(pipe, STAR, get_eraser("itd-means"))
    assert [feature.number for feature in explanation.features] == [0]
    assert (explanation.caught, explanation.passed) == (1, 0)


def test_what_is_refused(pipe, capsys):
    with pytest.raises(ValueError, match="no sae with dictionary snmf, which is made of prompts"):
        get_eraser("itd", dictionary="snmf", sae=("x.safetensors",))
    with pytest.raises(ValueError, match="dictionary as sae or snmf or codebook or means, got 'pca'"):
        get_eraser("itd", dictionary="pca")
    with pytest.raises(ValueError, match="size"):
        get_eraser("itd", size=0)
    with pytest.raises(ValueError, match="fire for 'star' alone, got none; take another size than 1, "):
        get_eraser("itd-codebook", size=1).fit(pipe, STAR, progress=False)
    command = ["--concept", "star", "--model", "shapes", "--method", "itd", "--set", "dictionary=pca"]
    assert cli.run([*command, "--out", "x.safetensors"]) == 2
    assert "got 'pca'" in capsys.readouterr().err
