"""Training and gradient attacks in half precision: steps that are seen, gradients that are not lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.selection import only, rows
from support.trained import METHODS, RANKS, STAR, probe
from torch.nn import functional

from erasers import get_eraser, list_erasers
from erasers.cli.model import pick_dtype
from erasers.diffusion import gradients
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.diffusion.gradients import LossScale, frozen, mixed
from erasers.diffusion.low_rank import added, fresh_factors
from erasers.eraser import eraser_class
from erasers.training import loop as training
from erasers.training.student import Student, names_of


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attention(module: Any, path: str) -> bool:
    return isinstance(module, torch.nn.Linear) and ".attn" in path


def test_every_method_that_trains_is_here():
    assert sorted(METHODS) == [name for name in list_erasers() if eraser_class(name).trains]


@pytest.mark.parametrize(("name", "rank"), rows(RANKS, default=lambda name, _: name in ("esd", "few_shot")))
def test_the_second_step_sees_the_first(pipe, name, rank, monkeypatch):
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(training.TrainedEraser, "_run", watched(seen, pipe, []))
    options = METHODS[name] | {"iterations": 3, "lr": 0.05, "rank": rank}
    get_eraser(name, **options).fit(pipe.to(torch.bfloat16), STAR, progress=False)
    steps = [float((after - before).norm()) for before, after in zip(seen, seen[1:], strict=False)]
    assert all(steps[1:] if name == "doco" else steps), steps


@pytest.mark.parametrize("rank", [0, 2])
def test_weights_that_are_trained_are_whole_in_half_precision(pipe, rank):
    """What low-rank ones add up to is rounded once, as autocast does it with a weight in float32."""
    pipe.to(torch.bfloat16)
    with frozen(pipe), mixed(pipe):
        student = Student(pipe, names_of(pipe, "unet", attention), rank=rank, generator=seeded())
        for number, part in enumerate(student.parameters):
            part.data.add_(1e-4 * torch.randn(part.shape, generator=seeded(number)))
        for weight in student.base.values() if rank else ():
            weight.data.zero_()
        with student.placed():
            placed = {name: module._parameters[leaf].detach() for name, (module, leaf) in student._slots.items()}
        values = student.tensors()
    for name, weight in placed.items():
        parts = [values[f"{name}/{number}"] for number in range(2 if rank else 1)]
        expected = parts[1] @ parts[0] if rank else parts[0]
        assert weight.dtype == (torch.bfloat16 if rank else torch.float32)
        assert {part.dtype for part in parts} == {torch.float32}
        # Rounding to bfloat16 once.
        torch.testing.assert_close(weight.float(), expected, rtol=2**-8 if rank else 1e-6, atol=1e-12)


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_low_rank_weights_in_float32_are_the_sum_itself(pipe, alpha):
    student = Student(pipe, names_of(pipe, "unet", attention), rank=2, generator=seeded(), alpha=alpha)
    for part in student.parameters:
        part.data.add_(0.1)
    with torch.no_grad(), student.placed(0.7):
        placed = {name: module._parameters[leaf] for name, (module, leaf) in student._slots.items()}
    values, share = student.tensors(), 1.0 if alpha is None else alpha / 2
    for name, weight in placed.items():
        wanted = torch.addmm(student.base[name].data, values[f"{name}/1"], values[f"{name}/0"], alpha=0.7 * share)
        assert torch.equal(weight, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_rank_weights_and_their_gradients_have_half_the_bytes_in_half_precision(pipe, dtype):
    """And the slopes of the factors are those of a weight that autocast rounds."""
    layer = pipe.to(dtype).unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q
    name = next(f"unet.{path}.weight" for path, module in pipe.unet.named_modules() if module is layer)
    student = Student(pipe, [name], rank=2, generator=seeded())
    down, up = student.parameters
    up.data.add_(0.1 * torch.randn(up.shape, generator=seeded(1)))
    given = torch.randn(5, layer.in_features, generator=seeded(2), dtype=torch.float32).to(dtype)
    with frozen(pipe), mixed(pipe):
        with student.placed():
            weight = layer.weight
            slopes = torch.autograd.grad(layer(given).float().square().sum(), [weight, down, up])
        whole = student.base[name].float() + up @ down
        wanted = torch.autograd.grad(functional.linear(given, whole, layer.bias).float().square().sum(), [down, up])
    assert {weight.dtype, slopes[0].dtype} == {dtype}
    assert {slope.dtype for slope in slopes[1:]} == {torch.float32}
    for slope, expected in zip(slopes[1:], wanted, strict=True):
        torch.testing.assert_close(slope, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


def test_products_of_relearned_weights_are_whole_in_half_precision(pipe):
    pipe.to(torch.bfloat16)
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q
    factors = fresh_factors(pipe, 2, seeded())
    down, up = next(pair for name, pair in factors.items() if pipe.unet.get_submodule(name.partition(".")[2]) is layer)
    layer.weight.data.zero_()
    with torch.no_grad(), mixed(pipe), added(pipe, factors):
        up.fill_(1.0)
        found = layer(torch.ones(1, layer.in_features, dtype=torch.bfloat16)).float()
    expected = torch.ones(1, layer.in_features) @ down.T @ up.T
    assert torch.equal(found, expected.detach().to(torch.bfloat16).float())


def test_the_bound_on_drift_trips_in_half_precision(pipe, capsys):
    options = METHODS["few_shot"] | {"iterations": 12, "lr": 1e-3, "max_drift": 0.3, "corrections": 0}
    get_eraser("few_shot", **options).fit(pipe.to(torch.bfloat16), STAR)
    assert "a kept prompt would drift by" in capsys.readouterr().err


@pytest.fixture
def half(pipe: Any) -> Any:
    return pipe.to(torch.float16)


def small_slopes(pipe: Any, scale: LossScale) -> torch.Tensor:
    """Gradients of a loss that is nearly nothing, as those of large batches and of trained students are."""
    student = Student(pipe, names_of(pipe, "unet", attention), generator=seeded())
    noisy = torch.randn(2, 4, 8, 8, generator=seeded(1))
    with frozen(pipe), mixed(pipe), student.placed():
        guess = predict(pipe, noisy, torch.tensor([20, 70]), conditions(pipe, ["a star", "a moon"]))
        slopes = scale.slopes(1e-4 * functional.mse_loss(guess, noisy), student.parameters)
    return torch.cat([slope.flatten() for slope in slopes])


def test_gradients_that_float16_has_no_room_for_survive(pipe):
    expected = small_slopes(pipe, LossScale(pipe))
    pipe.to(torch.float16)
    plain, scaled = LossScale(pipe), LossScale(pipe)
    plain.on = False
    lost, kept = small_slopes(pipe, plain), small_slopes(pipe, scaled)
    assert (expected == 0).float().mean() < 0.01
    assert (lost == 0).float().mean() > 0.2
    assert (lost - expected).norm() > 0.1 * expected.norm()
    assert (kept - expected).norm() < 0.01 * expected.norm()


def test_the_scale_finds_its_size(half):
    weight = torch.nn.Parameter(torch.ones(2))
    scale = LossScale(half)
    assert (scale.on, scale.value) == (True, 2.0**16)
    assert not scale.set(weight.sum() * float("inf"), [weight])
    assert weight.grad is None
    assert (scale.value, scale.skipped) == (2.0**15, 1)
    for _ in range(500):
        assert scale.set(weight.sum(), [weight])
    assert (scale.value, scale.skipped) == (2.0**16, 1)
    assert weight.grad.tolist() == [1.0, 1.0]
    for _ in range(39):
        scale.set(weight.sum() * float("nan"), [weight])
    with pytest.raises(ValueError, match="got none in 40 tries .*take bfloat16 or float32"):
        scale.set(weight.sum() * float("nan"), [weight])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_float16_there_is_no_scale(pipe, dtype):
    scale, weight = LossScale(pipe.to(dtype)), torch.nn.Parameter(torch.ones(2))
    assert scale.set(weight.sum() * float("inf"), [weight])
    assert (scale.value, scale.skipped, weight.grad.tolist()) == (1.0, 0, [float("inf")] * 2)


@pytest.mark.parametrize("name", only(METHODS, "esd"))
def test_steps_that_overflow_are_left_out_and_counted(half, name, monkeypatch, capsys):
    monkeypatch.setattr(gradients, "_START", 2.0**36)
    monkeypatch.setattr(gradients.LossScale, "_follow", quick(gradients.LossScale._follow))
    seen, losses = [], []
    monkeypatch.setattr(training.TrainedEraser, "_run", watched(seen, half, losses))
    options = METHODS[name] | {"iterations": 6, "lr": 1e-3}
    get_eraser(name, **options).fit(half, STAR)
    said = " ".join(capsys.readouterr().err.split())
    assert "steps left out, whose gradients float16 had no room for" in said
    moved = [bool((after - before).norm()) for before, after in zip(seen, seen[1:], strict=False)]
    # The scale of salun comes down while its mask is found.
    assert moved[0] == (name == "salun")
    assert any(moved)
    # The scale, from 2^16 up, is not in them.
    assert max(map(abs, losses)) < 2.0**12, losses


def quick(follow: Callable[..., None]) -> Callable[..., None]:
    """Comes down by 2^10 at a time."""

    def fast(self: LossScale, bad: bool) -> None:
        follow(self, bad)
        if bad:
            self.state[0] /= 2.0**9

    return fast


def watched(seen: list[torch.Tensor], pipe: Any, losses: list[float]) -> Callable[..., str]:
    """A loop that notes what the student predicts before every step, and all losses."""
    whole = training.TrainedEraser._run

    def run(self: Any, found: training.Training, *more: Any) -> str:
        step = found.step

        def look(number: int) -> Any:
            seen.append(probe(pipe, found.student))
            shown = step(number)
            losses.extend(shown.values())
            return shown

        found.step = look
        return whole(self, found, *more)

    return run


def test_auto_takes_bfloat16_for_gradients_where_the_device_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert [pick_dtype("auto", device, gradients=True) for device in ("cpu", "cuda", "cuda:1", "mps")] == [
        "float32",
        "bfloat16",
        "bfloat16",
        "float16",
    ]
    assert pick_dtype("auto", "cuda") == "float16"
    assert pick_dtype("float16", "cuda", gradients=True) == "float16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert pick_dtype("auto", "cuda", gradients=True) == "float16"
