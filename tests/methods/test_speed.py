"""SPEED: the paper's formula by other matrices, what does not move, and how retained rows are chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from erasers import Concept, get_eraser
from erasers.closed_form.layers import value_ports
from erasers.methods.speed import beside, centres, held_directions, least_read, most_moved, null_space_edit
from erasers.models.ports import port_groups
from erasers.text.encoding import Reader
from erasers.text.prompts import whole

D = 12
STAR = Concept("star", anchor="circle", preserve=["moon", "a red moon", "blue art"], neighbours=["ring"])


def rows(n: int, seed: int, width: int = D) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "k", "invariance"), [(1, 0, 0.0), (2, 3, 0.0), (3, 5, 0.5), (2, 10, 0.2)])
def test_small_matrices_give_the_papers_edit(n, k, invariance):
    weight, erase, anchor, fixed = rows(7, 0), rows(n, 1), rows(n, 2), rows(3, 3)
    held = torch.linalg.qr(rows(D, 4)).Q[:, :k]
    a = null_space_edit(erase, held, fixed, 0.7, invariance)
    one, project = torch.eye(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64) - held @ held.T
    m = torch.linalg.inv(erase.T @ erase @ project + 0.7 * one)
    inner = fixed @ project @ m @ fixed.T + invariance * torch.eye(3, dtype=torch.float64)
    unmoved = one - m @ fixed.T @ torch.linalg.pinv(inner, rtol=1e-12) @ fixed @ project
    expected = weight @ (anchor - erase).T @ erase @ project @ unmoved @ m
    torch.testing.assert_close(weight @ (anchor - erase).T @ a, expected, rtol=1e-9, atol=1e-9)


def test_what_is_held_and_the_empty_prompt_do_not_move():
    held, fixed = torch.linalg.qr(rows(D, 4)).Q[:, :5], rows(3, 3)
    a = null_space_edit(rows(2, 1), held, fixed, 0.7, 0.0)
    assert (a @ held).abs().max() < 1e-12
    assert (a @ fixed.T).abs().max() < 1e-12
    assert (null_space_edit(rows(2, 1), held, fixed, 0.7, 0.5) @ fixed.T).abs().max() > 1e-3


def test_a_smaller_retain_scale_comes_nearer_to_the_anchor():
    erase, held, fixed = rows(2, 1), torch.linalg.qr(rows(D, 4)).Q[:, :3], rows(2, 3)
    left = [
        float((torch.eye(2, dtype=torch.float64) - null_space_edit(erase, held, fixed, scale, 0.0) @ erase.T).norm())
        for scale in (1.0, 0.05, 1e-6)
    ]
    assert left[0] > left[1] > left[2]
    assert left[2] < 1e-4


def test_directions_with_hardly_anything_are_free():
    scales = torch.tensor([3.0, 1.0, 0.01, 0.0], dtype=torch.float64)
    retained = torch.linalg.qr(rows(4, 1, 4)).Q @ torch.diag(scales)
    for threshold, count in ((0.1, 2), (1e-6, 3), ("auto", 2), (10.0, 0)):
        held = held_directions(retained, retained, threshold)
        assert held.shape == (4, count)
        torch.testing.assert_close(held @ held.T, torch.diag((torch.arange(4) < count).double()), atol=1e-9, rtol=0)
    assert held_directions(rows(0, 1), rows(0, 1), "auto").shape == (D, 0)


def test_what_spans_the_rows_gives_their_directions():
    few = rows(3, 1)
    many = rows(50, 2, 3) @ few
    from_few, from_many = (held_directions(many, span, 1e-6) for span in (few, many))
    assert from_few.shape == from_many.shape == (D, 3)
    torch.testing.assert_close(from_few @ from_few.T, from_many @ from_many.T)


def test_rows_are_chosen_by_what_the_plain_edit_moves():
    weight, erase, anchor, retained = rows(7, 0), rows(2, 1), rows(2, 2), rows(30, 3)
    plain = weight @ (anchor - erase).T @ erase @ torch.linalg.inv(torch.eye(D, dtype=torch.float64) + erase.T @ erase)
    moved = (retained @ plain.T).norm(dim=1)
    chosen = most_moved(erase, weight @ (anchor - erase).T, retained)
    assert torch.equal(chosen, retained[moved > moved.mean()])
    assert 0 < len(chosen) < 30
    assert torch.equal(most_moved(erase, weight @ (anchor - erase).T, retained[:1]), retained[:1])


@pytest.mark.parametrize("out", [7, 20])
def test_copies_are_moved_where_the_layer_reads_least(out):
    weight, retained = rows(out, 0), rows(5, 1)
    direction = least_read(weight)
    assert float(direction.norm()) == pytest.approx(1)
    least = float(torch.linalg.svdvals(weight)[-1]) if out >= D else 0.0
    assert float((weight @ direction).norm()) == pytest.approx(least, abs=1e-9)
    more = beside(retained, direction, 10, torch.Generator().manual_seed(0))
    assert more.shape == (55, D)
    assert torch.equal(more[:5], retained)
    steps = more[5:] - retained.repeat_interleave(10, dim=0)
    torch.testing.assert_close(steps, (steps @ direction)[:, None] * direction)
    assert float((steps @ direction).std()) == pytest.approx(1, abs=0.3)


def test_centres_are_means_and_the_same_every_time():
    near = torch.cat([rows(4, seed) * 0.01 + 5 * seed for seed in (1, 2, 3)])
    found = centres(near, 3)
    expected = torch.stack([near[start : start + 4].mean(dim=0) for start in (0, 4, 8)])
    torch.testing.assert_close(found[found[:, 0].argsort()], expected)
    assert centres(near[:1].repeat(5, 1), 3).shape == (1, D)
    assert centres(rows(0, 1), 3).shape == (0, D)


@torch.no_grad()
def test_values_alone_are_edited_exactly_and_the_empty_prompt_stays(pipe):
    pipe.text_encoder.double()
    pipe.unet.double()
    patch = get_eraser("speed").fit(pipe, STAR)
    ports = [port for _, own in value_ports(port_groups(pipe)) for port in own]
    assert patch.parameters == sorted(port.parameter for port in ports)
    first = Reader(pipe, "all").encode([whole("")])[whole("")].rows("all")[:1]
    before = {port.name: port.module.weight.clone() for port in ports}
    with patch.applied(pipe):
        for port in ports:
            delta = port.module.weight - before[port.name]
            assert torch.linalg.matrix_rank(delta) <= 2
            assert delta.norm() > 1e-3
            assert (first @ delta.T).abs().max() < 1e-9
    both = get_eraser("speed", layers="kv").fit(pipe, STAR)
    assert len(both.parameters) == 2 * len(patch.parameters)


def test_all_rows_are_held_where_none_is_chosen(pipe):
    """Without choosing and copies what is retained moves only as far as free directions let it."""
    eraser = get_eraser("speed", filtered=False, augmented=0, threshold=0.0)
    (task,) = eraser.gather(pipe, [STAR], port_groups(pipe))
    port = value_ports([task.group])[0][1][0]
    a, _ = eraser.edit_of(task, port, eraser.empty_rows(pipe, task.group), torch.Generator().manual_seed(0))
    assert (task.preserve.few @ a.T).abs().max() < 1e-6


def test_copies_are_drawn_from_the_generator(pipe):
    def digest(seed: int, **options: Any) -> str:
        return get_eraser("speed", **options).fit(pipe, STAR, generator=torch.Generator().manual_seed(seed)).digest

    assert digest(1) == digest(1) != digest(2)
    assert digest(1, augmented=0) == digest(2, augmented=0)


@pytest.mark.parametrize(("field", "value"), [("retain_scale", 0.0), ("augmented", -1), ("invariance", -0.1)])
def test_bad_options_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        get_eraser("speed", **{field: value})
