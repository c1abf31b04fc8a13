"""Noised latents, what the denoiser predicts of them, and its loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from support.attacking import seeded

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.clip import encode
from erasers.diffusion.denoiser import denoising_loss, predict
from erasers.diffusion.draws import gaussian
from erasers.diffusion.latents import latents_of
from erasers.diffusion.noise import middle_times, noised
from erasers.diffusion.tokens import tokenise


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_noised_latents_are_what_the_scheduler_hands_to_the_denoiser(pipe: Any, kind: Any) -> None:
    scheduler = pipe.scheduler = kind.from_config(pipe.scheduler.config)
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=seeded())
    for step in range(4):
        scheduler.set_timesteps(4)  # it counts its steps, and starts anew here
        t = scheduler.timesteps[step]
        wanted = scheduler.scale_model_input(scheduler.add_noise(latents, noise, t.view(1)), t)
        assert torch.allclose(noised(pipe, latents, t.view(1).long(), noise), wanted, atol=2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_what_the_scheduler_inverts(pipe: Any, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=seeded())
    times = torch.tensor([10, 50, 90])
    target = noise if prediction == "epsilon" else pipe.scheduler.get_velocity(latents, noise, times)
    monkeypatch.setattr("erasers.diffusion.denoiser.predict", lambda *_: target)
    assert denoising_loss(pipe, latents, times, noise, Condition(torch.zeros(1, 16, 32))) < 1e-10
    monkeypatch.setattr("erasers.diffusion.denoiser.predict", lambda *_: target + 2)
    assert denoising_loss(pipe, latents, times, noise, Condition(torch.zeros(1, 16, 32))).item() == pytest.approx(4)


def test_one_prompt_serves_a_batch(pipe: Any) -> None:
    latents, times = torch.randn(2, 4, 8, 8, generator=seeded()), torch.tensor([10, 60])
    condition = Condition(encode(pipe, tokenise(pipe, "a star")))
    with torch.no_grad():
        both = predict(pipe, latents, times, condition)
        single = torch.cat([predict(pipe, latents[i : i + 1], times[i : i + 1], condition) for i in (0, 1)])
    assert torch.allclose(both, single, atol=1e-5)


def test_the_encoder_gets_its_attention_mask(pipe: Any) -> None:
    pipe.text_encoder.config.use_attention_mask = True
    device = pipe._execution_device
    wanted = pipe.encode_prompt("a red star", device, 1, False)[0]
    assert torch.equal(encode(pipe, tokenise(pipe, "a red star")), wanted)


def test_latents_are_the_scaled_mean_of_the_posterior(pipe: Any) -> None:
    pictures = pipe(["a star", "a moon"], generator=[seeded(), seeded(1)], num_inference_steps=2).images
    found = latents_of(pipe, pictures)
    pixels = pipe.image_processor.preprocess(pictures)
    with torch.no_grad():
        assert torch.equal(found, pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor)
    assert torch.equal(found, latents_of(pipe, pictures))
    assert not found.requires_grad


def test_noise_follows_the_generator_and_the_tensor() -> None:
    like = torch.empty(2, 3, dtype=torch.float64)
    assert torch.equal(gaussian(like, seeded(4)), gaussian(like, seeded(4)))
    assert not torch.equal(gaussian(like, seeded(4)), gaussian(like, seeded(5)))
    assert gaussian(like, seeded()).dtype == torch.float64


def test_middle_times_are_the_middles_of_equal_parts(pipe: Any) -> None:
    assert middle_times(pipe, 3) == [16, 50, 83]
    pipe.scheduler = DDIMScheduler(num_train_timesteps=1000)
    assert middle_times(pipe, 50) == list(range(10, 1000, 20))
    assert middle_times(pipe, 1) == [500]
