"""CASteer: directions of pairs of pictures, layer by layer and step by step, and what turns away from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw as draw_family
from support.run_time import check_compiled, check_lives_on, difference
from support.selection import only
from support.tiny import draw, same, weights
from support.trained import family_pipe

from erasers import Concept, PatchError, UnsupportedPipeline, get_eraser
from erasers.methods.casteer import CASteer, attentions
from erasers.patch.steering import Steering, steered

STAR = Concept("star", anchor="circle", preserve=["moon"], neighbours=["ring"])
REFUSED = {"hunyuandit", "luminanext", "lumina2", "zimage", "cogview4", "prx", "animatediff"}
"""One sequence, two denoisers, or none that this library draws with."""
QUICK: dict[str, Any] = {"everyday": False, "templates": ("{}", "a {}"), "steps": 2}


def casteer(**options: Any) -> CASteer:
    return CASteer(**{**QUICK, **options})


def parts_of(*away: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {"away": torch.stack(away), "times": torch.tensor([900.0, 100.0]), "scale": torch.tensor([scale])}


def test_rows_on_the_other_side_stay_bit_for_bit_and_lengths_are_kept():
    generator = torch.Generator().manual_seed(0)
    away = torch.nn.functional.normalize(torch.randn(2, 6, generator=generator), dim=1)
    rows = torch.randn(2, 50, 6, generator=generator)
    for time, number in ((1000.0, 0), (501.0, 0), (499.0, 1), (0.0, 1)):
        share = rows @ away[number]
        for scale in (1.0, 2.0):
            turned = steered(rows, torch.tensor([time]), parts_of(away, scale=scale), 1.0)
            assert torch.equal(turned[share <= 0], rows[share <= 0])
            assert (turned[share > 0] - rows[share > 0]).abs().amax(dim=-1).min() > 1e-4
            torch.testing.assert_close(turned.norm(dim=-1), rows.norm(dim=-1))
            left = (turned @ away[number])[share > 0]
            torch.testing.assert_close(left, (1 - scale) * share[share > 0], rtol=1e-4, atol=1e-5)
    assert steered(rows, torch.tensor([0.0]), parts_of(away), 0.0) is rows
    half = steered(rows, torch.tensor([0.0]), parts_of(away, scale=2.0), 0.5)
    torch.testing.assert_close(half, steered(rows, torch.tensor([0.0]), parts_of(away), 1.0))


def test_each_picture_has_the_direction_of_its_own_time():
    first, second = torch.eye(2, 3)
    rows = torch.ones(2, 1, 3)
    turned = steered(rows, torch.tensor([900.0, 100.0]), parts_of(torch.stack([first, second])), 1.0)
    assert turned[0, 0, 0] == turned[1, 0, 1] == 0
    assert (turned > 0).sum() == 4
    both = steered(rows[:1], torch.tensor([900.0]), parts_of(torch.stack([first] * 2), torch.stack([second] * 2)), 1.0)
    torch.testing.assert_close(both[0, 0], torch.tensor([0.0, 0.0, 3**0.5]))
    assert torch.isfinite(
        steered(first[None, None], torch.tensor([900.0]), parts_of(torch.stack([first] * 2)), 1.0)
    ).all()


def test_directions_are_those_of_pairs_from_the_same_noise(pipe):
    generator = torch.Generator().manual_seed(0)
    times, directions = casteer().directions(pipe, [("star", "circle"), ("a star", "a circle")], generator)
    assert times == sorted(times, reverse=True)
    assert set(directions) == set(attentions(pipe))
    assert all(name.endswith("attn2") for name in directions)
    for away in directions.values():
        torch.testing.assert_close(away.norm(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="other pictures than their anchors, got 'star'"):
        casteer().directions(pipe, [("star", "star")], generator)


def test_run_time(pipe, tmp_path):
    before = weights(pipe)
    patch = casteer().fit(pipe, STAR)
    assert same(before, weights(pipe))
    assert casteer().fit(pipe, STAR).digest == patch.digest
    check_lives_on(pipe, patch, "star", tmp_path)
    twice = draw(pipe, ["star", "moon"], guidance_scale=1.0)
    with patch.applied(pipe):
        both = draw(pipe, ["star", "moon"], guidance_scale=1.0)
        assert difference(draw(pipe, ["star"], guidance_scale=1.0), both[:1]) < 1e-4
        several = draw(pipe, ["star"], guidance_scale=1.0, num_images_per_prompt=2)
    assert difference(both, twice) > 1e-4
    assert difference(several[:1], both[:1]) < 1e-4


@pytest.mark.full
def test_compiled(pipe):
    check_compiled(pipe, casteer().fit(pipe, STAR), "star")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", only(list(FAMILIES), "sd3", "flux", "pixart", "zimage"))
def test_every_family(tmp_path, name):
    pipe, options = family_pipe(name, tmp_path), FAMILIES[name].options
    length = options.get("max_sequence_length")
    eraser = casteer(max_sequence_length=length, size=options.get("height"), guidance=3.0)
    if name in REFUSED:
        with pytest.raises(UnsupportedPipeline, match="."):
            eraser.fit(pipe, STAR)
        return
    plain = draw_family(pipe, "star", options)
    with eraser.fit(pipe, STAR).applied(pipe):
        assert not torch.equal(draw_family(pipe, "star", options), plain)
    assert torch.equal(draw_family(pipe, "star", options), plain)


def test_two_concepts_and_the_published_scale(pipe):
    patch = get_eraser("casteer-official", **QUICK).fit(pipe, [STAR, Concept("art", anchor="circle")])
    for hook in patch.hooks:
        assert hook.parts["away"].shape[:2] == (2, 2)
        assert hook.parts["scale"].item() == 2


@pytest.mark.parametrize(
    "parts",
    [
        {"away": torch.ones(1, 2, 3), "times": torch.ones(2)},
        {"away": torch.ones(1, 2, 3), "times": torch.ones(3), "scale": torch.ones(1)},
        {"away": torch.ones(2, 3), "times": torch.ones(3), "scale": torch.ones(1)},
    ],
)
def test_parts_that_do_not_fit_are_refused(parts):
    with pytest.raises(PatchError, match="expected the parts away"):
        Steering("unet.x", parts)


def test_a_hook_of_another_model_is_refused(pipe):
    name, module = next(iter(attentions(pipe).items()))
    with pytest.raises(PatchError, match="to return rows of 6, got rows of 8"):
        Steering(name, parts_of(torch.ones(2, 6))).check(module)


@pytest.mark.parametrize(("option", "words"), [({"scale": -1.0}, "scale"), ({"guidance": float("inf")}, "guidance")])
def test_bad_options_are_refused(option, words):
    with pytest.raises(ValueError, match=f"expected .*{words}"):
        CASteer(**option)
