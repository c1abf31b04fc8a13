"""Concept Sliders: a scale with two ends, on attention with itself alone, and on another model of its kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import same, weights
from support.trained import family_pipe
from torch.nn import functional

from erasers import Concept, get_eraser
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Counter
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import Way, sample_bank

STAR = Concept("star", anchor="circle")
QUICK: dict[str, Any] = {
    **{"iterations": 60, "lr": 1e-2, "alpha": 4.0, "steps": 4, "batch": 4},
    **{"drawn_by": "frozen", "refresh": 100, "guidance": 3.0},
}


def test_both_ends_of_the_scale(pipe):
    star, empty = conditions(pipe, ["star"]), conditions(pipe, [""])
    bank = sample_bank(pipe, star, empty, Way(4, 3.0), rounds=3, generator=torch.Generator().manual_seed(9))

    @torch.no_grad()
    def said() -> torch.Tensor:
        return predict(pipe, bank.latents, bank.times, star.rows(bank.prompts)).flatten()

    plain, direction = said(), (bank.conditional - bank.empty).flatten()
    patch = get_eraser("concept_slider", **QUICK).fit(pipe, STAR, progress=False)
    ends = {}
    for strength in (-1.0, 0.0, 1.0):
        with patch.applied(pipe, strength=strength):
            ends[strength] = said() - plain
    assert not ends[0.0].any()
    assert functional.cosine_similarity(ends[1.0], -direction, dim=0) > 0.3
    assert functional.cosine_similarity(ends[-1.0], direction, dim=0) > 0.3


def test_cross_attention_and_the_base_stay(pipe):
    before = weights(pipe)
    patch = get_eraser("concept_slider", **QUICK | {"iterations": 2}).fit(pipe, STAR, progress=False)
    assert same(before, weights(pipe))
    assert not any(".attn2." in name for name in patch.parameters)
    assert any(".attn1." in name for name in patch.parameters)
    assert any(".ff." in name for name in patch.parameters)


def test_where_text_and_picture_are_one_sequence_attention_is_trained(tmp_path):
    pipe = family_pipe("sd3", tmp_path)
    patch = get_eraser("concept_slider", **QUICK | {"iterations": 2}).fit(pipe, STAR, progress=False)
    assert all(".attn" in name for name in patch.parameters)
    for layers in ("uncrossed", "cross"):
        with pytest.raises(ValueError, match="expected layers attention or blocks"):
            get_eraser("concept_slider", **QUICK | {"layers": layers}).fit(pipe, STAR, progress=False)


def test_the_direction_is_the_same_on_another_model_of_the_architecture(pipes):
    base, distilled = pipes("sd1"), pipes("sd1")
    with torch.no_grad():
        for number, weight in enumerate(distilled.unet.parameters()):
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    patch = get_eraser("concept_slider", **QUICK | {"iterations": 3}).fit(base, STAR, progress=False)
    deltas = []
    for pipe in (base, distilled):
        before = weights(pipe)
        with patch.applied(pipe, force=pipe is distilled):
            deltas.append({name: value - before[name] for name, value in weights(pipe).items()})
    for name in patch.parameters:
        torch.testing.assert_close(deltas[0][name], deltas[1][name], rtol=0, atol=1e-6)
        assert deltas[0][name].any()


def test_an_attribute_stays():
    eraser = get_eraser("concept_slider", attributes=("red", "blue"))
    pairs = list(eraser.pairs([STAR]))
    said = [(pair.target, pair.unconditional, pair.action, pair.multiplier) for pair in pairs]
    assert said == [
        ("red star", "red", "erase", 1.0),
        ("red star", "red", "enhance", -1.0),
        ("blue star", "blue", "erase", 1.0),
        ("blue star", "blue", "enhance", -1.0),
    ]
    assert {pair.neutral for pair in pairs} == {"red", "blue"}
    (alone,) = get_eraser("concept_slider", both_signs=False).pairs([STAR])
    assert (alone.target, alone.positive, alone.neutral, alone.guidance_scale) == ("star", "star", "", 1.0)


@pytest.mark.parametrize("both_signs", [True, False])
def test_it_spends_what_it_foretells(pipe, both_signs):
    options = {"iterations": 5, "steps": 3, "batch": 2, "refresh": 2, "both_signs": both_signs}
    eraser = get_eraser("concept_slider", **options)
    concept = Concept("star", anchor="circle", aliases=["ring"])
    with Counter(pipe) as counter:
        eraser.fit(pipe, concept, progress=False)
    assert counter.calls == eraser.cost(pipe, [concept])


@pytest.mark.parametrize(("option", "words"), [({"rank": 0}, "rank"), ({"alpha": 0.0}, "alpha"), ({"eta": 0.0}, "eta")])
def test_bad_options_are_refused(option, words):
    with pytest.raises(ValueError, match=f"expected {words}"):
        get_eraser("concept_slider", **option)
