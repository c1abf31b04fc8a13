"""MACE: its closed forms by other matrices, what one concept's addition sees of others, and what fusion leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import same, weights
from support.trained import family_pipe

from erasers import Concept, UnsupportedPipeline, get_eraser
from erasers.closed_form.algebra import transform_of
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.noise import total_times
from erasers.methods.mace.eraser import low_times, masked_norms
from erasers.methods.mace.fusion import around_subject, brought_back, fuse, slim, sum_of
from erasers.methods.mace.student import Additions
from erasers.methods.receler.attention import asked, cross_attention, looks
from erasers.methods.receler.eraser import positions
from erasers.text.states import Segment

D = 12
STAR = Concept("star", aliases=["pentagram"], anchor="circle", preserve=["a moon", "a red circle", "blue art"])
ART = Concept("art", anchor="moon", preserve=["a red circle"])
QUICK: dict[str, Any] = {
    **{"iterations": 4, "lr": 1e-2, "steps": 2, "pictures": 2, "error": 1e-6},
    "templates": ("{}", "a {} here"),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int, seed: int, width: int = D) -> torch.Tensor:
    return torch.randn(n, width, generator=seeded(seed), dtype=torch.float64)


def delta_of(patch: Any, pipe: Any) -> dict[str, torch.Tensor]:
    """What the patch adds to each weight."""
    before = weights(pipe)
    with patch.applied(pipe):
        after = weights(pipe)
    return {name: (after[name] - before[name]).double() for name in patch.parameters}


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_the_fused_edit_is_the_least_squares_optimum(scale):
    named, downs, ups, kept, ridge = [rows(9, 1), rows(5, 2)], rows(2, 3)[:, None], rows(7, 4, 2), rows(6, 5), 0.3
    fused = fuse(named, downs, scale * kept.T @ kept, ridge)[:, 0]
    # One least-squares problem over all rows: left E_i' and B_i A_i E_i', then what is kept and the ridge at zero.
    left = torch.cat([*named, scale**0.5 * kept, ridge**0.5 * torch.eye(D, dtype=torch.float64)])
    goals = [own @ downs[i].T @ ups[:, i : i + 1].T for i, own in enumerate(named)]
    goal = torch.cat([*goals, torch.zeros(6 + D, 7, dtype=torch.float64)])
    torch.testing.assert_close(ups @ fused, torch.linalg.lstsq(left, goal).solution.T, rtol=1e-8, atol=1e-10)
    assert torch.linalg.matrix_rank(ups @ fused) == 2


def test_rows_that_are_kept_move_less_than_without_them():
    named, downs, kept = [rows(9, 1), rows(5, 2)], rows(2, 3)[:, None], rows(3, 5)
    moved = [float((fuse(named, downs, scale * kept.T @ kept, 0.3)[:, 0] @ kept.T).norm()) for scale in (0, 1, 100)]
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 0.1 * moved[0]


def test_held_to_the_original_weights_stage_1_comes_back_as_far_as_what_is_kept_asks():
    named, a, b, kept, ridge = [rows(20, 1)], rows(3, 2), rows(D, 3, 3), rows(4, 4), 0.2
    held = 10 * kept.T @ kept
    back = brought_back(a, named, held, ridge)
    # | (W0 + D) E' - W' E' |^2 + | D H D' | + ridge | D |^2 with W' - W0 = B A, by least squares.
    left = torch.cat([*named, 10**0.5 * kept, ridge**0.5 * torch.eye(D, dtype=torch.float64)])
    goal = torch.cat([named[0] @ (b @ a).T, torch.zeros(4 + D, D, dtype=torch.float64)])
    torch.testing.assert_close(b @ back, torch.linalg.lstsq(left, goal).solution.T, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(brought_back(a, named, 0 * held, 1e-12), a, rtol=1e-6, atol=1e-8)
    assert float((back @ kept.T).norm()) < float((a @ kept.T).norm())
    torch.testing.assert_close(sum_of([named[0][:7], named[0][7:]]), named[0].T @ named[0])


@pytest.mark.parametrize(
    ("last", "words", "front", "back"),
    [
        ((3, 3), (1, 1), 3, 6),
        ((4, 3), (2, 1), 3, 5),
        ((3, 4), (1, 2), 3, 5),
        ((3, 0), (1, 0), 1, 6),
        ((9, 9), (1, 1), 9, 0),
    ],
)
def test_rows_around_the_subject_stand_in_pairs(last, words, front, back):
    states = torch.arange(10.0)[:, None]
    old, new = around_subject(Segment(states, last[0]), Segment(100 + states, last[1]), words)
    assert len(old) == len(new) == front + back
    assert old[:front, 0].tolist() == list(range(front))
    assert old[front:, 0].tolist() == [last[0] + 1 + number for number in range(back)]
    assert new[front:, 0].tolist() == [100 + last[1] + 1 + number for number in range(back)]


def test_a_slim_edit_leaves_out_no_more_than_it_may():
    a, b = rows(40, 1), rows(D, 2, 40)
    few = rows(3, 3)
    whole = transform_of(a, b)
    torch.testing.assert_close(transform_of(*slim(a, b, 1e-6)), whole)
    thin = slim(torch.cat([few] * 5), rows(D, 4, 15), 1e-6)
    assert len(thin[0]) == 3
    torch.testing.assert_close(thin[1] @ thin[0], rows(D, 4, 15) @ torch.cat([few] * 5))
    assert slim(few, rows(D, 5, 3), 1e-6)[0] is few


def test_without_additions_the_result_is_stage_1(pipe):
    pipe.text_encoder.double()
    pipe.unet.double()
    eraser = get_eraser("mace", **QUICK)
    concepts = eraser.prepared(pipe, [STAR, ART])
    stage = eraser.refined(pipe, concepts)
    student = Additions(pipe, stage, generator=seeded())
    before = weights(pipe)
    delta = delta_of(student.patch(eraser, concepts), pipe)
    assert same(before, weights(pipe))
    for name, change in delta.items():
        assert change.norm() > 1e-3
        torch.testing.assert_close(change, before[name].double() @ stage.b @ stage.a, rtol=1e-5, atol=1e-8)


def test_the_order_of_concepts_does_not_matter(pipe):
    first, second = (
        delta_of(get_eraser("mace", **QUICK).fit(pipe, given, progress=False), pipe)
        for given in ([STAR, ART], [ART, STAR])
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_each_concept_has_an_addition_of_its_own(pipe):
    eraser = get_eraser("mace", **QUICK)
    student = Additions(pipe, eraser.refined(pipe, eraser.prepared(pipe, [STAR, ART])), generator=seeded())
    with torch.no_grad():
        for part in student.parameters:
            part.add_(0.1 * torch.randn(part.shape, generator=seeded(3)))
    module = pipe.unet.get_submodule(student.names[0].removeprefix("unet.").removesuffix(".weight"))
    plain = module.weight.clone()
    with student.placed():
        for number in (0, 1):
            student.place(number)
            module.weight.sum().backward()
            slopes = [part.grad for part in student.parameters[:2]]
            assert slopes[0][number].any()
            assert not slopes[0][1 - number].any()
            assert not slopes[1][:, 1 - number].any()
            student.parameters[0].grad = student.parameters[1].grad = None
    assert torch.equal(module.weight, plain)


def test_training_takes_attention_away_inside_of_the_masks(pipe):
    """After training, the frozen pipeline with the patch looks less at the concept where it did than stage 1 does."""
    told, modules = conditions(pipe, ["a star here"]), cross_attention(pipe)
    noisy = torch.randn(1, *latent_shape(pipe), generator=seeded(5))
    tokens = [positions(pipe, "a star here", "star")]

    def looked(**options: Any) -> float:
        patch = get_eraser("mace", **QUICK | {"threshold": 0.0, "aliases": False} | options).fit(
            pipe, STAR, progress=False
        )
        with patch.applied(pipe), asked(modules) as seen, torch.no_grad():
            predict(pipe, noisy, torch.tensor([300]), told)
        return sum(
            float(looks(part["to_q"], part["to_k"], modules[name].heads, tokens).norm()) for name, part in seen.items()
        )

    assert looked(iterations=30, fuse_scale=0.0) < looked(iterations=1, lr=1e-12, fuse_scale=0.0)


def test_norms_are_of_what_is_inside_of_the_masks():
    maps, masks = torch.ones(2, 16), torch.zeros(2, 1, 4, 4)
    masks[0, 0, :2] = 1
    torch.testing.assert_close(masked_norms(maps, masks), torch.tensor([8**0.5, 0.0]))
    maps = maps.requires_grad_()
    masked_norms(maps, masks).sum().backward()
    assert torch.isfinite(maps.grad).all()
    assert not maps.grad[1].any()


def test_low_times_are_those_of_little_noise(pipe):
    total = total_times(pipe)
    times = low_times(pipe, 4000, seeded())
    assert int(times.min()) >= 0
    assert int(times.max()) < total
    assert float(times.float().mean()) == pytest.approx(0.3 * total, rel=0.03)
    assert float(((times > 0.15 * total) & (times < 0.45 * total)).float().mean()) > 0.9


@pytest.mark.parametrize("family", ["sd3", "pixart"])
def test_denoisers_without_cross_attention_of_a_unet_are_refused(family, tmp_path):
    with pytest.raises(UnsupportedPipeline, match="expected a pipeline with a UNet"):
        get_eraser("mace", **QUICK).fit(family_pipe(family, tmp_path), STAR, progress=False)


@pytest.mark.parametrize(("field", "value"), [("ridge", 0.0), ("error", 0.0), ("rank", 2), ("fuse_scale", -1.0)])
def test_bad_options_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        get_eraser("mace", **{field: value})
