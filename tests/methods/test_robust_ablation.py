"""Robust ablation: what is unlearned, what is held, and what attacks while it happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import same, weights
from torch.nn import functional

from erasers import Concept, get_eraser
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import Way
from erasers.methods.robust_ablation import eraser as robust_ablation
from erasers.methods.robust_ablation.eraser import schedule
from erasers.methods.robust_ablation.pool import Maker
from erasers.methods.robust_ablation.relearner import Relearner
from erasers.text.contexts import shuffled

STAR = Concept("star", anchor="circle", preserve=["a moon", "a red circle", "blue art"], neighbours=["ring"])
QUICK: dict[str, Any] = {
    "iterations": 40,
    "lr": 5e-3,
    "steps": 2,
    "pictures": 4,
    "kept": 4,
    "noises": 4,
    "bank": 4,
    "tokens": (1, 2),
    "templates": ("{}", "a {}", "a picture of a {}", "a red {}"),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maker(pipe: Any, noises: int = 4) -> Maker:
    return Maker(pipe, conditions(pipe, [""]), Way(2, 2.0), noises, seeded(9), lambda count: None)


@pytest.mark.full
def test_the_prompt_is_drawn_as_its_anchor_and_kept_prompts_as_before(pipe):
    star, circle, moon = (conditions(pipe, [text]) for text in ("a star", "a circle", "a moon"))
    bad, good = maker(pipe).make(star, circle, 4), maker(pipe).make(moon, moon, 4)
    distances = []
    for drift in (0.01, 10.0):
        patch = get_eraser("robust_ablation", **QUICK, drift=drift).fit(pipe, STAR, progress=False)
        with patch.applied(pipe), torch.no_grad():
            found = [
                functional.mse_loss(predict(pipe, pool.noisy, pool.times, asked.rows(pool.prompts)), pool.goal)
                for pool, asked in ((bad, star), (good, moon))
            ]
        distances.append([float(value) for value in found])
    with torch.no_grad():
        before = functional.mse_loss(predict(pipe, bad.noisy, bad.times, star.rows(bad.prompts)), bad.goal)
    (erased, held), (_, loose) = distances
    assert erased < 0.7 * before
    # The constraint is what holds kept prompts, not chance.
    assert held < 0.7 * loose


def test_low_rank_students_leave_convolutions_alone(pipe):
    patch = get_eraser("robust_ablation", **QUICK | {"iterations": 2}, rank=2).fit(pipe, STAR, progress=False)
    assert all(name.startswith("lowrank/") for name in patch.tensors)
    dense = get_eraser("robust_ablation", **QUICK | {"iterations": 2}, rank=0).fit(pipe, STAR, progress=False)
    assert any("conv_in" in name for name in dense.parameters)
    assert patch.nbytes < dense.nbytes


def test_it_may_start_from_the_closed_form(pipe):
    eraser = get_eraser("robust_ablation", **QUICK | {"iterations": 1, "lr": 1e-8}, rank=0, start="uce")
    before, after = weights(pipe), None
    with eraser.fit(pipe, STAR, progress=False).applied(pipe):
        after = weights(pipe)
    with get_eraser("uce", rows="tail", templates="auto").fit(pipe, STAR).applied(pipe):
        closed = weights(pipe)
    for name, value in closed.items():
        if not torch.equal(value, before[name]):
            assert (after[name] - value).norm() < 0.02 * (before[name] - value).norm() + 1e-3
    with pytest.raises(ValueError, match="expected rank 0"):
        get_eraser("robust_ablation", start="uce")


def test_what_attacks_learns_and_forgets(pipe):
    star = conditions(pipe, ["a star"])
    pool = maker(pipe).make(star, star, 2)
    asked = star.rows(pool.prompts)
    before = weights(pipe)

    def loss() -> float:
        with relearner.added(), torch.no_grad():
            return float(functional.mse_loss(predict(pipe, pool.noisy, pool.times, asked), pool.truth))

    relearner = Relearner(pipe, 4, 1e-2, seeded())
    first = loss()
    relearner.learn(pool, asked, 8)
    assert loss() < 0.98 * first
    relearner.restart(seeded(1))
    assert loss() == pytest.approx(first, rel=1e-5)
    assert not any(value.any() for state in relearner.optimizer.state.values() for value in state.values())
    assert same(before, weights(pipe))


@pytest.mark.full
def test_every_ingredient_changes_the_patch(pipe):
    options = [{}, {"attack_scale": 0.0}, {"relearn_scale": 0.0}, {"tokens": (3,)}, {"train": "attention"}]
    patches = [
        get_eraser("robust_ablation", **QUICK | {"iterations": 3} | some).fit(pipe, STAR, progress=False)
        for some in options
    ]
    digests = {frozenset((name, tensor.sum().item()) for name, tensor in patch.tensors.items()) for patch in patches}
    assert len(digests) == len(options)


def test_several_concepts_take_turns(pipe, monkeypatch):
    seen: list[torch.Tensor] = []
    step = robust_ablation.Fight.step

    def watched(self: Any, number: int) -> Any:
        seen.extend(self.asked.states[self.bad.prompts[index]] for index in self._draw(6))
        return step(self, number)

    monkeypatch.setattr(robust_ablation.Fight, "step", watched)
    get_eraser("robust_ablation", **QUICK | {"iterations": 1}).fit(pipe, [STAR, Concept("art")], progress=False)
    with torch.no_grad():
        art = {states.sum().item() for states in conditions(pipe, ["art", "a art", "a picture of a art"]).states}
    assert 1 <= sum(states.sum().item() in art for states in seen) <= 3


def test_the_learning_rate_rises_and_falls():
    values = [schedule(number, 100) for number in range(100)]
    assert values[0] < 0.1
    assert max(values) == pytest.approx(values[19], abs=0.1)
    assert values[-1] < 0.01


def test_some_are_drawn_without_replacement():
    assert sorted(shuffled([1, 2, 3], 5, seeded())) == [1, 2, 3]
    assert len(set(shuffled(list(range(50)), 20, seeded()))) == 20


@pytest.mark.parametrize("option", [{"bank": 0}, {"tokens": (0,)}, {"kept": 0}, {"relearn_rank": 0}])
def test_bad_options_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        get_eraser("robust_ablation", **option)
