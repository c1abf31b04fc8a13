import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from erasers.files.atomic import write_atomically
from erasers.worlds.training.loop import Recipe, rate, seed_step, train


def run_toy(out: Path, steps: int, *, interrupt_at: int | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    recipe = Recipe(steps=steps, lr=0.05, warmup=2, ema=0.9, save_every=2, log_every=2)

    def loss_step(step: int) -> dict[str, Tensor]:
        if step == interrupt_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=seed_step(0, step))
        return {"loss": (model(x) - x).square().mean()}

    train("toy", model, loss_step, recipe, out)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = run_toy(tmp_path / "whole", 9)
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "killed", 9, interrupt_at=5)
    resumed = run_toy(tmp_path / "killed", 9)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole/logs/toy.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_the_rate_warms_up_stays_and_falls() -> None:
    recipe = Recipe(steps=100, lr=1.0, warmup=10, flat=0.5)
    rates = [rate(recipe, step) for step in range(100)]
    assert rates[0] == 0.1
    assert set(rates[10:50]) == {1.0}
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] < 0.01


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
