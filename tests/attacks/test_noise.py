"""Noise-based probing: its steps, that its noise belongs to the picture, and that it leaves the sampler alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler
from support.attacking import ASKS, LONG, Says, attacked, candidates, draw_well, erasure, prepared, quiet_shapes, seeded
from support.families.all import FAMILIES
from support.tiny import same, weights

from erasers.attacks import Candidate, get_attack
from erasers.attacks.candidate import placed
from erasers.attacks.noise import Noise
from erasers.attacks.noisy_ddim import NoisyDDIM
from erasers.attacks.noisy_flow import NoisyFlow, level_of, noisy_flow, size_of
from erasers.attacks.step_noise import StepNoise, next_sample
from erasers.diffusion.draws import gaussian
from erasers.judges.oracle import Oracle
from erasers.worlds.shapes.prompts import Prompt

SMALL = {"etas": (1.0, 1.85), "scales": (1.0, 1.04)}


def latents(pipe: Any, candidate: Candidate, seeds: list[int]) -> torch.Tensor:
    """Drawn together."""
    with placed(pipe, [candidate]) as arguments:
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
    stock, ours = DDIMScheduler(**options), NoisyDDIM(**options).with_noise([StepNoise(eta, 1.0, 3)])
    sample, output = gaussian(torch.empty(2, 4, 3, 3), seeded()), gaussian(torch.empty(2, 4, 3, 3), seeded(1))
    fresh = torch.stack([torch.randn(4, 3, 3, generator=StepNoise(eta, 1.0, 3).generator(row)) for row in sample])
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


def test_no_fresh_noise_is_the_plain_picture_of_a_flow(flow: Any) -> None:
    plain = latents(flow, Candidate("a red star"), [1])
    torch.testing.assert_close(latents(flow, noisy(0.0), [1]), plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(latents(flow, noisy(0.0, scale=1.04), [1]), plain, atol=1e-5, rtol=1e-5)


def test_noise_belongs_to_the_picture_not_to_its_batch(pipe: Any) -> None:
    noise_belongs_to_the_picture(pipe)


def test_noise_belongs_to_the_picture_in_other_families(modern: Any) -> None:
    noise_belongs_to_the_picture(modern)


def noise_belongs_to_the_picture(pipe: Any) -> None:
    both, alone = latents(pipe, noisy(1.5), [1, 2]), latents(pipe, noisy(1.5), [2])
    assert torch.allclose(both[1:], alone, atol=1e-5)
    assert torch.equal(latents(pipe, noisy(1.5), [2]), alone)
    assert (latents(pipe, noisy(1.5, seed=1), [2]) - alone).abs().max() > 0.1
    assert (latents(pipe, noisy(1.5, scale=1.2), [2]) - alone).abs().max() > 0.01
    assert torch.isfinite(latents(pipe, noisy(1.85, 1.04), [1, 2])).all()


def flow_step(sigma: float, after: float, noise: StepNoise) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_0, noise, x after a step along a perfect flow), many values of each."""
    ours = noisy_flow(FlowMatchEulerDiscreteScheduler()).with_noise([noise])
    ours.set_timesteps(sigmas=[sigma, after])
    clean, eps = gaussian(torch.empty(1, 200_000), seeded()), gaussian(torch.empty(1, 200_000), seeded(1))
    found, guessed = ours.step(eps - clean, ours.timesteps[0], (1 - sigma) * clean + sigma * eps)
    assert torch.allclose(guessed, clean, atol=1e-5)
    return clean, eps, found


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("sigma", "after"), [(1.0, 0.8), (0.6, 0.5)])
def test_up_to_ancestral_noise_a_flow_keeps_its_marginals(sigma: float, after: float, eta: float) -> None:
    """Of a perfect velocity: what is left beside the picture is noise of the share of the next time."""
    clean, eps, found = flow_step(sigma, after, StepNoise(eta, 1.0, 3))
    rest = found - (1 - after) * clean
    assert float(rest.std()) == pytest.approx(after, rel=0.01)
    assert abs(float((rest * clean).mean())) < 0.01
    # SNR / SNR' of the noise is new at eta 1.
    ratio = ((1 - sigma) * after / (sigma * (1 - after))) ** 2
    kept = float((rest * eps).mean()) / after
    assert kept == pytest.approx((1 - eta**2 * (1 - ratio)) ** 0.5, abs=0.01)


def test_beyond_that_a_flow_has_more_noise() -> None:
    for noise, wanted in ((StepNoise(1.0, 1.04, 3), 1.04), (StepNoise(1.85, 1.0, 3), 1.85)):
        clean, _, found = flow_step(1.0, 0.8, noise)
        assert float((found - 0.2 * clean).std()) == pytest.approx(0.8 * wanted, rel=0.01)


def test_a_step_along_a_flow_is_that_of_ddim_between_its_levels() -> None:
    clean, eps, found = flow_step(0.6, 0.3, StepNoise(0.7, 1.1, 3))
    start = 0.4 * clean + 0.6 * eps
    generator = StepNoise(0.7, 1.1, 3).generator(start[0])
    fresh = torch.randn(start.shape[1:], generator=generator)[None]
    wanted = next_sample(clean, eps, fresh, 0.16 / 0.52, 0.49 / 0.58, 0.7, 1.1)
    torch.testing.assert_close(found, 0.58**0.5 * wanted, atol=1e-5, rtol=1e-5)
    assert (level_of(0.6), size_of(0.3)) == (pytest.approx(0.16 / 0.52), pytest.approx(0.58**0.5))


def test_the_times_are_those_of_the_pipelines_own_scheduler() -> None:
    own = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    ours = noisy_flow(own).with_noise([StepNoise(0.0, 1.0, 0)])
    assert isinstance(ours, NoisyFlow)
    for each in (own, ours):
        each.set_timesteps(5)
    assert torch.equal(own.sigmas, ours.sigmas)
    sample, velocity = gaussian(torch.empty(1, 4), seeded()), gaussian(torch.empty(1, 4), seeded(1))
    moved = sample
    for time in ours.timesteps:
        moved, _ = ours.step(velocity, time, moved)
    torch.testing.assert_close(moved, sample - own.sigmas[0] * velocity)


def test_the_sampler_comes_back_also_after_an_error(pipe: Any) -> None:
    pipe.scheduler = PNDMScheduler(num_train_timesteps=100, skip_prk_steps=True)
    before = pipe.scheduler
    with placed(pipe, [noisy(1.0)]):
        assert isinstance(pipe.scheduler, NoisyDDIM)
        assert pipe.scheduler.config.num_train_timesteps == 100
    assert pipe.scheduler is before

    def fail() -> None:
        with placed(pipe, [noisy(1.0)]):
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


def test_the_sampler_of_other_families_comes_back(modern: Any) -> None:
    before, kept = modern.scheduler, weights(modern)
    attack = Noise(**SMALL)
    outcome = attacked(attack, modern, prepared(attack, modern), Says(False))
    assert outcome.spent == attack.budget()
    assert modern.scheduler is before
    assert same(weights(modern), kept)


def test_other_families_and_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a pipeline that can be trained and attacked"):
        prepared(Noise(), FAMILIES["hunyuandit"].build(tmp_path))
    with pytest.raises(ValueError, match="expected etas and scales of at least 0"):
        get_attack("noise", etas=(-1.0,))
    with pytest.raises(ValueError, match="expected etas and scales of at least 0"):
        get_attack("noise", scales=())


def test_the_unedited_model_still_draws_a_star_with_ancestral_noise() -> None:
    pipe = quiet_shapes()
    ask = Prompt("a red star on a white background", {"object": "star"}, 5)
    pictures = []
    for candidate in (Candidate(ask.text), Candidate(ask.text, noise=StepNoise(1.0, 1.0, 0))):
        with placed(pipe, [candidate]) as arguments:
            pictures += draw_well(pipe, arguments, [ask.seed])
    assert [verdict.value for verdict in Oracle().judge(pictures, [ask, ask])] == [True, True]
    assert pictures[0].tobytes() != pictures[1].tobytes()
