"""STEREO: words are searched against a student that is thrown away, and erased together from the original denoiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import same, weights

from erasers import Concept, get_eraser
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.conditions import conditions
from erasers.methods import stereo
from erasers.methods.esd import target
from erasers.methods.stereo import Found, joint_target
from erasers.training.loop import TrainedEraser

STAR = Concept("star", anchor="circle")
QUICK: dict[str, Any] = {
    **{"iterations": 2, "lr": 1e-2, "steps": 2, "pictures": 2, "batch": 2, "refresh": 2, "rounds": 2},
    **{"search_iterations": 2, "attack_steps": 3, "attack_batch": 2, "train_method": "x"},
}


def test_the_goal_leads_to_the_anchor_and_away_from_the_mean_of_all_words():
    empty, anchor, said = torch.randn(2, 3), torch.randn(2, 3), torch.randn(4, 2, 3)
    torch.testing.assert_close(joint_target(empty, anchor, said, 0.0, 0.0), empty)
    torch.testing.assert_close(joint_target(empty, anchor, said, 1.0, 0.0), anchor)
    # With the prompt alone and no anchor that is ESD.
    torch.testing.assert_close(joint_target(empty, anchor, said[:1], 0.0, 2.0), target(empty, said[0], 2.0))
    away = torch.stack([target(empty, one, 1.0) - empty for one in said]).mean(dim=0)
    torch.testing.assert_close(joint_target(empty, anchor, said, 0.0, 1.0), empty + away)


def test_latents_are_told_their_prompt_or_a_word_of_their_concept():
    named = Condition(torch.arange(3.0).view(3, 1, 1))
    words = [Condition(torch.tensor([10.0, 11.0]).view(2, 1, 1)), Condition(torch.tensor([20.0, 21.0]).view(2, 1, 1))]
    found = Found(torch.tensor([0, 0, 1]), words)
    told = found.told(named, torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 1, 2, 1, 2]))
    assert told.states.flatten().tolist() == [0.0, 10.0, 21.0, 11.0, 20.0]


@pytest.fixture
def learnt(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What stage one found, all that was told in stage two, and what a search reached."""
    seen: dict[str, Any] = {"told": [], "losses": [], "at": []}
    told, search, learn = Found.told, stereo.search, stereo.Stereo.learn

    def watch(self: Found, *args: Any) -> Condition:
        seen["told"].append(told(self, *args))
        return seen["told"][-1]

    def watched(loss: Any, start: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen["at"].append(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.detach().clone())
        return search(loss, start, *args, **kwargs)

    def second(self: Any, pipe: Any, heard: Any, latents: Any, student: Any, beside: Found, number: int) -> Any:
        if not number:
            seen["found"], seen["first"] = beside, {key: value.clone() for key, value in student.tensors().items()}
            seen["told"].clear()
        return learn(self, pipe, heard, latents, student, beside, number)

    monkeypatch.setattr(Found, "told", watch)
    monkeypatch.setattr(stereo, "search", watched)
    monkeypatch.setattr(stereo.Stereo, "learn", second)
    return seen


def test_the_list_grows_by_words_for_each_concept_and_all_of_them_are_unlearned(pipe, learnt):
    before = weights(pipe)
    get_eraser("stereo", **QUICK).fit(pipe, [STAR, Concept("art", anchor="")], progress=False)
    assert same(before, weights(pipe))
    found = learnt["found"]
    assert [len(words.states) for words in found.words] == [2, 2]
    rows = [row for words in found.words for row in words.states]
    assert not any(torch.equal(one, other) for number, one in enumerate(rows) for other in rows[:number])
    # An iteration asks the frozen model for the prompt and for each word, and tells the student of some.
    assert len(learnt["told"]) == QUICK["iterations"] * (1 + QUICK["rounds"] + 1)


def test_words_are_searched_on_a_student_that_is_gone_when_stage_two_begins(pipe, learnt):
    weight = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight
    get_eraser("stereo", **QUICK).fit(pipe, STAR, progress=False)
    assert len(learnt["at"]) == 2
    assert all(not torch.equal(value, weight) for value in learnt["at"])
    assert not torch.equal(*learnt["at"])
    assert len(learnt["first"]) > 0
    for name, value in learnt["first"].items():
        path = name.partition("/")[0].removeprefix("unet.")
        assert torch.equal(value, pipe.unet.get_parameter(path))


def test_a_search_comes_nearer_to_the_pictures(pipe, monkeypatch):
    reached: list[tuple[float, float]] = []
    search = stereo.search

    def watched(loss: Any, start: torch.Tensor, steps: int, lr: float, **kwargs: Any) -> torch.Tensor:
        soft = search(loss, start, steps, lr, **kwargs)

        @torch.no_grad()
        def mean(tokens: torch.Tensor) -> float:
            several = [loss(tokens) for _ in range(30)]
            return sum(float(one.make(0)) for one in several) / len(several)

        reached.append((mean(start), mean(soft)))
        return soft

    monkeypatch.setattr(stereo, "search", watched)
    options = QUICK | {"rounds": 1, "attack_steps": 60, "attack_lr": 0.05, "attack_batch": 4}
    get_eraser("stereo", **options).fit(pipe, STAR, progress=False)
    ((before, after),) = reached
    assert after < before


def test_without_rounds_there_is_one_stage(pipe, learnt):
    get_eraser("stereo", **QUICK | {"rounds": 0}).fit(pipe, STAR, progress=False)
    assert not learnt["at"]
    assert not learnt["found"].words


def test_a_goal_that_is_reached_is_no_loss(pipe, monkeypatch):
    shown: list[dict[str, float]] = []

    def run(self: Any, training: Any, *_: Any) -> str:
        shown.append(dict(training.step(0)))
        return ""

    monkeypatch.setattr(TrainedEraser, "_run", run)
    get_eraser("stereo", **QUICK | {"rounds": 0, "eta": -1.0, "toward": 0.0}).fit(pipe, STAR, progress=False)
    assert shown[0]["loss"] < 1e-10


def test_the_empty_anchor_gives_no_guidance(pipe):
    heard = get_eraser("stereo", **QUICK).hear(pipe, [Concept("star", anchor="")])
    assert torch.equal(heard.asked.states, conditions(pipe, [""]).states)
