"""Semantic Surgery: its gate, what leaves in proportion to it, and what stays bit for bit, on every family it takes."""

from __future__ import annotations

from typing import Any
from warnings import catch_warnings

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw as draw_family
from support.run_time import check_compiled, check_in_any_company, check_leaves_alone, check_lives_on
from support.tiny import draw
from support.trained import family_pipe

from erasers import Concept, Patch, PatchError, UnsupportedPipeline, load_pipeline
from erasers.diffusion.conditions import conditions, unprompted
from erasers.methods.semantic_surgery import SemanticSurgery, directions
from erasers.patch.denoiser_text import Text
from erasers.patch.semantic_gate import SemanticGate, likeness, operated, shares
from erasers.text.alarms import gates
from erasers.text.contexts import kept_prompts
from erasers.worlds.shapes.prompts import concept_for

KEPT = ("moon", "a red ring", "blue art")
STAR = Concept("star", anchor="circle", preserve=KEPT, neighbours=["ring"])
QUICK: dict[str, Any] = {"everyday": False, "templates": ("{}",)}


def surgery(**options: Any) -> SemanticSurgery:
    return SemanticSurgery(**{**QUICK, **options})


def text_of(pipe: Any, *prompts: str) -> Text:
    condition = conditions(pipe, prompts)
    return Text(condition.states, condition.pooled)


def test_the_lowest_threshold_that_so_few_kept_prompts_pass():
    kept, never = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 3)
    for share, alarms in ((0.0, 0), (0.01, 2), (0.1, 20)):
        found = gates(kept, never, share)
        assert int((kept > found).any(dim=1).sum()) == alarms
        assert int((kept > found - 1e-3).any(dim=1).sum()) > alarms
    assert (gates(kept, torch.full((1, 3), 7.0), 0.01) > 7).all()
    assert (gates(-kept - 1, never - 9, 0.0) > (-kept - 1).amax(dim=0)).all()


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_a_name_becomes_the_empty_prompt_and_so_does_its_pooled_vector(family, tmp_path):
    pipe = family_pipe(family, tmp_path)
    parts = surgery().parts(pipe, [STAR])
    star, empty = text_of(pipe, "star"), text_of(pipe, "")
    assert likeness(star.states, parts).item() == pytest.approx(1, abs=1e-4)
    for strength in (0.5, 1.0, -2.0):
        moved = operated(star, parts, strength)
        for new, old, none in zip(moved, star, empty, strict=True):
            if old is None:
                assert family == "sd1"
                continue
            torch.testing.assert_close(new, old + strength * (none - old), rtol=1e-3, atol=1e-4)
    assert operated(star, parts, 0.0) is star


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_kept_prompts_and_what_is_guided_away_from_stay_bit_for_bit(family, tmp_path):
    pipe = family_pipe(family, tmp_path)
    parts = surgery(false_alarms=0.0).parts(pipe, [STAR])
    nothing = unprompted(pipe)
    for text in (text_of(pipe, *KEPT, "ring", ""), Text(nothing.states, nothing.pooled)):
        moved = operated(text, parts, 1.0)
        assert torch.equal(moved.states, text.states)
        assert text.pooled is None or torch.equal(moved.pooled, text.pooled)
    mixed, alone = text_of(pipe, "moon", "star"), text_of(pipe, "moon")
    moved = operated(mixed, parts, 1.0)
    assert torch.equal(moved.states[0], alone.states[0])
    assert not torch.equal(moved.states[1], mixed.states[1])


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_pictures_of_the_families_change_for_the_concept_alone(family, tmp_path):
    pipe, options = family_pipe(family, tmp_path), FAMILIES[family].options
    length = options.get("max_sequence_length")
    before = {text: draw_family(pipe, text, options) for text in ("star", "moon")}
    with surgery(max_sequence_length=length).fit(pipe, STAR).applied(pipe):
        assert not torch.equal(draw_family(pipe, "star", options), before["star"])
        assert torch.equal(draw_family(pipe, "moon", options), before["moon"])


def test_run_time(pipe, tmp_path):
    patch = surgery().fit(pipe, STAR)
    assert surgery().fit(pipe, STAR).digest == patch.digest
    check_leaves_alone(pipe, patch, KEPT, {"negative_prompt": ["a moon"]})
    check_in_any_company(pipe, patch, "star", "moon")
    check_lives_on(pipe, patch, "star", tmp_path)


@pytest.mark.full
def test_compiled(pipe):
    check_compiled(pipe, surgery().fit(pipe, STAR), "star")


def test_what_leaves_is_linear_in_rho_and_attacks_can_shut_the_gate():
    away = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
    parts = {"away": away, "weight": torch.full((1, 2), 0.5), "gate": torch.tensor([0.2]), "slope": torch.tensor([0.5])}
    parts["pooled"] = torch.tensor([[3.0]])
    states, pooled = torch.tensor([[[1.0, 1.0], [0.0, 1.0]], [[-1.0, 0], [0, 0]]]), torch.ones(2, 1)
    likely = likeness(states, parts)
    torch.testing.assert_close(likely, torch.tensor([[(0.5**0.5 + 1) / 2], [-0.5]]))
    states.requires_grad_()
    moved = operated(Text(states, pooled), parts, 1.0)
    rho = torch.sigmoid((likely[0] - 0.2) / 0.5)
    torch.testing.assert_close(moved.states[0].detach(), states[0].detach() - rho * away[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved.pooled.detach(), torch.stack([1 - rho * 3.0, torch.ones(1)]), rtol=1e-3, atol=1e-3)
    assert torch.equal(moved.states[1], states[1])
    moved.pooled.sum().backward()
    assert states.grad[0].abs().sum() > 0
    assert not states.grad[1].any()
    longer = operated(Text(torch.cat([states.detach(), torch.ones(2, 3, 2)], dim=1)), parts, 1.0)
    assert longer.states[:, 2:].eq(1).all()


def test_what_several_names_share_is_taken_once():
    one, other = torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 1, 0])
    away = torch.stack([one, one, other, torch.tensor([0.0, 0, 2])])
    chosen = torch.tensor([[True, True, False, False], [True, False, True, False], [False, False, False, True]])
    steps = shares(away, chosen) @ away
    torch.testing.assert_close(steps[0], one, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(steps[1], other, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(steps[2], away[3], rtol=1e-5, atol=1e-5)
    assert not shares(away, torch.zeros(1, 4, dtype=torch.bool)).any()


def test_two_concepts_and_an_alias_have_a_direction_each(pipe):
    concepts = [Concept("star", aliases=["nude"], anchor="circle"), Concept("moon", anchor="circle")]
    patch = surgery().fit(pipe, concepts)
    assert {part: len(value) for part, value in patch.hooks[0].parts.items() if part in ("away", "gate")} == {
        "away": 3,
        "gate": 3,
    }
    before = {text: draw(pipe, text) for text in ("star", "nude", "moon", "circle")}
    with patch.applied(pipe):
        same = {text: torch.equal(draw(pipe, text), picture) for text, picture in before.items()}
    assert same == {"star": False, "nude": False, "moon": False, "circle": True}


def test_the_published_settings(pipe):
    with pytest.warns(UserWarning, match="mean it no more than kept ones"):
        parts = SemanticSurgery(beta=-1.0, centred=False, **QUICK).parts(pipe, [STAR])
    assert "centre" not in parts
    assert torch.equal(parts["weight"], torch.full_like(parts["weight"], 1 / parts["weight"].shape[1]))
    official = SemanticSurgery(**SemanticSurgery.presets["semantic_surgery-official"])
    for kind, beta in (("object", -0.12), ("style", -0.30), ("unsafe", 0.0)):
        with catch_warnings(action="ignore"):
            gate = official.parts(pipe, [Concept("star", anchor="circle", kind=kind)])["gate"]
        assert gate.tolist() == pytest.approx([-beta])


def test_the_first_token_of_clip_does_not_count(pipe):
    empty, named = conditions(pipe, [""]), conditions(pipe, ["star"])
    parts = directions(named, empty, True)
    assert not parts["away"][:, 0].any()
    assert parts["weight"][0, 0] == 0
    assert parts["weight"].sum().item() == pytest.approx(1)


def test_on_the_embedded_model_held_out_prompts_are_told_apart():
    pipe, eraser = load_pipeline("shapes"), SemanticSurgery(everyday=False)
    star = concept_for("star")
    near, others = kept_prompts([star])
    fitted = Concept(star.name, anchor=star.anchor, neighbours=star.neighbours, preserve=others[:60])
    parts = eraser.parts(pipe, [fitted])
    held_out = [text for text in others[60:] if text]
    assert len(held_out) > 60
    assert (eraser.scores(pipe, parts, held_out) > parts["gate"]).float().mean() <= 0.03
    assert (eraser.scores(pipe, parts, ["a pentagram", "a red five pointed thing"]) > parts["gate"]).all()


@pytest.mark.parametrize("family", ["pixart", "zimage"])
def test_other_families_are_refused(family, tmp_path):
    with pytest.raises(UnsupportedPipeline, match="whose denoisers read every position"):
        surgery().fit(family_pipe(family, tmp_path), STAR)


GOOD = {"away": torch.ones(1, 2, 3), "weight": torch.ones(1, 2), "gate": torch.ones(1), "slope": torch.ones(1)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.ones(1, 3)}, "expected the parts away"),
        ({"centre": torch.ones(3, 3)}, "expected the parts away"),
        ({"pooled": torch.ones(2, 3)}, "expected the parts away"),
        ({"slope": torch.zeros(1)}, "slope above 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, words):
    with pytest.raises(PatchError, match=words):
        SemanticGate("unet", GOOD | change)


def test_a_hook_of_another_model_is_refused(pipe, tmp_path):
    with pytest.raises(PatchError, match="on a denoiser"):
        SemanticGate("unet.mid_block", GOOD)
    with pytest.raises(PatchError, match="unet reads rows of 32, the hook needs 3"):
        SemanticGate("unet", GOOD).check(pipe.unet)
    patch = surgery().fit(family_pipe("sd3", tmp_path), STAR)
    with pytest.raises(PatchError, match="expected"):
        Patch(patch.tensors, patch.meta).apply(pipe)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"beta": 2.0}, "beta"),
        ({"false_alarms": 1.0}, "false_alarms"),
        ({"gamma": 0.0}, "gamma"),
        ({"templates": ("x",)}, "templates"),
    ],
)
def test_bad_options_are_refused(option, words):
    with pytest.raises(ValueError, match=f"expected {words}"):
        SemanticSurgery(**option)
