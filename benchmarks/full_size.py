"""What every method needs at the sizes of Stable Diffusion 1.4, SDXL, SD3 medium and FLUX.1-dev, without weights.

    python benchmarks/full_size.py --out docs/full-size.md
    python benchmarks/full_size.py --run esd,doco --out docs/full-size.md   # after reduced trainings at SD 1.4 size

The counts are those of `erase --dry-run`. Models have random weights or none at all. What was really run is kept in
`benchmarks/results/full-size-runs.json`, with the settings and the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from architectures import make_pipe

from erasers import Concept, get_eraser
from erasers.closed_form.layers import value_ports
from erasers.diffusion.memory import USED, gigabytes, parse_memory
from erasers.files.atomic import write_atomically
from erasers.models.components import parameters_of
from erasers.models.families import UnsupportedPipeline
from erasers.models.ports import find_family, groups_of
from erasers.training.foretelling import REFERENCE, Split
from erasers.training.loop import TrainedEraser

RUNS = Path(__file__).parent / "results" / "full-size-runs.json"
CONCEPT = "van gogh"
METHODS = (
    *("uce", "rece", "realera", "dp", "oce", "leace", "speed"),
    *("itd", "eim", "concept_lancet", "few_shot", "esd", "ablation", "safe"),
    *("salun", "receler", "spm", "hirm", "stereo", "eraseflow", "mace"),
    *("co_erasing", "concept_slider", "geom_erasing", "adv_unlearn", "doco", "robust_ablation"),
    *("semantic_surgery", "adavd", "casteer", "safree", "sld", "negative_prompt"),
)
HOOKED = (
    *("itd", "eim", "concept_lancet"),
    *("semantic_surgery", "adavd", "casteer", "safree", "sld", "negative_prompt"),
)
"""Those whose patches are hooks: no weight is edited."""
VALUES = ("oce", "speed")
"""Those that edit the values of cross-attention alone."""
SIZES = {"sd14": "Stable Diffusion 1.4", "sdxl": "SDXL", "sd3": "Stable Diffusion 3 medium", "flux": "FLUX.1-dev"}
CARDS = {"sd14": "24GB", "sdxl": "24GB", "sd3": "24GB", "flux": "80GB"}
"""The GPU that a size is meant for."""
_HEAD = f"""# What methods need at full size

Written by `python benchmarks/full_size.py --out docs/full-size.md`, which counts as `erase --dry-run` does: nothing
is drawn or trained, and the models have no weights. The concept is "{CONCEPT}", a style; methods have their defaults.

* **Memory** is for a model in bfloat16 with what is trained in float32: the model, what is trained with its gradients
  and what optimizers remember, the latents that are learned from, and what the largest backward pass keeps. The first
  figure has whole batches, the second one latent at a time with activations that are computed again. What kernels and
  the allocator take comes on top. What is kept is counted as it is saved, with attention in one kernel and norms in
  float32 as under autocast; on tiny models that is within 7 % of what real backward passes keep.
* **On a card** is how a training fits a GPU of that memory by itself, where nothing but the method is said: a tenth is
  left to kernels and the allocator; batches are split, and where not one latent fits, activations are computed again.
* **Denoiser calls** count latents: without gradients, and with them.
* **GPU minutes** are those of {REFERENCE}: the operations of the denoiser and of all text encoders, a backward pass as
  two forward ones, what is computed again as one more, divided by that rate. That is an assumption and no measurement:
  an A100 has 312 TFLOP/s in 16 bit, and with one or two latents of 64 x 64 reaches a fraction of it. None of this was
  measured on a GPU.
* **Run** says what was really done; all else is only counted. Closed forms were timed at the sizes of Stable Diffusion
  1.4 and SDXL with random weights on a CPU (`benchmarks/results/speed-sd14.json`, `speed-sdxl.json`): they take
  seconds and no denoiser call.
"""
_COLUMNS = (
    *("method", "numbers trained", "memory", "on a card of {}", "denoiser calls", "with gradients", "GPU minutes"),
    "run",
)
REDUCED: Mapping[str, Mapping[str, Any]] = {
    "esd": {"iterations": 1, "steps": 2, "train_method": "x"},
    "ablation": {"iterations": 1, "steps": 1, "pictures": 1, "kept": 1, "batch": 1},
    "spm": {"iterations": 1, "steps": 2, "kept": 2, "anchors": 1},
    "hirm": {"iterations": 1, "kept": 2, "kept_batch": 1},
    "stereo": {"iterations": 1, "steps": 2, "pictures": 1, "rounds": 1, "search_iterations": 1, "attack_steps": 1},
    "eraseflow": {"iterations": 1, "steps": 3, "random_steps": 1, "last_steps": 1},
    "mace": {"iterations": 1, "steps": 2, "pictures": 1},
    "salun": {"iterations": 1, "steps": 1, "pictures": 1, "kept": 1, "batch": 1, "train_method": "x"},
    "receler": {"iterations": 1, "steps": 2, "attack_steps": 1},
    "safe": {"iterations": 1, "steps": 2, "train_method": "x"},
    "concept_slider": {"iterations": 1, "steps": 2},
    "few_shot": {"iterations": 1, "steps": 1, "pictures": 1, "batch": 1, "kept": 2},
    "geom_erasing": {"iterations": 1, "steps": 1, "pictures": 2, "batch": 1, "train_method": "x"},
    "doco": {"iterations": 2, "warm_up": 1, "steps": 1, "pictures": 1, "batch": 1},
    "adv_unlearn": {"iterations": 1, "warm_up": 0, "attack_steps": 1, "steps": 1, "pictures": 1, "kept": 1},
    "robust_ablation": {
        "iterations": 1,
        "steps": 1,
        "pictures": 1,
        "kept": 1,
        "noises": 1,
        "batch": 1,
        "kept_batch": 1,
        "bank": 2,
        "tokens": (1,),
        "attack_steps": 1,
        "relearn_steps": 1,
    },
}
"""One iteration of each method that trains, with as few latents and steps as it takes."""


def count(method: str, pipe: Any, card: str = "24GB") -> dict[str, Any]:
    """The row of a method at one size, on a GPU of that memory, or why it is refused."""
    eraser, concepts = get_eraser(method), [Concept.of(CONCEPT)]
    try:
        if isinstance(eraser, TrainedEraser):
            plan = eraser.foretell(pipe, concepts)
            memory = {"all at once": plan.memory(plan.largest), "one at a time": plan.memory(1, True)}
            calls = {"denoiser": plan.calls.denoiser, "gradients": plan.calls.gradients}
            try:
                split = plan.split(int(USED * parse_memory(card)))
            except ValueError:
                split = plan.split(None)
                calls["fits"] = f"needs {gigabytes(plan.memory(1, True) / USED)}"
            else:
                calls["fits"] = _fits(split, plan.largest)
            return {"trained": plan.trained, "memory": memory, **calls, "minutes": 60 * plan.hours(split.checkpointing)}
        eraser.check_pipe(pipe)
        if method == "itd":
            from erasers.sae.text_blocks import find_blocks

            find_blocks(pipe)
        edited = 0 if method in HOOKED else _edited(pipe, values=method in VALUES)
    except UnsupportedPipeline as error:
        return {"refused": f"{str(error).partition(' (')[0]}, got {type(pipe).__name__}"}
    return {"edited": edited, "memory": {"model": _nbytes(pipe)}, "denoiser": 0, "gradients": 0}


def _fits(split: Split, largest: int) -> str:
    together = "whole batches" if split.together >= largest else f"{split.together} of {largest} at once"
    return together + (", computed again" if split.checkpointing else "")


def _edited(pipe: Any, *, values: bool = False) -> int:
    """Numbers of the weights that closed forms edit; on the meta device, where no port may be edited."""
    family, denoisers = find_family(pipe)
    kinds = ("text",) if family.kind == "cross" else ("text", "pooled")
    groups = [
        group for name, denoiser in denoisers for kind in kinds for group in groups_of(family, name, denoiser, kind)
    ]
    ports = [ports if values else group.ports for group, ports in value_ports(groups)]
    return sum(port.module.weight.numel() for own in ports for port in own)


def _nbytes(pipe: Any) -> int:
    return sum(parameter.nbytes for _, parameter in parameters_of(pipe))


def run(method: str, side: int = 16) -> dict[str, Any]:
    """A reduced training at SD 1.4 size with random weights in float32 on the CPU: what it took and what it changed."""
    pipe = make_pipe("sd14", "cpu", torch.float32)
    pipe.unet.register_to_config(sample_size=side)
    pipe.set_progress_bar_config(disable=True)
    eraser, started = get_eraser(method, **REDUCED[method]), time.perf_counter()
    patch = eraser.fit(pipe, Concept(CONCEPT, anchor="art"), progress=False)
    if not all(torch.isfinite(tensor).all() for tensor in patch.tensors.values()):
        raise SystemExit(f"{method}: a patch that is not finite")
    return {
        "settings": {key: list(value) if isinstance(value, tuple) else value for key, value in REDUCED[method].items()},
        "latents": side,
        "dtype": "float32",
        "device": f"CPU, {torch.get_num_threads()} thread, torch {torch.__version__}, {platform.machine()}",
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "moved_weights": len(patch.parameters),
    }


def lines_of(size: str, runs: Mapping[str, Any]) -> list[str]:
    """The rows of the table of a size."""
    pipe = make_pipe(size)
    return [
        _line(method, count(method, pipe, CARDS[size]), runs.get(method) if size == "sd14" else None)
        for method in METHODS
    ]


def _line(method: str, row: Mapping[str, Any], ran: Mapping[str, Any] | None) -> str:
    if "refused" in row:
        return f"| `{method}` | refused: {row['refused']} | | | | | | |"
    memory = row["memory"]
    shown = "model " + gigabytes(memory["model"]) if "model" in memory else " / ".join(map(gigabytes, memory.values()))
    what = f"{row['trained']:,}" if row.get("trained") else f"none; edits {row.get('edited', 0):,}"
    minutes = _minutes(row["minutes"]) if "minutes" in row else "none"
    cells = [
        f"`{method}`",
        what,
        shown,
        row.get("fits", "the model"),
        f"{row['denoiser']:,}",
        f"{row['gradients']:,}",
        minutes,
        _ran(ran),
    ]
    return f"| {' | '.join(cells)} |"


def _minutes(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _ran(ran: Mapping[str, Any] | None) -> str:
    if ran is None:
        return "counted"
    iterations, side = ran["settings"]["iterations"], ran["latents"]
    what = f"run: {iterations} iteration{'s' if iterations > 1 else ''} with latents of {side} x {side}, random weights"
    return f"{what}, {ran['dtype']}, CPU: {ran['seconds']:.0f} s, {ran['peak_mib'] / 1024:.1f} GB"


def page(runs: Mapping[str, Any]) -> str:
    """The page of documentation."""
    text = _HEAD
    for size, title in SIZES.items():
        columns = " | ".join(_COLUMNS).format(CARDS[size].replace("GB", " GB"))
        head = [f"\n## {title}\n", f"| {columns} |", "|" + "---|" * len(_COLUMNS)]
        text += "\n".join([*head, *lines_of(size, runs)]) + "\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=lambda text: text.split(","), default=[], help="reduced trainings, with commas")
    parser.add_argument("--out", type=Path, default=None, help="the page of documentation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = json.loads(RUNS.read_text(encoding="utf-8")) if RUNS.is_file() else {}
    for method in options.run:
        runs[method] = run(method)
        print(f"{method}: {runs[method]}", flush=True)
        text = json.dumps(runs, indent=1, sort_keys=True) + "\n"
        write_atomically(RUNS, lambda file, text=text: file.write_text(text, encoding="utf-8"))
    if options.out:
        text = page(runs)
        write_atomically(options.out, lambda file: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
