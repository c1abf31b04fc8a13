"""What the gate of `itd` costs at the size of Stable Diffusion 1.4, on random weights.

    python benchmarks/gate_speed.py                     # benchmarks/results/gate-speed.json
    python benchmarks/gate_speed.py --device cuda --dtype float16

A picture encodes a prompt and a negative one and calls the UNet 50 times with both. The gate runs in encoding alone:
its seconds are those of the hook itself on what the block returns, in every prompt open. `selected` features of an
autoencoder of 2^16 features with 64 active ones a token are stored; the full autoencoder, whose encoder a patch of all
rows would need, is timed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from architectures import SD14_UNET
from diffusers import UNet2DConditionModel

from erasers.patch.feature_hooks import gated
from erasers.sae.autoencoder import SAE

OUT = Path(__file__).parent / "results" / "gate-speed.json"
TOKENS, WIDTH, FEATURES, K, STEPS = 77, SD14_UNET["cross_attention_dim"], 2**16, 64, 50


def seconds(work: Callable[[], object], rounds: int, device: str) -> float:
    """Median seconds, after a call that does not count."""
    times = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times += [time.perf_counter() - started] * bool(number)
    return statistics.median(times)


def parts_of(sae: SAE, count: int) -> dict[str, torch.Tensor]:
    """A gate with the first features of an autoencoder, which opens in every prompt."""
    none = torch.zeros(count, device=sae.encoder.device)
    return {
        "encoder": sae.encoder[:count],
        "bias": sae.b_lat[:count],
        "decoder": sae.decoder[:count],
        "floor": none,
        "gate": none,
        "scale": torch.tensor([-8.0], device=none.device),
    }


@torch.no_grad()
def measure(device: str, dtype: torch.dtype, selected: int, rounds: int) -> dict[str, object]:
    """Seconds and bytes."""
    rows = torch.randn(2, TOKENS, WIDTH, device=device, dtype=dtype)
    sae = SAE(WIDTH, FEATURES, K, activation="topk").to(device)
    parts = parts_of(sae, selected)
    gate = seconds(lambda: gated(rows, parts, 1.0), max(20, rounds), device)
    whole = seconds(lambda: sae(rows.float().flatten(0, 1)), rounds, device)
    unet = UNet2DConditionModel(**SD14_UNET).to(device, dtype)
    latents = torch.randn(2, 4, 64, 64, device=device, dtype=dtype)
    step = seconds(lambda: unet(latents, 500, rows), rounds, device)
    return {
        "device": torch.cuda.get_device_name() if device != "cpu" else f"cpu, {torch.get_num_threads()} threads",
        "dtype": str(dtype).removeprefix("torch."),
        "selected": selected,
        "gate_seconds": gate,
        "full_autoencoder_seconds": whole,
        "denoising_seconds": STEPS * step,
        "overhead": gate / (STEPS * step),
        "overhead_full_autoencoder": whole / (STEPS * step),
        "patch_bytes": sum(tensor.numel() * tensor.element_size() for tensor in parts.values()),
        "full_autoencoder_bytes": sum(weight.numel() * weight.element_size() for weight in sae.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--selected", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    figures = measure(options.device, getattr(torch, options.dtype), options.selected, options.rounds)
    options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
