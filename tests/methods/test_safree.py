"""SAFREE: which tokens are triggers, what they and what stands behind them lose, and what stays bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw as draw_family
from support.run_time import check_compiled, check_in_any_company, check_leaves_alone, check_lives_on
from support.trained import family_pipe

from erasers import Concept, PatchError, UnsupportedPipeline, get_eraser
from erasers.diffusion.conditions import conditions
from erasers.methods.safree import SAFREE, pooled
from erasers.models.feeding import feeds_of
from erasers.patch.trigger import TriggerProjection, left_out, projected, ratios, space_of
from erasers.sae.text_blocks import encoder_block

KEPT = ("moon", "a red ring", "blue art")
STAR = Concept("star", anchor="circle", preserve=KEPT, neighbours=["ring"])
QUICK: dict[str, Any] = {"everyday": False, "templates": ("{}",), "false_alarms": 0.0}

pytestmark = pytest.mark.filterwarnings("ignore:.*have no trigger:UserWarning")


def safree(**options: Any) -> SAFREE:
    return SAFREE(**{**QUICK, **options})


def parts_of(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """A concept along the first of four axes."""
    ones = dict.fromkeys(("alpha", "end", "first", "behind"), torch.ones(1))
    return {"space": torch.eye(1, 4)} | ones | more


def test_a_token_without_which_a_prompt_is_far_from_the_concept_is_a_trigger():
    e = torch.tensor([[3.0, 1, 0, 0], [3.0, 1, 0, 0], [3.0, 4, 0, 0]])
    torch.testing.assert_close(ratios(e, parts_of()), torch.tensor([1 / 2.5, 4.0]))
    only = ratios(torch.tensor([[3.0, 1, 0, 0], [0.0, 2, 0, 0]]), parts_of())
    assert only.tolist() == [2.0]
    angles = ratios(e + 1, parts_of(centre=torch.ones(4)))
    torch.testing.assert_close(angles[1], (0.8 / torch.tensor(0.1).sqrt()))


@pytest.mark.parametrize("behind", [0.0, 1.0])
def test_triggers_lose_the_space_and_others_stay_bit_for_bit(behind):
    parts = parts_of(behind=torch.tensor([behind]), alpha=torch.tensor([0.5]))
    e = torch.tensor([[3.0, 1, 0, 0], [3.0, 1, 0, 0], [3.0, 4, 0, 0]])
    states = torch.arange(20.0).view(5, 4) + 1
    for strength in (0.5, 1.0):
        moved = projected(states, e, 1, parts, strength)
        assert torch.equal(moved[:2], states[:2])
        wanted = torch.stack([torch.zeros(()), states[2, 1], torch.zeros(()), torch.zeros(())])
        torch.testing.assert_close(moved[2], states[2] + strength * (wanted - states[2]))
        if behind:
            torch.testing.assert_close(moved[3:, 0], (1 - strength) * states[3:, 0])
            assert torch.equal(moved[3:, 1:], states[3:, 1:])
        else:
            assert torch.equal(moved[3:], states[3:])
    assert projected(states, e[[0, 0, 0]], 1, parts, 1.0) is states
    assert projected(states.half(), e, 1, parts, 1.0).dtype == torch.float16


def test_spaces_are_projectors_and_means_leave_a_token_out():
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    basis = space_of(torch.cat([rows, rows[:1] + rows[1:2]]))
    assert basis.shape == (3, 6)
    projector = basis.T @ basis
    torch.testing.assert_close(projector @ projector, projector)
    torch.testing.assert_close(rows @ projector, rows)
    e = left_out(rows)
    torch.testing.assert_close(e[0], rows.mean(dim=0))
    torch.testing.assert_close(e[2], (rows[0] + rows[2]) / 2)
    assert len(e) == 3


def test_masked_prompts_are_those_that_the_encoder_makes_of_masked_ids(pipe):
    block = encoder_block(pipe, "text_encoder", feeds_of(pipe)["text_encoder"].upstream - 1)
    parts = {"space": torch.eye(1, block.width), "alpha": torch.zeros(1), "behind": torch.zeros(1)}
    parts |= {"end": torch.tensor([float(pipe.tokenizer.eos_token_id)]), "first": torch.ones(1)}
    several = pooled(block, parts, ["a red star", "moon"])
    assert [len(e) for e in several] == [4, 2]
    torch.testing.assert_close(several[0], pooled(block, parts, ["a red star"])[0])
    ids = block.tokens(["a red star"])[0]
    ids[0, 3] = 0
    states: list[torch.Tensor] = []
    handle = block.module.register_forward_hook(lambda _, __, output: states.append(output))
    with torch.no_grad():
        pipe.text_encoder(ids)
    handle.remove()
    rows = states[0] if isinstance(states[0], torch.Tensor) else states[0][0]
    torch.testing.assert_close(several[0][3], rows[0, 4])


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux", "pixart"])
def test_every_text_loses_the_concept_and_kept_prompts_stay(family, tmp_path):
    pipe = family_pipe(family, tmp_path)
    patch = safree(max_sequence_length=FAMILIES[family].options.get("max_sequence_length")).fit(pipe, STAR)
    assert [hook.component for hook in patch.hooks] == sorted(feeds_of(pipe))
    star, *kept = (conditions(pipe, [text]) for text in ("star", "moon", ""))
    with patch.applied(pipe):
        after = conditions(pipe, ["star"])
        assert not torch.equal(after.states, star.states)
        assert star.pooled is None or not torch.equal(after.pooled, star.pooled)
        for text, before in zip(("moon", ""), kept, strict=True):
            now = conditions(pipe, [text])
            assert torch.equal(now.states, before.states)
            assert now.pooled is None or torch.equal(now.pooled, before.pooled)
        options = FAMILIES[family].options
        erased = draw_family(pipe, "star", options)
    assert not torch.equal(draw_family(pipe, "star", options), erased)


def test_run_time(pipe, tmp_path):
    patch = safree().fit(pipe, STAR)
    assert safree().fit(pipe, STAR).digest == patch.digest
    check_leaves_alone(pipe, patch, KEPT, {"negative_prompt": ["a red ring"]})
    check_in_any_company(pipe, patch, "star", "moon")
    check_lives_on(pipe, patch, "star", tmp_path)


@pytest.mark.full
def test_compiled(pipe):
    check_compiled(pipe, safree().fit(pipe, STAR), "star")


def test_the_published_settings(pipe):
    parts = get_eraser("safree-official", everyday=False).fit(pipe, STAR).hooks[0].parts
    assert "centre" not in parts
    assert (parts["alpha"].item(), parts["behind"].item()) == (pytest.approx(0.01), 0)


def test_other_encoders_are_refused(tmp_path):
    with pytest.raises(UnsupportedPipeline, match="CLIP or T5"):
        safree().fit(family_pipe("zimage", tmp_path), STAR)


@pytest.mark.parametrize(
    "change", [{"space": torch.ones(4)}, {"alpha": torch.ones(2)}, {"centre": torch.ones(3)}, {"x": torch.ones(1)}]
)
def test_parts_that_do_not_fit_are_refused(change):
    with pytest.raises(PatchError, match="expected the parts space"):
        TriggerProjection("text_encoder.x", parts_of(**change))


def test_a_hook_of_another_model_is_refused(pipe):
    block = encoder_block(pipe, "text_encoder", 0)
    with pytest.raises(PatchError, match="returns rows of 32, the hook needs 4"):
        TriggerProjection(block.target, parts_of()).check(block.module)
    with pytest.raises(PatchError, match="on a block of a text encoder"):
        TriggerProjection("text_encoder", parts_of())


@pytest.mark.parametrize(("option", "words"), [({"alpha": 0.0}, "alpha"), ({"false_alarms": 1.0}, "false_alarms")])
def test_bad_options_are_refused(option, words):
    with pytest.raises(ValueError, match=f"expected {words}"):
        SAFREE(**option)
