"""CCE: what it learns, what it leaves alone, and what it finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.attacking import ASKS, LONG, Says, attacked, candidates, draw_well, erasure, prepared, quiet_shapes, seeded
from support.tiny import same, weights

from erasers import get_eraser
from erasers.attacks import get_attack
from erasers.attacks.cce import CCE, TOKEN
from erasers.diffusion.denoiser import denoising_loss
from erasers.diffusion.draws import gaussian
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.tokens import token_table, whole_words
from erasers.judges.oracle import Oracle
from erasers.worlds.shapes.prompts import Prompt, concept_for

SMALL: dict[str, Any] = {"tokens": 2, "steps": 3, "batch": 2, "pictures": 3}


@pytest.mark.parametrize("form", ["weights", "hooks"])
def test_it_learns_a_word_and_leaves_the_pipeline_alone(pipe: Any, form: str) -> None:
    before, trained = weights(pipe), [p.requires_grad for p in pipe.unet.parameters()]
    attack = CCE(**SMALL)
    ready = prepared(attack, pipe)
    patch = erasure(pipe, form)
    assert patch is not None
    with patch.applied(pipe):
        edited = weights(pipe)
        (found,) = candidates(attack, pipe, ready)
        assert same(weights(pipe), edited)
    assert found.text == f"a picture of a {TOKEN}"
    vectors = found.tokens[TOKEN]
    assert vectors.shape == (2, 32)
    assert not vectors.requires_grad
    assert (vectors[:, None] - token_table(pipe)[None]).norm(dim=-1).min() > 0.1
    assert same(weights(pipe), before)
    assert [p.requires_grad for p in pipe.unet.parameters()] == trained
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks
    assert all(p.grad is None for p in pipe.unet.parameters())


def test_it_starts_from_random_words(pipe: Any) -> None:
    attack = CCE(**{**SMALL, "tokens": 3, "lr": 1e-9})
    ready = prepared(attack, pipe)
    starts = [next(attack.run(pipe, ASKS[0], ready, generator=seeded(i))).tokens[TOKEN] for i in range(2)]
    table = token_table(pipe)[whole_words(pipe.tokenizer)]
    for start in starts:
        assert (start[:, None] - table[None]).norm(dim=-1).amin(dim=1).max() < 1e-5
    assert not torch.allclose(*starts)


def test_the_same_seed_learns_the_same(pipe: Any) -> None:
    first, second = (candidates(CCE(**SMALL), pipe, prepared(CCE(**SMALL), pipe))[0].tokens[TOKEN] for _ in range(2))
    assert torch.equal(first, second)


def test_hooks_and_weights_are_attacked_alike(pipe: Any) -> None:
    attack, found = CCE(**{**SMALL, "lr": 1e-3}), {}
    ready = prepared(attack, pipe)
    for form in ("none", "weights", "hooks"):
        patch = erasure(pipe, form)
        if patch is not None:
            patch.apply(pipe)
        found[form] = candidates(attack, pipe, ready)[0].tokens[TOKEN]
        if patch is not None:
            patch.remove(pipe)
    assert torch.allclose(found["weights"], found["hooks"], atol=1e-5)
    assert (found["weights"] - found["none"]).abs().max() > 1e-4


def test_it_spends_what_its_budget_says(pipe: Any) -> None:
    attack = CCE(**SMALL)
    assert attacked(attack, pipe, prepared(attack, pipe), Says(False)).spent == attack.budget()
    assert (attack.budget().gradients, attack.budget().encodes, attack.budget().images) == (6, 3, 2)


def test_it_learns_from_fresh_pictures_of_all_prompts(pipe: Any) -> None:
    seen: list[Any] = []

    def draw(pipe: Any, arguments: Any, seeds: Any) -> Any:
        seen.extend(zip(arguments["prompt"], seeds, strict=True))
        return pipe(**arguments, num_inference_steps=1, generator=[seeded(seed) for seed in seeds]).images

    ready = CCE(**SMALL).prepare(pipe, [*ASKS, LONG], draw=draw, generator=seeded())
    assert ready.latents.shape == (3, 4, 8, 8)
    assert [text for text, _ in seen] == [ASKS[0].text, ASKS[1].text, LONG.text]
    assert not {seed for _, seed in seen} & {ask.seed for ask in ASKS}


@pytest.mark.parametrize("option", [{"tokens": 0}, {"steps": 0}, {"batch": 0}, {"pictures": 0}])
def test_bad_options_are_refused(option: Any) -> None:
    with pytest.raises(ValueError, match="expected tokens, steps, batch and pictures of at least 1"):
        get_attack("cce", **option)


@pytest.mark.parametrize("templates", [(), ("a picture",), ("{} {}",)])
def test_bad_templates_are_refused(templates: Any) -> None:
    with pytest.raises(ValueError, match="expected templates with one {} each"):
        get_attack("cce", templates=templates)


def test_a_template_without_room_is_refused(pipe: Any) -> None:
    attack = CCE(**{**SMALL, "tokens": 40})
    with pytest.raises(ValueError, match="expected room for 40 soft tokens"):
        candidates(attack, pipe, prepared(attack, pipe))


@pytest.mark.full
def test_it_recovers_what_uce_erased_and_random_prefixes_do_not() -> None:
    pipe = quiet_shapes()
    ask = Prompt("a blue arrow on a grey background in the style of zorblat", {"style": "zorblat"}, 3)
    attack = get_attack("cce", tokens=1, steps=40, batch=4, lr=0.01, pictures=4)
    control = get_attack("random_prefix", images=2)
    ready = {one: one.prepare(pipe, [ask], draw=draw_well, generator=seeded()) for one in (attack, control)}
    latents = ready[attack].latents
    noise, times = gaussian(latents, seeded(9)), torch.tensor([200, 400, 600, 800])
    prompt = SoftPrompt(pipe, f"a picture of a {TOKEN}", {TOKEN: 1})

    @torch.no_grad()
    def value(vectors: torch.Tensor) -> float:
        return denoising_loss(pipe, latents, times, noise, prompt.condition({TOKEN: vectors})).item()

    with get_eraser("uce").fit(pipe, concept_for("zorblat"), progress=False).applied(pipe):
        found = attacked(attack, pipe, ready[attack], Oracle(), ask, draw_well)
        other = attacked(control, pipe, ready[control], Oracle(), ask, draw_well)
        (one,) = candidates(attack, pipe, ready[attack], ask)
        rows = torch.randint(len(ready[attack].words), (40, 1), generator=seeded())
        words = ready[attack].words.ids["text_encoder"][rows]
        assert value(one.tokens[TOKEN]) < min(value(token_table(pipe)[word]) for word in words)
    assert (found.pre, found.post, other.post) == (False, True, False)
    assert other.spent.images == found.spent.images
