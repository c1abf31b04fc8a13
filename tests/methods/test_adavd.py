"""AdaVD and GenErase: which values change, by how much, and which stay bit for bit, on every family."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw as draw_family
from support.run_time import check_compiled, check_in_any_company, check_leaves_alone, check_lives_on
from support.selection import only
from torch.nn import functional

from erasers import Concept, PatchError, get_eraser
from erasers.methods.adavd import AdaVD, factor_of, leading, orthonormal, without
from erasers.patch.value_gate import ValueGate, standing, without_values

KEPT = ("moon", "a red ring", "blue art")
STAR = Concept("star", anchor="circle", preserve=KEPT, neighbours=["ring"])
QUICK: dict[str, Any] = {"everyday": False, "templates": ("{}",), "false_alarms": 0.0}


def adavd(**options: Any) -> AdaVD:
    return AdaVD(**{**QUICK, **options})


def parts_of(width: int = 6, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """A span of two directions, a concept and an anchor, of one random basis."""
    basis = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0].T
    parts = {"span": basis[:2], "away": basis[2:3], "towards": 0.5 * basis[3:4], "gate": torch.tensor([0.5])}
    return {name: part.contiguous() for name, part in (parts | more).items()}


def test_rows_below_the_gate_and_in_the_kept_space_stay_bit_for_bit():
    parts = parts_of()
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(3, 40, 6, generator=generator)
    values[0] = torch.randn(40, 2, generator=generator) @ parts["span"]
    share = standing(values, parts)[1]
    passed = share[..., 0] >= 0.5
    assert not passed[0].any()
    assert passed[1:].any()
    assert not passed[1:].all()
    changed = without_values(values, parts, 1.0)
    assert torch.equal(changed[~passed], values[~passed])
    assert ((changed - values)[passed].abs().amax(dim=-1) > 1e-3).all()
    assert without_values(values, parts, 0.0) is values


def test_what_changes_loses_the_concept_gains_the_anchor_and_keeps_all_else():
    parts = parts_of()
    values = (3 * parts["away"] + 0.1 * parts["span"][:1] + parts["towards"])[None]
    for strength in (0.5, 1.0, 2.0):
        changed = without_values(values, parts, strength)
        step = strength * 3 * (parts["away"] - parts["towards"])
        torch.testing.assert_close(changed, values - step[None], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(changed @ parts["span"].T, values @ parts["span"].T, rtol=1e-5, atol=1e-5)
    assert changed.dtype == values.dtype
    assert without_values(values.half(), parts, 1.0).dtype == torch.float16


def test_either_sign_the_first_token_and_the_published_step():
    parts = parts_of()
    values = torch.cat([parts["away"], -parts["away"]])[None]
    assert torch.equal(without_values(values, parts, 1.0)[0, 1], values[0, 1])
    both = without_values(values, parts | {"both": torch.ones(1)}, 1.0)
    torch.testing.assert_close(both, torch.cat([parts["towards"], -parts["towards"]])[None], rtol=1e-5, atol=1e-5)
    first = without_values(values.flip(1), parts | {"both": torch.ones(1), "first": torch.ones(1)}, 1.0)
    assert torch.equal(first[0, 0], values[0, 1])
    assert not torch.equal(first[0, 1], values[0, 0])
    official = {"away": parts["away"], "gate": torch.tensor([0.85]), "step": torch.tensor([0.93, 100.0, 2.0])}
    for share, factor in ((0.8, 0.0), (0.93, 1.0), (1.0, 2.0)):
        value = share * parts["away"] + (1 - share**2) ** 0.5 * parts["span"][:1]
        left = without_values(value[None], official, 1.0)[0] @ parts["away"].T
        assert left.item() == pytest.approx(share * (1 - factor), abs=4e-3)


def test_attacks_find_a_slope_through_the_gate():
    parts = parts_of()
    values = (parts["away"] + parts["towards"])[None].requires_grad_()
    (without_values(values, parts, 1.0) @ parts["span"].T).sum().backward()
    plain = values.grad.clone()
    values.grad = None
    (without_values(values, parts, 1.0) @ parts["away"].T).sum().backward()
    assert values.grad.abs().sum() > 0
    assert torch.isfinite(plain).all()


def test_directions_of_names_are_orthonormal_and_outside_of_the_span():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(50, 8, generator=generator).double() * torch.tensor([9.0, 8, 7, 1, 1, 1, 1, 1]).double()
    sizes, directions = torch.linalg.svd(factor_of(rows)[:, :8], full_matrices=False)[1:]
    torch.testing.assert_close(sizes[0], torch.linalg.svdvals(rows)[0])
    assert leading(sizes, 0.0) == 0
    assert leading(sizes, 1.0) == 8
    count = leading(sizes, 0.8)
    energy = sizes.square().cumsum(0) / sizes.square().sum()
    assert energy[count - 1] >= 0.8 > energy[count - 2]
    span = directions[:count]
    targets = torch.randn(3, 8, generator=generator).double()
    numbers, away = orthonormal(torch.cat([targets, 2 * targets[:1], span[:1]]), span)
    assert numbers == [0, 1, 2]
    torch.testing.assert_close(away @ away.T, torch.eye(3).double())
    assert (away @ span.T).abs().max() < 1e-12
    assert (away[0] @ targets[0]) > 0
    anchor = functional.normalize(without(torch.randn(1, 8, generator=generator).double(), span, away), dim=1)
    assert max(float((anchor @ space.T).abs().max()) for space in (span, away)) < 1e-12


@pytest.mark.parametrize("preset", ["adavd", "adavd-generase", "adavd-official"])
def test_every_layer_has_its_parts(pipe, preset):
    options = {"keep": 0.5} if preset == "adavd-generase" else {}
    eraser = get_eraser(preset, **{name: value for name, value in QUICK.items() if name != "false_alarms"}, **options)
    fitted = eraser.fitted(pipe, [STAR])
    assert len(fitted) == 4
    assert all(name.endswith("attn2.to_v") for name in fitted)
    more = {
        "adavd": set(),
        "adavd-generase": {"span", "towards", "both", "first"},
        "adavd-official": {"step", "first"},
    }[preset]
    for parts in fitted.values():
        assert set(parts) == {"away", "gate"} | more
        if "first" in parts:
            assert parts["first"].item() == 1
        if "span" in parts:
            products = torch.cat([parts["span"], parts["away"], functional.normalize(parts["towards"], dim=1)])
            torch.testing.assert_close(products @ products.T, torch.eye(len(products)).double())


@pytest.mark.parametrize("options", [{}, {"keep": 0.5, "beta": 0.5}], ids=str)
def test_run_time(pipe, tmp_path, options):
    patch = adavd(**options).fit(pipe, STAR)
    assert adavd(**options).fit(pipe, STAR).digest == patch.digest
    check_leaves_alone(pipe, patch, KEPT, {"negative_prompt": ["a red ring"]})
    check_in_any_company(pipe, patch, "star", "moon")
    if not options:
        check_lives_on(pipe, patch, "star", tmp_path)


@pytest.mark.full
def test_compiled(pipe):
    check_compiled(pipe, adavd().fit(pipe, STAR), "star")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", only(list(FAMILIES), "sdxl", "sd3", "flux", "pixart", "zimage", "qwenimage"))
def test_every_family(tmp_path, name):
    pipe = FAMILIES[name].build(tmp_path)
    eraser = adavd(max_sequence_length=FAMILIES[name].options.get("max_sequence_length"))
    picture = partial(draw_family, pipe, options=FAMILIES[name].options)
    star, moon = picture("star"), picture("moon")
    patch = eraser.fit(pipe, STAR)
    with patch.applied(pipe):
        assert not torch.equal(picture("star"), star)
        assert torch.equal(picture("moon"), moon)
    assert torch.equal(picture("star"), star)


def test_many_names_and_a_space_that_has_it_all(pipe):
    concepts = [Concept("star", aliases=["nude"], anchor="circle"), Concept("van gogh", anchor="art")]
    parts = next(iter(adavd(beta=0.5).fitted(pipe, concepts).values()))
    assert {name: len(part) for name, part in parts.items()} == {"away": 3, "towards": 3, "gate": 3}
    with pytest.raises(ValueError, match="outside of what kept prompts span, .* lower keep below 1"):
        adavd(keep=1.0).fit(pipe, STAR)


GOOD = {"away": torch.eye(2, 3), "gate": torch.ones(2)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gate": torch.ones(3)}, "expected the parts away"),
        ({"span": torch.ones(1, 2)}, "expected the parts away"),
        ({"other": torch.ones(1)}, "expected the parts away"),
        ({"gate": torch.zeros(2)}, "gate above 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, words):
    with pytest.raises(PatchError, match=words):
        ValueGate("unet.x", GOOD | change)


def test_a_hook_of_another_model_is_refused(pipe):
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    with pytest.raises(PatchError, match="to return rows of 3, got rows of 16"):
        ValueGate(layer, GOOD).check(pipe.unet.get_submodule(layer.removeprefix("unet.")))
    with pytest.raises(PatchError, match="to return rows of 3, got UNet2DConditionModel"):
        ValueGate("unet", GOOD).check(pipe.unet)


@pytest.mark.parametrize(
    ("option", "words"), [({"tau": 0.0}, "tau"), ({"false_alarms": 1.0}, "false_alarms"), ({"keep": 1.5}, "keep")]
)
def test_bad_options_are_refused(option, words):
    with pytest.raises(ValueError, match=f"expected {words}"):
        AdaVD(**option)
