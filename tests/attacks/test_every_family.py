"""Every attack on every family: it runs as its budget says and leaves the model as it was, or is refused first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.adapters import save_adapter
from support.attacking import ASKS, Says, attacked, seeded, small
from support.families.all import FAMILIES
from support.selection import diagonal
from support.tiny import same, weights

from erasers.attacks import get_attack, list_attacks
from erasers.models.calls import tokens_a_prompt

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")

SMALL: dict[str, dict[str, Any]] = {
    "cce": {"steps": 1, "batch": 1, "pictures": 1},
    "image_prompt": {"images": 2},
    "mma": {"k": 2, "steps": 1, "batch": 3, "top": 3},
    "noise": {"etas": (1.0,), "scales": (1.04,)},
    "p4d": {"k": 2, "steps": 1, "every": 1, "bank": 1},
    "random_prefix": {"images": 2},
    "random_text": {"images": 2},
    "relearning": {"steps": 1, "batch": 1, "rank": 1, "pictures": 1},
    "ring_a_bell": {"k": 2, "population": 4, "generations": 1},
    "state_inversion": {"steps": 1, "batch": 1, "pictures": 1},
    "tina": {"steps": 2, "rounds": 1},
    "unlearn_diff_atk": {"timesteps": 1, "steps": 1},
    "words": {"templates": ("a {}",)},
}
PLAIN = {"random_prefix", "random_text", "words"}
"""Attacks that call nothing but the pipeline itself."""
UNCALLED = {"hunyuandit", "luminanext", "prx", "animatediff"}
REASON = "nothing here calls its denoiser or text encoder but the pipeline itself"
UNETS = {"sd1", "sd2", "sdxl"}
NO_UNET = "`image_prompt` is for UNets that take an IP-Adapter"


def drawing(family: str) -> Any:
    """Draws as the family is called by default; of a video the middle frame."""
    options = {**FAMILIES[family].options, "output_type": "pil"}

    def draw(pipe: Any, arguments: Any, seeds: Any) -> list[Any]:
        given = arguments["prompt"]
        texts = given if isinstance(given, list) else [given] * len(seeds)
        pictures = []
        for text, seed in zip(texts, seeds, strict=True):
            output = pipe(**{**options, **arguments, "prompt": text}, generator=seeded(seed))
            frames = getattr(output, "frames", None)
            pictures.append(frames[0][len(frames[0]) // 2] if frames is not None else output[0][0])
        return pictures

    return draw


def test_no_attack_is_left_out() -> None:
    assert list(SMALL) == list_attacks()


@pytest.mark.parametrize(("family", "name"), diagonal(FAMILIES, SMALL))
def test_it_runs_or_is_refused(
    family: str, name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    pipe, options, draw = small(family, tmp_path), SMALL[name], drawing(family)
    works, reason, message = name in PLAIN or family not in UNCALLED, REASON, "that can be trained and attacked"
    if name == "image_prompt" and works:
        works, reason, message = family in UNETS, NO_UNET, "whose UNet takes an IP-Adapter"
        options = options | {"adapter": str(save_adapter(pipe.unet, tmp_path)) if works else "none"}
    attack = get_attack(name, **options)
    cell: dict[str, Any] = {"works": works}
    if works:
        before = weights(pipe)
        with tokens_a_prompt(pipe, FAMILIES[family].options.get("max_sequence_length")):
            ready = attack.prepare(pipe, ASKS, draw=draw, generator=seeded())
            spent, budget = attacked(attack, pipe, ready, Says(False), draw=draw).spent, attack.budget()
        assert (spent.gradients, spent.encodes) == (budget.gradients, budget.encodes)
        assert 1 < spent.images <= budget.images
        assert same(weights(pipe), before)
        cell["on"] = list(attack.attacked(pipe))
    else:
        with pytest.raises(TypeError, match=message):
            attack.prepare(pipe, ASKS, draw=draw, generator=seeded())
        cell["reason"] = reason
    record_property("support", json.dumps(["attacks", f"{family}/{name}", cell]))
