"""Receler: adapters that start at nothing, vectors that reach the denoiser, masks of where it looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.tiny import draw, same, weights
from support.trained import family_pipe, fitted_in_two_goes

from erasers import Concept, Patch, PatchError, UnsupportedPipeline, get_eraser
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Counter
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latent_bank import LatentBank
from erasers.diffusion.latents import latent_shape
from erasers.methods.receler.attention import attention_masks, cross_attention, looks, normalised, outside, side_of
from erasers.methods.receler.eraser import Attack, behind, fresh, positions, watched
from erasers.patch.adapter import Adapter, adapted
from erasers.training.hooked import HookedStudent

STAR = Concept("star", anchor="circle", aliases=["pentagram"])
QUICK: dict[str, Any] = {
    **{"iterations": 4, "lr": 1e-2, "rank": 4, "steps": 2, "pictures": 2, "batch": 2, "refresh": 2},
    **{"attack_steps": 2, "vectors": 3},
}
PARTS = {"down": torch.ones(2, 3), "inner": torch.zeros(2), "up": torch.ones(3, 2), "outer": torch.zeros(3)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def student_of(pipe: Any) -> HookedStudent:
    modules = cross_attention(pipe)
    hooks = [Adapter(name, fresh(module, 4, seeded())) for name, module in modules.items()]
    return HookedStudent(pipe, hooks, [f"{name}.to_out.0.weight" for name in modules], generator=seeded())


def bank_of(pipe: Any) -> LatentBank:
    noisy, times = torch.randn(2, *latent_shape(pipe), generator=seeded(1)), torch.tensor([300, 600])
    goal, rows = torch.randn(noisy.shape, generator=seeded(2)), torch.zeros(2, dtype=torch.long)
    return LatentBank(noisy, times, rows, goal, goal, noisy, rows)


@torch.no_grad()
def said(pipe: Any, condition: Any) -> torch.Tensor:
    bank = bank_of(pipe)
    return predict(pipe, bank.latents, bank.times, condition.expand(2))


def test_an_adapter_adds_what_its_layers_make_of_the_rows():
    rows = torch.tensor([[1.0, 2.0, -1.0]])
    more = 2 * torch.nn.functional.gelu(torch.tensor(2.0))
    torch.testing.assert_close(adapted(rows, PARTS, 0.5), rows + 0.5 * more)
    assert adapted(rows, PARTS, 0.0) is rows
    assert adapted(rows.half(), PARTS, 1.0).dtype == torch.float16


@pytest.mark.parametrize("wrong", [{"up": torch.ones(2, 3)}, {"inner": torch.zeros(3)}, {"outer": torch.zeros(2)}])
def test_parts_that_do_not_fit_are_refused(wrong: Mapping[str, torch.Tensor]):
    with pytest.raises(PatchError, match="expected the parts down"):
        Adapter("unet.mid_block", {**PARTS, **wrong})


def test_adapters_that_begin_leave_the_model_as_it_is(pipe):
    student, before = student_of(pipe), weights(pipe)
    plain = said(pipe, conditions(pipe, ["a star"]))
    with student.placed():
        assert torch.equal(said(pipe, conditions(pipe, ["a star"])), plain)
    with torch.no_grad():
        for part in student.parameters:
            part.add_(0.1)
    with student.placed():
        assert not torch.allclose(said(pipe, conditions(pipe, ["a star"])), plain, atol=1e-3)
    assert torch.equal(said(pipe, conditions(pipe, ["a star"])), plain)
    assert same(before, weights(pipe))


def test_what_adapters_add_is_watched(pipe):
    student = student_of(pipe)
    with student.placed(), watched(pipe, student.hooks) as added, torch.no_grad():
        said(pipe, conditions(pipe, ["a star"]))
        assert all(not more().any() for more in added)
    with torch.no_grad():
        for hook in student.hooks:
            hook.parts["outer"].fill_(0.25)
    with student.placed(), watched(pipe, student.hooks) as added, torch.no_grad():
        said(pipe, conditions(pipe, ["a star"]))
        for more in added:
            torch.testing.assert_close(more(), torch.full_like(more(), 0.25), rtol=0, atol=1e-5)


def test_the_vectors_enter_the_conditioning_and_the_attack_comes_nearer(pipe):
    pipe.unet.requires_grad_(False)
    named, bank = conditions(pipe, ["a star"]), bank_of(pipe)
    vectors = torch.nn.Parameter(torch.rand(3, named.states.shape[-1], generator=seeded()))
    told = behind(named, vectors.detach())
    assert torch.equal(told.states[:, : named.states.shape[1]], named.states)
    assert not torch.equal(said(pipe, told), said(pipe, named))
    assert not torch.equal(said(pipe, told), said(pipe, behind(named, 2 * vectors.detach())))
    attack, start = Attack(pipe, vectors, 0.05, []), vectors.detach().clone()
    far = (said(pipe, told) - bank.conditional).square().mean()
    for _ in range(20):
        attack.step(bank, named.expand(2))
    assert not torch.equal(start, vectors)
    assert (said(pipe, behind(named, vectors.detach())) - bank.conditional).square().mean() < far


def test_the_student_unlearns_behind_the_vectors(pipe, monkeypatch):
    seen: list[int] = []
    unet = pipe.unet.forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append(kwargs["encoder_hidden_states"].shape[1])
        return unet(*args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", watch)
    tokens = conditions(pipe, ["a star"]).states.shape[1]
    for steps, expected in ((2, [tokens + 3] * 3), (0, [tokens])):
        seen.clear()
        options = QUICK | {"iterations": 1, "attack_steps": steps}
        get_eraser("receler", **options).fit(pipe, STAR, progress=False)
        assert seen == expected


def test_maps_are_the_mean_over_heads_and_tokens():
    queries, keys = torch.randn(2, 6, 8, generator=seeded()), torch.randn(2, 5, 8, generator=seeded(1))
    tokens = [torch.tensor([1, 2]), torch.tensor([3])]
    maps = looks(queries, keys, 2, tokens)
    assert maps.shape == (2, 6)
    whole = torch.stack(
        [(queries[..., part] @ keys[..., part].mT / 2).softmax(dim=-1) for part in (slice(4), slice(4, 8))]
    ).mean(dim=0)
    torch.testing.assert_close(maps[0], whole[0, :, 1:3].mean(dim=-1))
    torch.testing.assert_close(maps[1], whole[1, :, 3])
    torch.testing.assert_close(looks(queries, keys, 2, [torch.arange(5)] * 2), torch.full((2, 6), 0.2))


def test_masks_go_from_nothing_to_all_and_fit_every_layer(pipe):
    named, bank = conditions(pipe, ["a star"]).expand(2), bank_of(pipe)
    tokens = [positions(pipe, "a star", "star")] * 2

    def masks(threshold: float) -> torch.Tensor:
        return attention_masks(pipe, bank.latents, bank.times, named, tokens, threshold)

    assert masks(0.0).all()
    assert masks(1.5).sum() == 0
    some = masks(0.5)
    assert set(some.unique().tolist()) == {0.0, 1.0}
    height, width = bank.latents.shape[-2:]
    assert torch.equal(outside(some, height * width).sum(dim=1) == 0, (some.sum(dim=(2, 3)) == some[0, 0].numel()))
    assert outside(torch.ones(2, 1, 4, 4), 4).tolist() == [[[0.0]] * 4] * 2
    assert side_of(32, 16, 8) == (8, 4)
    assert normalised(torch.ones(1, 1, 2, 2)).sum() == 0


def test_positions_are_those_of_the_words(pipe):
    words = positions(pipe, "a star", "star")
    assert len(words) >= 1
    assert words[0] > positions(pipe, "a star", "a")[0]


@pytest.fixture
def patch(pipe: Any) -> Patch:
    return get_eraser("receler", **QUICK).fit(pipe, STAR, progress=False)


def test_the_patch_runs_comes_off_and_survives_a_file(pipe, patch, tmp_path):
    before, picture = weights(pipe), draw(pipe)
    assert patch.has_hooks
    assert not patch.parameters
    patch.save(tmp_path / "star.safetensors")
    again = Patch.load(tmp_path / "star.safetensors")
    assert again.digest == patch.digest
    with again.applied(pipe):
        assert not torch.equal(draw(pipe), picture)
        assert same(before, weights(pipe))
    with patch.applied(pipe, strength=0):
        assert torch.equal(draw(pipe), picture)
    assert torch.equal(draw(pipe), picture)


def test_a_patch_for_other_weights_is_refused(pipe, patch):
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.mul_(1.01)
    with pytest.raises(PatchError, match="other weights: unet"):
        patch.apply(pipe)


def test_the_same_seed_and_a_killed_training_give_the_same_patch(pipe, patch, tmp_path):
    assert get_eraser("receler", **QUICK).fit(pipe, STAR, progress=False).digest == patch.digest
    again = fitted_in_two_goes(get_eraser("receler", **QUICK), pipe, STAR, tmp_path / "checkpoint", 3)
    assert again.digest == patch.digest


@pytest.mark.parametrize("options", [{}, {"attack_steps": 0, "locality": 0.0, "drawn_by": "frozen"}])
def test_it_spends_what_it_foretells(pipe, options):
    eraser = get_eraser("receler", **QUICK | options)
    with Counter(pipe) as counter:
        eraser.fit(pipe, [STAR, Concept("art")], progress=False)
    assert counter.calls == eraser.cost(pipe, [STAR, Concept("art")])


@pytest.mark.parametrize("family", ["sd3", "pixart"])
def test_denoisers_without_cross_attention_of_a_unet_are_refused(family, tmp_path):
    with pytest.raises(UnsupportedPipeline, match="expected a pipeline with a UNet"):
        get_eraser("receler", **QUICK).fit(family_pipe(family, tmp_path), STAR, progress=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains(pipe, dtype):
    pipe.unet.to(dtype)
    patch = get_eraser("receler", **QUICK | {"iterations": 16}).fit(pipe, STAR, progress=False)
    assert any(bool(value.any()) for name, value in patch.tensors.items() if name.endswith("/up"))


def test_layers_to_train_cannot_be_chosen():
    with pytest.raises(ValueError, match="expected train_method auto"):
        get_eraser("receler", train_method="x")
