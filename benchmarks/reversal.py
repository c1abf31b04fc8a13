"""Whether a patch of every method comes off again without a trace, on the embedded model.

    python benchmarks/reversal.py --out benchmarks/results/shapes-reversal.json

Before, while and after a patch is applied: all weights of the denoiser and the text encoders, and a picture of the
concept. While it is applied the picture must be another one, or its coming off says nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from erasers import Patch, get_eraser, list_erasers, load_pipeline
from erasers.eraser import eraser_class, options_for
from erasers.evaluation.run.states import kept_patch
from erasers.files.atomic import write_atomically
from erasers.files.hashing import raw_bytes
from erasers.worlds.shapes.prompts import concept_for

PATCHES = Path(__file__).parent / "patches"

Bits = tuple[tuple[int, ...], bytes]
"""Shape and content of a tensor."""
Look = tuple[dict[str, Bits], int, Bits]
"""All weights by name, the number of hooks, and a picture."""


def patch_of(method: str, concept: str, pipe: Any) -> Patch:
    """The committed patch of a method that trains, and one fitted here of a method that does not.

    Raises:
        FileNotFoundError: A method that trains has none for its present settings.
    """
    eraser, words = get_eraser(method, **options_for(method, "shapes")), concept_for(concept)
    patch = kept_patch([PATCHES], method, eraser, concept, [words])
    if patch is None and eraser.trains:
        raise FileNotFoundError(
            f"expected a patch of {method} for {concept} in benchmarks/patches; run python benchmarks/patches.py"
        )
    return patch or eraser.fit(pipe, words, generator=torch.Generator().manual_seed(0))


def reversal(patch: Patch, pipe: Any, prompt: str) -> dict[str, int | bool]:
    """Weights and hooks that differ while a patch is applied and after, and whether the picture does.

    Returns:
        `tensors` and `hooks`, changed while applied; `tensors_left` and `hooks_left`, changed afterwards; `picture` and
        `picture_left`, whether a picture differs in any bit.
    """
    before = _look(pipe, prompt)
    with patch.applied(pipe):
        applied = _changes(before, _look(pipe, prompt))
    left = _changes(before, _look(pipe, prompt))
    return {**applied, **{f"{name}_left": value for name, value in left.items()}}


def _look(pipe: Any, prompt: str) -> Look:
    modules = {name: module for name, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
    weights = {
        f"{name}.{key}": _bits(value) for name, module in modules.items() for key, value in module.state_dict().items()
    }
    layers = [layer for module in modules.values() for layer in module.modules()]
    hooks = sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in layers)
    options = {"num_inference_steps": 10, "guidance_scale": 4.0, "output_type": "pt"}
    picture = pipe(prompt, generator=torch.Generator().manual_seed(0), **options).images
    return weights, hooks, _bits(picture)


def _bits(tensor: torch.Tensor) -> Bits:
    return tuple(tensor.shape), raw_bytes(tensor).tobytes()


def _changes(before: Look, now: Look) -> dict[str, int | bool]:
    """How many tensors differ in any bit or are in one alone, how many hooks came, and whether the picture differs."""
    (weights, hooks, picture), (weights_now, hooks_now, picture_now) = before, now
    names = {name for name, _ in weights.items() ^ weights_now.items()}
    return {"tensors": len(names), "hooks": hooks_now - hooks, "picture": picture_now != picture}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--concept", default="star")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for what was found")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    reversals = {}
    for method in list_erasers():
        if not eraser_class(method).everywhere:
            continue
        reversals[method] = reversal(patch_of(method, options.concept, pipe), pipe, f"a {options.concept}")
        print(f"{method}: {reversals[method]}", flush=True)
    if options.out:
        text = json.dumps({"concept": options.concept, "methods": reversals}, indent=1) + "\n"
        write_atomically(options.out, lambda file: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
