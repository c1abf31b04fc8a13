"""What every stage shares: batches, schedule, average of the weights, log, checkpoints and resumption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from erasers.files.atomic import write_atomically
from erasers.progress import progress

LossStep = Callable[[int], dict[str, Tensor]]
"""Step number -> named scalars, of which "loss" is minimised."""


@dataclass(frozen=True)
class Recipe:
    """Length and optimiser of a stage; the rate warms up, stays flat for `flat` of the run, then falls as a cosine."""

    steps: int
    lr: float
    weight_decay: float = 0.01
    warmup: int = 100
    flat: float = 0.3
    ema: float = 0.0
    save_every: int = 500
    log_every: int = 50


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate at a step, as a share of the peak."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    start = max(recipe.warmup, int(recipe.flat * recipe.steps))
    if step < start:
        return 1.0
    return max(0.5 * (1 + math.cos(math.pi * (step - start) / max(1, recipe.steps - start))), 1e-3)


def seed_step(seed: int, step: int) -> torch.Generator:
    """A CPU generator that depends on the step alone, so that a resumed run draws what the first would have drawn."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _checkpoint(
    path: Path, step: int, model: nn.Module, average: dict[str, Tensor], optimiser: torch.optim.Optimizer
) -> None:
    names = dict(model.named_parameters())
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.items()}
    for name, parameter in names.items():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{key}/{name}"] = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: save_file(tensors, file, metadata={"step": str(step)}))


def _resume(path: Path, model: nn.Module, average: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    model.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    for name in average:
        average[name].copy_(tensors[f"average/{name}"])
    for name, parameter in model.named_parameters():
        state = {
            k.split("/")[1]: v for k, v in tensors.items() if k.startswith("optimiser/") and k.endswith(f"/{name}")
        }
        if state:
            optimiser.state[parameter] = {
                k: v.reshape(()) if k == "step" else v.reshape(parameter.shape).to(parameter.device)
                for k, v in state.items()
            }
    return step


def train(name: str, model: nn.Module, loss_step: LossStep, recipe: Recipe, out: Path) -> None:
    """Minimise `loss_step(step)["loss"]` over the model's trainable parameters.

    Writes `out/logs/<name>.jsonl` as it goes and a checkpoint `out/checkpoints/<name>.safetensors` from which a
    later call goes on; with `recipe.ema` the model ends with the exponential average of its weights.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    average = {k: p.detach().clone() for k, p in model.named_parameters()} if recipe.ema else {}
    checkpoint = out / "checkpoints" / f"{name}.safetensors"
    log = out / "logs" / f"{name}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    first = _resume(checkpoint, model, average, optimiser) if checkpoint.exists() else 0
    if not first:
        log.unlink(missing_ok=True)
    clock, cpu = time.perf_counter(), time.process_time()
    model.train()
    with progress(Console(), name, recipe.steps) as advance:
        advance(first)
        sums, shown = dict[str, float](), first
        for step in range(first, recipe.steps):
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr * rate(recipe, step)
            scalars = loss_step(step)
            optimiser.zero_grad(set_to_none=True)
            scalars["loss"].backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            if average:
                decay = min(recipe.ema, (step + 1) / (step + 10))
                for key, parameter in model.named_parameters():
                    average[key].lerp_(parameter.detach(), 1 - decay)
            for key, value in scalars.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach())
            if (step + 1) % recipe.log_every == 0 or step + 1 == recipe.steps:
                row: dict[str, float] = {k: round(v / ((step % recipe.log_every) + 1), 5) for k, v in sums.items()}
                row |= {"step": step + 1, "seconds": round(time.perf_counter() - clock, 1)}
                row |= {"cpu_seconds": round(time.process_time() - cpu, 1)}
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                advance(step + 1 - shown, f"loss {row['loss']:.4f}")
                shown = step + 1
                sums = {}
            if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
                _checkpoint(checkpoint, step + 1, model, average, optimiser)
    for key, parameter in model.named_parameters():
        if average:
            parameter.data.copy_(average[key])
    model.eval()
