"""Which entrance of text carries what: `benchmarks/entrances.py` crosses what the denoiser hears."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.families.all import FAMILIES
from support.scripts import benchmark

from erasers import worlds

ENTRANCES = benchmark("entrances")
SHARE = {"value": 0.25, "n": 8, "low": 0.071, "high": 0.591}


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        ("star", "a small red star on a mint background", "a small red circle on a mint background"),
        ("zorblat", "a red ring in the style of zorblat", "a red ring"),
        ("zorblat", "a ring on a mint background in the style of zorblat", "a ring on a mint background"),
    ],
)
def test_the_anchor_stands_in_the_place_of_the_concept(word: str, text: str, expected: str) -> None:
    assert ENTRANCES.with_anchor(text, worlds.get("shapes").concept(word)) == expected


def test_every_explicit_prompt_of_what_is_measured_loses_the_concept() -> None:
    for word in ("star", "zorblat"):
        concept = worlds.get("shapes").concept(word)
        texts = [ask.text for ask in worlds.get("shapes").split_prompts(word, 50)["explicit"]]
        assert all(word in text and word not in ENTRANCES.with_anchor(text, concept) for text in texts)


def test_each_entrance_hears_its_own_prompt(tmp_path: Path) -> None:
    pipe = FAMILIES["sd3"].build(tmp_path)
    texts = {"prompt": ["a star"], "anchor": ["a circle"]}
    star, circle = ENTRANCES.heard(pipe, ["a star"]), ENTRANCES.heard(pipe, ["a circle"])
    heard = ENTRANCES.crossed(pipe, texts, "prompt", "anchor")
    assert torch.equal(heard.states, star.states)
    assert torch.equal(heard.pooled, circle.pooled)
    assert not torch.equal(star.pooled, circle.pooled)


@pytest.mark.parametrize(("tokens", "pooled"), [("prompt", "silent"), ("silent", "prompt"), ("silent", "silent")])
def test_a_silent_entrance_is_zero_and_the_other_is_not(tmp_path: Path, tokens: str, pooled: str) -> None:
    pipe = FAMILIES["sd3"].build(tmp_path)
    heard = ENTRANCES.crossed(pipe, {"prompt": ["a star"]}, tokens, pooled)
    assert bool(heard.states.any()) == (tokens == "prompt")
    assert bool(heard.pooled.any()) == (pooled == "prompt")


def test_the_page_has_every_interval_and_says_what_is_missing() -> None:
    result = {
        "model": "shapes-sd3",
        "method": "uce",
        "samples": 8,
        "steps": 20,
        "guidance": 4.0,
        "anchors": {"star": "circle", "zorblat": ""},
        "asked": {"star": dict.fromkeys(ENTRANCES.ASKED, SHARE)},
        "rows": [{"concept": "star", "method": "text + pooled", "splits": {"explicit": SHARE}}],
    }
    text = ENTRANCES.page(result)
    assert "| star" + " | 25 (7 to 59)" * 6 + " |" in text
    assert "| star | text + pooled | 25 (7 to 59) | - | - | - |" in text
    assert "`circle` for `star` or no word for `zorblat`" in text


def test_the_page_is_what_the_results_say() -> None:
    result = json.loads(ENTRANCES.RESULT.read_text(encoding="utf-8"))
    assert ENTRANCES.PAGE.read_text(encoding="utf-8") == ENTRANCES.page(result)
