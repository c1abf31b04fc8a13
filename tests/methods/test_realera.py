"""RealEra: what is mined around the concept, where that goes, and what beyond it is held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from erasers import Concept, get_eraser, load_pipeline
from erasers.closed_form.algebra import transform_of
from erasers.closed_form.pairs import stack_pairs
from erasers.closed_form.preserved import Preserved, states_for
from erasers.methods.realera import joined, near, perturbations
from erasers.models.ports import port_groups
from erasers.text.encoding import Reader
from erasers.text.prompts import fill
from erasers.worlds.shapes.prompts import concept_for
from erasers.worlds.shapes.vocabulary import SYNONYMS

STAR = Concept("star", anchor="circle", neighbours=("ring",))


@pytest.fixture(scope="module")
def shapes() -> Any:
    return load_pipeline("shapes")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gathered(pipe: Any, concept: Concept, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """The eraser, and what it read of the first group of ports."""
    eraser = get_eraser("realera", **options)
    (task,) = eraser.gather(pipe, [concept], port_groups(pipe, "auto"), seeded(seed))
    return eraser, task


def transform(pipe: Any, concept: Concept, **options: Any) -> torch.Tensor:
    eraser, task = gathered(pipe, concept, **options)
    return transform_of(*eraser.edit(task, {}))


def rows_of(pipe: Any, texts: list[str]) -> torch.Tensor:
    """All rows `[n, d]` of prompts."""
    (group,) = port_groups(pipe, "auto")
    prompts = [fill("{}", text) for text in texts]
    found = Reader(pipe, "all").encode(prompts)
    return torch.cat([group.read(states_for(group, found[prompt], "all")) for prompt in prompts]).double()


def moved(transform: torch.Tensor, rows: torch.Tensor) -> float:
    """How far rows move, as a share of their size."""
    return float((rows @ transform.T - rows).norm() / rows.norm())


@pytest.mark.parametrize("bounds", [(0.5, 0.9, 0.99), (1.7, 0.5, 0.9), (0.2, -1.0, 1.0)])
def test_perturbations_keep_to_their_bounds_and_fill_them(bounds):
    most, low, high = bounds
    e = 3.0 * torch.randn(4, 64, generator=seeded(), dtype=torch.float64)
    eta = perturbations(e, 50, most, (low, high), seeded(1))
    lengths = eta.norm(dim=-1) / e.norm(dim=-1, keepdim=True)
    cosines = functional.cosine_similarity(e[:, None] + eta, e[:, None], dim=-1)
    assert eta.shape == (4, 50, 64)
    assert lengths.max() <= most
    assert low <= cosines.min() <= cosines.max() <= high
    assert lengths.max() > 1.5 * lengths.min()
    assert eta.mean(dim=1).norm(dim=1).max() < eta.norm(dim=-1).mean()


def test_perturbations_scale_with_the_row():
    e = torch.randn(2, 32, generator=seeded(), dtype=torch.float64)
    one, ten = (perturbations(scale * e, 5, 0.5, (0.9, 0.99), seeded(1)) for scale in (1.0, 10.0))
    torch.testing.assert_close(10.0 * one, ten)


def test_bounds_that_nothing_meets_are_refused(pipe):
    with pytest.raises(ValueError, match=r"max_distance, min_cosine and max_cosine.*got 0\.1, -1\.0 and 0\.5"):
        gathered(pipe, STAR, max_distance=0.1, min_cosine=-1.0, max_cosine=0.5)


def test_what_is_mined_is_erased_onto_the_anchor_of_its_row(pipe):
    eraser, task = gathered(pipe, STAR, mined=3, mined_scale=0.25, beyond=0)
    _, plain = gathered(pipe, STAR, mined=0, beyond=0)
    assert torch.equal(task.erase[: len(plain.erase)], plain.erase.double())
    mined, onto = (part[len(plain.erase) :] / 0.5 for part in (task.erase, task.anchor))
    pairs = eraser.prompt_pairs([STAR], eraser.templates)
    e, anchor = (rows.double() for rows in stack_pairs(task.group, task.encoded, pairs, "last"))
    torch.testing.assert_close(onto, anchor.repeat_interleave(3, dim=0))
    assert near(e, mined, 0.5, 0.9)[torch.arange(len(mined)) // 3, torch.arange(len(mined))].all()
    assert not torch.isclose(mined, e.repeat_interleave(3, dim=0)).all(dim=1).any()


def test_each_mined_row_comes_nearer_to_the_anchor(shapes):
    concept = concept_for("heart")
    eraser, task = gathered(shapes, concept)
    _, plain = gathered(shapes, concept, mined=0)
    mined, onto = (part[len(plain.erase) :] for part in (task.erase, task.anchor))
    assert len(mined) == eraser.mined * 5
    after = mined @ transform_of(*eraser.edit(task, {})).T
    assert ((after - onto).norm(dim=1) < 0.6 * (mined - onto).norm(dim=1)).all()


def test_mining_takes_a_neighbourhood_further_than_the_concept_alone(shapes):
    """New draws from the neighbourhood, which were not mined."""
    concept = concept_for("heart")
    eraser, task = gathered(shapes, concept)
    pairs = eraser.prompt_pairs([concept], eraser.templates)
    e, anchor = (rows.double() for rows in stack_pairs(task.group, task.encoded, pairs, "last"))
    fresh = e[:, None] + perturbations(e, 20, eraser.max_distance, (eraser.min_cosine, eraser.max_cosine), seeded(9))
    left = {
        mined: float((fresh @ transform(shapes, concept, mined=mined).T - anchor[:, None]).norm()) for mined in (0, 16)
    }
    assert left[16] < 0.92 * left[0]


def test_what_lies_beyond_moves_less_than_without_the_regularisation(shapes):
    """Words of other objects, colours and styles, with nothing but neighbours preserved."""
    concept = replace(concept_for("heart"), preserve=())
    others = rows_of(shapes, ["a green arrow", "a yellow hexagon", "a purple cross in the style of umbrane"])
    drift = {beyond: moved(transform(shapes, concept, beyond=beyond), others) for beyond in (0, 100)}
    assert drift[100] < 0.7 * drift[0]


def test_words_in_the_neighbourhood_are_not_held(shapes):
    concept = replace(concept_for("heart"), preserve=())
    eraser, task = gathered(shapes, concept, beyond=1000)
    words = [prompt.text for prompt in eraser.words(shapes, [concept], seeded())]
    assert "heart" not in words
    assert {"valentine", "arrow"} <= set(words)
    # Those near the concept in any of its prompts are left out, and those are its synonyms.
    _, plain = gathered(shapes, concept, beyond=0)
    held = task.preserve.texts - plain.preserve.texts
    assert 0.6 * len(words) < held < len(words)
    pairs = eraser.prompt_pairs([concept], eraser.templates)
    e, _ = stack_pairs(task.group, task.encoded, pairs, "last")
    synonyms = Reader(shapes, "last").encode([fill("{}", word) for word in SYNONYMS["heart"]]).values()
    rows = torch.cat([task.group.read(states_for(task.group, word, "last")) for word in synonyms])
    assert near(e.double(), rows.double(), eraser.max_distance, eraser.min_cosine).any(dim=0).all()


def test_near_needs_both_bounds():
    e = torch.tensor([[2.0, 0.0]])
    rows = torch.tensor([[2.0, 0.5], [0.9, 0.0], [2.0, 0.9], [-2.0, 0.0]])
    assert near(e, rows, 0.5, 0.95)[0].tolist() == [True, False, False, False]
    assert near(e, rows, 0.6, 0.95)[0].tolist() == [True, True, False, False]
    assert near(e, rows, 0.5, 0.9)[0].tolist() == [True, False, True, False]


def test_joined_rows_count_the_same_one_by_one_or_summed():
    rows = torch.randn(6, 8, generator=seeded(), dtype=torch.float64)
    few = joined(Preserved(rows[:2], None, 2, 1), rows[2:], 3)
    many = joined(Preserved(None, rows[:2].T @ rows[:2], 2, 1), rows[2:], 3)
    torch.testing.assert_close(few.covariance(), many.covariance())
    assert few.count == many.count == 6
    assert few.texts == many.texts == 4


def test_the_generator_decides(pipe):
    eraser = get_eraser("realera")
    same, again, other, none = (
        eraser.fit(pipe, STAR, generator=generator).digest for generator in (seeded(3), seeded(3), seeded(4), None)
    )
    assert same == again != other
    assert none == eraser.fit(pipe, STAR, generator=seeded(0)).digest


def test_without_mining_and_words_it_is_uce(pipe):
    plain = get_eraser("realera", mined=0, beyond=0).fit(pipe, STAR)
    uce = get_eraser("uce", rows="tail", templates="auto").fit(pipe, STAR)
    assert all(torch.allclose(value, uce.tensors[name], atol=1e-6) for name, value in plain.tensors.items())


@pytest.mark.parametrize(
    ("option", "value"),
    [("mined", -1), ("beyond", -1), ("max_distance", 0.0), ("mined_scale", 0.0), ("min_cosine", 0.995)],
)
def test_bad_options_raise(option, value):
    with pytest.raises(ValueError, match=option):
        get_eraser("realera", **{option: value})
