"""What the hooks of the run-time methods add to drawing, at the size of Stable Diffusion 1.4 with random weights.

    python benchmarks/hooks_cost.py --side 32       # latents of 32 x 32, guided: two rows a call

CPU time inside of the hooks over that of all else in one call of the denoiser; of `safree`, which runs once a prompt,
over 50 calls. One name is erased, its likeness in half of the rows above every threshold where there is one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from architectures import make_pipe
from torch import nn

from erasers import Concept, get_eraser
from erasers.closed_form.hooked import hook_patch
from erasers.diffusion.conditions import conditions
from erasers.diffusion.denoiser import predict
from erasers.methods.casteer import attentions
from erasers.patch.steering import Steering

QUICK = {"everyday": False, "templates": ("{}",)}
KINDS = {"_SemanticGate": "semantic_surgery", "_ValueGate": "adavd", "_Steering": "casteer", "Clock": "casteer"}
KINDS |= {"_NegativePrompt": "negative_prompt"}


def timed(hook: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    """A hook that adds its CPU time to what was spent."""

    def call(*args: Any) -> Any:
        before = time.process_time()
        try:
            return hook(*args)
        finally:
            spent[name] += time.process_time() - before

    return call


def watch(root: nn.Module, spent: dict[str, float]) -> None:
    """Time every hook of the methods in a denoiser."""
    for module in root.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number, hook in list(hooks.items()):
                method = KINDS.get(type(hook).__name__)
                if method:
                    hooks[number] = timed(hook, spent, method)


def steering(pipe: Any, concept: Concept) -> Any:
    """A patch of `casteer` with random directions, for which nothing is drawn."""
    hooks = {}
    for name, module in attentions(pipe).items():
        width = next(iter(module.to_q.parameters())).shape[1]
        away = nn.functional.normalize(torch.randn(1, 50, width), dim=2)
        hooks[name, Steering.kind] = {"away": away, "times": torch.linspace(981, 1, 50), "scale": torch.ones(1)}
    return hook_patch("casteer", {}, pipe, [concept], hooks)


@torch.no_grad()
def measure(side: int) -> dict[str, Any]:
    """Shares of the CPU time of a call, by method."""
    pipe, concept = make_pipe("sd14", "cpu", torch.float32), Concept("star", anchor="circle", preserve=["moon", "ring"])
    spent: dict[str, float] = defaultdict(float)
    before = time.process_time()
    texts = conditions(pipe, ["moon", "star"])
    encoding = time.process_time() - before
    patches = [get_eraser(name, **QUICK).fit(pipe, concept) for name in ("semantic_surgery", "adavd")]
    patches += [get_eraser("negative_prompt").fit(pipe, concept), steering(pipe, concept)]
    for patch in patches:
        patch.apply(pipe)
    watch(pipe.unet, spent)
    noisy, call = torch.randn(1, 4, side, side).repeat(2, 1, 1, 1), time.process_time()
    predict(pipe, noisy, torch.tensor([500, 500]), texts)
    rest = time.process_time() - call - sum(spent.values())
    shares = {name: round(seconds / rest, 5) for name, seconds in spent.items()}
    with get_eraser("safree", **QUICK).fit(pipe, concept).applied(pipe):
        before = time.process_time()
        conditions(pipe, ["moon", "a star"])
        shares["safree"] = round((time.process_time() - before - encoding) / (50 * rest), 5)
    return {"side": side, "seconds": round(rest, 2), "shares": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", type=int, default=32)
    torch.set_num_threads(1)
    print(json.dumps(measure(parser.parse_args().side)))


if __name__ == "__main__":
    main()
