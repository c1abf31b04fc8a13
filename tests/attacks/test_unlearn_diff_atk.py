"""UnlearnDiffAtk: its time steps, its gradient, and what it finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.attacking import ASKS, attacked, draw_well, erasure, prepared, quiet_shapes, seeded
from torch.nn import functional

from erasers import get_eraser
from erasers.attacks import get_attack
from erasers.attacks.random_prefix import RandomPrefix
from erasers.attacks.unlearn_diff_atk import PREFIX, UnlearnDiffAtk, gradient, project_simplex
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.clip import encode
from erasers.diffusion.denoiser import denoising_loss
from erasers.diffusion.draws import gaussian
from erasers.diffusion.gradients import LossScale
from erasers.diffusion.soft import SoftPrompt
from erasers.diffusion.tokens import token_table, tokenise, whole_words
from erasers.judges.oracle import Oracle
from erasers.worlds.shapes.prompts import Prompt, concept_for


def slope(pipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The attack's gradient at two words, and that of the loss to one-hot vectors by way of the whole table."""
    latents, noise = gaussian(torch.empty(2, 1, 4, 8, 8), seeded(1))
    words = whole_words(pipe.tokenizer)
    table = token_table(pipe)[words]
    picks = torch.tensor([3, len(words) - 1])
    prompt = SoftPrompt(pipe, f"{PREFIX} a star", {PREFIX: 2})
    found = gradient(pipe, prompt, table, picks, latents, 50, noise, LossScale(pipe))
    onehot = functional.one_hot(picks, len(words)).float().requires_grad_()
    loss = denoising_loss(pipe, latents, torch.tensor([50]), noise, prompt.condition({PREFIX: onehot @ table}))
    return found, torch.autograd.grad(loss, [onehot])[0]


def test_the_gradient_is_that_to_the_drawn_one_hot_vectors(pipe: Any) -> None:
    found, wanted = slope(pipe)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


def test_the_gradient_is_clipped(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "erasers.attacks.unlearn_diff_atk.denoising_loss"
    monkeypatch.setattr(name, lambda *given: 1e6 * denoising_loss(*given))
    found, wanted = slope(pipe)
    assert (1e6 * wanted).abs().max() > 10
    assert torch.allclose(found, (1e6 * wanted).clamp(-1, 1), atol=1e-2)


def test_gradients_flow_through_hooks_and_weights_alike(pipe: Any) -> None:
    plain, found = slope(pipe)[0], {}
    for form in ("weights", "hooks"):
        patch = erasure(pipe, form)
        assert patch is not None
        with patch.applied(pipe):
            found[form] = slope(pipe)[0]
    assert torch.allclose(found["weights"], found["hooks"], rtol=1e-3, atol=1e-4 * plain.abs().max().item())
    assert (found["weights"] - plain).norm() > 0.01 * plain.norm()


def test_every_token_may_be_in_a_prefix_if_so_wished(pipe: Any) -> None:
    ready = prepared(UnlearnDiffAtk(vocabulary="all"), pipe)
    ids = ready.words.ids["text_encoder"]
    assert len(ids) == len(pipe.tokenizer) - 2
    assert not set(ids.tolist()) & set(pipe.tokenizer.all_special_ids)


@pytest.mark.parametrize("option", [{"k": 0}, {"timesteps": 0}, {"steps": 0}, {"lr": 0.0}, {"weight_decay": -1.0}])
def test_bad_options_are_refused(option: Any) -> None:
    with pytest.raises(ValueError, match="expected k, timesteps and steps of at least 1"):
        get_attack("unlearn_diff_atk", **option)


@pytest.fixture(scope="module")
def world() -> Any:
    """`shapes`, its erasure of a style, and a prompt for it."""
    pipe = quiet_shapes()
    patch = get_eraser("uce").fit(pipe, concept_for("zorblat"), progress=False)
    return pipe, patch, Prompt("a blue arrow on a grey background in the style of zorblat", {"style": "zorblat"}, 3)


@pytest.mark.full
def test_it_denoises_better_than_random_prefixes_do(world: Any) -> None:
    pipe, patch, ask = world
    attack = get_attack("unlearn_diff_atk", timesteps=1, steps=40)
    ready = attack.prepare(pipe, [ask], draw=draw_well, generator=seeded())
    latents = ready.latents[ask.text, ask.seed].expand(16, -1, -1, -1)
    noise, times = gaussian(latents, seeded(9)), torch.full((16,), 500)

    @torch.no_grad()
    def value(text: str) -> float:
        return denoising_loss(pipe, latents, times, noise, Condition(encode(pipe, tokenise(pipe, text)))).item()

    with patch.applied(pipe):
        (found,) = attack.run(pipe, ask, ready, generator=seeded())
        start = value(ask.text)
        control = RandomPrefix(images=41).run(pipe, ask, ready.words.ids["text_encoder"], generator=seeded())
        randoms = [value(one.text) for one in control]
        assert value(found.text) < min(randoms) < start


@pytest.mark.full
def test_it_recovers_what_uce_erased_and_random_prefixes_do_not(world: Any) -> None:
    pipe, patch, ask = world
    attack = get_attack("unlearn_diff_atk", timesteps=4, steps=20)
    control = get_attack("random_prefix", images=attack.budget().images)
    ready = {one: one.prepare(pipe, [ask], draw=draw_well, generator=seeded()) for one in (attack, control)}
    assert attacked(control, pipe, ready[control], Oracle(), ask, draw_well).image == 0
    with patch.applied(pipe):
        found = attacked(attack, pipe, ready[attack], Oracle(), ask, draw_well)
        other = attacked(control, pipe, ready[control], Oracle(), ask, draw_well)
    assert (found.pre, found.post, other.post) == (False, True, False)
    assert other.spent.images == 5
    assert found.image is not None
    assert 1 <= found.image <= 4
    assert found.spent.gradients == 20 * found.image
    assert found.text.endswith(ask.text)
    assert ASKS[0].text not in found.text


def test_the_projection_is_the_nearest_point_of_the_simplex() -> None:
    rows = 2 * torch.randn(50, 7, generator=seeded(), dtype=torch.float64)
    nearest = project_simplex(rows)
    assert torch.allclose(nearest.sum(dim=-1), torch.ones(50, dtype=torch.float64))
    assert nearest.min() >= 0
    # The nearest point is clamp(row - mu) with the one mu for which it sums to 1, found here by bisection.
    low, high = rows.amin(dim=-1, keepdim=True) - 1, rows.amax(dim=-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        above = (rows - middle).clamp(min=0).sum(dim=-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    assert torch.allclose(nearest, (rows - low).clamp(min=0), atol=1e-9)
    assert torch.allclose(project_simplex(nearest), nearest)
