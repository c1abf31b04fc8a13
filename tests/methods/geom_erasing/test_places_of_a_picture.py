"""The grid of places: bins of boxes, and weights that keep their sum."""

from __future__ import annotations

import pytest
import torch

from erasers.methods.geom_erasing.grid import bin_weights, covered, latent_weights, usual_bins


@pytest.mark.parametrize("alpha", [0.1, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("bins", [(), (0,), (5, 6, 9, 10), tuple(range(16))])
def test_weights_have_the_sum_of_their_places_and_boxes_count_one_alphath(alpha, bins):
    weights = latent_weights(bin_weights(bins, 4, alpha)[None], (8, 12))[0, 0]
    assert float(weights.sum()) == pytest.approx(8 * 12)
    inside = bin_weights(bins, 4, 1e6).flatten().argsort()[: len(bins)].sort().values
    assert tuple(inside.tolist()) == tuple(bins)
    grid = bin_weights(bins, 4, alpha).flatten()
    outside = [number for number in range(16) if number not in bins]
    if bins and outside:
        assert torch.allclose(grid[list(bins)], grid[outside[0]] / alpha)
        total, count = 16, len(bins)
        torch.testing.assert_close(grid[bins[0]], torch.tensor(total / (count + alpha * (total - count))))


def test_weights_of_latents_that_the_grid_does_not_divide_keep_their_sum():
    assert float(latent_weights(bin_weights((0,), 3, 4.0)[None], (8, 8)).sum()) == pytest.approx(64)


@pytest.mark.parametrize(
    ("box", "bins"),
    [
        ((1, 1, 8, 8), (0,)),
        ((1, 1, 8.5, 8), (0, 1)),
        ((0, 0, 32, 32), tuple(range(16))),
        ((8, 16, 24, 32), (9, 10, 13, 14)),
        ((31, 31, 32, 32), (15,)),
        ((-3, -3, 2, 2), (0,)),
    ],
)
def test_a_box_covers_the_bins_that_it_touches(box, bins):
    assert covered([box], (32, 32), 4) == bins
    wide = (box[0] * 2, *box[1:2], box[2] * 2, box[3])
    assert covered([wide], (64, 32), 4) == bins


def test_boxes_cover_a_bin_once_and_a_rectangle_of_bins_has_its_sides_product():
    assert covered([(0, 0, 4, 4), (1, 1, 12, 4)], (32, 32), 4) == (0, 1)
    assert covered([], (32, 32), 4) == ()
    for m1, m2, n1, n2 in ((0, 2, 1, 3), (1, 1, 0, 3)):
        box = (m1 * 8 + 1, n1 * 8 + 1, m2 * 8 + 7, n2 * 8 + 7)
        assert len(covered([box], (32, 32), 4)) == (m2 - m1 + 1) * (n2 - n1 + 1)


def test_usual_bins_are_those_of_the_share_or_else_the_commonest():
    marks = [(0, 1), (0,), (), (0, 2), (1,)]
    assert usual_bins(marks, 0.5) == (0, 1)
    assert usual_bins(marks, 1.0) == (0,)
    assert usual_bins(marks, 0.0) == (0, 1, 2)
    assert usual_bins([(), ()], 0.5) == ()
