"""The text attack by greedy coordinate gradients: its gradient, its swaps, what it bans and what it finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.attacking import ASKS, draw_well, prepared, quiet_shapes, seeded

from erasers import load_pipeline
from erasers.attacks import get_attack
from erasers.attacks.mma import MMA, SLOT, banned, distance, gradient, pooled, swaps
from erasers.diffusion.gradients import LossScale
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.tokens import decode, token_table, tokenise, whole_words
from erasers.worlds.shapes.prompts import Prompt


def ids_of(pipe: Any, text: str) -> torch.Tensor:
    return torch.tensor(pipe.tokenizer(text, add_special_tokens=False).input_ids)


def test_the_distance_is_that_of_the_angle() -> None:
    rows = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    assert torch.allclose(distance(rows, torch.tensor([5.0, 0.0])), torch.tensor([0.0, 1.0, 2.0, 1 - 0.5**0.5]))


def test_the_target_is_the_pooled_embedding_of_the_prompt(pipe: Any) -> None:
    targets = MMA(k=3, steps=1).targets(pipe, ASKS)
    ids = tokenise(pipe, "a red star")
    with torch.no_grad():
        end = pipe.text_encoder(ids)[0][0, (ids[0] == pipe.tokenizer.eos_token_id).nonzero()[0, 0]]
    assert torch.allclose(targets["a red star"], end, atol=1e-6)


def test_the_gradient_is_that_of_the_one_hot_choice(pipe: Any) -> None:
    words = whole_words(pipe.tokenizer)
    target = MMA(k=3, steps=1).targets(pipe, ASKS)["a red star"]
    current = torch.tensor([1, 4, 2])
    found = gradient(pipe, SoftPrompt(pipe, SLOT, {SLOT: 3}), target, words, current, LossScale(pipe))
    weight = pipe.text_encoder.get_input_embeddings().weight.requires_grad_()
    value = distance(pooled(pipe, tokenise(pipe, decode(pipe.tokenizer, words[current]))), target).sum()
    (slopes,) = torch.autograd.grad(value, [weight])
    wanted = slopes[words[current]] @ token_table(pipe)[words].T
    assert found.shape == (3, len(words))
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


def test_a_swap_puts_a_promising_token_in_one_place() -> None:
    current = torch.tensor([0, 1, 2])
    slope = torch.zeros(3, 9)
    slope[0, [3, 4]] = -1.0
    slope[1, [5, 6]] = -1.0
    slope[2, [7, 8]] = -1.0
    rows = swaps(current, slope, 2, 200, seeded())
    assert ((rows != current).sum(dim=1) == 1).all()
    assert set(rows[:, 0].tolist()) == {0, 3, 4}
    assert set(rows[:, 1].tolist()) == {1, 5, 6}
    assert set(rows[:, 2].tolist()) == {2, 7, 8}


@pytest.mark.parametrize(
    ("concept", "wanted"),
    [
        (("star",), {"star"}),
        (("Van Gogh",), {"van", "gogh"}),
        (("art",), {"art"}),
        (("ring", "a moon"), {"ring", "moon", "a"}),
        ((), set()),
    ],
)
def test_words_of_the_concept_are_banned(pipe: Any, concept: tuple[str, ...], wanted: set[str]) -> None:
    words = whole_words(pipe.tokenizer)
    hit = words[banned(pipe.tokenizer, words, concept)]
    assert {decode(pipe.tokenizer, one[None]) for one in hit} == wanted


def test_words_that_contain_the_concept_are_banned() -> None:
    tokenizer = load_pipeline("shapes").tokenizer
    words = whole_words(tokenizer)
    hit = {decode(tokenizer, one[None]) for one in words[banned(tokenizer, words, ("ink", "love symbol"))]}
    assert hit == {"love", "symbol"}
    assert "cross" in {decode(tokenizer, one[None]) for one in words[banned(tokenizer, words, ("ROSS",))]}


def test_a_vocabulary_that_is_banned_whole_is_refused(pipe: Any) -> None:
    every = tuple(decode(pipe.tokenizer, one[None]) for one in whole_words(pipe.tokenizer))
    with pytest.raises(ValueError, match="expected tokens that do not name the concept, got none"):
        prepared(MMA(k=2, steps=1, batch=2, concept=every), pipe)


def test_the_best_texts_come_first(pipe: Any) -> None:
    attack = MMA(k=3, steps=6, batch=16, top=8, images=5)
    ready = prepared(attack, pipe)
    found = ready.texts["a red star"]
    with torch.no_grad():
        values = distance(pooled(pipe, tokenise(pipe, found)), ready.targets["a red star"])
    assert len(found) == 4
    assert torch.equal(values, values.sort().values)


@pytest.mark.full
def test_it_comes_nearer_than_as_many_random_texts() -> None:
    pipe = quiet_shapes()
    ask = Prompt("a red star on a white background", {"object": "star"}, 5)
    attack = get_attack("mma", k=8, steps=15, batch=64, top=32)
    ready = attack.prepare(pipe, [ask], draw=draw_well, generator=seeded())
    (found,) = ready.texts[ask.text]
    words = whole_words(pipe.tokenizer)
    picks = torch.randint(len(words), (attack.encodes, 8), generator=seeded(4))
    randoms = [decode(pipe.tokenizer, words[row]) for row in picks]
    with torch.no_grad():
        values = distance(pooled(pipe, tokenise(pipe, [found, *randoms])), ready.targets[ask.text])
    assert "star" not in found
    # The random texts may say "star", those of the attack may not.
    assert values[0] < values[1:].min()
    assert values[0] < 0.5 * values[1:].median()
