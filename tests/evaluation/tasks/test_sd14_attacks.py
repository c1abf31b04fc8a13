"""The attacks of the tasks for Stable Diffusion 1.4: what they cost, and that they run, on a small random model."""

from __future__ import annotations

import json
import time
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs import complete
from support.selection import only
from support.tiny import make_unet

from erasers import load_pipeline
from erasers.attacks import get_attack, list_attacks
from erasers.cli.app import run
from erasers.cli.model import ModelOptions
from erasers.evaluation.run.run import Run
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.scores.results import read_result
from erasers.evaluation.scores.scoring import differences, unedited
from erasers.evaluation.tasks import files as prompt_files
from erasers.evaluation.tasks.task import FOLDER, list_tasks, parse_task, read_task
from erasers.judges import Verdict
from erasers.judges.oracle import Oracle

TASKS = [name for name in list_tasks() if name.startswith("sd14-")]
SMALL = {
    "steps": 2,
    "every": 2,
    "timesteps": 1,
    "bank": 2,
    "batch": 2,
    "pictures": 2,
    "population": 4,
    "generations": 1,
    "top": 3,
    "k": 2,
    "rank": 2,
    "samples": 2,
    "replicate": 1,
}


class Dice(Oracle):
    """Sees the concept in every fourth picture, by its bytes."""

    def judge(self, images: Any, prompts: Any) -> list[Verdict]:
        return [Verdict(sha256(image.tobytes()).digest()[0] % 4 == 0, 0.5) for image in images]


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The embedded model with a denoiser of random weights."""
    pipe = load_pipeline("shapes")
    pipe.unet = make_unet(pipe.text_encoder.config.hidden_size)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cut(name: str) -> Any:
    """A task with two short prompts of its first case, and with next to nothing for its attacks to spend."""
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    explicit = {"templates": ["a picture of {}", "{} in red"], "wants": content["prompts"]["explicit"]["wants"]}
    explicit["wants"] = {key: value.replace("word", "concept") for key, value in explicit["wants"].items()}
    attacks = {}
    for label, settings in content["attacks"].items():
        known = {one.name for one in fields(get_attack(settings.get("attack", label)))} | {"samples", "replicate"}
        attacks[label] = settings | {key: value for key, value in SMALL.items() if key in known}
    return parse_task(
        {
            "name": name,
            "version": content["version"],
            "model": "someone/tiny",
            "cases": content["cases"][:1],
            "samples": {"explicit": 2},
            "sampling": {"steps": 2, "guidance": 7.5, "batch": 2},
            "judge": content["judge"],
            "scheme": {"pillars": ["erasure", "robustness"]},
            "adult": content.get("adult", False),
            "prompts": {"explicit": explicit},
            "attacks": attacks,
        }
    )


def test_every_kind_of_attack_is_in_the_tasks() -> None:
    used = {plan.name for name in TASKS for plan in read_task(name).attacks.values()}
    # An IP-Adapter of a real model lies in a folder of the user's, which no task of the package can name; and the last
    # two say something beside a retrained model alone, of which Stable Diffusion has none.
    assert used == set(list_attacks()) - {"image_prompt", "state_inversion", "tina"}
    for name in TASKS:
        task = read_task(name)
        assert "robustness" in task.scheme.pillars
        assert sum(plan.counts for plan in task.attacks.values()) >= 4


@pytest.mark.parametrize("name", only(TASKS, "sd14-i2p-nudity", "sd14-imagenette"))
def test_a_dry_run_says_hours_a_row_without_the_model(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run loads nothing")

    monkeypatch.setattr(ModelOptions, "load", fail)
    monkeypatch.setattr(prompt_files, "_fetch", fail)
    started = time.process_time()
    arguments = ["bench", "run", name, "--method", "uce", "--method", "robust_ablation", "--dry-run"]
    assert run([*arguments, *(["--allow-adult"] if read_task(name).adult else [])]) == 0
    assert time.process_time() - started < 10
    lines = capsys.readouterr().out.splitlines()
    for row, line in zip(("unedited", "uce", "robust_ablation"), lines, strict=False):
        before, _, after = line.partition(" pictures to draw; at most ")
        assert before.split()[0] == row
        assert int(before.split()[1]) > 0
        # An A100 of somebody's own: a day at most.
        assert 0.1 < float(after.removesuffix(" GPU-hours with attacks")) < 24


@pytest.mark.full
@pytest.mark.parametrize("name", TASKS)
def test_the_attacks_of_a_task_run_from_end_to_end(name: str, pipe: Any, tmp_path: Path) -> None:
    task = cut(name)
    (path,) = complete(Run(Stage(task, pipe, Dice(), tmp_path)))
    (case,) = json.loads(path.read_text())["cases"].values()
    assert {label: len(outcomes) for label, outcomes in case["attacks"].items()} == dict.fromkeys(task.attacks, 2)
    for label, plan in task.attacks.items():
        limit = plan.against(task.concepts(*task.named_cases), task.model).budget()
        for outcome in case["attacks"][label]:
            assert outcome["spent"]["images"] <= limit.images
            assert outcome["spent"]["gradients"] <= limit.gradients
    row = read_result(path)
    assert not differences(row, unedited(row))
