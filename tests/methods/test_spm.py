"""SPM: membranes that begin at nothing, that only the concept's prompts open, and what is anchored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.tiny import draw, same, weights
from support.trained import family_pipe, fitted_in_two_goes

from erasers import Concept, Patch, PatchError, UnsupportedPipeline, get_eraser
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Counter
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latents import latent_shape
from erasers.methods.spm import Anchors, MembraneStudent, chances_of, fresh, gate_of, membrane_layers, weighted
from erasers.patch.membrane import Membrane, openness, through

STAR = Concept("star", anchor="circle", preserve=["a moon", "a red circle"], neighbours=["ring"])
QUICK: dict[str, Any] = {
    **{"iterations": 4, "lr": 1e-2, "rank": 1, "steps": 2, "pictures": 2, "batch": 2, "refresh": 2},
    **{"kept": 6, "anchors": 2, "everyday": False, "templates": ("{}",)},
}
PARTS = {
    "down": torch.tensor([[1.0, 2.0]]),
    "up": torch.tensor([[3.0], [4.0], [5.0]]),
    "probe": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
    "shut": torch.tensor([1.0, 2.0]),
    "open": torch.tensor([3.0, 4.0]),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_likest_token_opens_and_any_concept_does():
    text = torch.tensor([[[0.5, 0.0], [1.0, 2.0]], [[2.0, 0.0], [0.0, 0.0]], [[9.0, 0.0], [0.0, 3.0]]])
    assert openness(text, PARTS).tolist() == [0.0, 0.5, 1.0]
    assert openness(text.flip(0), PARTS).tolist() == [1.0, 0.5, 0.0]


def test_what_is_shut_stays_bit_for_bit_and_what_is_open_gets_the_rank_one_part():
    rows, output = torch.randn(3, 4, 2, generator=seeded()), torch.randn(3, 4, 3, generator=seeded(1))
    output[0, 0, 0] = -0.0
    edited = through(rows, output, torch.tensor([0.0, 0.5, 1.0]), PARTS, 2.0)
    assert torch.equal(edited[0], output[0])
    assert torch.signbit(edited[0, 0, 0])
    whole = rows @ PARTS["down"].T @ PARTS["up"].T
    torch.testing.assert_close(edited[1:] - output[1:], torch.tensor([1.0, 2.0]).view(2, 1, 1) * whole[1:])
    assert through(rows, output, torch.ones(3), PARTS, 0.0) is output


@pytest.mark.parametrize(
    "wrong", [{"up": torch.ones(3, 2)}, {"open": torch.tensor([1.0, 4.0])}, {"shut": torch.zeros(3)}]
)
def test_parts_that_do_not_fit_are_refused(wrong: Mapping[str, torch.Tensor]):
    with pytest.raises(PatchError, match="expected"):
        Membrane("unet.mid_block", {**PARTS, **wrong})


def test_the_gate_is_shut_for_what_is_kept_and_open_for_the_concept():
    named, anchors = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    named[:, 1, 0], anchors[:, 1, 1] = 4.0, 4.0
    kept = torch.randn(5, 3, 4, generator=seeded()) * 0.3
    gate = gate_of(named, anchors, kept, [torch.tensor([True, True])])
    assert openness(named, gate).tolist() == [1.0, 1.0]
    assert openness(kept, gate).tolist() == [0.0] * 5
    assert openness(anchors, gate).tolist() == [0.0, 0.0]
    # A kept prompt that is as like as the concept does not turn the gate round.
    assert (gate_of(named, anchors, named, [torch.tensor([True, True])])["open"] > 0).all()


def test_what_is_like_the_concept_is_anchored_less_often():
    kept = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.1]]])
    shares = chances_of(kept, torch.tensor([[[2.0, 0.0]]]), 1.0)
    assert shares[1] > 0.9
    assert shares.sum() == pytest.approx(1.0)
    torch.testing.assert_close(chances_of(kept, kept[:1], 0.0), torch.full((3,), 1 / 3))
    drawn = Anchors(Condition(kept), shares, {}, seeded()).drawn(200)
    assert (drawn == 1).float().mean() > 0.8


def test_terms_have_their_weights():
    losses = {"erase": torch.tensor(2.0), "anchor": torch.tensor(0.5)}
    assert float(weighted(losses, 4.0)) == 4.0


def test_membranes_that_begin_leave_the_model_as_it_is(pipe):
    layers = membrane_layers(pipe)
    assert all("transformer_blocks" in name for name in layers)
    width = conditions(pipe, [""]).states.shape[-1]
    hooks = [Membrane(name, fresh(layer, 1, width, seeded())) for name, layer in layers.items()]
    student = MembraneStudent(pipe, hooks, [f"{name}.weight" for name in layers], {}, generator=seeded())
    noisy = torch.randn(1, *latent_shape(pipe), generator=seeded())
    times, told = torch.tensor([500]), conditions(pipe, ["a star"])
    with torch.no_grad():
        plain = predict(pipe, noisy, times, told)
        with student.placed():
            assert torch.equal(predict(pipe, noisy, times, told), plain)
        for part in student.parameters:
            part.add_(0.1)
        with student.placed():
            assert not torch.allclose(predict(pipe, noisy, times, told), plain, atol=1e-3)
        assert torch.equal(predict(pipe, noisy, times, told), plain)


@pytest.fixture
def patch(pipe: Any) -> Patch:
    return get_eraser("spm", **QUICK).fit(pipe, STAR, progress=False)


def test_kept_prompts_stay_bit_for_bit_in_any_batch_and_the_concept_changes(pipe, patch, tmp_path):
    before = weights(pipe)
    told = conditions(pipe, ["a moon", "star", "", "a red circle"])
    noisy, times = torch.randn(4, *latent_shape(pipe), generator=seeded()), torch.full((4,), 500)

    @torch.no_grad()
    def said(rows: list[int]) -> torch.Tensor:
        return predict(pipe, noisy[rows], times[rows], told.rows(torch.tensor(rows)))

    plain = {tuple(rows): said(rows) for rows in ([0, 1, 2, 3], [3, 1], [2])}
    patch.save(tmp_path / "star.safetensors")
    with Patch.load(tmp_path / "star.safetensors").applied(pipe):
        for rows, old in plain.items():
            changed = [not torch.equal(*pair) for pair in zip(said(list(rows)), old, strict=True)]
            assert changed == [row == 1 for row in rows]
        assert same(before, weights(pipe))
    assert torch.equal(said([0, 1, 2, 3]), plain[0, 1, 2, 3])


def test_the_patch_is_of_hooks_and_comes_off(pipe, patch):
    picture = draw(pipe, "star")
    assert patch.has_hooks
    assert not patch.parameters
    with patch.applied(pipe):
        assert not torch.equal(draw(pipe, "star"), picture)
    with patch.applied(pipe, strength=0):
        assert torch.equal(draw(pipe, "star"), picture)
    assert torch.equal(draw(pipe, "star"), picture)
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.mul_(1.01)
    with pytest.raises(PatchError, match="other weights: unet"):
        patch.apply(pipe)


def test_the_same_seed_and_a_killed_training_give_the_same_patch(pipe, patch, tmp_path):
    assert get_eraser("spm", **QUICK).fit(pipe, STAR, progress=False).digest == patch.digest
    again = fitted_in_two_goes(get_eraser("spm", **QUICK), pipe, STAR, tmp_path / "checkpoint", 3)
    assert again.digest == patch.digest


@pytest.mark.parametrize("options", [{}, {"surrogate": "empty", "anchoring": 0.0}, {"drawn_by": "frozen"}])
def test_it_spends_what_it_foretells(pipe, options):
    eraser = get_eraser("spm", **QUICK | options)
    with Counter(pipe) as counter:
        eraser.fit(pipe, [STAR, Concept("art")], progress=False)
    assert counter.calls == eraser.cost(pipe, [STAR, Concept("art")])


@pytest.mark.parametrize("family", ["sdxl", "sd3", "pixart"])
def test_other_families_are_trained_and_gated(family, tmp_path):
    pipe = family_pipe(family, tmp_path)
    patch = get_eraser("spm", **QUICK | {"iterations": 2}).fit(pipe, STAR, progress=False)
    told, noisy = conditions(pipe, ["a moon", "star"]), torch.randn(2, *latent_shape(pipe), generator=seeded())

    @torch.no_grad()
    def said() -> torch.Tensor:
        return predict(pipe, noisy, torch.full((2,), 500.0 if family == "sd3" else 500), told)

    plain = said()
    with patch.applied(pipe):
        edited = said()
    assert torch.equal(edited[0], plain[0])
    assert not torch.equal(edited[1], plain[1])


def test_denoisers_that_mix_prompts_are_refused(tmp_path):
    with pytest.raises(UnsupportedPipeline, match="expected a pipeline whose denoiser"):
        get_eraser("spm", **QUICK).fit(family_pipe("flux", tmp_path), STAR, progress=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains(pipe, dtype):
    pipe.unet.to(dtype)
    patch = get_eraser("spm", **QUICK | {"iterations": 16}).fit(pipe, STAR, progress=False)
    assert any(bool(value.any()) for name, value in patch.tensors.items() if name.endswith("/up"))


def test_layers_to_train_cannot_be_chosen():
    with pytest.raises(ValueError, match="expected train_method auto"):
        get_eraser("spm", train_method="x")
