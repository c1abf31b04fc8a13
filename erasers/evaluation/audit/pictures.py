"""Pictures of an audit: what came back, and the same prompts before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from erasers.asks import SPLITS
from erasers.evaluation.audit.page import Shown
from erasers.evaluation.audit.run import PATCH
from erasers.evaluation.audit.summary import Results
from erasers.evaluation.report.pictures import embedded
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.store import Store

_CAME_BACK, _PAIRS = 4, 3
"""Pictures of an attack; prompts of a split."""


def shown(results: Results, store: Store) -> list[Shown]:
    """What stands on the page, in its order."""
    return [*_came_back(results, store), *_before_and_after(results, store)]


def _came_back(results: Results, store: Store) -> Iterator[Shown]:
    controls = {label for label, plan in results[PATCH]["task"]["attacks"].items() if not plan["control"]}
    outcomes: dict[str, list[Mapping[str, Any]]] = {}
    for case in results[PATCH]["cases"].values():
        for label, own in case["attacks"].items():
            outcomes.setdefault(label, []).extend(own)
    for label, own in outcomes.items():
        found = [outcome for outcome in own if outcome["value"] and outcome.get("picture")]
        if label in controls or not found:
            continue
        pictures = [
            (embedded(store.read_image(outcome["picture"])), f"{outcome['text']}: {_drawn_of(outcome['prompt'])}")
            for outcome in found[:_CAME_BACK]
        ]
        note = f"{len(found)} of {len(own)} prompts; each picture with the prompt that was attacked, and what drew it."
        yield Shown(f"{label}: the judge sees it again", note, pictures, wrong=True)


def _drawn_of(prompt: str) -> str:
    return f"drawn of “{prompt}”" if prompt else "drawn of a picture alone"


def _before_and_after(results: Results, store: Store) -> Iterator[Shown]:
    before = [sample for case in results[UNEDITED]["cases"].values() for sample in case["samples"]]
    after = {
        (sample["split"], sample["text"], sample["seed"]): sample
        for case in results[PATCH]["cases"].values()
        for sample in case["samples"]
    }
    for split in SPLITS:
        pictures = []
        for sample in [own for own in before if own["split"] == split][:_PAIRS]:
            other = after[split, sample["text"], sample["seed"]]
            for side, own in (("before", sample), ("after", other)):
                pictures.append((embedded(store.read_image(own["image"])), f"{side}: {sample['text']}"))
        if pictures:
            yield Shown(f"{split}, before and after", "Pairs from the same noise.", pictures)
