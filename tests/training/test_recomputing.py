"""Gradient checkpointing: the gradients that there are without it, for every method that trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.selection import rows
from support.trained import METHODS, RANKS, STAR

from erasers import get_eraser
from erasers.training.recomputing import checkpointed, recomputed
from erasers.training.student import Student


def test_a_block_is_run_again_with_the_hooks_that_it_had():
    block = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    given = torch.ones(1, 2)
    handle = block[0].register_forward_hook(lambda module, args, output: 3 * output)
    expected = torch.autograd.grad(block(given).sum(), list(block.parameters()))
    loss = recomputed(block, given).sum()
    handle.remove()
    late = block[1].register_forward_hook(lambda module, args, output: 5 * output)
    found = torch.autograd.grad(loss, list(block.parameters()))
    assert all(map(torch.equal, found, expected))
    # And left as it was.
    assert list(block[1]._forward_hooks.values()) == [late.hooks_dict_ref()[late.id]]
    assert not block[0]._forward_hooks


def slopes(pipe: Any, name: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[torch.Tensor]:
    """The gradients of the first steps of the student."""
    found: list[torch.Tensor] = []
    backward = Student.backward

    def watched(self: Student, *args: Any, **more: Any) -> bool:
        whole = backward(self, *args, **more)
        found.append(torch.cat([part.grad.flatten() for part in self.parameters]))
        return whole

    with monkeypatch.context() as patch:
        patch.setattr(Student, "backward", watched)
        get_eraser(name, **METHODS[name] | {"iterations": 2, "lr": 1e-4} | options).fit(pipe, STAR, progress=False)
    return found


@pytest.mark.parametrize(("name", "rank"), rows(RANKS, default=lambda name, _: name == "esd"))
def test_gradients_are_the_same(pipe, name, rank, monkeypatch):
    options = {"rank": rank, "iterations": 2 + METHODS[name].get("warm_up", 0)}
    plain, again = (slopes(pipe, name, monkeypatch, gradient_checkpointing=flag, **options) for flag in (False, True))
    assert len(plain) == len(again) >= 2
    assert not pipe.unet.is_gradient_checkpointing
    for one, other in zip(plain, again, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()
        assert one.any()


def test_it_is_switched_off_after_an_error(pipe):
    def fail() -> None:
        with checkpointed(pipe.unet):
            assert pipe.unet.is_gradient_checkpointing
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert not pipe.unet.is_gradient_checkpointing
