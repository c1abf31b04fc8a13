"""The card of every embedded model says what was measured, and that is good enough to measure erasure with."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import REPOSITORY
from support.scripts import benchmark

from erasers import worlds

CARDS = benchmark("model_card")
NAMES = worlds.list()


def measured(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((REPOSITORY / "benchmarks/results" / f"{name}-model-card.json").read_text())
    return result


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_was_measured(name: str) -> None:
    world, result = worlds.get(name), measured(name)
    card = (world.folder / "README.md").read_text()
    assert card == CARDS.card(world, result)
    for scores in (result.get("judge", {}), *result["generator"].values()):
        for what, score in scores.items():
            assert f"| {what} | {100 * score['value']:.1f} % | {100 * score['low']:.1f} – " in card


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_what_prompts_ask_for(name: str) -> None:
    generated = measured(name)["generator"]
    shares = [generated[split][what] for split in ("seen", "held out") for what in ("object", "colour", "style")]
    assert min(share["value"] for share in shares) >= 0.97


@pytest.mark.parametrize("name", [name for name in NAMES if worlds.get(name).judges])
def test_the_judge_of_a_world_is_nearly_always_right(name: str) -> None:
    judge = measured(name)["judge"]
    assert min(judge[what]["value"] for what in ("object", "colour", "style")) >= 0.99
    assert min(judge[what]["value"] for what in ("blank -> none", "dissolved -> none")) >= 0.95
