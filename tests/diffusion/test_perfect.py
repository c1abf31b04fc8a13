"""A perfect model has no loss to any method or attack that compares its predictions with the truth."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support.attacking import ASKS
from support.attacking import draw as draw_pictures
from support.selection import only
from support.trained import METHODS, STAR

from erasers import get_eraser
from erasers.attacks import examples, get_attack, unlearn_diff_atk
from erasers.diffusion.gradients import LossScale
from erasers.methods.robust_ablation.eraser import Fight

PICTURE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
Perfect = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# (x_t, sqrt(a_t), sqrt(1 - a_t)) -> what a model of one picture predicts.
KINDS: dict[str, Perfect] = {
    "epsilon": lambda noisy, signal, spread: (noisy - signal * PICTURE) / spread,
    "v_prediction": lambda noisy, signal, spread: (signal * noisy - PICTURE) / spread,
}
ATTACKS: dict[str, dict[str, Any]] = {
    "cce": {"steps": 2, "batch": 2, "pictures": 2},
    "p4d": {"k": 3, "steps": 2, "every": 1, "bank": 4},
    "relearning": {"steps": 2, "batch": 2, "rank": 2, "pictures": 2, "lr": 1e-3},
    "unlearn_diff_atk": {"k": 2, "timesteps": 2, "steps": 1},
}


@pytest.fixture(params=KINDS)
def perfect(request: Any, pipe: Any) -> Any:
    """A pipeline that knows one picture, and predicts it whatever is asked."""
    pipe.scheduler.register_to_config(prediction_type=request.param)

    def know(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        a = pipe.scheduler.alphas_cumprod[args[1]].view(-1, 1, 1, 1)
        told = output[0] if isinstance(output, tuple) else output.sample
        # The weights still have gradients, all 0.
        known = KINDS[request.param](args[0], a.sqrt(), (1 - a).sqrt()) + 0 * told
        return (known,) if isinstance(output, tuple) else type(output)(sample=known)

    pipe.unet.register_forward_hook(know, with_kwargs=True)
    return pipe


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """All losses that gradients are taken of."""
    found: list[float] = []
    derived = LossScale._derived

    def watched(self: LossScale, loss: torch.Tensor, inputs: Any, **more: Any) -> Any:
        found.append(float(loss.detach()))
        return derived(self, loss, inputs, **more)

    monkeypatch.setattr(LossScale, "_derived", watched)
    return found


APART = {
    # Of what attention returns, and where it goes.
    *("mace", "hirm"),
    # Of how likely a whole way is, whose noise is not foreseen by any model.
    "eraseflow",
}
"""Methods whose losses are not of single predictions."""
HOOKED = {"receler", "spm"}
"""Their students are hooks: a patch of hooks that do nothing is one all the same."""


@pytest.mark.parametrize("name", only([name for name in METHODS if name not in APART], "doco", "esd", "few_shot"))
def test_methods(perfect, losses, name, monkeypatch):
    # Nothing tells prompts from anchors.
    monkeypatch.setattr(Fight, "_shift", lambda self: 1.0)
    options = METHODS[name] | {"iterations": 3, "lr": 1e-6}
    options |= {"relearn_lr": 1e-6, "attack_lr": 1e-6} if name == "robust_ablation" else {}
    refused = nullcontext() if name in HOOKED else pytest.raises(ValueError, match="none that moved")
    with refused:
        get_eraser(name, **options).fit(perfect, STAR, progress=False)
    # Every other loss of DoCo's is the discriminator's.
    found = losses[1::2] if name == "doco" else losses
    assert len(found) >= 2
    assert max(map(abs, found)) < 1e-5, found


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(perfect, losses, name, monkeypatch):
    attack = get_attack(name, **ATTACKS[name])
    for module in (examples, unlearn_diff_atk):
        monkeypatch.setattr(module, "latents_of", lambda pipe, images: PICTURE.expand(len(images), -1, -1, -1))
    ready = attack.prepare(perfect, ASKS, draw=draw_pictures, generator=torch.Generator().manual_seed(0))
    losses.clear()
    list(attack.run(perfect, ASKS[0], ready, generator=torch.Generator().manual_seed(7)))
    assert len(losses) >= 2
    assert max(map(abs, losses)) < 1e-5, losses
