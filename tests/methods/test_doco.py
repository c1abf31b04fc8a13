"""DoCo: what moves, what the two sides see and learn, and what the published code does otherwise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.selection import only
from support.tiny import weights
from support.trained import NOW, fitted_in_two_goes
from torch.nn import functional

from erasers import Concept, get_eraser
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Counter
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.noise import clean, noise_again
from erasers.methods.doco import eraser as doco
from erasers.methods.doco.discriminator import Discriminator, fooling_loss, telling_loss
from erasers.methods.doco.eraser import Contest, corrected
from erasers.training.layers import denoiser_layers
from erasers.training.scenes import Scenes, pairs_of
from erasers.training.start_token import start_token_held
from erasers.training.student import Student, names_of

STAR = Concept("star", anchor="circle", preserve=["moon", "a red circle"], neighbours=["ring"])
QUICK = {"iterations": 4, "warm_up": 1, "lr": 1e-2, "steps": 2, "pictures": 2, "batch": 2, "width": 8}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contest(pipe: Any, texts: list[str], anchors: list[str], **options: Any) -> Contest:
    """One with a picture of noise for each anchor."""
    eraser = get_eraser("doco", **QUICK | options)
    pipe.unet.requires_grad_(False)
    generator, shape = seeded(), latent_shape(pipe)
    student = Student(pipe, names_of(pipe, "unet", denoiser_layers("x-strict")), generator=generator)
    pictures = torch.randn(len(anchors), *shape, generator=generator)
    scenes = Scenes(pictures, torch.arange(len(anchors)), conditions(pipe, anchors))
    judge = Discriminator(shape, eraser.width, generator)
    return Contest(eraser, pipe, student, judge, scenes, scenes, conditions(pipe, texts), generator)


def slopes(count: int = 20, size: float = 1.0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of random gradients; about half of them conflict."""
    generator = seeded()
    return [
        (size * torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)) for _ in range(count)
    ]


def test_only_keys_and_values_of_cross_attention_move(pipe):
    before = weights(pipe)
    patch = get_eraser("doco", **QUICK).fit(pipe, STAR, progress=False)
    assert all(name.startswith("unet.") for name in patch.parameters)
    with patch.applied(pipe):
        after = weights(pipe)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".attn2.to_k." in name or ".attn2.to_v." in name}
    assert {name.partition("/")[2] for name in patch.tensors} == moved


def test_nothing_moves_while_the_discriminator_warms_up(pipe):
    one = contest(pipe, ["a star"], ["a circle"], warm_up=2)
    student = {name: value.clone() for name, value in one.student.tensors().items()}
    judge = [part.detach().clone() for part in one.judge.parameters()]
    assert list(one.step(0)) == list(one.step(1)) == ["discriminator"]
    assert all(torch.equal(value, student[name]) for name, value in one.student.tensors().items())
    assert not any(torch.equal(old, new) for old, new in zip(judge, one.judge.parameters(), strict=True))
    assert list(one.step(2)) == ["adversarial", "prior", "discriminator"]
    assert not any(torch.equal(value, student[name]) for name, value in one.student.tensors().items())


def seen(one: Contest, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """What the discriminator is shown in an iteration: x0 of the anchor and of the target."""
    shown = []
    monkeypatch.setattr(one, "_tell", lambda anchor, target, leak: shown.append((anchor, target)) or 0.0)
    one.step(0)
    return shown[0]


def test_with_the_anchors_own_prompt_both_sides_see_the_same(pipe, monkeypatch):
    anchor, target = seen(contest(pipe, ["a circle"], ["a circle"]), monkeypatch)
    assert torch.equal(anchor, target)
    anchor, target = seen(contest(pipe, ["a star"], ["a circle"]), monkeypatch)
    assert not torch.equal(anchor, target)


def test_of_two_that_are_alike_a_discriminator_learns_nothing(pipe):
    losses = {}
    for shift in (0.0, 1.0):
        one, generator = contest(pipe, ["a star"], ["a circle"], discriminator_lr=2e-3), seeded()
        pictures = [torch.randn(4, 4, 8, 8, generator=generator) for _ in range(60)]
        losses[shift] = [one._tell(picture, picture + shift, leak=False) for picture in pictures][-1]
    assert 2 * math.log(2) - 1e-6 <= losses[0.0] < 2 * math.log(2) + 0.05
    assert losses[1.0] < 1.0


def test_after_surgery_nothing_is_left_against_what_preserves():
    pairs = slopes(size=0.05)
    conflicts = [bool((a * b).sum() < 0) for a, b in pairs]
    assert any(conflicts)
    assert not all(conflicts)
    for (a, b), conflict in zip(pairs, conflicts, strict=True):
        g = corrected(a, b)
        assert (g * b).sum() >= -1e-7
        assert torch.equal(g, a) != conflict
        if conflict:
            assert (g * b).sum().abs() < 1e-7
            assert g.norm() < a.norm()
            assert functional.cosine_similarity(g.flatten(), a.flatten(), dim=0) > 0
    assert all(torch.equal(corrected(a, torch.zeros_like(b)), a) for a, b in pairs)
    assert all(torch.equal(corrected(a, b, 0.0), a) for a, b in pairs)


def test_the_published_surgery_is_right_for_gradients_of_length_one_alone():
    for a, b in slopes():
        a = a / a.norm()
        torch.testing.assert_close(corrected(a, b, published=True), corrected(a, b))
    a, b = next((0.05 * a / a.norm(), b) for a, b in slopes() if (a * b).sum() < 0)
    cosine = functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    published = corrected(a, b, published=True)
    torch.testing.assert_close(published, a - cosine * b / b.norm())
    # It descends what preserves, far longer than what it corrects.
    assert (published * b).sum() > 0.1
    assert published.norm() > 2 * a.norm()


def test_the_published_discriminator_takes_the_targets_label_for_a_half():
    anchor, target = torch.randn(3, 1, 2, 2, generator=seeded()), torch.randn(3, 1, 2, 2, generator=seeded(1))
    half = functional.binary_cross_entropy_with_logits(target, torch.full_like(target, 0.5))
    real = functional.binary_cross_entropy_with_logits(anchor, torch.zeros_like(anchor))
    torch.testing.assert_close(telling_loss(anchor, target, leak=True), real + 2 * half)
    fake = functional.binary_cross_entropy_with_logits(target, torch.ones_like(target))
    torch.testing.assert_close(telling_loss(anchor, target), real + fake)
    assert fooling_loss(torch.full_like(target, -9.0)) < 1e-3 < 8 < fooling_loss(torch.full_like(target, 9.0))


def test_compatible_with_upstream_the_discriminator_follows_the_student_once_that_learns(pipe):
    """The leak is the whole difference in D's first step after the warm-up; before that there is none."""
    judges = {}
    for compat in (False, True):
        one = contest(pipe, ["a star"], ["a circle"], upstream_compat=compat)
        judges[compat] = []
        for number in range(2):
            one.step(number)
            judges[compat].append(torch.cat([part.detach().flatten() for part in one.judge.parameters()]))
    assert torch.equal(judges[False][0], judges[True][0])
    assert not torch.equal(judges[False][1], judges[True][1])


@pytest.mark.full
def test_the_student_learns_to_be_taken_for_the_frozen_model(pipe, monkeypatch):
    """A discriminator that has stopped to learn is fooled more and more, and by nothing else than by training."""
    found = {}
    for lr in (1e-12, 1e-1):
        one = contest(pipe, ["a star"], ["a circle"], warm_up=0, lr=lr, discriminator_lr=1e-12, surgery=0.0)
        same = noise_again(pipe, one.bad.pictures.repeat(2, 1, 1, 1), seeded())
        monkeypatch.setattr(doco, "noise_again", lambda *arguments, same=same: same)
        found[lr] = [one.step(number)["adversarial"] for number in range(12)]
    assert found[1e-12][-1] == pytest.approx(found[1e-12][0], abs=1e-5)
    assert found[1e-1][-1] < found[1e-1][0] - 1e-2


def test_the_start_token_gets_no_gradient(pipe):
    states = torch.randn(1, 4, pipe.unet.config.cross_attention_dim)
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k

    def slope(rows: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(layer(rows).square().sum(), [layer.weight])[0]

    with start_token_held(pipe):
        held, without = slope(states), slope(torch.cat([0 * states[:, :1], states[:, 1:]], dim=1))
        value = layer(states)
    torch.testing.assert_close(held, without)
    assert torch.equal(value, layer(states))
    assert not torch.allclose(slope(states), held)


@pytest.mark.parametrize(("side", "patches"), [(64, 3), (128, 7), (96, 5), (8, 3), (4, 3), (2, 2)])
def test_the_discriminator_takes_latents_of_any_size(side, patches):
    judge = Discriminator((4, side, side), 8, seeded())
    assert judge(torch.randn(2, 4, side, side)).shape == (2, 1, patches, patches)


def test_the_discriminator_is_drawn_from_the_generator_alone():
    state = torch.get_rng_state()
    one, two, other = (Discriminator((4, 8, 8), 8, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    picture = torch.randn(1, 4, 8, 8, generator=seeded())
    assert torch.equal(one(picture), two(picture))
    assert not torch.equal(one(picture), other(picture))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_goal_of_the_prior_is_the_picture_under_either_prediction(pipe, kind):
    one = contest(pipe, ["a star"], ["a circle"])
    pipe.scheduler.register_to_config(prediction_type=kind)
    noisy, times, truth = noise_again(pipe, one.good.pictures, seeded())
    goal = one.goal(truth, noisy, times, one.good.conditions)
    torch.testing.assert_close(clean(pipe, noisy, times, goal), one.good.pictures, rtol=0, atol=1e-4)
    assert torch.equal(goal, truth)


def test_the_prior_of_the_frozen_model_is_against_drift_alone(pipe):
    for prior, still in (("frozen", True), ("noise", False)):
        one = contest(pipe, ["a star"], ["a circle"], prior=prior)
        loss, slopes = one._preserve()
        assert (loss < 1e-9) == still
        assert all(bool(slope.any()) != still for slope in slopes)


def test_captions_take_the_place_of_templates(pipe):
    captions = ("{} of art", "two {}")
    pairs, prompts = pairs_of([Concept("star", aliases=["moon"], anchor="circle")], captions, 9, seeded())
    assert set(pairs) == {
        ("star of art", "circle of art"),
        ("two star", "two circle"),
        ("moon of art", "circle of art"),
        ("two moon", "two circle"),
    }
    assert len(prompts) == 9
    empty, _ = pairs_of([Concept("star", anchor="")], captions, 9, seeded())
    assert set(empty) == {("star of art", "of art"), ("two star", "two")}
    assert any("picture" in text for text, _ in pairs_of([STAR], "auto", 9, seeded())[0])


def test_pictures_are_the_same_number_for_each_concept():
    pairs, prompts = pairs_of([STAR, Concept("art", kind="style")], "auto", 7, seeded())
    first = [index for index, (text, _) in enumerate(pairs) if "star" in text]
    assert sum(int(number) in first for number in prompts) == 7
    assert len(prompts) == 14
    assert set(prompts.tolist()) == set(range(len(pairs)))


@pytest.mark.parametrize(
    "options", only([{}, {"kept": 3, "prior": "frozen"}, {"warm_up": 0, "captions": ("one {}",)}], {})
)
def test_cost_is_what_training_spends(pipe, options):
    eraser, concepts = get_eraser("doco", **QUICK | options), [STAR, Concept("art", kind="style", aliases=["van gogh"])]
    with Counter(pipe) as counter:
        eraser.fit(pipe, concepts, progress=False)
    assert eraser.cost(pipe, concepts) == counter.calls


def test_a_checkpoint_holds_the_discriminator(pipe, tmp_path):
    eraser, path = get_eraser("doco", **QUICK), tmp_path / "checkpoint"
    patch = eraser.fit(pipe, STAR, checkpoint=path, **NOW)
    names = set(load_file(path))
    judge = {name for name, _ in Discriminator(latent_shape(pipe), 8, seeded()).named_parameters()}
    assert {f"tensors/{name}" for name in judge} <= names
    assert sum(name.startswith("optimizers/discriminator/") and name.endswith("/exp_avg") for name in names) == len(
        judge
    )
    assert not any("layers" in name for name in patch.tensors)


@pytest.mark.full
@pytest.mark.parametrize("after", [1, 3])
def test_what_goes_on_from_a_checkpoint_ends_in_the_same_patch(pipe, tmp_path, after):
    eraser = get_eraser("doco", **QUICK | {"kept": 2})
    whole, patch = eraser.fit(pipe, STAR, progress=False), fitted_in_two_goes(eraser, pipe, STAR, tmp_path / "a", after)
    assert patch.digest == whole.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warm_up": 2000}, "expected warm_up below 2000 iterations, got 2000"),
        ({"warm_up": -1}, "expected warm_up of at least 0, got -1"),
        ({"width": 6}, "expected width as a multiple of 4, got 6"),
        ({"captions": ("a star",)}, "expected captions with one {}, got 'a star'"),
        ({"patience": 3}, "expected patience 0, .*got 3"),
        ({"discriminator_lr": 0.0}, "expected discriminator_lr above 0, got 0.0"),
        ({"batch": 0}, "expected batch of at least 1, got 0"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        get_eraser("doco", **options)
