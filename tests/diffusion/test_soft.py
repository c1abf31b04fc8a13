"""Soft tokens: read like words, wherever the prompt stands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.attacking import seeded

from erasers.diffusion.clip import encode
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.tokens import token_table, tokenise


def rows_of(pipe: Any, words: str) -> torch.Tensor:
    return token_table(pipe)[pipe.tokenizer(words, add_special_tokens=False).input_ids]


def test_soft_tokens_that_are_words_give_the_states_of_the_words(pipe: Any) -> None:
    prompt = SoftPrompt(pipe, "a <one> of <two> art", {"<one>": 2, "<two>": 1})
    states = prompt.condition({"<one>": rows_of(pipe, "red star"), "<two>": rows_of(pipe, "moon")}).states
    assert torch.equal(states, encode(pipe, tokenise(pipe, "a red star of moon art")))
    assert not torch.equal(states, encode(pipe, tokenise(pipe, prompt.text)))
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
    states = prompt.condition({"<v>": vectors}).states
    (slope,) = torch.autograd.grad(states[0, -1, 0], [vectors])
    assert slope.abs().amax(dim=1).min() > 0
    # Earlier positions cannot see them: the encoder is causal.
    (before,) = torch.autograd.grad(prompt.condition({"<v>": vectors}).states[0, 1, 0], [vectors])
    assert before.abs().max() == 0


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
