"""Concept Ablation: what the goal is in either form, what is held, and what moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import same, weights
from support.trained import family_pipe

from erasers import Concept, get_eraser
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.noise import noise_again
from erasers.training.layers import denoiser_names
from erasers.training.scenes import Lesson, Noised, Scenes, noised, weighted
from erasers.training.student import Student

STAR = Concept("star", anchor="circle", preserve=["a moon", "a red circle"], neighbours=["ring"])
QUICK: dict[str, Any] = {"iterations": 3, "lr": 1e-3, "steps": 2, "pictures": 4, "kept": 4, "batch": 2}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lesson(pipe: Any, asked: str = "a star", anchor: str = "a circle") -> Lesson:
    """Two pictures of noise."""
    told, anchors = conditions(pipe, [asked]), conditions(pipe, [anchor])
    drawn = Scenes(torch.randn(2, *latent_shape(pipe), generator=seeded(3)), torch.zeros(2, dtype=torch.long), anchors)
    return Lesson(told, anchors, drawn, drawn)


def student_of(pipe: Any) -> Student:
    return Student(pipe, denoiser_names(pipe, "x-strict"), generator=seeded())


def batches(pipe: Any, student: Student, told: Lesson, **options: Any) -> dict[str, Noised]:
    made: dict[str, Noised] = get_eraser("ablation", **QUICK | options).batches(pipe, told, student, seeded(7))
    return made


def test_the_goal_is_what_the_frozen_model_says_of_the_anchor_or_the_noise(pipe):
    told, student = lesson(pipe), student_of(pipe)
    erase = batches(pipe, student, told)["erase"]
    with torch.no_grad():
        said = predict(pipe, erase.noisy, erase.times, told.anchors)
    torch.testing.assert_close(erase.goal, said)
    assert torch.equal(erase.told.states[:1], told.asked.states)
    noise = batches(pipe, student, told, form="noise")["erase"]
    pictures, _ = told.drawn.picked(2, generator := seeded(7))
    assert torch.equal(noise.goal, noise_again(pipe, pictures, generator)[2])


def test_the_student_as_its_own_teacher_moves_the_goal(pipe):
    told, student = lesson(pipe), student_of(pipe)
    before = batches(pipe, student, told, teacher="student")["erase"].goal
    torch.testing.assert_close(before, batches(pipe, student, told)["erase"].goal)
    with torch.no_grad():
        for weight in student.parameters:
            weight.mul_(1.5)
    after = batches(pipe, student, told, teacher="student")["erase"].goal
    assert not torch.allclose(before, after, atol=1e-4)
    assert torch.equal(batches(pipe, student, told)["erase"].goal, before)


def test_nothing_is_to_be_learnt_where_the_anchor_is_the_concept(pipe):
    told, student = lesson(pipe, "a star", "a star"), student_of(pipe)
    eraser = get_eraser("ablation", **QUICK, prior="frozen")
    loss = eraser.loss(pipe, batches(pipe, student, told, prior="frozen"))
    with student.placed(), torch.no_grad():
        total = sum(float(loss.make(number)) for number in range(len(loss)))
    assert total < 1e-10
    assert loss.shown.keys() == {"erase", "prior"}


def test_the_prior_counts_by_its_weight(pipe):
    losses = {"erase": torch.tensor(2.0), "prior": torch.tensor(3.0)}
    assert float(weighted(losses, 0.5)) == 3.5
    assert float(weighted({"prior": torch.tensor(3.0)}, 0.5)) == 1.5
    told, student = lesson(pipe), student_of(pipe)
    assert batches(pipe, student, told, prior_scale=0.0).keys() == {"erase"}


def test_pictures_are_noised_to_what_a_perfect_denoiser_is_asked(pipe):
    told = lesson(pipe)
    made = noised(pipe, told.drawn.pictures, told.anchors, seeded(1))
    again = noise_again(pipe, told.drawn.pictures, seeded(1))
    assert all(
        torch.equal(value, other) for value, other in zip((made.noisy, made.times, made.goal), again, strict=True)
    )


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_the_concept_goes_to_its_anchor_and_only_keys_and_values_move(family, tmp_path):
    pipe = family_pipe(family, tmp_path)
    before = weights(pipe)
    asked, anchor = conditions(pipe, ["star"]), conditions(pipe, ["circle"])
    pictures = torch.randn(4, *latent_shape(pipe), generator=seeded(5))
    noisy, times, _ = noise_again(pipe, pictures, seeded(6))

    @torch.no_grad()
    def said(condition: Any) -> torch.Tensor:
        return predict(pipe, noisy, times, condition)

    goal = said(anchor)
    far = (said(asked) - goal).square().mean()
    own = {"rank": 0} if family == "sd1" else {"rank": 8}
    options = QUICK | own | {"iterations": 40, "lr": 2e-3, "batch": 4, "prior": "frozen", "templates": ("{}",)}
    patch = get_eraser("ablation", **options).fit(pipe, STAR, progress=False)
    assert same(weights(pipe), before)
    with patch.applied(pipe):
        assert (said(asked) - goal).square().mean() < 0.7 * far
    names = {name.removesuffix(".weight").removesuffix(".bias") for name in denoiser_names(pipe, "x-strict")}
    assert {name.removesuffix(".weight").removesuffix(".bias") for name in patch.parameters} <= names
