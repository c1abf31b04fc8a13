"""LECO: the target of a pair, what moves, and the two ways of a slider, on every kind of denoiser."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.selection import cases, only
from support.tiny import same, weights
from support.trained import NOW, killed_after
from torch.nn import functional

from erasers import Patch
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Counter
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import gaussian
from erasers.diffusion.latents import latent_shape
from erasers.methods.esd import target
from erasers.methods.leco import LECO, Pair
from erasers.methods.leco.eraser import rate
from erasers.methods.leco.pair import goal
from erasers.training.foretelling import Split

KINDS = ("sd1", "sd2", "sdxl", "sd3", "flux")
ERASE = Pair(target="star")
FEW: dict[str, Any] = {"iterations": 4, "lr": 1e-2, "steps": 2, "refresh": 2}
SLIDER = (
    Pair(target="moon", neutral="moon", positive="star", unconditional="ring", action="enhance", weight=2 / 3),
    Pair(target="circle", neutral="circle", guidance_scale=0.0, weight=1 / 3, beside=True),
    Pair(target="moon", neutral="moon", positive="star", unconditional="ring", multiplier=-1.0, weight=2 / 3),
    Pair(target="circle", neutral="circle", guidance_scale=0.0, weight=1 / 3, beside=True, multiplier=-1.0),
)


@pytest.fixture(params=only(KINDS, "sd1", "sd3", "flux"))
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    pipe = FAMILIES[request.param].build(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def size_for(pipe: Any) -> int | None:
    """A size of pictures that is quick: FLUX.1 draws large ones unless told."""
    return 16 if type(pipe).__name__ == "FluxPipeline" else None


def sized(pipe: Any, *pairs: Pair) -> tuple[Pair, ...]:
    return tuple(replace(pair, size=size_for(pipe)) for pair in pairs)


@torch.no_grad()
def said(pipe: Any, text: str) -> torch.Tensor:
    """What the denoiser predicts of noise at four times."""
    noisy = gaussian(torch.empty(4, *latent_shape(pipe, size_for(pipe))), torch.Generator().manual_seed(5))
    return predict(pipe, noisy, torch.tensor([800, 600, 400, 200]), conditions(pipe, [text]))


def test_the_target_of_a_pair() -> None:
    neutral, positive, unconditional = (torch.tensor([value]) for value in (5.0, 3.0, 1.0))
    assert goal(neutral, positive, unconditional, Pair(target="x", guidance_scale=2.0).shift) == torch.tensor([1.0])
    assert goal(neutral, positive, unconditional, Pair(target="x", action="enhance").shift) == torch.tensor([7.0])
    # With the usual prompts it is that of ESD.
    assert goal(unconditional, positive, unconditional, -0.5) == target(unconditional, positive, 0.5)


def test_prompts_that_are_not_given_are_others() -> None:
    assert Pair(target="star").asked == ("", "star", "")
    assert Pair(target="star", unconditional="moon").asked == ("moon", "star", "moon")
    assert Pair(target="star", neutral="ring", guidance_scale=0.0).asked == ("ring",)


def test_only_low_rank_weights_of_attention_move_and_the_pipeline_stays(built: Any) -> None:
    before = weights(built)
    patch = LECO(pairs=sized(built, ERASE), **FEW).fit(built, "star", progress=False)
    assert same(before, weights(built))
    assert all(name.startswith("lowrank/") and ".attn" in name for name in patch.tensors)
    assert json.loads(json.dumps(dict(patch.meta)))["config"]["pairs"][0]["positive"] == "star"
    parts = {name.rpartition("/")[0].rpartition(".")[2] for name in patch.tensors}
    assert parts >= {"to_q", "to_k", "to_v"}
    if not hasattr(built, "unet"):
        assert parts >= {"add_k_proj", "add_v_proj"}


def test_the_loss_starts_at_zero_where_nothing_is_taken_away(built: Any) -> None:
    pair = Pair(target="star", neutral="star", guidance_scale=0.0)
    losses = losses_of(
        built, LECO(pairs=sized(built, pair), **FEW | {"iterations": 1, "optimizer": "adam"}), still=True
    )
    assert losses[0] == pytest.approx(0.0, abs=1e-10)


# Trainings that learn something take long; one family shows it by default.
LEARNING = pytest.mark.parametrize("built", only(KINDS, "sd3"), indirect=True)
LEARNS: dict[str, Any] = {"rank": 8, "alpha": 8.0, "lr": 2e-2, "steps": 2, "drawn_by": "frozen", "refresh": 60}


@LEARNING
@pytest.mark.parametrize("shift", only([0.0, 1.0], 0.0))
def test_a_training_goes_where_the_pair_says(built: Any, shift: float) -> None:
    """s = 0 goes to the unconditional prediction, s = 1 past it."""
    pair = Pair(target="star", guidance_scale=shift, batch=2)
    losses = losses_of(built, LECO(pairs=sized(built, pair), iterations=30, layers="blocks", **LEARNS))
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5]), losses


def losses_of(pipe: Any, eraser: LECO, *, still: bool = False) -> list[float]:
    losses: list[float] = []
    run = LECO.prepare

    def watched(self: LECO, *arguments: Any) -> Any:
        training = run(self, *arguments)
        step = training.step

        def stepped(number: int) -> Any:
            shown = step(number)
            losses.append(shown["loss"])
            return shown

        training.step = stepped
        return training

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LECO, "prepare", watched)
        # Where the loss is 0 nothing moves, which is refused.
        with pytest.raises(ValueError, match="none that moved") if still else nullcontext():
            eraser.fit(pipe, "star", progress=False)
    return losses


@LEARNING
@pytest.mark.parametrize("half", [SLIDER[:2], SLIDER[2:]], ids=["on", "turned round"])
def test_each_half_of_a_slider_goes_its_way_at_its_strength(built: Any, half: tuple[Pair, ...]) -> None:
    patch = LECO(pairs=sized(built, *half), iterations=12, **LEARNS).fit(built, "ring", progress=False)
    plain, there, strength = said(built, "moon"), said(built, "star") - said(built, "ring"), half[0].multiplier
    with patch.applied(built, strength=strength):
        assert cosine(strength * (said(built, "moon") - plain), there) > 0.3


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


@pytest.mark.parametrize(
    ("family", "more"),
    cases(
        ("sd1", "flux"),
        ({}, {"drawn_by": "frozen"}, {"refresh": 1, "iterations": 5}, {"pairs": SLIDER}),
        default=lambda family, more: family == "flux" and "pairs" in more or family == "sd1" and not more,
    ),
)
def test_it_spends_what_it_foretells(family: str, more: dict[str, Any], tmp_path: Path) -> None:
    pipe = FAMILIES[family].build(tmp_path)
    pairs = (ERASE, Pair(target="moon", neutral="ring", batch=2), Pair(target="moon", positive="circle"))
    options = {"pairs": pairs, **FEW, "iterations": 7, **more}
    eraser = LECO(**options | {"pairs": sized(pipe, *options["pairs"])})
    with Counter(pipe) as counter:
        eraser.fit(pipe, "star", progress=False)
    assert counter.calls == eraser.cost(pipe, "star")


def test_pairs_take_turns_with_pictures_of_their_own_size(tmp_path: Path) -> None:
    pipe = FAMILIES["sd3"].build(tmp_path)
    side = latent_shape(pipe)[-1] * pipe.vae_scale_factor
    seen: list[torch.Size] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, _, given: seen.append(given["hidden_states"].shape) if torch.is_grad_enabled() else None,
        with_kwargs=True,
    )
    pairs = (Pair(target="star", size=2 * side, batch=2), Pair(target="moon"))
    LECO(pairs=pairs, **FEW).fit(pipe, "star", progress=False)
    hook.remove()
    own = latent_shape(pipe)
    large = (2, own[0], 2 * own[1], 2 * own[2])
    assert [tuple(shape) for shape in seen] == [large, (1, *own)] * 2


def test_alpha_over_rank_scales_what_is_added(pipe: Any) -> None:
    """Steps of Adam do not depend on the size of gradients: a quarter of the scale moves weights a quarter as far."""
    moved = {}
    for alpha in (4.0, 1.0):
        patch = LECO(pairs=(ERASE,), **FEW | {"iterations": 1}, alpha=alpha, rank=4).fit(pipe, "star", progress=False)
        name = next(name for name in patch.tensors if name.endswith("/A")).removesuffix("/A")
        moved[alpha] = (patch.tensors[f"{name}/B"].float() @ patch.tensors[f"{name}/A"].float()).norm()
    assert float(moved[4.0] / moved[1.0]) == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize(
    ("layers", "inside", "outside"),
    [("cross", ".attn2.", ".attn1."), ("self", ".attn1.", ".attn2."), ("blocks", ".ff.", "resnets")],
)
def test_layers(pipe: Any, layers: Any, inside: str, outside: str) -> None:
    names = LECO(pairs=(ERASE,), layers=layers).names(pipe)
    assert any(inside in name for name in names)
    assert not any(outside in name for name in names)


def test_cross_attention_is_refused_where_there_is_none_apart(tmp_path: Path) -> None:
    pipe = FAMILIES["flux"].build(tmp_path)
    with pytest.raises(ValueError, match="expected layers attention or blocks, got cross: in FluxPipeline"):
        LECO(pairs=(ERASE,), layers="cross").fit(pipe, "star")


def test_a_killed_training_goes_on_to_the_same_patch(pipe: Any, tmp_path: Path) -> None:
    eraser = LECO(pairs=SLIDER, **FEW, schedule="cosine", clip=1.0)
    whole = eraser.fit(pipe, "star", progress=False)
    with killed_after(3):
        eraser.fit(pipe, "star", checkpoint=tmp_path / "half", **NOW)
    resumed = eraser.fit(pipe, "star", progress=False, checkpoint=tmp_path / "half")
    assert resumed.digest == whole.digest
    resumed.save(tmp_path / "patch.safetensors")
    assert Patch.load(tmp_path / "patch.safetensors").digest == whole.digest


def test_batches_are_split_with_the_same_result(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    eraser = LECO(pairs=(Pair(target="star", batch=4), *SLIDER), **FEW | {"iterations": 2})
    losses, sizes = {}, {}
    for count in (None, 2):
        monkeypatch.setattr(LECO, "split", lambda *_, count=count: count and Split(count, False))
        seen: list[int] = []
        hook = pipe.unet.register_forward_hook(
            lambda _, given, __, seen=seen: seen.append(len(given[0])) if torch.is_grad_enabled() else None
        )
        losses[count], sizes[count] = losses_of(pipe, eraser), seen
        hook.remove()
    assert losses[2] == pytest.approx(losses[None], rel=1e-4)
    assert (max(sizes[None]), max(sizes[2])) == (4, 2)


def test_the_rate_ends_at_a_hundredth() -> None:
    assert [rate(number, 100, "constant") for number in (0, 99)] == [1.0, 1.0]
    assert rate(0, 100, "cosine") == 1.0
    assert rate(50, 100, "cosine") == pytest.approx(0.505)
    assert rate(100, 100, "cosine") == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pairs": ()}, "expected pairs of which the first stands beside none"),
        ({"pairs": (Pair(target="x", beside=True),)}, "beside none"),
        ({"pairs": (ERASE, Pair(target="x", beside=True, multiplier=2.0))}, "one multiplier, size and batch"),
        ({"rank": 0}, "rank of at least 1"),
        ({"alpha": 0.0}, "alpha above 0"),
        ({"layers": "norms"}, "layers as attention or cross"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LECO(**{"pairs": (ERASE,), **options})


@pytest.mark.parametrize("bad", [{"size": 12}, {"batch": 0}, {"action": "keep"}, {"target": 3}, {"weight": -1.0}])
def test_bad_pairs_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(bad))}"):
        Pair(**{"target": "x", **bad})
