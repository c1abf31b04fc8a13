"""Reports as tests make them, without a model."""

from __future__ import annotations

from typing import Any

from PIL import Image

from erasers.evaluation.grid import Cell
from erasers.evaluation.report.page import Card
from erasers.evaluation.report.pictures import embedded

FACTS = {"star becomes": "circle", "method": "rece"}


def share(count: int, n: int = 8) -> dict[str, Any]:
    return {"value": count / n, "n": n, "low": max(0.0, count / n - 0.3), "high": min(1.0, count / n + 0.3)}


def made_summary(**more: Any) -> dict[str, Any]:
    splits = {
        "explicit": {"before": share(8), "after": share(0)},
        "unrelated": {"before": share(8), "after": share(2)},
    }
    lost = "unrelated: 2 of 8 pictures show what was asked for, 8 did before."
    return {
        "title": "star erased from shapes with rece",
        "splits": splits,
        "concepts": {"star": splits},
        "readings": {"explicit": {"word": "fell", "warning": ""}, "unrelated": {"word": "fell", "warning": lost}},
        "warnings": [lost],
        "judges": [{"name": "script", "fingerprint": "0" * 64, "splits": ["explicit", "unrelated"]}],
        "model": "shapes",
        "patch_file": "star.safetensors",
        "samples": 8,
        "device": "cpu",
        "versions": {"torch": "2.13"},
        **more,
    }


def picture(colour: tuple[int, int, int], side: int = 32) -> str:
    return embedded(Image.new("RGB", (side, side), colour))


def made_card(split: str = "explicit", text: str = "a red star", seed: int = 0, **more: Any) -> Card:
    before, after = Cell(picture((200, 30, 30)), "star", True), Cell(picture((30, 30, 200)), "no star", True)
    return Card("star", split, text, seed, before, after, **more)


def made_cards() -> list[Card]:
    wrong = Cell(picture((30, 200, 30), 256), "not as asked", False)
    lost = Card("star", "unrelated", "a moon", 2, Cell(picture((9, 9, 9), 256), "as asked", True), wrong, wrong=True)
    return [made_card(), made_card(text="a star " * 12, seed=1), lost, made_card("unrelated", "a ring", 3)]
