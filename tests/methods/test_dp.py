"""Double Projections: what is preserved stays while it is few, a bound where it is not, and where concepts go."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch

from erasers import Concept, get_eraser
from erasers.closed_form.algebra import double_projection, norm_of, transform_of
from erasers.methods.dp import projection, solved
from erasers.models.ports import port_groups
from erasers.text.encoding import Reader
from erasers.text.prompts import whole

KEPT = ("moon", "blue", "a red moon", "red art", "a picture of blue")
STAR = Concept("star", aliases=["pentagram"], anchor="circle", preserve=KEPT, neighbours=["ring"])
# Sixty-four texts that end in different states, in a model of width 32: after its last norm no state has a mean.
WORDS = ("red", "blue", "moon", "ring", "art", "of", "gogh", "shape")
MANY = tuple(f"{first} {second}" for first in WORDS for second in WORDS)


def last_rows(pipe: Any, *texts: str) -> torch.Tensor:
    encoded = Reader(pipe, "last").encode([whole(text) for text in texts])
    return torch.cat([encoded[whole(text)].rows("last") for text in texts]).double()


def ports(pipe: Any) -> list[Any]:
    return [port.module for group in port_groups(pipe) for port in group.ports]


@torch.no_grad()
def moved(pipe: Any, patch: Any, rows: torch.Tensor) -> list[torch.Tensor]:
    """W_new x - W x of every port, for rows x."""
    before = [layer(rows) for layer in ports(pipe)]
    with patch.applied(pipe):
        return [layer(rows) - old for layer, old in zip(ports(pipe), before, strict=True)]


@torch.no_grad()
def step(pipe: Any, rows: torch.Tensor) -> list[torch.Tensor]:
    """W x of every port, for a step x between rows."""
    return [rows @ layer.weight.T for layer in ports(pipe)]


@pytest.fixture
def exact(pipe) -> Any:
    """A tiny pipeline in float64."""
    pipe.text_encoder.double()
    pipe.unet.double()
    return pipe


def test_preserved_states_stay_and_the_concept_is_its_anchor_in_every_layer(exact):
    patch = get_eraser("dp").fit(exact, STAR)
    shifts = moved(exact, patch, last_rows(exact, *KEPT, "ring", ""))
    assert len(shifts) == len(patch.parameters) > 2
    assert max(float(shift.abs().max()) for shift in shifts) <= 1e-10
    star, circle = last_rows(exact, "star"), last_rows(exact, "circle")
    torch.testing.assert_close(moved(exact, patch, star), step(exact, circle - star), rtol=1e-9, atol=1e-10)


def test_the_rank_is_the_number_of_names(pipe):
    tensors = get_eraser("dp", aliases=False).fit(pipe, STAR).tensors
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "transform/text/A": (1, 32),
        "transform/text/B": (32, 1),
    }


def test_all_at_once_leaves_nothing_of_the_first_and_one_after_another_does():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 24, generator=generator, dtype=torch.float64)
    erase, anchor = (common + 0.5 * torch.randn(4, 24, generator=generator, dtype=torch.float64) for _ in range(2))
    held = torch.linalg.qr(torch.randn(24, 6, generator=generator, dtype=torch.float64)).Q
    rest = {}
    for joint in (True, False):
        transform = transform_of(*solved(erase, anchor, held, joint=joint))
        assert (held.T @ transform.T - held.T).abs().max() < 1e-12
        rest[joint] = (erase @ transform.T - anchor).norm(dim=1) / (erase - anchor).norm(dim=1)
    assert rest[True].max() < 1e-10
    assert rest[False][0] > 0.05


def test_more_preserved_rows_than_the_width_are_held_in_part_and_move_within_the_bound(pipe):
    with pytest.warns(UserWarning, match="preserved states have 31 of 32 directions") as caught:
        patch = get_eraser("dp", cache=False).fit(pipe, Concept("star", anchor="circle", preserve=MANY))
    said = str(caught[0].message)
    share, bound = (
        float(re.search(pattern, said)[1]) for pattern in (r"move by ([\d.e+-]+)%", r"more than ([\d.e+-]+)")
    )
    parts = {name.rpartition("/")[2]: value.double() for name, value in patch.tensors.items()}
    rows = last_rows(pipe, *MANY, "")
    moved = rows @ parts["A"].T @ parts["B"].T
    assert moved.norm(dim=1).max() <= 1.05 * bound
    assert float(moved.norm() / rows.norm()) == pytest.approx(share / 100, rel=0.1)
    star, circle = last_rows(pipe, "star"), last_rows(pipe, "circle")
    torch.testing.assert_close(star + star @ parts["A"].T @ parts["B"].T, circle, rtol=1e-4, atol=1e-4)


def test_auto_takes_the_smallest_bound(pipe):
    eraser = get_eraser("dp", cache=False)
    (task,) = eraser.gather(
        pipe, eraser.prepared(pipe, Concept("star", anchor="circle", preserve=MANY)), port_groups(pipe)
    )
    values, directions = task.preserve.spectrum()

    def bound(count: int) -> float:
        return float(values[count]) * norm_of(*double_projection(task.erase, task.anchor, directions[:, :count]))

    chosen = eraser.count(task.erase, task.anchor, values, directions)
    assert bound(chosen) == pytest.approx(min(bound(count) for count in range(31)))
    assert get_eraser("dp", keep=7).count(task.erase, task.anchor, values, directions) == 7


def test_few_preserved_texts_warn_of_nothing(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_eraser("dp").fit(pipe, STAR)


def test_concepts_among_what_is_held_are_refused(pipe):
    with pytest.raises(ValueError, match="within the 31 directions that are held"):
        get_eraser("dp", keep=32, cache=False).fit(pipe, Concept("star", anchor="circle", preserve=MANY))


def test_the_projection_onto_one_safe_state_is_that_state_scaled():
    generator = torch.Generator().manual_seed(0)
    c, safe = (torch.randn(k, 9, generator=generator, dtype=torch.float64) for k in (2, 1))
    torch.testing.assert_close(projection(c, safe), (c @ safe.T) / safe.norm() ** 2 * safe)
    span = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    there = projection(c, span)
    assert ((c - there) @ span.T).abs().max() < 1e-10
    torch.testing.assert_close(projection(there, span), there)


def test_official_settings_send_a_concept_to_the_projection_on_anchor_and_neighbours(exact):
    patch = get_eraser("dp-official").fit(exact, STAR)
    star, safe = last_rows(exact, "star"), last_rows(exact, "circle", "ring")
    expected = step(exact, projection(star, safe) - star)
    torch.testing.assert_close(moved(exact, patch, star), expected, rtol=1e-9, atol=1e-10)


def test_a_negative_number_of_directions_is_refused():
    with pytest.raises(ValueError, match="keep"):
        get_eraser("dp", keep=-1)
