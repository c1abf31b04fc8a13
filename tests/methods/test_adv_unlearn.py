"""AdvUnlearn: what moves, what the attack finds, what an iteration is without it, and what it costs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.selection import diagonal, only
from support.tiny import weights
from support.trained import fitted_in_two_goes
from torch.nn import functional

from erasers import Concept, get_eraser
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.attacked import attacked_encoders, widths
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Calls, Counter
from erasers.diffusion.denoiser import predict
from erasers.diffusion.gradients import LossScale, frozen
from erasers.diffusion.latent_bank import LatentBank, Way, sample_bank
from erasers.methods.adv_unlearn import SOFT, Duel, published_calls, search
from erasers.methods.esd import target
from erasers.training import loop as training

STAR = Concept("star", anchor="circle", preserve=["a moon", "a red circle", "blue art"], neighbours=["ring"])
WHOLE = LossScale(SimpleNamespace(components={}))
QUICK: dict[str, Any] = {
    "iterations": 6,
    "lr": 1e-3,
    "steps": 2,
    "pictures": 2,
    "kept": 4,
    "attack_steps": 3,
    "attack_lr": 1e-2,
    "warm_up": 2,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def prepared(pipe: Any, *concepts: Concept, **options: Any) -> Iterator[tuple[training.Training, Duel]]:
    """A training that has not begun, and the duel in it; the pipeline asks for no gradients inside."""
    eraser = get_eraser("adv_unlearn", **QUICK | options)
    with frozen(pipe):
        found = eraser.suited(pipe).prepare(
            pipe, concepts or (STAR,), seeded(), lambda title, total: nullcontext(lambda count: None)
        )
        yield found, found.step.__self__


def test_only_layers_and_the_final_norm_of_the_text_encoder_move(pipe):
    before = weights(pipe)
    with get_eraser("adv_unlearn", **QUICK).fit(pipe, STAR, progress=False).applied(pipe):
        after = weights(pipe)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("text_encoder.encoder.layers.", "text_encoder.final_layer_norm.")
    assert all(name.startswith(parts) for name in moved)
    for part in (*parts, "text_encoder.encoder.layers.1.mlp.fc2.bias", "text_encoder.encoder.layers.0.layer_norm1."):
        assert any(name.startswith(part) for name in moved)


def test_the_first_layers_alone(pipe):
    patch = get_eraser("adv_unlearn", **QUICK, layers=1).fit(pipe, STAR, progress=False)
    assert all(name.startswith("text_encoder.encoder.layers.0.") for name in patch.parameters)


def objective(duel: Duel, tokens: torch.Tensor) -> float:
    """Over every latent of the first prompt."""
    bank = duel.banks[0]
    guess = predict(duel.pipe, bank.latents, bank.times, duel.soft[0].condition({SOFT: tokens}))
    return float(functional.mse_loss(guess, bank.conditional).detach())


@pytest.mark.parametrize(("placement", "fast"), diagonal(["prefix", "suffix", "replace"], [False, True]))
def test_the_attack_comes_closer_to_the_frozen_model_than_it_began(pipe, fast, placement):
    options = {"attack_steps": 20, "attack_init": "latest", "fast": fast, "placement": placement, "tokens": 2}
    with prepared(pipe, **options) as (found, duel), found.student.placed():
        begun = objective(duel, duel.latest[0].clone())
        tokens = duel.attack(0)
        assert objective(duel, tokens) < 0.9 * begun
        # The latest tokens are where it goes on.
        assert torch.equal(duel.latest[0], tokens)


def test_an_attack_starts_at_random_tokens_or_the_latest(pipe):
    starts = {}
    for init in ("random", "latest"):
        with prepared(pipe, attack_steps=1, attack_lr=1e-12, attack_init=init) as (found, duel), found.student.placed():
            starts[init] = [duel.latest[0].clone(), *(duel.attack(0) for _ in range(3))]
    assert all(torch.allclose(one, starts["latest"][0], atol=1e-6) for one in starts["latest"])
    assert not torch.allclose(starts["random"][1], starts["random"][2])


def test_an_attack_starts_at_the_words_of_the_concept_again_and_again(pipe):
    concept = Concept("red star", kind="object", anchor="circle")
    options = {"attack_init": "words", "tokens": 3, "attack_lr": 1e-12, "attack_steps": 1}
    red, star = pipe.tokenizer("red star", add_special_tokens=False).input_ids
    with prepared(pipe, concept, **options) as (found, duel), found.student.placed():
        begun = [duel.attack(0) for _ in range(8)]
    orders = [[red, star, red], [star, red, star]]
    seen = [order for one in begun for order in orders if torch.allclose(one, duel.tables[0][order], atol=1e-6)]
    assert len(seen) == len(begun)
    assert all(order in seen for order in orders)


def test_mixed_soft_tokens_stand_in_front_behind_and_in_place_of_the_concept_in_turn():
    asks = get_eraser("adv_unlearn", placement="mixed", templates=("{}", "a {}", "a red {}", "a blue {}")).asks([STAR])
    assert [ask.soft for ask in asks] == [f"{SOFT} star", f"a star {SOFT}", f"a red {SOFT}", f"{SOFT} a blue star"]


def test_without_attacks_and_kept_prompts_a_step_is_that_of_esd_through_the_text_encoder(pipe):
    with prepared(pipe, attack_steps=0, gamma=0.0, warm_up=0, batch=2, lr=1e-4) as (found, _):
        found.step(0)
    generator, other = seeded(), copy.deepcopy(pipe)
    bank = sample_bank(
        pipe, conditions(pipe, ["star"]), conditions(pipe, [""]), Way(2, 3.0), rounds=2, generator=generator
    )
    torch.randint(len(weights(pipe)["text_encoder.embeddings.token_embedding.weight"]), (1,), generator=generator)
    some = bank.draw(2, generator)
    length = {"padding": "max_length", "max_length": pipe.tokenizer.model_max_length, "return_tensors": "pt"}
    states = other.text_encoder(pipe.tokenizer(["star", "star"], **length).input_ids)[0]
    guess = other.unet(some.latents, some.times, encoder_hidden_states=states).sample
    loss = functional.mse_loss(guess, target(some.empty, some.conditional, 1.0))
    adam = torch.optim.Adam(other.text_encoder.parameters(), lr=1e-4)
    loss.backward()
    adam.step()
    theirs = weights(other)
    for name, value in found.student.tensors().items():
        torch.testing.assert_close(value, theirs[name.removesuffix("/0")], rtol=0, atol=2e-6)
        assert not torch.equal(value, weights(pipe)[name.removesuffix("/0")])


def test_kept_prompts_cost_nothing_before_the_first_step(pipe):
    with prepared(pipe, warm_up=0) as (found, _):
        first, second = found.step(0), found.step(1)
    assert first["retain"] < 1e-12
    assert second["retain"] > 1e-7
    assert first["erase"] > 1e-4


def on_the_way_to(pipe: Any, text: str) -> LatentBank:
    """Latents on the way to pictures of a prompt."""
    return sample_bank(
        pipe, conditions(pipe, [text]), conditions(pipe, [""]), Way(2, 3.0), rounds=4, generator=seeded(5)
    )


@torch.no_grad()
def says(pipe: Any, text: str, bank: LatentBank) -> torch.Tensor:
    """What the denoiser predicts for a prompt."""
    states = conditions(pipe, [text]).states.expand(len(bank), -1, -1)
    return predict(pipe, bank.latents, bank.times, Condition(states))


@pytest.mark.full
def test_kept_prompts_hold(pipe):
    bank = on_the_way_to(pipe, "a moon")
    drifts = []
    for gamma in (0.0, 30.0):
        options = {"iterations": 20, "gamma": gamma, "batch": 2, "retain_batch": 8, "warm_up": 20}
        with get_eraser("adv_unlearn", **QUICK | options).fit(pipe, STAR, progress=False).applied(pipe):
            drifts.append(functional.mse_loss(says(pipe, "a moon", bank), bank.conditional))
    loose, held = drifts
    assert held < 0.5 * loose


@pytest.mark.full
def test_the_target_may_be_the_anchor(pipe):
    options = {"toward": "anchor", "eta": 0.0, "iterations": 40, "batch": 4, "warm_up": 40, "gamma": 0.0, "lr": 3e-3}
    bank = on_the_way_to(pipe, "star")
    goal = says(pipe, "circle", bank)
    with get_eraser("adv_unlearn", **QUICK | options).fit(pipe, STAR, progress=False).applied(pipe):
        guess = says(pipe, "star", bank)
    assert functional.mse_loss(guess, goal) < 0.3 * functional.mse_loss(bank.conditional, goal)


def test_prompts_of_all_concepts_take_turns(pipe):
    moon = Concept("moon", aliases=["ring"])
    with prepared(pipe, Concept("star"), moon, templates=("a {}", "blue {}")) as (_, duel):
        asks = duel.options.asks([Concept("star"), moon])
    assert [ask.text for ask in asks] == ["a star", "blue star", "a moon", "blue moon", "a ring", "blue ring"]
    assert duel.texts == [ask.text for ask in asks]
    alone = get_eraser("adv_unlearn", aliases=False).asks([moon])
    assert [ask.text for ask in alone] == ["moon"]


@pytest.mark.parametrize(
    "options",
    only(
        [
            {},
            {"gamma": 0.0, "attack_init": "latest", "warm_up": 0},
            {"toward": "anchor", "clean": True, "attack_batch": 2, "batch": 3, "templates": "auto"},
            {"warm_up": 100, "fast": True},
            {"attack_steps": 0, "kept": 100},
        ],
        {},
        {"attack_steps": 0, "kept": 100},
    ),
)
def test_cost_is_what_is_spent(pipe, options):
    eraser = get_eraser("adv_unlearn", **QUICK | options)
    with Counter(pipe) as counter:
        eraser.fit(pipe, [STAR, Concept("moon")], progress=False)
    assert eraser.cost(pipe, [STAR, Concept("moon")]) == counter.calls


def test_a_tenth_of_the_published_calls_at_most(pipe):
    assert published_calls() == Calls(denoiser=36 * 53 + 30 + 2 + 5, gradients=36)
    eraser = get_eraser("adv_unlearn")
    ours = eraser.cost(pipe, Concept("dog"))
    attacks = eraser.iterations - eraser.warm_up
    theirs = published_calls() * attacks + published_calls(attack_steps=0) * eraser.warm_up
    assert ours.gradients == theirs.gradients
    # A gradient is a pass forward and one back of twice the work.
    assert theirs.denoiser + 3 * theirs.gradients > 10 * (ours.denoiser + 3 * ours.gradients)


def test_upstream_gradients_add_up_and_the_last_step_is_lost():
    slopes = torch.tensor([1.0, -1.0, -1.0, -1.0])

    def run(steps: int, **options: Any) -> float:
        given = iter(slopes)
        found = search(lambda x: (x * next(given)).sum(), torch.zeros(1, 1), steps, 0.1, scale=WHOLE, **options)
        return round(float(found), 4)

    # Signs: the first step goes down, and three go up again; published, a sum of 1, 0, -1 and -2, and one step less.
    assert [run(steps, fast=True) for steps in range(5)] == [0.0, -0.1, 0.0, 0.1, 0.2]
    assert run(1, upstream=True) == run(0) == 0.0
    assert run(2, upstream=True) == run(1)
    published = torch.nn.Parameter(torch.zeros(1, 1))
    adam = torch.optim.Adam([published], lr=0.1)
    for slope in slopes[:3]:
        published.grad = (0 if published.grad is None else published.grad) + slope.view(1, 1)
        adam.step()
    assert run(4, upstream=True) == round(float(published.detach()), 4)
    assert run(4, upstream=True) < run(4)


def test_published_signs_repeat_the_first_step():
    slopes = [torch.tensor([[0.01]]), *[torch.tensor([[-0.02]])] * 5]

    def run(**options: Any) -> float:
        given = iter(slopes)
        options |= {"scale": WHOLE, "fast": True}
        return float(search(lambda x: (x * next(given)).sum(), torch.zeros(1, 1), 6, 0.1, **options))

    assert run(upstream=True) == pytest.approx(-0.5, abs=1e-3)
    assert run() == pytest.approx(0.4)


@pytest.mark.full
def test_upstream_changes_the_patch(pipe):
    digests = {
        get_eraser("adv_unlearn", **QUICK, upstream_compat=value).fit(pipe, STAR, progress=False).digest
        for value in (False, True)
    }
    assert len(digests) == 2


@pytest.mark.full
@pytest.mark.parametrize("after", [1, 4])
def test_a_killed_training_goes_on_from_the_latest_attack(pipe, tmp_path, after):
    eraser = get_eraser("adv_unlearn", **QUICK | {"attack_init": "latest", "warm_up": 0, "templates": ("{}", "a {}")})
    whole, patch = eraser.fit(pipe, STAR, progress=False), fitted_in_two_goes(eraser, pipe, STAR, tmp_path / "a", after)
    assert patch.digest == whole.digest


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"tokens": 0}, "tokens of at least 1, got 0"),
        ({"attack_lr": 0.0}, "attack_lr above 0"),
        ({"gamma": -1.0}, "gamma of at least 0"),
        ({"placement": "middle"}, "prefix or suffix or replace or mixed, got 'middle'"),
        ({"templates": ("a star",)}, "one {} each"),
    ],
)
def test_bad_options_raise(options, got):
    with pytest.raises(ValueError, match=got):
        get_eraser("adv_unlearn", **options)


@pytest.mark.parametrize(
    ("family", "encoders"), [("sdxl", ()), ("sd3", ("text_encoder", "text_encoder_2", "text_encoder_3")), ("flux", ())]
)
def test_every_encoder_is_trained_and_attacked(family, encoders, tmp_path):
    pipe = FAMILIES[family].build(tmp_path)
    options = {"attack_steps": 8, "attack_init": "latest", "tokens": 2, "attack_lr": 0.05, "encoders": encoders}
    with prepared(pipe, **options) as (found, duel), found.student.placed():
        assert duel.encoders == (encoders or attacked_encoders(pipe))
        begun, start = objective(duel, duel.latest[0].clone()), duel.latest[0].clone()
        tokens = duel.attack(0)
        assert objective(duel, tokens) < begun
        moved = (tokens - start).split(widths(pipe, duel.encoders), dim=1)
        assert all(part.abs().amax() > 0.01 for part in moved)
        assert {name.partition(".")[0] for name in found.student.names} == set(duel.encoders)


def test_what_is_trained_is_what_is_read(tmp_path):
    """Of SDXL the summary of the second encoder is read, and neither the last layer nor the norm of the first."""
    pipe = FAMILIES["sdxl"].build(tmp_path)
    with prepared(pipe) as (found, _):
        names = {name for name in found.student.names if name.endswith("weight")}
    for name in ("text_encoder.encoder.layers.0.mlp.fc1", "text_encoder_2.text_model.encoder.layers.1.mlp.fc1"):
        assert f"{name}.weight" in names
    assert {"text_encoder_2.text_model.final_layer_norm.weight", "text_encoder_2.text_projection.weight"} <= names
    assert not any(name.startswith(("text_encoder.encoder.layers.1", "text_encoder.final")) for name in names)
    assert not any("embedding" in name for name in names)


def test_the_words_of_the_concept_are_those_of_each_encoder(tmp_path):
    pipe = FAMILIES["sdxl"].build(tmp_path)
    concept = Concept("red star", kind="object", anchor="circle")
    with prepared(pipe, concept, attack_init="words", tokens=2) as (_, duel):
        begun = duel.latest[0].split(widths(pipe, duel.encoders), dim=1)
    ids = [pipe.tokenizer("red star", add_special_tokens=False).input_ids] * 2
    orders = [[own[(first + step) % 2] for step in range(2)] for own in ids for first in range(2)]
    places = [
        [order for order in orders if torch.equal(vectors, table[order])]
        for vectors, table in zip(begun, duel.tables, strict=True)
    ]
    assert places[0]
    assert places[0] == places[1]
