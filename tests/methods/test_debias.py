"""Debiasing: the closed form by another way, the rounds with a measure by hand, and colours on the embedded model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import draw, same, weights

from erasers import Concept, Patch, load_pipeline
from erasers.asks import PlainPrompt
from erasers.closed_form.algebra import ridge_edit, transform_of
from erasers.evaluation.drawing import generate
from erasers.judges import get_judge
from erasers.methods.debias import Debias, balanced_rows, judged, next_scales
from erasers.text.encoding import Reader
from erasers.text.prompts import whole
from erasers.worlds.shapes.prompts import concept_for

STAR = Concept("star", anchor="circle", preserve=["a moon", "ring"])
MOON = Concept("moon", anchor="circle")
KEPT = {
    "a red star": {"object": "star", "colour": "red"},
    "a blue star": {"object": "star", "colour": "blue"},
    "a red circle": {"object": "circle", "colour": "red"},
    "a green heart": {"object": "heart", "colour": "green"},
}
QUICK: dict[str, Any] = {"pictures": 2, "steps": 1, "guidance": 1.0, "cache": False, "everyday": False}


def scripted(*answers: tuple[float, ...]) -> Any:
    """A measure that gives these shares in turn, and counts what it was shown."""
    rest = list(answers)

    def measure(pictures: Any, attributes: Any) -> tuple[float, ...]:
        measure.shown.append([picture.tobytes() for picture in pictures])  # type: ignore[attr-defined]
        return rest.pop(0)

    measure.shown = []  # type: ignore[attr-defined]
    return measure


def last(pipe: Any, *texts: str) -> torch.Tensor:
    prompts = [whole(text) for text in texts]
    encoded = Reader(pipe, "last").encode(prompts)
    return torch.cat([encoded[prompt].rows("last") for prompt in prompts]).double()


def test_rows_and_scales():
    concepts, attributes = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    scales = torch.tensor([[0.5, 0.0], [-1.0, 1.0]])
    found = balanced_rows(concepts, attributes.expand(2, 2, 2), scales)
    assert found.tolist() == [[1.5, 0.5], [-1.0, 4.0]]
    after = next_scales(scales, torch.tensor([0.5, 0.5]), torch.tensor([[0.8, 0.2], [0.5, 0.5]]), 0.5)
    torch.testing.assert_close(after, torch.tensor([[0.35, 0.15], [-1.0, 1.0]]))


def test_a_round_is_the_closed_form_with_these_targets(pipe):
    measure = scripted((0.9, 0.1), (0.5, 0.5))
    patch = Debias(attributes=("red", "blue"), step=0.5, preserve_rows="last", **QUICK).fit(pipe, STAR, measure=measure)
    star, red, blue = (last(pipe, text) for text in ("star", "red", "blue"))
    goal = star + 0.5 * (0.5 - 0.9) * red + 0.5 * (0.5 - 0.1) * blue
    kept = last(pipe, "", "a moon", "ring", "red", "blue")
    wanted = transform_of(*ridge_edit(star, goal, kept, ridge=0.5, preserve_scale=0.2))
    before = weights(pipe)
    with patch.applied(pipe):
        after = weights(pipe)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved
    assert all(".attn2.to_" in name for name in moved)
    for name in moved:
        expected = before[name].double() @ wanted
        torch.testing.assert_close(after[name].double(), expected, rtol=1e-4, atol=1e-5)


def test_scales_add_up_and_every_round_draws_with_the_last_edit(pipe):
    before, plain = weights(pipe), draw(pipe)
    measure = scripted((1.0, 0.0), (0.0, 1.0), (0.64, 0.16), (0.5, 0.5), (0.4, 0.6))
    eraser = Debias(attributes=("red", "blue"), shares=(0.7, 0.3), step=3.0, rounds=5, tolerance=0.01, **QUICK)
    with pytest.warns(UserWarning, match="red 80%, blue 20%.* is the nearest of 5 rounds"):
        patch = eraser.fit(pipe, STAR, measure=measure)
    first, _, third, *_ = measure.shown
    assert len(measure.shown) == 5
    assert len({tuple(shown) for shown in measure.shown}) == 5
    assert third != first
    # The nearest round is the third: what was measured there is what the patch draws.
    again = scripted((0.7, 0.3))
    with patch.applied(pipe):
        eraser.measured(
            pipe, STAR, torch.randint(2**31, (2,), generator=torch.Generator().manual_seed(0)).tolist(), again
        )
    assert again.shown[0] == third
    assert same(weights(pipe), before)
    assert torch.equal(draw(pipe), plain)


def test_concepts_have_scales_of_their_own(pipe, tmp_path):
    measure = scripted((1.0, 0.0), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5))
    eraser = Debias(attributes=("red", "blue"), preserve_empty=False, **QUICK)
    patch = eraser.fit(pipe, [STAR, MOON], measure=measure)
    patch.save(tmp_path / "p.safetensors")
    meta = Patch.load(tmp_path / "p.safetensors").meta
    assert meta["method"] == "debias"
    assert [(concept["name"], concept["anchor"]) for concept in meta["concepts"]] == [
        ("star", "star"),
        ("moon", "moon"),
    ]
    (a, b) = (patch.tensors[name] for name in sorted(patch.tensors))
    moved = (torch.eye(a.shape[1]) + b @ a).double() - torch.eye(a.shape[1])
    star, moon = (float((last(pipe, text) @ moved.T).norm()) for text in ("star", "moon"))
    assert moon < 0.5 * star


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attributes": ("red",)}, "two attributes or more"),
        ({"attributes": ("red", "red")}, "two attributes or more, each once"),
        ({"shares": (0.5,)}, "expected 2 shares, one for each attribute, got 1"),
        ({"shares": (0.9, 0.2)}, "of at least 0 with a sum of 1"),
        ({"shares": (1.5, -0.5)}, "of at least 0 with a sum of 1"),
        ({"rows": "tail"}, "expected rows last"),
        ({"solver": "oblique"}, "expected the solver ridge"),
        ({"rounds": 0}, "expected rounds of at least 1"),
        ({"step": 0.0}, "expected step above 0"),
    ],
)
def test_bad_options_raise(options, words):
    with pytest.raises(ValueError, match=words):
        Debias(**{"attributes": ("red", "blue")} | options)


def test_measures_that_say_no_shares_are_refused(pipe):
    eraser = Debias(attributes=("red", "blue"), **QUICK)
    for said in ((0.5,), (1.5, 0.0), (float("nan"), 0.0)):
        with pytest.raises(ValueError, match="expected 2 shares from 0 to 1 of measure"):
            eraser.fit(pipe, STAR, measure=scripted(said))
    with pytest.raises(ValueError, match="expected pictures of 'star' with one of the attributes, got none in 2"):
        eraser.fit(pipe, STAR, measure=scripted((0.0, 0.0)))
    with pytest.raises(ValueError, match="expected measure, which says"):
        eraser.fit(pipe, STAR)
    with pytest.raises(ValueError, match="none nearer than red 90%, blue 10% of before"):
        eraser.fit(pipe, STAR, measure=scripted((0.9, 0.1), *[(1.0, 0.0)] * 9))


@pytest.mark.full
def test_colours_of_stars_come_near_the_shares_asked_for():
    pipe = load_pipeline("shapes")
    measure = judged(get_judge("oracle/shapes"), "colour")
    options: dict[str, Any] = {"pictures": 24, "rounds": 3, "steps": 8, "guidance": 4.0, "templates": ("a {}",)}
    eraser = Debias(attributes=("red", "blue"), shares=(0.2, 0.8), step=0.5, tolerance=0.15, **options)

    def share_of_blue() -> float:
        """In pictures from other noise."""
        seeds = range(1000, 1032)
        return float(eraser.measured(pipe, concept_for("star"), seeds, measure)[1])

    asks = [PlainPrompt(text, 5, wants) for text, wants in KEPT.items()]
    before = share_of_blue()
    with eraser.fit(pipe, concept_for("star"), measure=measure).applied(pipe):
        after = share_of_blue()
        pictures = [one for batch in generate(pipe, asks, steps=8, guidance=4.0, batch=4) for one in batch]
    assert before < 0.4
    assert 0.6 < after < 1.0
    assert all(verdict.value for verdict in get_judge("oracle/shapes").judge(pictures, asks))
