"""TINA: the noise that it finds, and what is drawn from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.attacking import ASKS, Says, attacked, candidates, draw_well, prepared, quiet_shapes, seeded
from support.tiny import same, weights

from erasers.attacks import get_attack
from erasers.attacks.candidate import placed
from erasers.attacks.tina import inverted
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import gaussian
from erasers.diffusion.latents import latents_of
from erasers.diffusion.noise import step_back, time_grid
from erasers.worlds.shapes.prompts import Prompt


def walked(pipe: Any, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """What `steps` steps with the empty prompt come to."""
    grid, empty = torch.tensor([*time_grid(pipe, steps, tuple(noise.shape[1:])), -1]), conditions(pipe, [""])
    with torch.no_grad():
        for number in range(steps):
            time, before = grid[number : number + 1], grid[number + 1 : number + 2]
            noise = step_back(pipe, noise, time, before, predict(pipe, noise, time, empty))
    return noise


def test_steps_from_its_noise_come_to_the_picture(pipe: Any) -> None:
    latents = gaussian(torch.zeros(1, 4, 8, 8), seeded(3))
    noise = inverted(pipe, latents, conditions(pipe, [""]), 5, 30)
    assert torch.allclose(walked(pipe, noise, 5), latents, atol=1e-3)
    rough = inverted(pipe, latents, conditions(pipe, [""]), 5, 1)
    assert (walked(pipe, rough, 5) - latents).abs().max() > 2 * (walked(pipe, noise, 5) - latents).abs().max()


def test_steps_along_a_flow_come_to_the_picture(flow: Any) -> None:
    latents = gaussian(latents_of(flow, prepared_pictures(flow)), seeded(3))
    noise = inverted(flow, latents, conditions(flow, [""]), 16, 30)
    assert torch.allclose(walked(flow, noise, 16), latents, atol=1e-3)


def prepared_pictures(pipe: Any) -> list[Any]:
    return pipe("a picture of star", num_inference_steps=1, generator=seeded()).images


def test_it_draws_without_a_text_and_leaves_the_pipeline_alone(pipe: Any) -> None:
    attack, before = get_attack("tina", steps=2, rounds=2), weights(pipe)
    (found,) = candidates(attack, pipe, prepared(attack, pipe))
    assert found.text == ""
    assert found.latents is not None
    assert found.latents.shape == (1, 4, 8, 8)
    scheduler = pipe.scheduler
    with placed(pipe, [found]) as arguments:
        assert arguments["prompt"] == [""]
        assert torch.equal(arguments["latents"], found.latents)
    assert pipe.scheduler is scheduler
    assert same(weights(pipe), before)


def test_it_spends_what_its_budget_says(pipe: Any) -> None:
    attack = get_attack("tina", steps=2, rounds=2)
    outcome = attacked(attack, pipe, prepared(attack, pipe), Says(False))
    assert outcome.spent == attack.budget()
    assert attacked(attack, pipe, prepared(attack, pipe), Says(True)).image == 0


@pytest.mark.parametrize("option", [{"steps": 0}, {"rounds": 0}])
def test_bad_options_are_refused(option: Any) -> None:
    with pytest.raises(ValueError, match="expected steps and rounds of at least 1"):
        get_attack("tina", **option)


@pytest.mark.full
def test_a_trained_model_draws_the_picture_again() -> None:
    pipe, ask = quiet_shapes(), Prompt("a red star on a grey background", {"object": "star"}, 3)
    attack = get_attack("tina", steps=20, rounds=10)
    ready = attack.prepare(pipe, [ask], draw=draw_well, generator=seeded())
    (found,) = candidates(attack, pipe, ready, ask)
    with placed(pipe, [found]) as arguments:
        (again,) = draw_well(pipe, arguments, [0])
    (plain,) = draw_well(pipe, {"prompt": "a red star on a grey background"}, [3])
    own, other = latents_of(pipe, [plain]), latents_of(pipe, draw_well(pipe, {"prompt": ""}, [3]))
    lacking = (latents_of(pipe, [again]) - own).square().mean()
    assert lacking < 0.1 * (other - own).square().mean()
    assert ASKS[0].text != found.text
