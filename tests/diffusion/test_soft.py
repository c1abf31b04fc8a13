"""Soft tokens, the simplex, and the denoising loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from support.attacking import seeded
from torch import nn

from erasers.diffusion.soft import (
    SoftPrompt,
    check_supported,
    decode,
    denoised,
    denoising_loss,
    encode,
    frozen,
    gaussian,
    latents_of,
    nearest_tokens,
    noised,
    project_simplex,
    token_table,
    tokenise,
    whole_words,
)


def rows_of(pipe: Any, words: str) -> torch.Tensor:
    return token_table(pipe)[pipe.tokenizer(words, add_special_tokens=False).input_ids]


def test_soft_tokens_that_are_words_give_the_states_of_the_words(pipe: Any) -> None:
    prompt = SoftPrompt(pipe, "a <one> of <two> art", {"<one>": 2, "<two>": 1})
    states = prompt.states({"<one>": rows_of(pipe, "red star"), "<two>": rows_of(pipe, "moon")})
    assert torch.equal(states, encode(pipe, tokenise(pipe, "a red star of moon art")))
    assert not torch.equal(states, encode(pipe, prompt.ids))
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks


def test_other_texts_are_read_as_ever(pipe: Any) -> None:
    prompt = SoftPrompt(pipe, "a <v>", {"<v>": 2})
    carrier = prompt.text.split()[-1]
    texts = ["", "a moon", f"a {carrier} moon", prompt.text]
    ids = tokenise(pipe, texts)
    plain = encode(pipe, ids)
    with prompt.placed({"<v>": rows_of(pipe, "red star")}):
        found = encode(pipe, ids)
    # A single carrier is not the prompt's two.
    assert torch.equal(found[:3], plain[:3])
    assert not torch.equal(found[3], plain[3])


def test_the_pipeline_draws_soft_tokens(pipe: Any) -> None:
    options = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 4.0}
    prompt = SoftPrompt(pipe, "a <v>", {"<v>": 2})
    with prompt.placed({"<v>": rows_of(pipe, "red star")}):
        soft = pipe([prompt.text, "a blue moon"], generator=[seeded(), seeded(1)], **options).images
    hard = pipe(["a red star", "a blue moon"], generator=[seeded(), seeded(1)], **options).images
    assert torch.equal(soft, hard)


def test_gradients_reach_soft_tokens(pipe: Any) -> None:
    prompt = SoftPrompt(pipe, "a <v> art", {"<v>": 2})
    vectors = rows_of(pipe, "red star").requires_grad_()
    states = prompt.states({"<v>": vectors})
    (slope,) = torch.autograd.grad(states[0, -1, 0], [vectors])
    assert slope.abs().amax(dim=1).min() > 0
    # Earlier positions cannot see them: the encoder is causal.
    (before,) = torch.autograd.grad(prompt.states({"<v>": vectors})[0, 1, 0], [vectors])
    assert before.abs().max() == 0


def test_the_encoder_gets_its_attention_mask(pipe: Any) -> None:
    pipe.text_encoder.config.use_attention_mask = True
    device = pipe._execution_device
    wanted = pipe.encode_prompt("a red star", device, 1, False)[0]
    assert torch.equal(encode(pipe, tokenise(pipe, "a red star")), wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a star", "got it 0 times"),
        ("<v> and <v>", "got it 2 times"),
        ("a red star " * 9 + "<v>", "room for 3 .* got 0"),
    ],
)
def test_words_that_have_no_place_are_refused(pipe: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftPrompt(pipe, text, {"<v>": 3})


def test_whole_words_come_back_from_their_text(pipe: Any) -> None:
    words = whole_words(pipe.tokenizer)
    assert set(pipe.tokenizer("star moon red q", add_special_tokens=False).input_ids) <= set(words.tolist())
    assert not set(words.tolist()) & set(pipe.tokenizer.all_special_ids)
    piece = pipe.tokenizer.convert_tokens_to_ids("sta")
    assert piece not in words
    some = words[torch.randperm(len(words), generator=seeded())[:8]]
    assert pipe.tokenizer(decode(pipe.tokenizer, some), add_special_tokens=False).input_ids == some.tolist()
    # Pieces join to another word.
    pieces = torch.tensor([piece, pipe.tokenizer.convert_tokens_to_ids("r</w>")])
    assert pipe.tokenizer(decode(pipe.tokenizer, pieces), add_special_tokens=False).input_ids != pieces.tolist()


def test_the_projection_is_the_nearest_point_of_the_simplex() -> None:
    rows = 2 * torch.randn(50, 7, generator=seeded(), dtype=torch.float64)
    found = project_simplex(rows)
    assert torch.allclose(found.sum(dim=-1), torch.ones(50, dtype=torch.float64))
    assert found.min() >= 0
    # The nearest point is clamp(row - mu) with the one mu for which it sums to 1, found here by bisection.
    low, high = rows.amin(dim=-1, keepdim=True) - 1, rows.amax(dim=-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        above = (rows - middle).clamp(min=0).sum(dim=-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    assert torch.allclose(found, (rows - low).clamp(min=0), atol=1e-9)
    assert torch.allclose(project_simplex(found), found)


def test_nearest_tokens_go_by_cosine_and_by_what_is_allowed() -> None:
    table = torch.tensor([[10.0, 9.0], [1.0, 0.0], [0.0, 1.0]])
    vectors = torch.tensor([[3.0, 0.2], [0.1, 5.0]])
    assert nearest_tokens(vectors, table).tolist() == [1, 2]
    assert nearest_tokens(vectors, table, torch.tensor([0, 2])).tolist() == [0, 2]


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
    monkeypatch.setattr("erasers.diffusion.soft.denoised", lambda *_: target)
    assert denoising_loss(pipe, latents, times, noise, torch.zeros(1, 16, 32)) < 1e-10
    monkeypatch.setattr("erasers.diffusion.soft.denoised", lambda *_: target + 2)
    assert denoising_loss(pipe, latents, times, noise, torch.zeros(1, 16, 32)).item() == pytest.approx(4)


def test_one_prompt_serves_a_batch(pipe: Any) -> None:
    latents, times = torch.randn(2, 4, 8, 8, generator=seeded()), torch.tensor([10, 60])
    states = encode(pipe, tokenise(pipe, "a star"))
    with torch.no_grad():
        both = denoised(pipe, latents, times, states)
        single = torch.cat([denoised(pipe, latents[i : i + 1], times[i : i + 1], states) for i in (0, 1)])
    assert torch.allclose(both, single, atol=1e-5)


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


def test_other_pipelines_are_refused(pipes: Any) -> None:
    check_supported(pipes("sd2"))
    with pytest.raises(TypeError, match="expected a Stable Diffusion 1 or 2 pipeline .* got StableDiffusionXLPipeline"):
        check_supported(pipes("sdxl"))
    with pytest.raises(TypeError, match="got Linear"):
        check_supported(nn.Linear(1, 1))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(prediction_type="sample"), FlowMatchEulerDiscreteScheduler()])
def test_other_schedulers_are_refused(pipe: Any, scheduler: Any) -> None:
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=f"expected a scheduler with alphas_cumprod .* {type(scheduler).__name__}"):
        check_supported(pipe)
