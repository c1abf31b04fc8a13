"""Threads of a CPU: the first command of the README on a quiet machine and beside busy loops.

    python benchmarks/threads.py --settings chosen torch one --limit 330 --out benchmarks/results/threads.json

Each setting is a process of its own, and the settings take turns. `chosen` has no setting, so that the command decides;
`torch` is what torch takes by itself on Linux: a thread a core, which spins for 300,000 rounds while it waits. A run
over `--limit` seconds is stopped and counts as `null`. Run it while nothing else does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from erasers.files.atomic import write_atomically

CORES = len(os.sched_getaffinity(0))
COMMAND = [sys.executable, "-m", "erasers.cli", "--concept", "star", "--method", "rece", "--model", "shapes"]
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "chosen": {},
    "torch": {"OMP_NUM_THREADS": str(CORES), "GOMP_SPINCOUNT": "300000"},
    "sleeping": {"OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "PASSIVE"},
    "one": {"OMP_NUM_THREADS": "1"},
}


def environment(setting: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process with that setting and no other of threads."""
    own = {name: text for name, text in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    return own | dict(setting)


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Processes that do nothing, as fast as they can."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def seconds(command: list[str], setting: Mapping[str, str], limit: float) -> float | None:
    """How long a command takes, in a folder of its own; None when it was stopped.

    Raises:
        CalledProcessError: It failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = environment(setting) | {"ERASERS_CACHE": folder}
        start = time.perf_counter()
        try:
            subprocess.run(command, cwd=folder, env=own, check=True, timeout=limit, capture_output=True)
        except subprocess.TimeoutExpired:
            return None
        return time.perf_counter() - start


def measure_command(settings: list[str], loops: list[int], rounds: int, limit: float) -> dict[str, Any]:
    """Seconds of the command by busy loops beside it and by setting."""
    command = [*COMMAND, "--out", "star.safetensors", "--report", "report"]
    table: dict[str, dict[str, list[float | None]]] = {}
    for count in loops:
        times: dict[str, list[float | None]] = {name: [] for name in settings}
        with busy(count):
            for _ in range(rounds):
                for name in settings:
                    times[name].append(seconds(command, SETTINGS[name], limit))
                    print(f"{count} busy loops, {name}: {shown(times[name][-1])}", flush=True)
        table[str(count)] = times
    return {"cores": CORES, "limit": limit, "rounds": rounds, "seconds": table}


def shown(value: float | None) -> str:
    """Seconds as text."""
    return "stopped at the limit" if value is None else f"{value:.1f} s"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=["chosen", "torch"])
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 4], help="busy loops beside it, e.g. 0 4")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a command is stopped")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    figures = measure_command(options.settings, options.busy, options.rounds, options.limit)
    if options.out is not None:
        text = json.dumps(figures, indent=1) + "\n"
        write_atomically(options.out, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
