"""Attacks by gradients in half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.attacking import candidates, prepared
from support.selection import diagonal

from erasers.attacks import get_attack, list_attacks
from erasers.diffusion.gradients import LossScale, frozen

# Steps so large that words change, too.
ATTACKS: dict[str, dict[str, Any]] = {
    "cce": {"tokens": 2, "steps": 2, "batch": 2, "pictures": 2, "lr": 0.1},
    "mma": {"k": 3, "steps": 2, "batch": 8, "top": 4, "encoder": "attacked"},
    "p4d": {"k": 3, "steps": 2, "every": 1, "bank": 4, "lr": 10.0},
    "relearning": {"steps": 2, "batch": 2, "rank": 2, "pictures": 2, "lr": 0.1},
    "state_inversion": {"steps": 2, "batch": 2, "pictures": 2},
    "unlearn_diff_atk": {"k": 2, "timesteps": 1, "steps": 2, "lr": 10.0},
}


def slopes(pipe: Any, name: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[torch.Tensor]:
    """The gradients of all steps of an attack."""
    found: list[torch.Tensor] = []
    taken = LossScale.slopes

    def watched(self: LossScale, loss: torch.Tensor, inputs: Any, **more: Any) -> Any:
        some = taken(self, loss, inputs, **more)
        if some is not None:
            found.append(torch.cat([slope.flatten() for slope in some]))
        return some

    attack = get_attack(name, **ATTACKS[name] | options)
    with monkeypatch.context() as patch:
        patch.setattr(LossScale, "slopes", watched)
        candidates(attack, pipe, prepared(attack, pipe))
    return found


def test_every_attack_by_gradients_is_here():
    with_gradients = [name for name in list_attacks() if get_attack(name).budget().gradients]
    # MMA takes them of the text encoder alone, which no budget counts.
    assert sorted(ATTACKS) == sorted({*with_gradients, "mma"})


@pytest.mark.parametrize(("name", "dtype"), diagonal(ATTACKS, [torch.bfloat16, torch.float16]))
def test_the_second_step_sees_the_first(pipe, name, dtype, monkeypatch):
    pipe.to(dtype)
    first, second = slopes(pipe, name, monkeypatch)
    assert {first.dtype, second.dtype} == {torch.float32}
    assert torch.isfinite(first).all()
    assert first.any()
    if name == "mma":
        # Nothing else changes between its steps.
        assert not torch.equal(first, second)
        return
    again, still = slopes(pipe, name, monkeypatch, lr=1e-12)
    assert torch.equal(first, again)
    assert not torch.equal(second, still)


@pytest.mark.parametrize("name", ATTACKS)
def test_float16_leads_where_float32_does(pipe, name, monkeypatch):
    whole = slopes(pipe, name, monkeypatch)[0]
    half = slopes(pipe.to(torch.float16), name, monkeypatch)[0]
    # Pictures that are learned from are drawn in float16, too.
    assert torch.nn.functional.cosine_similarity(whole, half, dim=0) > 0.99
    assert 0.9 < half.norm() / whole.norm() < 1.1


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_goes_on_after_gradients_that_overflow(pipe, name, monkeypatch):
    pipe.to(torch.float16)
    taken, derived, tries = LossScale.slopes, LossScale._derived, []

    def watched(self: LossScale, loss: Any, inputs: Any, **more: Any) -> Any:
        found = taken(self, loss, inputs, **more)
        tries.append(found is not None)
        return found

    def overflowing(self: LossScale, loss: torch.Tensor, inputs: Any, **more: Any) -> Any:
        return derived(self, loss if tries else loss * float("inf"), inputs, **more)

    attack = get_attack(name, **ATTACKS[name])
    ready = prepared(attack, pipe)
    monkeypatch.setattr(LossScale, "slopes", watched)
    monkeypatch.setattr(LossScale, "_derived", overflowing)
    assert all(torch.isfinite(part).all() for found in candidates(attack, pipe, ready) for part in parts(found))
    assert tries[:2] == [False, True]


def parts(candidate: Any) -> list[torch.Tensor]:
    learned = [value for value in candidate.condition or () if value is not None]
    return [*candidate.tokens.values(), *(candidate.patch.tensors.values() if candidate.patch else ()), *learned]


def test_parameters_are_frozen_for_a_while(pipe: Any) -> None:
    pipe.vae.requires_grad_(False)
    before = [p.requires_grad for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()]
    assert any(before)
    with frozen(pipe):
        assert not any(p.requires_grad for p in pipe.unet.parameters())
    with pytest.raises(RuntimeError, match="inside"), frozen(pipe):
        raise RuntimeError("inside")
    after = [p.requires_grad for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()]
    assert before == after
