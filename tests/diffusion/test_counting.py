"""What goes through the networks of a pipeline is counted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.attacking import seeded
from support.families.all import FAMILIES

from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.clip import encode
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.counting import Calls, Counter
from erasers.diffusion.denoiser import denoising_loss, predict
from erasers.diffusion.embedding import embedded
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.tokens import tokenise
from erasers.models.calls import handed_on


def test_latents_and_texts_are_counted_until_the_context_ends(pipe: Any) -> None:
    latents, times = torch.randn(3, 4, 8, 8, generator=seeded()), torch.tensor([10, 50, 90])
    states = encode(pipe, tokenise(pipe, "a star"))
    with Counter(pipe) as counter:
        encode(pipe, tokenise(pipe, ["a star", "a moon"]))
        denoising_loss(pipe, latents, times, latents, Condition(states))
        assert counter.calls == Calls(gradients=3, texts=2)
        with torch.no_grad():
            denoising_loss(pipe, latents, times, latents, Condition(states))
        assert counter.calls == Calls(denoiser=3, gradients=3, texts=2)
        with counter.paused():
            denoising_loss(pipe, latents, times, latents, Condition(encode(pipe, tokenise(pipe, "a star"))))
        assert counter.calls == Calls(denoiser=3, gradients=3, texts=2)
        copied = copy.deepcopy(pipe.text_encoder)
        copied(tokenise(pipe, "a star"))
        assert counter.calls == Calls(denoiser=3, gradients=3, texts=3)
    denoising_loss(pipe, latents, times, latents, Condition(encode(pipe, tokenise(pipe, "a star"))))
    assert counter.calls == Calls(denoiser=3, gradients=3, texts=3)
    assert not pipe.unet._forward_hooks
    assert not pipe.text_encoder._forward_hooks


def test_a_denoiser_that_answers_in_a_list_is_counted(tmp_path: Path) -> None:
    pipe = FAMILIES["zimage"].build(tmp_path)
    noisy, times = torch.randn(3, *latent_shape(pipe, 16), generator=seeded()), torch.tensor([900.0, 500.0, 100.0])
    with Counter(pipe) as counter, torch.no_grad():
        predict(pipe, noisy, times, conditions(pipe, ["a star"]))
    assert counter.calls == Calls(denoiser=3, texts=1)


@pytest.mark.parametrize("family", ["pixart", "pixart-sigma", "sana", "lumina2"])
def test_what_guides_is_one_text_and_that_of_the_pipeline(family: str, tmp_path: Path) -> None:
    """It has the length of other prompts, too, and a mask of its own."""
    pipe = FAMILIES[family].build(tmp_path)
    with Counter(pipe) as counter:
        nothing = unprompted(pipe)
    assert counter.calls == Calls(texts=1)
    options = handed_on(pipe) | {"do_classifier_free_guidance": True}
    with torch.no_grad():
        *_, states, mask = pipe.encode_prompt(["a star"], **options)
    assert torch.equal(nothing.states, states)
    assert nothing.mask is not None
    assert torch.equal(nothing.mask, mask.cpu())


def test_a_text_is_counted_once_whichever_encoders_read_it(tmp_path: Path) -> None:
    pipe = FAMILIES["flux"].build(tmp_path)
    with Counter(pipe) as counter, torch.no_grad():
        conditions(pipe, ["a star"])
        assert counter.calls == Calls(texts=1)
        with counter.paused():
            conditions(pipe, ["a star"])
        embedded(pipe, ["a star", "a moon"], ("text_encoder_2",))
        assert counter.calls == Calls(texts=3)


def test_calls_are_added_subtracted_and_multiplied() -> None:
    first, second = Calls(1, 2, 3), Calls(4, 4, 4)
    assert first + second == Calls(5, 6, 7)
    assert second - first == Calls(3, 2, 1)
    assert first * 2 == Calls(2, 4, 6)
