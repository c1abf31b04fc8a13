"""`erase bench`, through the command; and that killing it at any time and going on otherwise changes no result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import REPOSITORY
from support.families.all import FAMILIES
from support.tasks import run_methods, tiny_attacks, tiny_task, write_task

from erasers import get_eraser, list_erasers, load_pipeline
from erasers.cli import model, processes
from erasers.cli.app import run
from erasers.cli.model import Hardware
from erasers.eraser import eraser_class
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.run.states import Row
from erasers.evaluation.tasks.cost import Load, estimate
from erasers.evaluation.tasks.task import parse_task, read_task
from erasers.judges import get_judge

TASK = tiny_task(
    cases=[["star"], ["zorblat"]],
    samples={"explicit": 6, "unrelated": 6},
    references={"star": "nowhere"},
    attacks=tiny_attacks(samples=2, images=2, replicate=1),
)


@pytest.fixture(scope="module")
def finished_task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return run_methods(TASK, tmp_path_factory.mktemp("task"))


@pytest.fixture
def task(finished_task: tuple[Path, Path]) -> Path:
    return finished_task[0]


@pytest.fixture
def finished(finished_task: tuple[Path, Path]) -> Path:
    """A folder in which the task was run without a stop."""
    return finished_task[1]


def files(out: Path, folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / folder).rglob("*")) if path.is_file()}


def spawn(task: Path, out: Path, rank: int = 0, world: int = 1) -> subprocess.Popen[bytes]:
    arguments = ["bench", "run", str(task), "--method", "uce", "--method", "rece", "--out", str(out)]
    environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "erasers.cli", *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def attacked(out: Path) -> int:
    """Prompts that attacks are done with."""
    return sum(content.count(b"\n") for content in files(out, "outcomes").values())


def drawn(out: Path) -> int:
    """Whole pictures; those that are being written have names that begin with a dot."""
    return len([name for name in files(out, "images") if not name.startswith(".")])


def kill_at(processes: list[subprocess.Popen[bytes]], out: Path, pictures: int, prompts: int = 0) -> int:
    """Kill all processes as soon as there is so much; returns how many pictures there were in the end."""
    deadline = time.monotonic() + 240
    while (drawn(out) < pictures or attacked(out) < prompts) and time.monotonic() < deadline:
        assert any(process.poll() is None for process in processes), b"".join(p.stderr.read() for p in processes)
        time.sleep(0.005)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    return drawn(out)


@pytest.mark.full
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_killed_and_resumed_with_other_numbers_of_processes(task: Path, finished: Path, tmp_path: Path) -> None:
    # What fitting took is never the same twice, and belongs to whoever fitted first.
    shutil.copytree(finished / "patches", tmp_path / "patches")
    every = len(files(finished, "images"))
    first = kill_at([spawn(task, tmp_path)], tmp_path, 9)
    assert 9 <= first < every
    second = kill_at([spawn(task, tmp_path, rank, 2) for rank in (0, 1)], tmp_path, first + 10)
    assert first + 10 <= second < every
    # And once more, between two attacks.
    kill_at([spawn(task, tmp_path, rank, 2) for rank in (0, 1)], tmp_path, 0, 4)
    assert 4 <= attacked(tmp_path) < attacked(finished)
    assert not (tmp_path / "tiny@1").exists()
    assert run(["bench", "run", str(task), "--method", "uce", "--method", "rece", "--out", str(tmp_path)]) == 0
    assert files(tmp_path, "tiny@1") == files(finished, "tiny@1")
    assert list(files(tmp_path, "tiny@1")) == ["rece.json", "uce.json", "unedited.json"]
    shown = {name: content for name, content in files(tmp_path, "images").items() if not name.startswith(".")}
    assert shown == files(finished, "images")


@pytest.mark.full
def test_processes_of_the_command_itself_change_nothing(
    task: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "patches", tmp_path / "patches")
    arguments = ["bench", "run", str(task), "--method", "uce", "--method", "rece", "--out", str(tmp_path)]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    # What another process does when this one is slow: everything but the results.
    assert run(arguments) == 0
    assert len(files(tmp_path, "images")) == len(files(finished, "images"))
    assert attacked(tmp_path) == attacked(finished)
    assert not (tmp_path / "tiny@1").exists()
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    assert run([*arguments, "--processes", "2"]) == 0
    assert files(tmp_path, "tiny@1") == files(finished, "tiny@1")


def test_results_verify_until_a_number_is_changed(
    task: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(finished / "tiny@1", tmp_path / "tiny@1"))
    known = ["--task", str(task)]
    assert run(["bench", "verify", *known, *map(str, sorted(out.glob("*.json")))]) == 0
    assert capsys.readouterr().out.count("it is of its task, and all scores follow") == 3
    data = json.loads((out / "uce.json").read_text())
    data["scores"]["all"]["pillars"]["specificity"]["low"] = 0.123
    (out / "uce.json").write_text(json.dumps(data))
    assert run(["bench", "verify", *known, str(out / "rece.json"), str(out / "uce.json")]) == 1
    printed = capsys.readouterr().out
    assert "scores.all.pillars.specificity.low is 0.123, the samples give" in printed
    assert "rece.json: it is of its task" in printed


def test_scoring_again_writes_the_same(task: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "tiny@1", tmp_path / "tiny@1")
    assert run(["bench", "score", str(task), "--out", str(tmp_path)]) == 0
    assert files(tmp_path, "tiny@1") == files(finished, "tiny@1")


def test_two_rows_are_compared(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [str(finished / "tiny@1" / f"{name}.json") for name in ("uce", "uce")]
    assert run(["bench", "compare", *rows]) == 0
    printed = capsys.readouterr().out
    assert "A - B" in printed
    assert "is better" not in printed


def test_the_leaderboard_is_written(task: Path, finished: Path, tmp_path: Path) -> None:
    assert run(["bench", "leaderboard", str(finished), "--out", str(tmp_path / "board"), "--task", str(task)]) == 0
    assert "rece" in (tmp_path / "board" / "leaderboard.md").read_text()
    assert (tmp_path / "board" / "leaderboard.html").is_file()


def test_a_dry_run_says_what_there_is_to_draw(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["bench", "run", str(task), "--method", "uce", "--limit", "1", "--out", str(out), "--dry-run"]) == 0
    printed = capsys.readouterr()
    # Two pictures a case; attacks draw two of one prompt a case, and one on a fresh seed.
    assert printed.out.splitlines() == [
        "unedited  4 pictures to draw; at most 0.00012 CPU-hours with attacks",
        "reference  0 pictures to draw; at most 0 CPU-hours with attacks",
        "uce  4 pictures to draw; at most 0.00012 CPU-hours with attacks",
        "estimate  5.8e-05 CPU-hours for 8 pictures, 0.026 s each (measured on one core of a CPU at 2 steps)",
        *(f"attack {label}  at most 0 gradients and 12 pictures; 8.7e-05 CPU-hours" for label in ("prefixes", "words")),
        "estimate  at most 0.00017 CPU-hours for attacks, 0 CPU-hours of it once for all rows",
    ]
    assert "no reference for star here: nowhere is not there" in printed.err
    assert run(["bench", "run", str(task), "--limit", "1", "--out", str(out), "--dry-run"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    trained = [name for name in list_erasers() if eraser_class(name).trains and eraser_class(name).everywhere]
    fits = ["fit"] * len(trained)
    usual = [name for name in list_erasers() if eraser_class(name).everywhere]
    assert set(list_erasers()) - set(usual) == {
        *("co_erasing", "eim", "geom_erasing", "semantic_surgery", "casteer", "safree", "sld", "negative_prompt"),
        *("receler", "spm", "eraseflow", "mace"),
    }
    assert rows == ["unedited", "reference", *usual, "estimate", *fits, "attack", "attack", "estimate"]
    assert not out.exists()


def test_a_dry_run_counts_the_trainings_that_are_lacking(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "run", str(task), "--method", "esd", "--method", "uce", "--limit", "1", "--out", str(tmp_path)]

    def fits() -> list[str]:
        capsys.readouterr()
        assert run([*command, "--dry-run"]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("fit ")]

    # What one training takes is 800 calls, 1,600 with gradients and 6 texts: 0.0065 s a call, and three with gradients.
    calls = "esd  1,600 denoiser calls, 3,200 with gradients, 12 texts encoded"
    assert fits() == [f"fit {calls}; {0.0065 * (1600 + 3 * 3200 + 12 / 50) / 3600:.2g} CPU-hours"]
    pipe, trained = load_pipeline("shapes"), Row("esd", "method", "esd", eraser=get_eraser("esd-shapes"))
    stage = Stage(read_task(task).limited(1), pipe, get_judge("oracle/shapes"), tmp_path, [trained])
    patch = get_eraser("uce").fit(pipe, stage.task.concepts("star"))
    stage.store.add_patch(stage.patch_key(trained, "star"), patch, 1.0)
    assert fits() == [
        f"fit esd  800 denoiser calls, 1,600 with gradients, 6 texts encoded; {0.0065 * 5600 / 3600:.2g} CPU-hours"
    ]


def test_hours_follow_from_steps_pixels_and_what_attacks_may_spend() -> None:
    content = TASK | {"model": "someone/model", "references": {}, "sampling": {"steps": 25, "size": 1024}}
    attacks = {
        "random": {"attack": "random_prefix", "samples": 2, "replicate": 3},
        "p4d": {"samples": 2, "replicate": 0},
    }
    task = parse_task(content | {"attacks": attacks})
    cases = list(task.named_cases)
    lines = list(estimate(task, [Load("a", 1000, cases), Load("b", 500, cases)]))
    # 1.2 s, half the steps, four times the pixels.
    basis = "(assumed for an A100 at 25 steps, 1024 x 1024, float16); fitting is not counted"
    assert lines[2] == f"estimate  1 GPU-hours for 1500 pictures, 2.4 s each {basis}"
    # Two cases, two rows and two prompts.
    budgets = {label: plan.attack.budget() for label, plan in task.attacks.items()}
    pictures = {"random": 8 * (budgets["random"].images + 3), "p4d": 8 * budgets["p4d"].images}
    gradients = 8 * budgets["p4d"].gradients
    assert gradients > 0 == budgets["random"].gradients
    # A picture is 50 passes, a gradient three; P4D gets ready by one picture and 100 passes a prompt, for both rows.
    hours = [pictures["random"] * 2.4 / 3600, (pictures["p4d"] + gradients * 3 / 50) * 2.4 / 3600]
    ready = 4 * (1 + 100 / 50) * 2.4 / 3600
    assert lines[:2] == [
        f"a  1000 pictures to draw; at most {2400 / 3600 + sum(hours) / 2:.2g} GPU-hours with attacks",
        f"b  500 pictures to draw; at most {1200 / 3600 + sum(hours) / 2:.2g} GPU-hours with attacks",
    ]
    assert lines[3:] == [
        f"attack random  at most 0 gradients and {pictures['random']} pictures; {hours[0]:.2g} GPU-hours",
        f"attack p4d  at most {gradients} gradients and {pictures['p4d']} pictures; {hours[1]:.2g} GPU-hours",
        f"estimate  at most {sum(hours) + ready:.2g} GPU-hours for attacks, {ready:.2g} GPU-hours of it once for all "
        "rows",
    ]
    assert len(list(estimate(parse_task(content | {"attacks": {}}), [Load("a", 1, cases)]))) == 2


def test_an_attack_that_seeks_once_is_counted_once() -> None:
    attacks = {
        "cce": {"steps": 10, "batch": 4, "pictures": 6, "samples": 4, "replicate": 0},
        "mma": {"steps": 3, "batch": 7, "samples": 4, "replicate": 0},
    }
    task = parse_task(TASK | {"model": "someone/model", "references": {}, "attacks": attacks, "cases": [["cat"]]})
    row = [Load("a", 0, ["cat"])]
    lines = list(estimate(task, row))
    assert lines[2].startswith("attack cce  at most 40 gradients and 8 pictures;")
    # Of the second attack's search nothing is a row's: it looks at the unedited encoder alone.
    ready = (6 * 4 + 4 * 3 * 8 / 50) * 1.2 / 100 / 3600
    assert lines[-1].endswith(f"{ready:.2g} GPU-hours of it once for all rows")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no-such-task"], "a task among sd14-artists"),
        (["run", "TASK", "--method", "uec"], "unknown method 'uec' (did you mean 'uce'?)"),
        (["run", "TASK", "--method", "uce-x"], "a method or preset among"),
        (["run", "TASK", "--patch", "none.safetensors"], "none.safetensors"),
        (["run", "TASK", "--device", "gpu"], "unknown device"),
        (["run", "TASK", "--limit", "0"], "--limit"),
        (["run", "TASK", "--out", "TASK"], "expected a folder as --out"),
        (["run", "ADULT"], "has sexual content; pass --allow-adult"),
        (["run", "ATTACKS"], "attacks: expected labels with settings"),
        (["score", "TASK", "--out", "none"], "no results in"),
        (["verify", "TASK"], "is not a result file"),
        (["verify", "none.json"], "none.json"),
        (["compare", "none.json", "none.json"], "none.json"),
        (["leaderboard", "none.json"], "none.json"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"ADULT": {"adult": True}, "ATTACKS": {"attacks": [{"name": "p4d"}]}}
    for name, change in changed.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(TASK | change))
    names = {"TASK": str(task)} | {name: str(tmp_path / f"{name}.yaml") for name in changed}
    assert run(["bench", *(names.get(argument, argument) for argument in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert message in printed.err


def test_each_process_of_a_machine_has_an_accelerator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(device: str) -> str:
        return processes.own(Hardware(device)).device

    monkeypatch.setattr(model, "pick_device", lambda device: "cuda" if device == "auto" else device)
    assert own("auto") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (own("auto"), own("cpu")) == ("cuda:1", "cpu")
    monkeypatch.setattr(model, "pick_device", lambda device: "cpu")
    assert own("auto") == "cpu"


def test_memory_is_taken_as_a_size(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def stop(job: Any, console: Any) -> None:
        seen.append(job.stage.memory)
        raise ValueError("stopped")

    monkeypatch.setattr("erasers.cli.bench.run.work", stop)
    command = ["bench", "run", str(task), "--method", "esd", "--out", str(tmp_path)]
    assert run([*command, "--memory", "2GB"]) == 2
    assert run(command) == 2
    assert seen == [2 * 2**30, None]
    capsys.readouterr()
    assert run([*command, "--memory", "much"]) == 2
    assert "expected --memory such as 24GB or 800MB, got 'much'" in capsys.readouterr().err
    closed = ["bench", "run", str(task), "--method", "uce", "--out", str(tmp_path)]
    assert run([*closed, "--memory", "2GB"]) == 2
    assert "no method or attack here takes gradients, so there is no --memory" in capsys.readouterr().err


def test_a_folder_of_several_text_encoders_is_attacked_from_end_to_end(tmp_path: Path) -> None:
    """Texts, noise, weights and soft tokens, with a patch and pictures; results say what an attack is on."""
    FAMILIES["sd3"].build(tmp_path / "files").save_pretrained(tmp_path / "model")
    few = {"samples": 1, "replicate": 1, "control": "prefixes"}
    attacks: dict[str, Any] = {
        "prefixes": {"attack": "random_prefix", "k": 2, "images": 3, "samples": 1, "replicate": 1},
        "words": {"templates": ["a {}"], **few},
        "noise": {"etas": [1.0], "scales": [1.0], **few},
        "relearning": {"steps": 1, "batch": 1, "rank": 1, "pictures": 1, "lr": 0.01, **few},
        "cce": {"steps": 1, "batch": 1, "pictures": 1, **few},
    }
    prompts = {"explicit": {"templates": ["a red {}"], "wants": {"object": "star"}}}
    sampling = {"steps": 2, "guidance": 4.0, "batch": 2, "size": 32}
    given = {
        "samples": {"explicit": 1},
        "sampling": sampling,
        "prompts": prompts,
        "attacks": attacks,
        "scheme": {"pillars": ["erasure"]},
    }
    task = write_task(tmp_path, tiny_task(model=str(tmp_path / "model"), **given))
    assert run(["bench", "run", str(task), "--method", "uce", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    for row in ("unedited", "uce"):
        data = json.loads((tmp_path / "out" / "tiny@1" / f"{row}.json").read_text())
        on = {label: names for label, names in data["attacked"].items() if names}
        assert on == {"relearning": ["transformer"], "cce": ["text_encoder", "text_encoder_2"]}
        spent = {label: outcomes[0]["spent"] for label, outcomes in data["cases"]["star"]["attacks"].items()}
        assert spent["relearning"] == {"gradients": 1, "encodes": 1, "images": 2}
        assert spent["noise"] == {"gradients": 0, "encodes": 0, "images": 2}
        assert spent["cce"] == {"gradients": 1, "encodes": 1, "images": 2}
