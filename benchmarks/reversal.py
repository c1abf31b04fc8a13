"""Whether a patch of every method comes off again without a trace, on the embedded model.

    python benchmarks/reversal.py --out benchmarks/results/shapes-reversal.json

Before, while and after a patch is applied: all weights of the denoiser and the text encoders, and a picture of the
concept. While it is applied the picture must be another one, or its coming off says nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from erasers import Patch, get_eraser, list_erasers, load_pipeline
from erasers.atomic import write_atomically
from erasers.eraser import shapes_options
from erasers.evaluation.states import Row, find_patch
from erasers.shapes.prompts import concept_for

PATCHES = "benchmarks/patches"


def patch_of(method: str, concept: str, pipe: Any) -> Patch:
    """The committed patch of a method that trains, and one fitted here of a method that does not.

    Raises:
        FileNotFoundError: A method that trains has none for its present settings.
    """
    eraser, words = get_eraser(method, **shapes_options(method)), concept_for(concept)
    patch = find_patch(PATCHES, Row(method, "method", method, eraser=eraser), concept, [words])
    if patch is None and eraser.trains:
        raise FileNotFoundError(
            f"expected a patch of {method} for {concept} in {PATCHES}; run python benchmarks/patches.py"
        )
    return patch or eraser.fit(pipe, words, generator=torch.Generator().manual_seed(0))


def reversal(patch: Patch, pipe: Any, prompt: str) -> dict[str, int | bool]:
    """Weights and hooks that differ while a patch is applied and after, and whether the picture does.

    Returns:
        `tensors` and `hooks`, changed while applied; `tensors_left` and `hooks_left`, changed afterwards; `picture` and
        `picture_left`, whether a picture differs in any bit.
    """
    before = _state(pipe, prompt)
    with patch.applied(pipe):
        during = _state(pipe, prompt)
    after = _state(pipe, prompt)
    return {
        "tensors": _differ(before[0], during[0]),
        "hooks": during[1] - before[1],
        "picture": not _same(before[2], during[2]),
        "tensors_left": _differ(before[0], after[0]),
        "hooks_left": after[1] - before[1],
        "picture_left": not _same(before[2], after[2]),
    }


def _state(pipe: Any, prompt: str) -> tuple[dict[str, torch.Tensor], int, torch.Tensor]:
    """Copies of all weights by name, the number of hooks, and a picture."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    weights = {
        f"{name}.{key}": value.clone() for name, part in modules.items() for key, value in part.state_dict().items()
    }
    layers = [layer for part in modules.values() for layer in part.modules()]
    hooks = sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in layers)
    options = {"num_inference_steps": 10, "guidance_scale": 4.0, "output_type": "pt"}
    return weights, hooks, pipe(prompt, generator=torch.Generator().manual_seed(0), **options).images


def _differ(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> int:
    """Tensors that differ in any bit, or that one of both lacks."""
    same = [name for name in first.keys() & second.keys() if _same(first[name], second[name])]
    return len(first.keys() | second.keys()) - len(same)


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have the same bits."""
    return first.shape == second.shape and first.numpy().tobytes() == second.numpy().tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--concept", default="star")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for what was found")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    found = {}
    for method in list_erasers():
        found[method] = reversal(patch_of(method, options.concept, pipe), pipe, f"a {options.concept}")
        print(f"{method}: {found[method]}", flush=True)
    if options.out:
        text = json.dumps({"concept": options.concept, "methods": found}, indent=1) + "\n"
        write_atomically(options.out, lambda part: part.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
