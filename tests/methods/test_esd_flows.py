"""ESD in velocity space: its invariants on Stable Diffusion 3 and FLUX.1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import same, weights
from support.trained import STAR, family_pipe
from torch.nn import functional

from erasers import get_eraser
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.adaptors.table import denoiser_of
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import LatentBank, Way, sample_bank
from erasers.methods import esd
from erasers.methods.esd import target
from erasers.training.loop import TrainedEraser
from erasers.training.student import Student

QUICK: dict[str, Any] = {"iterations": 3, "lr": 5e-3, "rank": 8, "steps": 4, "pictures": 1, "batch": 4, "guidance": 3.0}


@pytest.fixture(params=["sd3", "flux"])
def flow(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    """A tiny pipeline that follows a flow."""
    return family_pipe(request.param, tmp_path)


def losses(pipe: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[float]:
    """What each iteration shows."""
    shown: list[float] = []
    run = TrainedEraser._run

    def watched(self: Any, training: Any, *rest: Any) -> str:
        step = training.step
        training.step = lambda number: (shown.append(step(number)), shown[-1])[1]
        return run(self, training, *rest)

    monkeypatch.setattr(TrainedEraser, "_run", watched)
    get_eraser("esd", **QUICK | options).fit(pipe, STAR, progress=False)
    return [losses["loss"] for losses in shown]


def test_with_eta_below_nothing_is_left_to_learn(flow, monkeypatch):
    first = losses(flow, monkeypatch, eta=-1.0)[0]
    assert first < 1e-10 < 1e-3 < losses(flow, monkeypatch, eta=1.0)[0]


def bank_of(pipe: Any) -> tuple[LatentBank, Condition, Condition]:
    asked, empty = conditions(pipe, ["star"]), unprompted(pipe)
    bank = sample_bank(pipe, asked, empty, Way(4, 3.0), rounds=1, generator=torch.Generator().manual_seed(9))
    return bank, asked, empty


def test_with_eta_zero_the_target_is_the_velocity_without_a_prompt(flow, monkeypatch):
    goals: list[torch.Tensor] = []
    banks: list[LatentBank] = []

    def watched(empty: torch.Tensor, conditional: torch.Tensor, eta: float) -> torch.Tensor:
        goals.append(target(empty, conditional, eta))
        return goals[-1]

    def draw(self: LatentBank, *arguments: Any) -> LatentBank:
        banks.append(take(self, *arguments))
        return banks[-1]

    take = LatentBank.draw
    monkeypatch.setattr(esd, "target", watched)
    monkeypatch.setattr(LatentBank, "draw", draw)
    get_eraser("esd", **QUICK, drawn_by="frozen", eta=0.0).fit(flow, STAR, progress=False)
    for goal, bank in zip(goals, banks, strict=True):
        with torch.no_grad():
            velocity = predict(flow, bank.latents, bank.times, unprompted(flow))
        torch.testing.assert_close(goal, velocity, atol=1e-5, rtol=1e-4)


def test_models_that_read_a_guidance_scale_are_asked_at_one(tmp_path):
    pipe, scales = family_pipe("flux", tmp_path), []

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        scales.append((torch.is_grad_enabled() and module is not None, kwargs["guidance"]))

    with_gradients = denoiser_of(pipe).register_forward_pre_hook(watch, with_kwargs=True)
    get_eraser("esd", **QUICK | {"iterations": 1, "guidance": "auto"}).fit(pipe, STAR, progress=False)
    with_gradients.remove()
    drawn, learned = scales[:-1], scales[-1][1]
    assert learned.tolist() == [1.0] * 4
    assert {float(value[0]) for _, value in drawn} == {1.0, 3.5}
    assert sum(float(value[0]) == 3.5 for _, value in drawn) == QUICK["steps"]


def test_only_low_rank_weights_move_and_the_base_is_there_afterwards(flow, monkeypatch):
    students: list[Student] = []
    start = Student.__init__

    def watched(self: Student, *args: Any, **more: Any) -> None:
        start(self, *args, **more)
        students.append(self)

    monkeypatch.setattr(Student, "__init__", watched)
    before = weights(flow)
    patch = get_eraser("esd", **QUICK | {"rank": "auto"}).fit(flow, STAR, progress=False)
    assert {name.partition("/")[0] for name in patch.tensors} == {"lowrank"}
    assert {tuple(sorted(part.shape))[0] for part in students[0].parameters} == {8}
    with patch.applied(flow):
        after = weights(flow)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(patch.parameters)
    outside = {name.removeprefix("transformer.") for name in moved if ".attn." not in name}
    assert outside == {"context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight"}
    assert any("add_k_proj" in name for name in moved)
    assert same(before, weights(flow))


def test_the_loss_falls_tenfold_in_sixty_steps(flow):
    bank, asked, empty = bank_of(flow)
    goal = target(bank.empty, bank.conditional, 1.0)

    def loss() -> float:
        with torch.no_grad():
            return float(functional.mse_loss(predict(flow, bank.latents, bank.times, asked.rows(bank.prompts)), goal))

    # The bank of the training is this one, from the same seed.
    options = QUICK | {"iterations": 60, "drawn_by": "frozen", "train_method": "all"}
    patch = get_eraser("esd", **options).fit(flow, STAR, generator=torch.Generator().manual_seed(9), progress=False)
    before = loss()
    with patch.applied(flow):
        assert loss() < before / 10
