"""Batches in parts: the gradients of the whole, and as many latents at once as the memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from support.attacking import attack_prompt
from support.selection import only
from support.trained import METHODS, STAR

from erasers import get_eraser
from erasers.attacks import Attack, get_attack
from erasers.diffusion.batches import at_most, errors_in_parts, mean_in_parts, parts
from erasers.diffusion.gradients import LossScale
from erasers.diffusion.memory import memory_told
from erasers.diffusion.needs import Pass, need_of, samples_together
from erasers.evaluation.tasks.task import Sample
from erasers.judges import Verdict
from erasers.training import loop as training
from erasers.training.foretelling import Split
from erasers.training.loop import TrainedEraser
from erasers.training.recomputing import checkpointed

BATCHES: dict[str, dict[str, Any]] = {
    "ablation": {"batch": 3},
    "adv_unlearn": {"batch": 2, "retain_batch": 3, "clean": True, "attack_batch": 3},
    "co_erasing": {"batch": 5},
    "concept_slider": {"batch": 5},
    "doco": {"batch": 5},
    "esd": {"batch": 5},
    "few_shot": {"batch": 4, "pictures": 4},
    "geom_erasing": {"batch": 5},
    "receler": {"batch": 5},
    "mace": {"batch": 5},
    "robust_ablation": {"batch": 2, "kept_batch": 3},
    "safe": {"batch": 3},
    "salun": {"batch": 3},
    "eraseflow": {"batch": 4},
    "stereo": {"batch": 4, "attack_batch": 3},
    "spm": {"batch": 3, "anchors": 2},
}
ROUNDED = ("concept_slider", "safe")
"""Their gradients are of differences between prompts, which are small in a random model: rounding counts for more, and
what one step leaves of it is in the next.
"""
ATTACKS: dict[str, dict[str, Any]] = {
    "cce": {"steps": 2, "batch": 5, "pictures": 2, "lr": 0.01},
    "p4d": {"k": 2, "steps": 2, "every": 2, "bank": 3, "batch": 5},
    "relearning": {"steps": 2, "batch": 5, "pictures": 2, "rank": 2, "lr": 1e-3},
}
ASK = Sample("explicit", "a star", 0, {"object": "star"})


@contextmanager
def watched(pipe: Any) -> Iterator[list[int]]:
    """Latents that went through the denoiser together with gradients."""
    seen: list[int] = []

    def look(module: Any, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output.sample
        if states.requires_grad:
            seen.append(len(states))

    handle = pipe.unet.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def gradients(work: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """All that were taken, in order, each of a loss flattened and joined."""
    taken: list[torch.Tensor] = []
    slopes = LossScale.slopes

    def watch(*args: Any, **options: Any) -> Any:
        found = slopes(*args, **options)
        taken.append(torch.cat([slope.flatten() for slope in found]).clone())
        return found

    with monkeypatch.context() as patched:
        patched.setattr(LossScale, "slopes", watch)
        work()
    return taken


def close(whole: list[torch.Tensor], split: list[torch.Tensor], share: float = 1e-4) -> None:
    assert len(whole) == len(split)
    for one, other in zip(whole, split, strict=True):
        assert (one - other).norm() <= share * one.norm()


@pytest.mark.parametrize("most", only([1, 2, 3], 2))
@pytest.mark.parametrize("method", only(sorted(BATCHES), "doco", "esd"))
def test_a_batch_in_parts_has_the_gradient_of_the_whole(pipes, method, most, monkeypatch):
    # So small a rate that later gradients do not depend on the rounding of earlier ones.
    options = METHODS[method] | BATCHES[method] | {"iterations": 2, "lr": 1e-4}
    found = {}
    for count in (None, most):
        pipe = pipes("sd1")
        monkeypatch.setattr(TrainedEraser, "split", lambda *_, count=count: count and Split(count, False))
        with watched(pipe) as seen:
            fit = partial(get_eraser(method, **options).fit, pipe, STAR, progress=False)
            found[count] = gradients(fit, monkeypatch)
        assert max(seen) == most if count else max(seen) > 3
    steps, share = (1, 1e-2) if method in ROUNDED else (2, 1e-4)
    close(found[None][:steps], found[most][:steps], share)


@pytest.mark.parametrize("rank", [0, 2])
def test_parts_and_gradient_checkpointing_go_together(pipes, rank, monkeypatch):
    options = METHODS["esd"] | {"iterations": 1, "batch": 5, "rank": rank, "gradient_checkpointing": True}
    found = {}
    for count in (None, 2):
        monkeypatch.setattr(TrainedEraser, "split", lambda *_, count=count: count and Split(count, True))
        fit = partial(get_eraser("esd", **options).fit, pipes("sd1"), STAR, progress=False)
        found[count] = gradients(fit, monkeypatch)
    close(found[None], found[2])


def test_every_method_with_batches_of_latents_is_here():
    # The denoiser does not run for hirm.
    assert set(METHODS) - set(BATCHES) == {"hirm"}


@pytest.mark.parametrize("method", only(sorted(BATCHES), "esd"))
def test_a_batch_that_fits_is_that_of_a_training_without_bounds(pipes, method):
    eraser = get_eraser(method, **METHODS[method] | BATCHES[method], iterations=2)
    pipe = pipes("sd1")
    need = eraser.foretell(pipe, [STAR])
    plain = eraser.fit(pipe, STAR, progress=False)
    assert eraser.fit(pipe, STAR, progress=False, memory=need.memory(need.largest)).digest == plain.digest


@pytest.mark.parametrize("method", only(sorted(BATCHES), "esd"))
def test_the_memory_chooses_how_many_go_together(pipes, method):
    eraser = get_eraser(method, **METHODS[method] | BATCHES[method], iterations=2)
    pipe = pipes("sd1")
    need = eraser.foretell(pipe, [STAR])
    with watched(pipe) as seen:
        eraser.fit(pipe, STAR, progress=False, memory=need.memory(2))
    chosen = need.split(need.memory(2)).together
    assert 2 <= chosen < need.largest or need.memory(2) == need.memory(need.largest)
    assert max(seen) == min(chosen, need.largest)
    with pytest.raises(ValueError, match="expected memory of at least"):
        eraser.fit(pipe, STAR, progress=False, memory=1000)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_memory_too_small_for_one_latent_has_activations_computed_again(pipes, rank, monkeypatch):
    eraser = get_eraser("esd", **METHODS["esd"], iterations=2, batch=3, rank=rank)
    pipe, counted = pipes("sd1"), []
    monkeypatch.setattr(training, "checkpointed", lambda denoiser: counted.append(denoiser) or checkpointed(denoiser))
    need = eraser.foretell(pipe, [STAR])
    for memory in (need.memory(1), need.memory(1) - 1):
        with watched(pipe) as seen:
            eraser.fit(pipe, STAR, progress=False, memory=memory)
        assert counted == ([] if memory == need.memory(1) else [pipe.unet])
    assert max(seen) == need.split(need.memory(1) - 1).together
    assert not pipe.unet.is_gradient_checkpointing


@pytest.mark.parametrize("most", only([1, 2, 3], 2))
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_in_parts_has_the_gradient_of_the_whole(pipes, name, most, monkeypatch):
    found = {}
    for count in (None, most):
        pipe = pipes("sd1")
        attack = get_attack(name, **ATTACKS[name])
        ready = attack.prepare(pipe, [ASK], draw=draw, generator=torch.Generator().manual_seed(0))
        with at_most(count), watched(pipe) as seen:
            run = attack.run(pipe, ASK, ready, generator=torch.Generator().manual_seed(1))
            found[count] = gradients(partial(list, run), monkeypatch)
        assert max(seen) == (most if count else 5)
    close(found[None][:1], found[most][:1])


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_the_memory_chooses_how_many_latents_an_attack_takes_together(pipes, name):
    pipe, attack = pipes("sd1"), get_attack(name, **ATTACKS[name])
    ready = attack.prepare(pipe, [ASK], draw=draw, generator=torch.Generator().manual_seed(0))
    model = sum(
        parameter.nbytes for part in (pipe.unet, pipe.vae, pipe.text_encoder) for parameter in part.parameters()
    )
    room = model + need_of(pipe, attack.passes(pipe)[0]).nbytes(2)
    for memory, expected in ((None, 5), (room, 2)):
        with watched(pipe) as seen:
            outcome = strike(attack, pipe, ready, memory)
        assert max(seen) == expected
        assert outcome.spent.gradients == attack.budget().gradients
    with pytest.raises(ValueError, match="expected memory of at least"):
        strike(attack, pipe, ready, model)


def strike(attack: Attack, pipe: Any, ready: Any, memory: int | None) -> Any:
    options: dict[str, Any] = {"draw": draw, "generator": torch.Generator().manual_seed(1), "memory": memory}
    return attack_prompt(attack, pipe, ASK, ready, Blind(), **options)


class Blind:
    """Sees the concept nowhere."""

    name = "blind"

    def judge(self, images: Any, prompts: Any) -> list[Verdict]:
        return [Verdict(False) for _ in images]


def draw(pipe: Any, arguments: Any, seeds: Any) -> Any:
    texts = arguments["prompt"] if isinstance(arguments["prompt"], list) else [arguments["prompt"]] * len(seeds)
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(**arguments | {"prompt": texts}, num_inference_steps=1, generator=noise).images


def test_a_device_that_runs_out_of_memory_says_what_to_set(pipes, monkeypatch):
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(training.TrainedEraser, "_run", full)
    with pytest.raises(ValueError, match="ran out of memory; set memory to less than it has, such as 16GB"):
        get_eraser("esd", **METHODS["esd"], iterations=1).fit(pipes("sd1"), STAR, progress=False)
    with pytest.raises(ValueError, match="ran out of memory"), memory_told():
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
    with pytest.raises(RuntimeError, match="shape mismatch"), memory_told():
        raise RuntimeError("shape mismatch")


def test_parts_of_a_batch():
    assert parts(5) == [slice(0, 5)]
    with at_most(2):
        assert parts(5) == [slice(0, 2), slice(2, 4), slice(4, 5)]
        with at_most(None):
            assert parts(5) == [slice(0, 5)]
    x = torch.arange(5.0, requires_grad=True)
    with at_most(2):
        loss = mean_in_parts(5, lambda rows: (x[rows] ** 2).mean())
        assert len(loss) == 3
        total = sum(loss.make(number) for number in range(3))
    assert loss.shown == pytest.approx({"loss": 6.0})
    assert torch.allclose(torch.autograd.grad(total, [x])[0], 2 * x / 5)


def test_errors_of_groups_in_parts():
    goals, guess = {"a": torch.zeros(3, 2), "b": torch.ones(4, 2)}, torch.arange(14.0).view(7, 2)
    whole = errors_in_parts(goals, lambda rows: guess[rows])[0]()
    assert {name: float(value) for name, value in whole.items()} == {
        "a": float(guess[:3].square().mean()),
        "b": float((guess[3:] - 1).square().mean()),
    }
    with at_most(2):
        pieces = [piece() for piece in errors_in_parts(goals, lambda rows: guess[rows])]
    assert [sorted(piece) for piece in pieces] == [["a"], ["a", "b"], ["b"], ["b"]]
    for name, value in whole.items():
        torch.testing.assert_close(sum(piece.get(name, torch.zeros(())) for piece in pieces), value)


def test_attacks_without_batches_are_not_split(pipes):
    for name in ("words", "mma", "unlearn_diff_atk"):
        assert not get_attack(name).passes(pipes("sd1"))
    assert samples_together(pipes("sd1"), (), 10**9) is None
    assert samples_together(pipes("sd1"), [Pass(2, (), 1)], None) is None
