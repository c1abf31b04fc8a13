"""Which ingredient of a method does what: its settings for the embedded model with one thing changed at a time.

    python benchmarks/ablation.py                      # robust_ablation
    python benchmarks/ablation.py --method adv_unlearn # or esd
    python benchmarks/ablation.py --table              # ablation.md, from what these have written

The task is `ablation.yaml`: zorblat, for which no settings were chosen. What the runs found goes to
`results/shapes-ablation-METHOD.json`; patches, pictures and whole result files stay in `--work`, and a run that is
stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from erasers import get_eraser, load_pipeline
from erasers.eraser import options_for
from erasers.evaluation.run.states import kept_patch
from erasers.files.atomic import write_atomically
from erasers.worlds.shapes.prompts import concept_for

HERE = Path(__file__).parent
TASK = HERE / "ablation.yaml"
RESULTS = HERE / "results"
TABLE = HERE / "ablation.md"
PATCHES = Path(__file__).parent / "patches"
CONCEPT = "zorblat"

VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "robust_ablation": {
        "full": {},
        "without soft tokens": {"attack_scale": 0.0},
        "without relearned weights": {"relearn_scale": 0.0},
        "without both": {"attack_scale": 0.0, "relearn_scale": 0.0},
        "half as many kept prompts, twice the noises": {"kept": 96, "noises": 16},
        "a quarter of the drift": {"drift": 0.0005},
        "dense": {"rank": 0},
    },
    "adv_unlearn": {
        "full": {},
        "without attacks": {"attack_steps": 0},
        "attacks from random tokens": {"attack_init": "random"},
        "soft tokens in front alone": {"placement": "prefix"},
        "two from random tokens in the place": {"placement": "replace", "tokens": 2, "attack_init": "random"},
    },
    "esd": {
        "full": {},
        "all but cross-attention": {"train_method": "u"},
        "all": {"train_method": "all"},
        "cross-attention, ten times the rate": {"lr": 3e-3},
        "all but cross-attention, three times the rate": {"train_method": "u", "lr": 1e-3},
        "all but cross-attention, ten times the rate": {"train_method": "u", "lr": 3e-3},
    },
}
SCORES: Mapping[str, str] = {
    "explicit": "explicit",
    "synonym": "synonym",
    "neighbour": "neighbour",
    "unrelated": "unrelated",
    "drift/unrelated": "drift, unrelated",
    "attack/unlearn_diff_atk": "UnlearnDiffAtk",
    "probe/cce": "CCE",
    "probe/relearning": "relearning",
    "control/unlearn_diff_atk": "random prefixes",
    "control/cce": "random words",
}


def name_of(method: str, variant: str) -> str:
    """File name of a variant."""
    return f"{method}-{variant.replace(' ', '-').replace(',', '')}"


def fitted(method: str, variant: str, work: Path) -> Path:
    """The patch of a variant, fitted unless it lies there or among the committed ones."""
    path = work / "patches" / f"{name_of(method, variant)}.safetensors"
    if not path.is_file():
        torch.set_num_threads(1)
        path.parent.mkdir(parents=True, exist_ok=True)
        eraser = get_eraser(method, **{**options_for(method, "shapes"), **VARIANTS[method][variant]})
        concept = concept_for(CONCEPT)
        patch = kept_patch([PATCHES], method, eraser, CONCEPT, [concept])
        if patch is None:
            patch = eraser.fit(load_pipeline("shapes"), concept, generator=torch.Generator().manual_seed(0))
        patch.save(path)
    return path


def figures(path: Path) -> dict[str, Any]:
    """What a result file says: value, interval and number of pictures of each score; a score that is absent is too."""
    result = json.loads(path.read_text(encoding="utf-8"))
    details = result["scores"]["cases"][CONCEPT]["details"]
    return {name: details[name] for name in SCORES if name in details}


def measure(method: str, work: Path, processes: int) -> dict[str, Any]:
    """Fit all variants, draw and attack them beside the unedited and the retrained model."""
    variants = list(VARIANTS[method])
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        paths = list(pool.map(fitted, [method] * len(variants), variants, [work] * len(variants)))
    command = [sys.executable, "-m", "erasers.cli", "bench", "run", str(TASK), "--out", str(work)]
    subprocess.run([*command, *(word for path in paths for word in ("--patch", str(path)))], check=True)
    names = {"unedited": "unedited", "retrained": "reference"} | {
        variant: name_of(method, variant) for variant in variants
    }
    folder = work / "shapes-ablation@1"
    return {
        "settings": {variant: VARIANTS[method][variant] for variant in variants},
        "rows": {label: figures(folder / f"{name}.json") for label, name in names.items()},
    }


def table(measured: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: a table for each method, every score with its 95 % interval."""
    for method, facts in measured.items():
        yield f"## `{method}`"
        yield ""
        yield f"| what is changed | {' | '.join(SCORES.values())} |"
        yield "|---" * (len(SCORES) + 1) + "|"
        for label, scores in facts["rows"].items():
            settings = facts["settings"].get(label) or {}
            title = ", ".join(f"`{key}={value}`" for key, value in settings.items())
            yield f"| {label}{title and f' ({title})'} | {' | '.join(_cell(scores.get(name)) for name in SCORES)} |"
        yield ""


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "-"
    return f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--method", choices=list(VARIANTS), default="robust_ablation")
    parser.add_argument("--work", type=Path, default=Path("runs") / "ablation")
    parser.add_argument("--processes", type=int, default=2, help="that fit side by side, one core each")
    parser.add_argument("--table", action="store_true", help="measure nothing; write ablation.md")
    options = parser.parse_args(arguments)
    if options.table:
        files = {method: RESULTS / f"shapes-ablation-{method}.json" for method in VARIANTS}
        measured = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}
        text = "\n".join(["# Which ingredient does what", "", *table(measured)])
        write_atomically(TABLE, lambda file: file.write_text(text, encoding="utf-8"))
        return
    text = json.dumps(measure(options.method, options.work, options.processes), indent=1) + "\n"
    out = RESULTS / f"shapes-ablation-{options.method}.json"
    write_atomically(out, lambda file: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
