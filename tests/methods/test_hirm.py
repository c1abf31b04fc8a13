"""HiRM: the first layer of a text encoder learns, the last one's attention is misled, the rest is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import same, weights
from support.trained import family_pipe

from erasers import Concept, get_eraser
from erasers.diffusion.attacked import attacked_encoders
from erasers.methods.hirm import attention_outputs, distance, misdirection
from erasers.models.encoder_blocks import in_block
from erasers.models.feeding import feeds_of
from erasers.training.loop import TrainedEraser

STAR = Concept("star", anchor="circle", preserve=["a moon", "a red circle"], neighbours=["ring"])
QUICK: dict[str, Any] = {"iterations": 40, "lr": 3e-3, "kept": 4, "kept_batch": 2}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def outputs(pipe: Any, text: str) -> torch.Tensor:
    (first,) = attention_outputs(pipe, attacked_encoders(pipe)[:1], [text]).values()
    return first


def losses(pipe: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[dict[str, float]]:
    shown: list[dict[str, float]] = []

    def run(self: Any, training: Any, *_: Any) -> str:
        shown.extend(dict(training.step(number)) for number in range(self.iterations))
        return ""

    monkeypatch.setattr(TrainedEraser, "_run", run)
    get_eraser("hirm", **QUICK | options).fit(pipe, STAR, progress=False)
    return shown


def test_what_is_read_is_the_attention_of_the_last_layer_that_is_read(pipe):
    encoder = pipe.text_encoder
    last = [module for path, module in encoder.named_modules() if path.endswith("self_attn.out_proj")]
    number = feeds_of(pipe)["text_encoder"].blocks - 1
    seen: list[torch.Tensor] = []
    handle = last[number].register_forward_hook(lambda module, args, output: seen.append(output))
    found = outputs(pipe, "a star")
    handle.remove()
    assert torch.equal(seen[0], found)


def test_the_goal_is_one_random_vector_of_that_norm():
    goal = misdirection(torch.empty(3, 4, 5), 7.0, seeded())
    assert goal.shape == (3, 4, 5)
    assert torch.equal(goal[0], goal[2])
    assert float(goal[0].norm()) == pytest.approx(7.0, rel=1e-5)
    assert float(goal.min()) >= 0
    assert not torch.equal(goal, misdirection(torch.empty(3, 4, 5), 7.0, seeded(1)))


def test_the_distance_is_a_mean_over_encoders():
    one, two = {"a": torch.ones(1, 2), "b": torch.zeros(1, 2)}, {"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)}
    assert float(distance(one, two)) == 0.5
    assert float(distance(one, one)) == 0


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_only_the_first_layer_moves_and_the_concept_goes_to_its_anchor(family, tmp_path):
    pipe = family_pipe(family, tmp_path)
    before, goal, start = weights(pipe), outputs(pipe, "circle"), outputs(pipe, "star")
    patch = get_eraser("hirm", **QUICK, toward="anchor", encoders=tuple(feeds_of(pipe))).fit(pipe, STAR, progress=False)
    assert same(before, weights(pipe))
    with patch.applied(pipe):
        assert distance({"": outputs(pipe, "star")}, {"": goal}) < 0.5 * distance({"": start}, {"": goal})
    for name in patch.parameters:
        part, _, path = name.partition(".")
        place = in_block(path.rpartition(".")[0])
        assert part in feeds_of(pipe)
        assert place is not None
        assert place.number == 0
        assert place.part is not None


def test_kept_prompts_are_held(pipe):
    moved = {}
    still = outputs(pipe, "a moon")
    for keep in (0.0, 10.0):
        patch = get_eraser("hirm", **QUICK, toward="anchor", keep=keep).fit(pipe, STAR, progress=False)
        with patch.applied(pipe):
            moved[keep] = float(distance({"": outputs(pipe, "a moon")}, {"": still}))
    assert moved[10.0] < 0.7 * moved[0.0]


def test_there_is_nothing_to_learn_where_the_goal_is_reached(pipe, monkeypatch):
    monkeypatch.setattr("erasers.methods.hirm.HiRM.pairs", lambda self, concepts: {"star": "star"})
    (shown,) = losses(pipe, monkeypatch, iterations=1, toward="anchor")
    assert shown["erase"] < 1e-12
    assert shown["keep"] < 1e-12


def test_the_loss_falls_toward_a_random_vector(pipe, monkeypatch):
    shown = losses(pipe, monkeypatch, coefficient=1.0)
    assert shown[-1]["erase"] < shown[0]["erase"]


def test_the_denoiser_does_not_run(pipe, monkeypatch):
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the denoiser ran")

    monkeypatch.setattr(pipe.unet, "forward", refuse)
    assert get_eraser("hirm", **QUICK | {"iterations": 2}).fit(pipe, STAR, progress=False).parameters
