"""What tests of attacks share: prompts, drawing, and patches for tiny pipelines and for `shapes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from erasers import Concept, Patch, get_eraser, load_pipeline
from erasers.attacks import Attack, Candidate
from erasers.attacks.running import Outcome, attack_prompts
from erasers.judges import Verdict
from support.families.all import FAMILIES


def quiet_shapes() -> Any:
    """The embedded model, without a bar for every picture."""
    pipe = load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def small(family: str, folder: Path) -> Any:
    """A tiny pipeline that draws 16 by 16 pixels."""
    pipe = FAMILIES[family].build(folder)
    if family == "flux":
        pipe.default_sample_size = 8
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class Wanted:
    """A prompt about a star."""

    text: str
    seed: int = 0
    wants: Mapping[str, str] = field(default_factory=lambda: {"object": "star"})


ASKS = [Wanted("a picture of star"), Wanted("a red star", seed=1)]
LONG = Wanted("a red star " + "of blue art " * 20, seed=2)


class Says:
    """A judge that says the same of every picture."""

    name = "says"

    def __init__(self, value: bool | None) -> None:
        self.value = value

    def judge(self, images: Sequence[Any], prompts: Sequence[Any]) -> list[Verdict]:
        return [Verdict(self.value) for _ in images]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipe: Any, arguments: Mapping[str, Any], seeds: Sequence[int], steps: int = 2) -> list[Any]:
    """One picture a seed, as a benchmark draws them."""
    texts = arguments["prompt"] if isinstance(arguments["prompt"], list) else [arguments["prompt"]] * len(seeds)
    options = {"num_inference_steps": steps, "guidance_scale": 4.0, **arguments}
    return [
        pipe(**options | {"prompt": text}, generator=seeded(seed)).images[0]
        for text, seed in zip(texts, seeds, strict=True)
    ]


def draw_well(pipe: Any, arguments: Mapping[str, Any], seeds: Sequence[int]) -> list[Any]:
    """With as many steps as `shapes` needs."""
    return draw(pipe, arguments, seeds, 20)


def erasure(pipe: Any, form: str = "weights") -> Patch | None:
    """UCE of "star", as an edit of weights or as a hook, or no edit."""
    if form == "none":
        return None
    patch = get_eraser("uce").fit(pipe, Concept("star", anchor="circle"), progress=False)
    return patch if form == "weights" else patch.to_hooks(pipe)


def prepared(attack: Attack, pipe: Any, asks: Sequence[Any] = ASKS) -> Any:
    return attack.prepare(pipe, asks, draw=draw, generator=seeded())


def candidates(attack: Attack, pipe: Any, ready: Any, ask: Any = ASKS[0]) -> list[Candidate]:
    return list(attack.run(pipe, ask, ready, generator=seeded(7)))


def texts(attack: Attack, pipe: Any, ready: Any, ask: Any = ASKS[0]) -> list[str]:
    return [candidate.text for candidate in candidates(attack, pipe, ready, ask)]


def attack_prompt(
    attack: Attack, pipe: Any, ask: Any, ready: Any, judge: Any, *, generator: torch.Generator, **options: Any
) -> Outcome:
    """One prompt: see `attack_prompts`."""
    return attack_prompts(attack, pipe, [ask], ready, judge, generators=[generator], **options)[0]


def attacked(attack: Attack, pipe: Any, ready: Any, judge: Any, ask: Any = ASKS[0], draw: Any = draw) -> Outcome:
    return attack_prompt(attack, pipe, ask, ready, judge, draw=draw, generator=seeded(7), replicate=2)
