"""Seconds, CPU seconds and memory of the closed-form methods at full model size, with random weights, on the CPU.

    python benchmarks/speed.py --out speed.json              # Stable Diffusion 1.4 size
    python benchmarks/speed.py --size sdxl --out speed.json

Every time is given as a ratio to the floor, measured right before it in the same run: cloning the edited weights once.
The floor depends on memory: a copy into pages that the process already holds takes a quarter of the time of one into
fresh pages. By default every large tensor gets fresh pages, floor and edit alike, as in a process that edits once;
`--memory reused` measures the other case. CPU ratios are the ones to read on a busy machine.
Only the weights that are edited (and the text encoders) exist; the rest of the UNet is left on the meta device.
Editing means solving, packing the patch and applying it. Encoding prompts, fingerprinting weights and the whole of
`fit` plus `apply` in a process that has seen nothing yet are columns of their own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from architectures import CLIP_G, CLIP_L, SD14_UNET, SDXL_UNET

from erasers import Concept, Patch, get_eraser
from erasers.closed_form import algebra as closed_form
from erasers.closed_form.ports import port_gram, port_hashes
from erasers.files.hashing import forget_hashes
from erasers.models.ports import Port, port_groups, text_ports
from erasers.patch.build import transform_patch
from erasers.pipeline import load_pipeline
from erasers.text.encoding import Reader
from erasers.text.prompts import whole
from erasers.worlds.shapes.prompts import concept_for

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_UNET = {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 64, "attention_head_dim": 4}
SIZES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "tiny": (SMALL_UNET, [TINY]),
    "sd14": (SD14_UNET, [CLIP_L]),
    "sdxl": (SDXL_UNET, [CLIP_L, CLIP_G]),
}


class WordTokenizer:
    """One token a word, ids by word: no vocabulary files are needed for random weights."""

    model_max_length, bos, eos, pad_token_id = 77, 49406, 49407, 49407

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
        ids = torch.full((len(texts), self.model_max_length), self.eos)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            words = [sum(ord(letter) * 31**k for k, letter in enumerate(word)) % 49000 for word in text.split()][:75]
            ids[row, : len(words) + 1] = torch.tensor([self.bos, *words])
            mask[row, : len(words) + 2] = 1
        return {"input_ids": ids, "attention_mask": mask}


def make_pipe(size: str) -> Any:
    """A pipeline whose ports and text encoders are real and random."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet_options, encoders = SIZES[size]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_options)
    for name, layer in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            layer.weight = torch.nn.Parameter(torch.randn(layer.weight.shape) / layer.in_features**0.5)
    parts: dict[str, Any] = {"unet": unet}
    for suffix, options in zip(("", "_2"), encoders, strict=False):
        parts[f"tokenizer{suffix}"] = WordTokenizer()
        parts[f"text_encoder{suffix}"] = CLIPTextModel(CLIPTextConfig(**options)).eval()
    return SimpleNamespace(**parts)


def set_memory(kind: str) -> None:
    """Make glibc give every large tensor fresh pages, or keep all pages it ever had."""
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 2**18 if kind == "fresh" else 2**30)
    libc.mallopt(trim_threshold, 2**18 if kind == "fresh" else 2**31 - 1)


def names(count: int, first: str) -> list[str]:
    """Distinct short prompts of two to six words, as artists' names have tokens."""
    return [" ".join([f"{first}{index}", *"abcde"[: 1 + index % 5]]) for index in range(count)]


def measure(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Wall seconds, CPU seconds and the highest resident memory above the start, of one call."""
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        before = _status("VmRSS")
    except OSError:
        before = None
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    if before is not None:
        seconds["peak_mib"] = (_status("VmHWM") - before) / 1024
    return seconds, result


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def against_floor(
    pipe: Any, ports: Sequence[Port], edit: Callable[[], Patch], repeat: int
) -> tuple[list[dict[str, float]], int]:
    """What an edit took, `repeat` times, each right after the floor, and the bytes of its patch."""
    runs = []
    for _ in range(repeat + 1):
        floor, clones = measure(lambda: [port.module.weight.data.clone() for port in ports])
        del clones
        figures, patch = measure(edit)
        cpu_ratio = figures["cpu_seconds"] / max(floor["cpu_seconds"], 1e-9)
        ratio = figures["seconds"] / floor["seconds"]
        runs.append({"floor": floor["seconds"], **figures, "ratio": ratio, "cpu_ratio": cpu_ratio})
        patch.remove(pipe)
    return runs[1:], patch.nbytes  # the first run warms up memory and threads


def edit_case(pipe: Any, eraser: Any, concepts: list[Concept], repeat: int, *, gram_cached: bool) -> dict[str, Any]:
    """One method on one task, `repeat` times, each right after the floor."""
    (group,) = port_groups(pipe)
    ports = group.ports
    encoding, (task,) = measure(lambda: eraser.gather(pipe, concepts, [group]))
    forget_hashes(pipe.unet)
    hashing, hashes = measure(lambda: port_hashes(pipe, [group]))
    solver = replace(eraser, cache=gram_cached)
    if gram_cached:
        port_gram(ports, hashes, cache=True)

    def edit() -> Any:
        a, b = solver.edit(task, hashes)
        patch = transform_patch(eraser.name, eraser.config(), concepts, [(group, a, b)], hashes)
        patch.apply(pipe)
        return patch

    runs, nbytes = against_floor(pipe, ports, edit, repeat)
    return {
        "eraser": repr(eraser),
        "erased": len(concepts),
        "preserved": len(eraser.preserved_prompts(concepts)),
        "rank": int(task.erase.shape[0]),
        **{
            f"edit_{key}": statistics.median(run[key] for run in runs)
            for key in ("seconds", "cpu_seconds", "ratio", "cpu_ratio")
        },
        "edit_peak_mib": max(run.get("peak_mib", float("nan")) for run in runs),
        "floor_seconds": statistics.median(run["floor"] for run in runs),
        "ratio_of_each_run": [round(run["ratio"], 2) for run in runs],
        "encode_seconds": encoding["seconds"],
        "encode_cpu_seconds": encoding["cpu_seconds"],
        "hash_seconds": hashing["seconds"],
        "patch_bytes": nbytes,
        **total(pipe, eraser, concepts),
    }


def total(pipe: Any, eraser: Any, concepts: list[Concept]) -> dict[str, float]:
    """`fit` plus `apply` with nothing remembered: no fingerprints and an empty disk cache."""

    def cold() -> Any:
        patch = eraser.fit(pipe, concepts)
        patch.apply(pipe)
        return patch

    kept = os.environ["ERASERS_CACHE"]
    with tempfile.TemporaryDirectory() as empty:
        os.environ["ERASERS_CACHE"] = empty
        for module in vars(pipe).values():
            if isinstance(module, torch.nn.Module):
                forget_hashes(module)
        figures, patch = measure(cold)
    os.environ["ERASERS_CACHE"] = kept
    patch.remove(pipe)
    return {f"total_{key}": value for key, value in figures.items()}


def rows_case(pipe: Any, repeat: int) -> dict[str, Any]:
    """100 erased and 1000 preserved rows from the rows themselves, without the cached Gram matrix."""
    (group,) = port_groups(pipe)
    ports = group.ports
    width = ports[0].module.in_features
    erase, anchor, preserve = (torch.randn(count, width) for count in (100, 100, 1000))
    eraser, hashes = get_eraser("uce-v2"), port_hashes(pipe, [group])

    def edit() -> Any:
        a, b = closed_form.ridge_edit(erase, anchor, preserve, ridge=0.5)
        patch = transform_patch(eraser.name, eraser.config(), [Concept("random rows")], [(group, a, b)], hashes)
        patch.apply(pipe)
        return patch

    runs, _ = against_floor(pipe, ports, edit, repeat)
    keys = {"edit_seconds": "seconds", "floor_seconds": "floor", "edit_ratio": "ratio", "edit_cpu_ratio": "cpu_ratio"}
    return {name: statistics.median(run[key] for run in runs) for name, key in keys.items()}


def encoding_case(pipe: Any, batches: int) -> dict[str, Any]:
    """1101 short prompts by row policy `last`, against padding to 77 tokens in batches of 16."""
    prompts = [whole(text) for text in (*names(100, "erased"), *names(1000, "kept"), "")]
    short, _ = measure(lambda: Reader(pipe, "last").encode(prompts))
    padded = 0.0
    for start in range(0, 16 * batches, 16):
        padded += measure(lambda first=start: Reader(pipe, "all").encode(prompts[first : first + 16]))[0]["cpu_seconds"]
    all_padded = padded / (16 * batches) * len(prompts)
    return {
        "prompts": len(prompts),
        "last_cpu_seconds": short["cpu_seconds"],
        "last_seconds": short["seconds"],
        "padded_cpu_seconds": all_padded,
        "padded_batches_measured": batches,
        "cpu_ratio": all_padded / short["cpu_seconds"],
    }


def latency_case(pairs: int = 40) -> dict[str, float]:
    """One denoising step of `shapes` with the patch and without it, in turn."""
    pipe = load_pipeline("shapes")
    patch = get_eraser("rece").fit(pipe, concept_for("star"))
    latents, states = torch.randn(8, 4, 8, 8), torch.randn(8, 24, 128)

    @torch.no_grad()
    def step() -> Any:
        return pipe.unet(latents, 500, states).sample

    step()
    ratios = []
    for _ in range(pairs):
        plain = measure(step)[0]["cpu_seconds"]
        with patch.applied(pipe):
            ratios.append(measure(step)[0]["cpu_seconds"] / plain)
    return {
        "median": statistics.median(ratios),
        "low": sorted(ratios)[pairs // 10],
        "high": sorted(ratios)[-pairs // 10],
    }


def machine() -> dict[str, Any]:
    """Versions and hardware that the figures depend on."""
    import diffusers
    import transformers

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
    }


def run(size: str, repeat: int, batches: int, only: str) -> dict[str, Any]:
    """Every case at one size whose name contains `only`."""
    pipe = make_pipe(size)
    weights = [port.module.weight for port in text_ports(pipe)]
    single = [Concept("van gogh", anchor="art")]
    kept = names(1000, "kept")
    many = [Concept(name, preserve=kept if not index else ()) for index, name in enumerate(names(100, "erased"))]
    nudity = [Concept.preset("nudity")]
    official = get_eraser("rece-official").resolved(nudity)
    default = get_eraser("rece").resolved(nudity)
    cases: dict[str, Any] = {}
    for name, eraser, concepts, gram_cached in (
        ("uce-v2, 1 concept", get_eraser("uce-v2"), single, False),
        ("uce (default), 1 concept", get_eraser("uce"), single, False),
        ("uce-v2, 100 erased + 1000 preserved", get_eraser("uce-v2"), many, False),
        ("rece-official, nudity", official, nudity, False),
        ("rece-official, nudity, Gram cached", official, nudity, True),
        ("rece (default), nudity", default, nudity, False),
        ("rece (default), nudity, Gram cached", default, nudity, True),
    ):
        if only in name:
            cases[name] = edit_case(pipe, eraser, concepts, repeat, gram_cached=gram_cached)
    cases["uce-v2, 100 + 1000 random rows, nothing cached"] = rows_case(pipe, repeat)
    return {
        "size": size,
        "matrices": len(weights),
        "numbers": sum(weight.numel() for weight in weights),
        "machine": machine(),
        "cases": cases,
        "encoding": encoding_case(pipe, batches) if batches else {},
        "latency_ratio": latency_case(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="sd14")
    parser.add_argument("--repeat", type=int, default=7, help="runs of each case, after one to warm up")
    parser.add_argument(
        "--batches", type=int, default=4, help="padded batches of 16 to time, of the 69 that 1101 prompts need"
    )
    parser.add_argument("--threads", type=int, help="torch threads; all cores when not given")
    parser.add_argument("--memory", choices=("fresh", "reused"), default="fresh", help="pages that large tensors get")
    parser.add_argument("--only", default="", help="run the cases whose name contains this text")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    set_memory(options.memory)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ERASERS_CACHE"] = folder
        result = {"memory": options.memory} | run(options.size, options.repeat, options.batches, options.only)
    for name, case in result["cases"].items():
        ratios = f"{case['edit_ratio']:7.2f} x the floor  {case['edit_cpu_ratio']:7.2f} x in CPU s"
        print(f"{name:50} {case['edit_seconds']:8.3f} s  {ratios}")
    encoding = result["encoding"] or {"last_cpu_seconds": float("nan"), "cpu_ratio": float("nan")}
    print(
        f"encoding 1101 prompts: {encoding['last_cpu_seconds']:.1f} CPU s, {encoding['cpu_ratio']:.1f} x below padded"
    )
    step = result["latency_ratio"]
    print(f"a patched step takes {step['median']:.3f} of an unpatched one ({step['low']:.3f} to {step['high']:.3f})")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
