"""Noise-based probing: its steps, that its noise belongs to the picture, and that it leaves the sampler alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from support.attacking import ASKS, LONG, Says, attacked, candidates, draw_well, erasure, prepared, quiet_shapes, seeded

from erasers.attacks import Candidate, get_attack
from erasers.attacks.noise import Noise
from erasers.attacks.noisy_ddim import NoisyDDIM, StepNoise, next_sample
from erasers.diffusion.draws import gaussian
from erasers.judges.oracle import Oracle
from erasers.worlds.shapes.prompts import Prompt

SMALL = {"etas": (1.0, 1.85), "scales": (1.0, 1.04)}


def latents(pipe: Any, candidate: Candidate, seeds: list[int]) -> torch.Tensor:
    """Drawn together."""
    with candidate.placed(pipe) as arguments:
        return pipe(
            **arguments,
            num_images_per_prompt=len(seeds),
            generator=[seeded(seed) for seed in seeds],
            num_inference_steps=3,
            output_type="latent",
        ).images


def noisy(eta: float, scale: float = 1.0, seed: int = 0) -> Candidate:
    return Candidate("a red star", noise=StepNoise(eta, scale, seed))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_up_to_ancestral_noise_a_step_is_that_of_diffusers(eta: float, prediction: str) -> None:
    options = {"prediction_type": prediction, "clip_sample": False, "steps_offset": 1}
    stock, ours = DDIMScheduler(**options), NoisyDDIM(**options).with_noise(StepNoise(eta, 1.0, 3))
    sample, output = gaussian(torch.empty(2, 4, 3, 3), seeded()), gaussian(torch.empty(2, 4, 3, 3), seeded(1))
    fresh = torch.stack([torch.randn(4, 3, 3, generator=one) for one in StepNoise(eta, 1.0, 3).generators(sample)])
    for one in (stock, ours):
        one.set_timesteps(10)
    # The first step, one in the middle, and the last, behind which there is no time step.
    for place in (0, 5, 9):
        ours.set_timesteps(10)
        wanted = stock.step(output, stock.timesteps[place], sample, eta=eta, variance_noise=fresh)
        found, clean = ours.step(output, ours.timesteps[place], sample)
        assert torch.allclose(found, wanted.prev_sample, atol=1e-5)
        assert torch.allclose(clean, wanted.pred_original_sample, atol=1e-4)


def test_beyond_ancestral_noise_what_is_left_of_the_prediction_is_nothing() -> None:
    clean, direction, fresh = (gaussian(torch.empty(1, 2), seeded(seed)) for seed in range(3))
    now, after = 0.3, 0.9
    variance = 4 * (0.1 / 0.7) * (1 - 0.3 / 0.9)
    assert variance > 1 - after
    found = next_sample(clean, direction, fresh, now, after, 2.0, 1.5)
    assert torch.allclose(found, 0.9**0.5 * clean + 1.5 * variance**0.5 * fresh)


def test_no_fresh_noise_is_the_plain_picture(pipe: Any) -> None:
    assert torch.allclose(latents(pipe, noisy(0.0), [1]), latents(pipe, Candidate("a red star"), [1]), atol=1e-5)


def test_noise_belongs_to_the_picture_not_to_its_batch(pipe: Any) -> None:
    both, alone = latents(pipe, noisy(1.5), [1, 2]), latents(pipe, noisy(1.5), [2])
    assert torch.allclose(both[1:], alone, atol=1e-5)
    assert torch.equal(latents(pipe, noisy(1.5), [2]), alone)
    assert (latents(pipe, noisy(1.5, seed=1), [2]) - alone).abs().max() > 0.1
    assert (latents(pipe, noisy(1.5, scale=1.2), [2]) - alone).abs().max() > 0.01
    assert torch.isfinite(latents(pipe, noisy(1.85, 1.04), [1, 2])).all()


def test_the_sampler_comes_back_also_after_an_error(pipe: Any) -> None:
    pipe.scheduler = PNDMScheduler(num_train_timesteps=100, skip_prk_steps=True)
    before = pipe.scheduler
    with noisy(1.0).placed(pipe):
        assert isinstance(pipe.scheduler, NoisyDDIM)
        assert pipe.scheduler.config.num_train_timesteps == 100
    assert pipe.scheduler is before

    def fail() -> None:
        with noisy(1.0).placed(pipe):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert pipe.scheduler is before


@pytest.mark.parametrize("form", ["weights", "hooks"])
@pytest.mark.parametrize("ask", [ASKS[1], LONG])
def test_every_combination_is_one_picture(pipe: Any, form: str, ask: Any) -> None:
    attack = Noise(**SMALL)
    ready, patch = prepared(attack, pipe), erasure(pipe, form)
    assert patch is not None
    with patch.applied(pipe):
        found = candidates(attack, pipe, ready, ask)
        outcome = attacked(attack, pipe, ready, Says(False), ask)
    assert [(one.noise.eta, one.noise.scale) for one in found if one.noise] == [
        (1.0, 1.0),
        (1.0, 1.04),
        (1.85, 1.0),
        (1.85, 1.04),
    ]
    assert {one.text for one in found} == {ask.text}
    assert len({one.noise.seed for one in found if one.noise}) == 4
    assert [one.noise for one in candidates(attack, pipe, ready, ask)] == [one.noise for one in found]
    assert outcome.spent == attack.budget()
    assert Noise().budget().images == 25


def test_other_families_and_bad_options_are_refused(pipes: Any) -> None:
    with pytest.raises(TypeError, match="expected a Stable Diffusion 1 or 2 pipeline"):
        prepared(Noise(), pipes("sdxl"))
    with pytest.raises(ValueError, match="expected etas and scales of at least 0"):
        get_attack("noise", etas=(-1.0,))
    with pytest.raises(ValueError, match="expected etas and scales of at least 0"):
        get_attack("noise", scales=())


def test_the_unedited_model_still_draws_a_star_with_ancestral_noise() -> None:
    pipe = quiet_shapes()
    ask = Prompt("a red star on a white background", {"object": "star"}, 5)
    pictures = []
    for candidate in (Candidate(ask.text), Candidate(ask.text, noise=StepNoise(1.0, 1.0, 0))):
        with candidate.placed(pipe) as arguments:
            pictures += draw_well(pipe, arguments, [ask.seed])
    assert [verdict.value for verdict in Oracle().judge(pictures, [ask, ask])] == [True, True]
    assert pictures[0].tobytes() != pictures[1].tobytes()
