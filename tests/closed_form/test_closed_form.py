from __future__ import annotations

import pytest
import torch

from erasers.closed_form import algebra as cf
from erasers.closed_form.ports import sum_of_grams
from erasers.closed_form.preserved import Preserved

D = 12


def rows(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_uce(weight, erase, anchor, preserve, ridge, erase_scale, preserve_scale):
    """The paper's equation 7, one layer and one row at a time."""
    left = ridge * weight
    right = ridge * torch.eye(D, dtype=torch.float64)
    for c, g in zip(erase, anchor, strict=True):
        left = left + erase_scale * torch.outer(weight @ g, c)
        right = right + erase_scale * torch.outer(c, c)
    for p in preserve:
        left = left + preserve_scale * torch.outer(weight @ p, p)
        right = right + preserve_scale * torch.outer(p, p)
    return left @ torch.linalg.inv(right)


@pytest.mark.parametrize(("n", "m"), [(1, 0), (2, 3), (5, 40), (30, 2)])
def test_ridge_edit_is_the_paper(n, m):
    weight, erase, anchor, preserve = rows(7, 0), rows(n, 1), rows(n, 2), rows(m, 3)
    a, b = cf.ridge_edit(erase, anchor, preserve, ridge=0.3, erase_scale=1.7, preserve_scale=0.4)
    assert a.shape == (n, D)
    assert b.shape == (D, n)
    expected = naive_uce(weight, erase, anchor, preserve, 0.3, 1.7, 0.4)
    torch.testing.assert_close(weight @ cf.transform_of(a, b), expected, rtol=1e-10, atol=1e-10)
    for few, many in ((preserve, None), (None, cf.gram(preserve))):
        held = Preserved(few, many, m, m)
        other = held.ridge_edit(erase, anchor, ridge=0.3, erase_scale=1.7, preserve_scale=0.4)
        torch.testing.assert_close(cf.transform_of(*other), cf.transform_of(a, b), rtol=1e-9, atol=1e-9)


def test_ridge_edit_is_optimal():
    erase, anchor, preserve = rows(3, 1), rows(3, 2), rows(5, 3)
    transform = cf.transform_of(*cf.ridge_edit(erase, anchor, preserve, ridge=0.2)).requires_grad_()
    moved = ((erase @ transform.T - anchor) ** 2).sum() + ((preserve @ transform.T - preserve) ** 2).sum()
    loss = moved + 0.2 * ((transform - torch.eye(D, dtype=torch.float64)) ** 2).sum()
    loss.backward()
    assert transform.grad.abs().max() < 1e-9


def test_anchor_equal_to_concept_changes_nothing():
    a, b = cf.ridge_edit(rows(2, 1), rows(2, 1), rows(0, 3), ridge=0.1)
    assert torch.equal(cf.transform_of(a, b), torch.eye(D, dtype=torch.float64))


def test_adversarial_rows_solve_the_regression():
    weights = [rows(6, seed) for seed in range(4)]
    transform = cf.transform_of(*cf.ridge_edit(rows(2, 5), rows(2, 6), rows(0, 7), ridge=0.1))
    concept = rows(3, 8)
    found = cf.adversarial_rows(sum_of_grams(weights), transform, concept, reg=0.05)
    for x, c in zip(found, concept, strict=True):
        left = 0.05 * torch.eye(D, dtype=torch.float64)
        right = torch.zeros(D, dtype=torch.float64)
        for weight in weights:
            edited = weight @ transform
            left += edited.T @ edited
            right += edited.T @ (weight @ c)
        torch.testing.assert_close(x, torch.linalg.inv(left) @ right, rtol=1e-9, atol=1e-9)


def test_compose_is_the_product():
    first = cf.ridge_edit(rows(2, 1), rows(2, 2), rows(1, 3), ridge=0.1)
    second = cf.ridge_edit(rows(3, 4), rows(3, 5), rows(1, 6), ridge=0.1)
    product = cf.transform_of(*first) @ cf.transform_of(*second)
    torch.testing.assert_close(cf.transform_of(*cf.compose(first, second)), product, rtol=1e-12, atol=1e-12)


def test_oblique_edit_projects():
    directions, preserve = cf.leading_directions(rows(6, 1), 3), rows(8, 2)
    a, b = cf.oblique_edit(directions, preserve, 0.01)
    transform = cf.transform_of(a, b)
    torch.testing.assert_close(transform @ transform, transform, rtol=1e-9, atol=1e-9)
    assert (a @ transform).abs().max() < 1e-9
    assert (transform @ directions).abs().max() < 1e-9
    orthogonal = torch.eye(D, dtype=torch.float64) - directions @ directions.T
    assert (preserve @ transform.T - preserve).norm() < (preserve @ orthogonal.T - preserve).norm()
    nothing = cf.transform_of(*cf.oblique_edit(directions, rows(0, 3), 0.01))
    torch.testing.assert_close(nothing, orthogonal, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(1, 0), (1, 3), (3, 5), (4, 8)])
def test_double_projection_reaches_the_anchor_and_moves_nothing_preserved(n, m):
    erase, anchor, preserve = rows(n, 1), rows(n, 2), rows(m, 3)
    _, held = Preserved(preserve, None, m, m).spectrum()
    a, b = cf.double_projection(erase, anchor, held)
    transform = cf.transform_of(a, b)
    assert (preserve @ transform.T - preserve).abs().sum() <= 1e-10
    torch.testing.assert_close(erase @ transform.T, anchor, rtol=1e-10, atol=1e-10)
    assert torch.linalg.matrix_rank(b @ a) == n
    torch.testing.assert_close(cf.norm_of(a, b), float(torch.linalg.matrix_norm(b @ a, ord=2)))
    # The limit of UCE, as far as its solve in float64 goes.
    limit = cf.transform_of(*cf.ridge_edit(erase, anchor, preserve, ridge=1e-6, preserve_scale=1e3))
    assert (transform - limit).norm() < 2e-3 * (transform - torch.eye(D, dtype=torch.float64)).norm()


def test_double_projection_of_rows_given_twice_is_that_of_one():
    erase, anchor, held = rows(1, 1), rows(1, 2), cf.leading_directions(rows(3, 3), 3)
    one, two = (cf.transform_of(*cf.double_projection(erase.repeat(k, 1), anchor.repeat(k, 1), held)) for k in (1, 2))
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_spectrum_of_rows_and_of_their_gram():
    preserve = torch.cat([rows(4, 3), 2 * rows(4, 3)[:1]])
    few, many = (Preserved(*held, 5, 5).spectrum() for held in ((preserve, None), (None, cf.gram(preserve))))
    assert few[0].shape == many[0].shape == (4,)
    torch.testing.assert_close(few[0], many[0])
    torch.testing.assert_close(few[1] @ few[1].T, many[1] @ many[1].T)
    assert Preserved(rows(0, 3), None, 0, 0).spectrum()[1].shape == (D, 0)


def test_free_share_is_what_is_outside():
    held = torch.eye(D, dtype=torch.float64)[:, :2]
    inside, half = torch.zeros(2, D, dtype=torch.float64)
    inside[0], half[0], half[5] = 3.0, 4.0, 3.0
    assert cf.free_share(inside[None], held) == 0
    assert cf.free_share(half[None], held) == pytest.approx(0.6)
    assert cf.free_share(torch.stack([half, inside]), held) == 0


def test_leading_directions_skip_null_ones():
    assert cf.leading_directions(rows(2, 1), 9).shape == (D, 2)
    assert cf.leading_directions(torch.zeros(2, D), 3).shape == (D, 0)


def test_sum_of_grams_of_uneven_blocks():
    weights = [rows(5, seed)[:, :11] for seed in range(3)]
    torch.testing.assert_close(sum_of_grams(weights), sum(w.T @ w for w in weights), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "got"),
    [
        (lambda: cf.ridge_edit(rows(2, 1), rows(3, 1), rows(0, 1), ridge=0.1), r"\(2, 12\), \(3, 12\)"),
        (lambda: cf.ridge_edit(rows(2, 1), rows(2, 1), torch.zeros(1, 5), ridge=0.1), r"\(1, 5\)"),
        (lambda: cf.ridge_edit(rows(2, 1), rows(2, 1), rows(0, 1), ridge=0.0), "0.0"),
        (lambda: cf.adversarial_rows(rows(D, 1), rows(D, 2), rows(1, 3), reg=-1.0), "-1.0"),
        (lambda: cf.oblique_edit(rows(D, 1), rows(1, 3), 0.0), "0.0"),
    ],
)
def test_bad_input_names_the_value(call, got):
    with pytest.raises(ValueError, match=got):
        call()
