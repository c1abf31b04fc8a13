"""ESD: what moves, where to, and what the published code does otherwise."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from support import REPOSITORY
from support.tiny import weights
from torch.nn import functional

from erasers import Concept, Patch, get_eraser, list_erasers
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Counter
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import Way, ask_again, sample_bank
from erasers.eraser import options_for
from erasers.methods.esd import target, target_from
from erasers.training import ways

STAR = Concept("star", anchor="circle")
MANY = Concept("star", anchor="circle", aliases=["ring", "moon"])
PATCHES = REPOSITORY / "benchmarks" / "patches"
QUICK = {"iterations": 60, "lr": 1e-3, "steps": 4, "pictures": 2, "batch": 4}


@pytest.mark.parametrize(
    ("method", "inside", "outside"), [("x", "attn2", "attn1"), ("x-strict", "attn2.to_k", "attn2.to_q")]
)
def test_only_cross_attention_moves(pipe, method, inside, outside):
    before = weights(pipe)
    patch = get_eraser("esd", **QUICK | {"iterations": 3}, train_method=method).fit(pipe, STAR, progress=False)
    with patch.applied(pipe):
        after = weights(pipe)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("unet.") and ".attn2." in name for name in moved)
    assert any(inside in name for name in moved)
    assert not any(outside in name for name in moved)


def test_the_other_weights_are_those_of_u_and_both_are_all(pipe):
    found = {}
    for method in ("x", "u", "all"):
        eraser = get_eraser("esd", **QUICK | {"iterations": 1}, train_method=method)
        found[method] = set(eraser.fit(pipe, STAR, progress=False).parameters)
    assert not found["x"] & found["u"]
    assert found["x"] | found["u"] == found["all"]
    assert any("conv_in" in name for name in found["u"])
    assert not any("norm" in name for name in found["all"])


@pytest.mark.full
def test_the_prediction_goes_to_the_negative_guidance_of_the_frozen_model(pipe):
    asked, empty = conditions(pipe, ["star"]), conditions(pipe, [""])
    bank = sample_bank(pipe, asked, empty, Way(4, 3.0), rounds=2, generator=torch.Generator().manual_seed(9))
    goal = target(bank.empty, bank.conditional, 1.0)
    with get_eraser("esd", **QUICK, train_method="x").fit(pipe, STAR, progress=False).applied(pipe), torch.no_grad():
        guess = predict(pipe, bank.latents, bank.times, asked.rows(bank.prompts))
    moved, wanted = (guess - bank.conditional).flatten(), (goal - bank.conditional).flatten()
    assert functional.cosine_similarity(moved, wanted, dim=0) > 0.9
    assert functional.mse_loss(guess, goal) < 0.5 * functional.mse_loss(bank.conditional, goal)


def test_eta_is_that_of_the_paper():
    empty, asked = torch.tensor([1.0]), torch.tensor([3.0])
    assert target(empty, asked, 0.0) == empty
    assert target(empty, asked, 1.0) == torch.tensor([-1.0])
    # The flag g of the published code for Stable Diffusion has eps(c) in place of eps(""): eta is g - 1.
    assert asked - 2.0 * (asked - empty) == target(empty, asked, 1.0)


def test_what_is_trained_depends_on_the_kind(pipe):
    eraser = get_eraser("esd")
    style, thing = Concept("x", kind="style"), Concept("y")
    assert eraser.method_for(pipe, [style]) == "x"
    assert eraser.method_for(pipe, [style, replace(thing, kind="identity")]) == "x"
    assert eraser.method_for(pipe, [style, thing]) == "u"
    assert get_eraser("esd-x").method_for(pipe, [thing]) == "x"


def test_the_student_draws_anew_and_the_frozen_model_says_what_it_is_to_learn(pipe):
    options = QUICK | {"iterations": 5, "refresh": 2, "lr": 1e-2}
    patches = {
        by: get_eraser("esd", **options, drawn_by=by).fit(pipe, STAR, progress=False) for by in ("student", "frozen")
    }
    assert patches["student"].digest != patches["frozen"].digest
    asked, empty = conditions(pipe, ["star"]), conditions(pipe, [""])
    with patches["student"].applied(pipe):
        bank = sample_bank(pipe, asked, empty, Way(4, 3.0), rounds=2, generator=torch.Generator().manual_seed(9))
    again = ask_again(pipe, bank, asked, empty)
    assert torch.equal(again.latents, bank.latents)
    assert not torch.allclose(again.conditional, bank.conditional, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(again.conditional, predict(pipe, bank.latents, bank.times, asked.rows(bank.prompts)))
        torch.testing.assert_close(again.empty, predict(pipe, bank.latents, bank.times, empty.rows(bank.prompts * 0)))


@pytest.mark.parametrize("drawn_by", ["student", "frozen"])
@pytest.mark.parametrize("pictures", [0, 2])
def test_it_spends_what_it_foretells(pipe, drawn_by, pictures):
    options = {"iterations": 7, "steps": 3, "batch": 2, "refresh": 3, "drawn_by": drawn_by, "pictures": pictures}
    eraser = get_eraser("esd", **options)
    with Counter(pipe) as counter:
        eraser.fit(pipe, MANY, progress=False)
    assert counter.calls == eraser.cost(pipe, [MANY])


def test_a_training_of_full_size_takes_few_calls(pipe):
    for name in ("nudity", "van gogh", "church"):
        calls = get_eraser("esd").cost(pipe, [Concept.of(name)])
        assert 1000 <= calls.denoiser + calls.gradients <= 15_000


def test_the_prompts_take_turns_in_fresh_ways(pipe, monkeypatch):
    seen = []

    def watch(pipe, condition, empty, way, **options):
        bank = sample_bank(pipe, condition, empty, way, **options)
        # The first one becomes the others, in place.
        seen.append(replace(bank, **{name: value.clone() for name, value in bank.tensors().items()}))
        return bank

    monkeypatch.setattr(ways, "sample_bank", watch)
    eraser = get_eraser("esd", iterations=6, steps=3, batch=2, refresh=2, drawn_by="frozen")
    prompts = eraser.prompts([MANY])
    assert len(prompts) == 3
    eraser.fit(pipe, MANY, progress=False)
    first, second, _ = seen
    assert len(first) == 6
    assert not torch.allclose(first.latents, second.latents)
    asked = conditions(pipe, prompts)
    for bank, turn in ((first, [0, 1]), (second, [2, 0])):
        own = asked.rows(torch.tensor(turn)[bank.prompts])
        with torch.no_grad():
            drawn = predict(pipe, bank.latents, bank.times, own)
        torch.testing.assert_close(bank.conditional, drawn)
    with torch.no_grad():
        other = predict(pipe, first.latents, first.times, asked.rows(torch.tensor([1, 0])[first.prompts]))
    assert not torch.allclose(first.conditional, other, atol=1e-4)


def test_the_settings_of_the_embedded_model_are_those_of_its_committed_patches():
    for name in list_erasers():
        for path in PATCHES.glob(f"{name}-*.safetensors"):
            eraser = shapes_eraser(name)
            later = {field.name: field.default for field in fields(eraser)}
            config = json.loads(json.dumps(later | Patch.load(path).meta["config"]))
            assert config == json.loads(json.dumps(eraser.config()))


def shapes_eraser(name):
    return get_eraser(name, **options_for(name, "shapes"))


@pytest.mark.parametrize("option", [{"refresh": 0}, {"steps": 0}, {"pictures": -1}, {"batch": 0}])
def test_bad_options_are_refused(option):
    with pytest.raises(ValueError, match=f"expected {next(iter(option))} of at least"):
        get_eraser("esd", **option)


# Erased from another concept


def test_the_target_of_an_erasure_from_another_concept():
    whole, empty, conditional = (torch.tensor([value]) for value in (5.0, 1.0, 3.0))
    assert target_from(whole, empty, conditional, 2.0).item() == 1.0


@pytest.mark.full
@pytest.mark.parametrize("options", [{}, {"drawn_by": "frozen"}, {"pictures": 0, "refresh": 4}])
def test_a_concept_is_erased_from_another(pipe, options):
    empty, star, moon = (conditions(pipe, [text]) for text in ("", "star", "moon"))
    way = Way(4, 3.0)
    bank = sample_bank(pipe, moon, empty, way, rounds=2, generator=torch.Generator().manual_seed(9))

    def asked(condition):
        rows = condition.rows(torch.zeros(len(bank), dtype=torch.long))
        with torch.no_grad():
            return predict(pipe, bank.latents, bank.times, rows)

    goal = target_from(asked(moon), asked(empty), asked(star), 1.0)
    eraser = get_eraser("esd", **QUICK | {"train_method": "x", "from_concept": "moon"} | options)
    with Counter(pipe) as counter:
        patch = eraser.fit(pipe, STAR, progress=False)
    before = functional.mse_loss(asked(moon), goal)
    with patch.applied(pipe):
        assert functional.mse_loss(asked(moon), goal) < 0.7 * before
    assert counter.calls == eraser.cost(pipe, STAR)
    assert patch.meta["config"]["from_concept"] == "moon"


def test_nothing_to_erase_it_from_is_refused():
    with pytest.raises(ValueError, match="expected from_concept as text"):
        get_eraser("esd", from_concept=" ")
