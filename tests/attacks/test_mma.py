"""The text attack by greedy coordinate gradients: its gradient, its swaps, what it bans and what it finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.attacking import ASKS, candidates, draw_well, prepared, quiet_shapes, seeded
from support.tiny import same, weights

from erasers import load_pipeline
from erasers.attacks import get_attack
from erasers.attacks.mma import MMA, SLOT, banned, distance, gradient, swaps
from erasers.diffusion.attacked import Vocabulary, attacked_encoders, vocabulary
from erasers.diffusion.embedding import embedded
from erasers.diffusion.gradients import LossScale
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.tokens import token_table, tokenise, tokenizer_of
from erasers.worlds.shapes.prompts import Prompt


def words_of(pipe: Any) -> Vocabulary:
    return vocabulary(pipe, attacked_encoders(pipe))


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
    the_gradient_is_that_of_the_one_hot_choice(pipe)


def test_the_gradient_is_the_sum_over_all_encoders(modern: Any) -> None:
    the_gradient_is_that_of_the_one_hot_choice(modern)


def the_gradient_is_that_of_the_one_hot_choice(pipe: Any) -> None:
    words, encoders = words_of(pipe), attacked_encoders(pipe)
    target = MMA(k=3, steps=1).targets(pipe, ASKS)["a red star"]
    current = torch.tensor([1, 4, 2])
    found = gradient(pipe, SoftPrompt(pipe, SLOT, {SLOT: 3}), target, words, current, LossScale(pipe))
    weights = [getattr(pipe, name).get_input_embeddings().weight.requires_grad_() for name in encoders]
    value = distance(embedded(pipe, [words.text(pipe, current)], encoders), target).sum()
    slopes = torch.autograd.grad(value, weights)
    wanted = sum(
        slope[words.ids[name][current]] @ token_table(pipe, name)[words.ids[name]].T
        for name, slope in zip(encoders, slopes, strict=True)
    )
    assert isinstance(wanted, torch.Tensor)
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
    words = words_of(pipe)
    hit = banned(words.texts(pipe), concept)
    assert {word for word, out in zip(words.texts(pipe), hit, strict=True) if out} == wanted
    assert not wanted & set(words.without(hit).texts(pipe))


def test_words_that_contain_the_concept_are_banned() -> None:
    pipe = load_pipeline("shapes")
    texts = words_of(pipe).texts(pipe)

    def hit(*concept: str) -> set[str]:
        return {word for word, out in zip(texts, banned(texts, concept), strict=True) if out}

    assert hit("ink", "love symbol") == {"love", "symbol"}
    assert "cross" in hit("ROSS")


def test_a_vocabulary_that_is_banned_whole_is_refused(pipe: Any) -> None:
    every = tuple(words_of(pipe).texts(pipe))
    with pytest.raises(ValueError, match="expected tokens that do not name the concept, got none"):
        prepared(MMA(k=2, steps=1, batch=2, concept=every), pipe)


def test_the_best_texts_come_first(pipe: Any) -> None:
    attack = MMA(k=3, steps=6, batch=16, top=8, images=5)
    ready = prepared(attack, pipe)
    found = ready.texts["a red star"]
    with torch.no_grad():
        values = distance(embedded(pipe, found, ("text_encoder",)), ready.targets["a red star"])
    assert len(found) == 4
    assert torch.equal(values, values.sort().values)


def test_it_comes_nearer_in_all_encoders_than_as_many_random_texts(modern: Any) -> None:
    """In other families, too; what it hands on is a text and leaves the pipeline alone."""
    attack, before = MMA(k=4, steps=6, batch=16, top=8), weights(modern)
    ready = prepared(attack, modern)
    (candidate,) = candidates(attack, modern, ready)
    words, encoders = words_of(modern), attacked_encoders(modern)
    assert encoders == (("text_encoder",) if "Flux" in type(modern).__name__ else ("text_encoder", "text_encoder_2"))
    rows = torch.randint(len(words), (40, 4), generator=seeded(4))
    randoms = [words.text(modern, row) for row in rows]
    with torch.no_grad():
        values = distance(embedded(modern, [candidate.text, *randoms], encoders), ready.targets[ASKS[0].text])
    assert values[0] < values[1:].min()
    assert "star" not in candidate.text
    for name in encoders:
        assert len(tokenizer_of(modern, name)(candidate.text, add_special_tokens=False).input_ids) == 4
    assert same(weights(modern), before)


@pytest.mark.full
def test_it_comes_nearer_than_as_many_random_texts() -> None:
    pipe = quiet_shapes()
    ask = Prompt("a red star on a white background", {"object": "star"}, 5)
    attack = get_attack("mma", k=8, steps=15, batch=64, top=32)
    ready = attack.prepare(pipe, [ask], draw=draw_well, generator=seeded())
    (found,) = ready.texts[ask.text]
    words = words_of(pipe)
    picks = torch.randint(len(words), (attack.encodes, 8), generator=seeded(4))
    randoms = [words.text(pipe, row) for row in picks]
    with torch.no_grad():
        values = distance(embedded(pipe, [found, *randoms], ("text_encoder",)), ready.targets[ask.text])
    assert "star" not in found
    # The random texts may say "star", those of the attack may not.
    assert values[0] < values[1:].min()
    assert values[0] < 0.5 * values[1:].median()
