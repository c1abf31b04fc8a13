"""EIM: tokens and pooled text are moved along one step, in proportion to strength, in prompts that show the concept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw
from support.tiny import same, weights
from support.trained import family_pipe

from erasers import Concept, Patch, PatchError, UnsupportedPipeline, get_eraser
from erasers.diffusion.conditions import conditions
from erasers.methods.eim import EIM, shift
from erasers.models.calls import tokens_a_prompt
from erasers.patch.joint_shift import JointShift, shifted

STAR = Concept("star", anchor="circle", preserve=["a moon", "a red ring", "blue art"], neighbours=["ring"])
EXACT: dict[str, Any] = {"everyday": False, "templates": ("{}",), "max_sequence_length": 16}
TEXT = ("encoder_hidden_states", "pooled_projections")


@pytest.fixture
def sd3(tmp_path: Any) -> Any:
    return family_pipe("sd3", tmp_path)


@contextmanager
def heard(pipe: Any) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """What the denoiser reads, behind the hooks of a patch that is applied inside or before."""
    read: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = pipe.transformer.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        read.append((kwargs[TEXT[0]].clone(), kwargs[TEXT[1]].clone()))
        return forward(*args, **kwargs)

    pipe.transformer.forward = watched
    try:
        yield read
    finally:
        del pipe.transformer.forward


def asked(pipe: Any, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Text of a prompt as the denoiser reads it, without guidance."""
    with heard(pipe) as read:
        draw(pipe, prompt, FAMILIES["sd3"].options | {"guidance_scale": 0.0})
    return read[0]


def test_both_move_along_the_step_in_proportion_to_strength(sd3):
    patch = get_eraser("eim", **EXACT).fit(sd3, STAR)
    before = asked(sd3, "star")
    moved = {}
    for strength in (0.0, 0.5, 1.0, -2.0):
        with patch.applied(sd3, strength=strength):
            moved[strength] = [new - old for new, old in zip(asked(sd3, "star"), before, strict=True)]
    with tokens_a_prompt(sd3, 16):
        step = shift(conditions(sd3, ["star"]), conditions(sd3, ["circle"]))
    for number in range(2):
        assert not moved[0.0][number].any()
        torch.testing.assert_close(moved[1.0][number][0], step[number].float(), rtol=1e-4, atol=1e-5)
        for strength in (0.5, -2.0):
            torch.testing.assert_close(moved[strength][number], strength * moved[1.0][number], rtol=1e-4, atol=1e-5)


def test_with_one_prompt_the_denoiser_reads_the_anchor(sd3):
    with get_eraser("eim", **EXACT).fit(sd3, STAR).applied(sd3):
        erased = asked(sd3, "star")
    for new, wanted in zip(erased, asked(sd3, "circle"), strict=True):
        torch.testing.assert_close(new, wanted, rtol=1e-4, atol=1e-5)


def test_what_is_kept_stays_bit_for_bit_unless_the_gate_is_open(sd3):
    kept = [*STAR.preserve, "ring", ""]
    before = [asked(sd3, text) for text in kept]
    for gate in (True, False):
        with get_eraser("eim", **EXACT, gate=gate).fit(sd3, STAR).applied(sd3):
            for text, old in zip(kept, before, strict=True):
                stays = [torch.equal(new, was) for new, was in zip(asked(sd3, text), old, strict=True)]
                assert stays == [gate, gate], text


def test_in_a_batch_each_prompt_is_told_by_itself(sd3):
    with get_eraser("eim", **EXACT).fit(sd3, STAR).applied(sd3), heard(sd3) as read:
        draw(sd3, "star", FAMILIES["sd3"].options | {"guidance_scale": 3.0})
    empty, star = asked(sd3, ""), asked(sd3, "star")
    assert len(read[0][0]) == 2
    assert torch.equal(read[0][1][0], empty[1][0])
    assert not torch.equal(read[0][1][1], star[1][0])


def test_every_concept_has_a_step_of_its_own(sd3):
    concepts = [Concept(name, anchor="circle", neighbours=["ring"]) for name in ("star", "moon")]
    patch = get_eraser("eim", **EXACT).fit(sd3, concepts)
    assert {part: len(value) for part, value in patch.hooks[0].parts.items()} == dict.fromkeys(
        ("states", "pooled", "probe", "gate"), 2
    )
    with patch.applied(sd3):
        both = [asked(sd3, text)[1] for text in ("star", "moon")]
    for pooled in both:
        torch.testing.assert_close(pooled, asked(sd3, "circle")[1], rtol=1e-4, atol=1e-5)


def test_fit_apply_remove_save(sd3, tmp_path):
    before, plain = weights(sd3), draw(sd3, "a star", FAMILIES["sd3"].options)
    patch = get_eraser("eim", **EXACT).fit(sd3, STAR)
    assert get_eraser("eim", **EXACT).fit(sd3, STAR).digest == patch.digest
    patch.save(tmp_path / "eim.safetensors")
    with Patch.load(tmp_path / "eim.safetensors").applied(sd3):
        assert same(before, weights(sd3))
        assert not torch.equal(draw(sd3, "star", FAMILIES["sd3"].options), plain)
    assert torch.equal(draw(sd3, "a star", FAMILIES["sd3"].options), plain)
    with torch.no_grad():
        sd3.transformer.context_embedder.weight.mul_(1.01)
    with pytest.raises(PatchError, match="other weights: transformer"):
        patch.apply(sd3)


def test_prompts_that_cannot_be_told_apart_are_named(sd3):
    concept = Concept("star", anchor="circle", preserve=["pentagram"])
    sd3.encode_prompt = always(sd3.encode_prompt, "pentagram", "star")
    with pytest.warns(UserWarning, match="some prompts with 'star' lie among those that are kept"):
        get_eraser("eim", **EXACT).fit(sd3, concept)


def always(encode: Any, text: str, other: str) -> Any:
    """Encodes one prompt as another."""

    @wraps(encode)
    def encoded(prompt: list[str], **options: Any) -> Any:
        return encode([other if said == text else said for said in prompt], **options)

    return encoded


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_other_families_are_refused(family, tmp_path):
    with pytest.raises(UnsupportedPipeline, match="expected a pipeline of Stable Diffusion 3 and 3.5"):
        EIM().fit(family_pipe(family, tmp_path), STAR)


def test_tokens_behind_those_of_the_step_stay_and_gradients_reach_the_gate():
    parts = {"states": torch.ones(1, 2, 3), "pooled": torch.ones(1, 4)}
    states, pooled = torch.zeros(2, 5, 3), torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    moved, vectors = shifted(states, pooled, parts, 2.0)
    assert moved[:, :2].eq(2).all()
    assert not moved[:, 2:].any()
    torch.testing.assert_close(vectors, pooled + 2)
    parts |= {"probe": torch.tensor([[1.0, 0, 0, 0]]), "gate": torch.tensor([0.5])}
    states.requires_grad_()
    pooled.requires_grad_()
    moved, vectors = shifted(states, pooled, parts, 1.0)
    assert moved[0, :2].eq(1).all()
    assert torch.equal(moved[1], states[1])
    assert torch.equal(vectors[1], pooled[1])
    moved.sum().backward()
    assert pooled.grad[0].tolist() == [12.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "parts",
    [
        {"states": torch.ones(1, 2, 3)},
        {"states": torch.ones(2, 2, 3), "pooled": torch.ones(1, 4)},
        {"states": torch.ones(1, 2, 3), "pooled": torch.ones(1, 4), "probe": torch.ones(1, 4)},
        {"states": torch.ones(1, 2, 3), "pooled": torch.ones(1, 4), "probe": torch.ones(1, 3), "gate": torch.ones(1)},
    ],
)
def test_parts_of_other_shapes_are_refused(parts):
    with pytest.raises(PatchError, match="expected the parts states"):
        JointShift("transformer", parts)


def test_a_hook_of_another_model_is_refused(sd3, tmp_path):
    parts = {"states": torch.ones(1, 2, 3), "pooled": torch.ones(1, 4)}
    with pytest.raises(PatchError, match="the patch is for another model"):
        JointShift("transformer", parts).check(sd3.transformer)
    with pytest.raises(PatchError, match="expected unet as a denoiser that reads"):
        JointShift("unet", parts).check(family_pipe("sd1", tmp_path / "sd1").unet)
    with pytest.raises(PatchError, match="on a denoiser"):
        JointShift("transformer.context_embedder", parts)


@pytest.mark.parametrize(("option", "words"), [({"margin": 1.5}, "margin"), ({"templates": ("x",)}, "templates")])
def test_bad_options_are_refused(option, words):
    with pytest.raises(ValueError, match=f"expected {words}"):
        get_eraser("eim", **option)
