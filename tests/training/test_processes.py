"""One training in several processes: the same patch in all of them, from draws of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TESTS
from support.tiny import make_pipe
from support.trained import METHODS

from erasers import Concept, Patch, get_eraser
from erasers.cli.app import run
from erasers.processes import agreed, own_draws, own_file, rank_and_world

# A thread that has just sent the last tensor may still hold it, and would abort the process when it lets go of it while
# the interpreter ends. So the process ends without that.
_END = """
state.destroy_process_group()
sys.stderr.flush()
os._exit(0)
"""

STAR = Concept("star", anchor="circle", preserve=["a moon", "a red circle"])
OPTIONS: dict[str, Any] = {"iterations": 3, "lr": 1e-2, "steps": 2, "pictures": 2}

_ONE = """
import json, os, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
folder, number = Path(sys.argv[2]), int(os.environ["RANK"])
torch.set_num_threads(1)
from accelerate import PartialState
state = PartialState(cpu=True)
from training.test_processes import OPTIONS, STAR
from support.tiny import make_pipe
from erasers import get_eraser
from erasers import processes
weight = torch.nn.Parameter(torch.ones(2))
free = torch.nn.Parameter(torch.ones(1))
mine, other = torch.optim.SGD([weight], lr=1.0), torch.optim.SGD([free], lr=1.0)
with processes.shared_gradients([mine, other], [weight]):
    for optimizer, parameter in ((mine, weight), (other, free)):
        parameter.grad = torch.full_like(parameter, float(number))
        optimizer.step()
generator = torch.Generator().manual_seed(0)
processes.own_draws(generator)
pipe = make_pipe("sd1", folder / f"pipe-{number}")
patch = get_eraser("esd", **OPTIONS).fit(pipe, STAR, progress=True, checkpoint=folder / "checkpoint")
facts = {
    "digest": patch.digest,
    "weight": weight.tolist(),
    "free": free.tolist(),
    "draw": float(torch.rand(1, generator=generator)),
    "agreed": processes.agreed("enough" if number else "", torch.device("cpu")),
    "nobody": processes.agreed("", torch.device("cpu")),
}
(folder / f"{number}.json").write_text(json.dumps(facts))
"""


def environment(number: int, port: int) -> dict[str, str]:
    facts = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return os.environ | {name: str(value) for name, value in facts.items()} | {"OMP_NUM_THREADS": "1"}


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def both(command: list[str], **options: Any) -> list[str]:
    """What two processes write to stderr."""
    port = free_port()
    running = [
        subprocess.Popen(command, env=environment(number, port), stderr=subprocess.PIPE, text=True, **options)
        for number in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    return said


@pytest.mark.full
def test_two_processes_end_with_one_patch(tmp_path):
    said = both([sys.executable, "-W", "ignore", "-c", _ONE + _END, str(TESTS), str(tmp_path)])
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert first["digest"] == second["digest"]
    alone = get_eraser("esd", **OPTIONS).fit(make_pipe("sd1", tmp_path / "alone"), STAR, progress=False)
    assert alone.digest != first["digest"]
    # The mean of 0 and 1, where an optimizer has the shared parameter, and their own where not.
    assert first["weight"] == second["weight"] == [0.5, 0.5]
    assert (first["free"], second["free"]) == ([1.0], [0.0])
    assert first["draw"] != second["draw"]
    assert (first["agreed"], second["agreed"]) == ("another process stopped", "enough")
    assert first["nobody"] == second["nobody"] == ""
    assert "esd: 3 iterations" in said[0]
    assert "esd" not in said[1]


@pytest.mark.full
def test_from_the_command(tmp_path):
    arguments = [
        "--concept",
        "star",
        "--method",
        "esd",
        "--model",
        "shapes",
        "--device",
        "cpu",
        "--out",
        "x.safetensors",
    ]
    arguments += ["--set", "iterations=1", "--set", "pictures=1", "--set", "steps=1", "--checkpoint", "half"]
    both([sys.executable, "-m", "erasers.cli", *arguments], cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert Patch.load(tmp_path / "x.safetensors").meta["method"] == "esd"


def test_one_process_draws_as_before(monkeypatch, tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    own_draws(generator)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())
    assert (rank_and_world(), own_file("x"), agreed("why", torch.device("cpu"))) == ((0, 1), Path("x"), "why")
    for name, value in {"RANK": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert run(["--concept", "star", "--method", "uce", "--model", "shapes", "--out", str(tmp_path / "x")]) == 2
    assert "expected RANK below WORLD_SIZE" in capsys.readouterr().err


_PICTURES = """
import json, os, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
folder, number = Path(sys.argv[2]), int(os.environ["RANK"])
torch.set_num_threads(1)
from accelerate import PartialState
state = PartialState(cpu=True)
from support.tiny import make_pipe
from support.trained import METHODS, ONE_RANK, STAR
from erasers import get_eraser
from erasers.diffusion import latent_bank
pipe, walk, drawn = make_pipe("sd1", folder / f"pipe-{number}"), latent_bank._walk, []
def watched(*arguments):
    pictures = walk(*arguments)
    drawn.append(round(float(pictures.double().sum()), 6))
    return pictures
latent_bank._walk = watched
facts = {}
for name, options in METHODS.items():
    drawn.clear()
    # The bound is met again and again: all processes have to take the same steps back.
    options = options | {"iterations": 3, "lr": 1e-3, "rank": ONE_RANK.get(name, 2)}
    options |= {"max_drift": 0.02} if name == "few_shot" else {}
    facts[name] = {"digest": get_eraser(name, **options).fit(pipe, STAR, progress=False).digest, "drawn": list(drawn)}
(folder / f"{number}.json").write_text(json.dumps(facts))
"""


@pytest.mark.full
def test_every_process_draws_pictures_of_its_own(tmp_path):
    both([sys.executable, "-W", "ignore", "-c", _PICTURES + _END, str(TESTS), str(tmp_path)])
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert sorted(first) == sorted(METHODS)
    for name, facts in first.items():
        assert facts["digest"] == second[name]["digest"], name
        # Nothing is drawn for hirm, and eraseflow walks ways of its own.
        assert bool(facts["drawn"]) == (name not in ("hirm", "eraseflow")), name
        assert not set(facts["drawn"]) & set(second[name]["drawn"]), name


_RESUMED = """
import os, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
folder, number, iterations = Path(sys.argv[2]), int(os.environ["RANK"]), int(sys.argv[3])
torch.set_num_threads(1)
from accelerate import PartialState
state = PartialState(cpu=True)
from training.test_processes import OPTIONS, STAR
from support.tiny import make_pipe
from erasers import get_eraser
from erasers.files.checkpoint import CheckpointFile
from safetensors import safe_open
step = CheckpointFile.save
def interrupted(file, state, agree):
    step(file, state, agree)
    if len(state()["losses"]) == iterations:
        raise KeyboardInterrupt
CheckpointFile.save = interrupted
# One process is always due, the other never by its own clock.
options = {"progress": False, "seconds_between_checkpoints": 1e9 if number else 0.0}
pipe = make_pipe("sd1", folder / f"pipe-{number}")
try:
    get_eraser("esd", **OPTIONS).fit(pipe, STAR, checkpoint=folder / "half", **options)
    said = "done"
except KeyboardInterrupt:
    said = "stopped"
except ValueError as error:
    said = str(error)
with safe_open(folder / f"half.{number}-of-2", "pt") as file:
    said += f" at {len(file.get_tensor('losses'))}"
(folder / f"{number}.txt").write_text(said)
"""


def resumed(folder: Path, iterations: int) -> list[str]:
    """What both processes say of a training that stops after so many iterations."""
    both([sys.executable, "-W", "ignore", "-c", _RESUMED + _END, str(TESTS), str(folder), str(iterations)])
    return [(folder / f"{number}.txt").read_text() for number in range(2)]


@pytest.mark.full
def test_all_processes_go_on_from_one_step(tmp_path):
    assert resumed(tmp_path, 1) == ["stopped at 1"] * 2
    old = (tmp_path / "half.1-of-2").read_bytes()
    assert resumed(tmp_path, 2) == ["stopped at 2"] * 2
    # As if it had been killed between the two files.
    (tmp_path / "half.1-of-2").write_bytes(old)
    first, second = resumed(tmp_path, 3)
    assert "expected checkpoints of one step for all processes, got 2, 1, in the order of processes; delete" in first
    assert "got 2, 1, in the order" in second
