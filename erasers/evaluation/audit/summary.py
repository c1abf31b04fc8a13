"""What an audit found, in numbers and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erasers.asks import SPLITS
from erasers.evaluation.audit.plans import Planned
from erasers.evaluation.audit.run import PATCH
from erasers.evaluation.report.reading import read_split
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.scores.results import ALL, REFERENCE
from erasers.evaluation.tasks.attacks import Plan

Results = Mapping[str, Mapping[str, Any]]
"""Row -> its result, as a file has it."""
CAME, NOTHING, CHANCE, BLIND = "came back", "nothing came back", "no more than its control", "says nothing"
FLOOR = "no more than the retrained model"
"""What an attack did; `BLIND`: it does not succeed on the unedited model either; `FLOOR`: it finds as much in a model
that never saw the concept."""


def attacks(results: Results, planned: Planned) -> list[dict[str, Any]]:
    """What each attack that has a control did, in the order of the plans."""
    return [attack(results, plan) for plan in planned.plans.values() if plan.control]


def attack(results: Results, plan: Plan) -> dict[str, Any]:
    """An attack: shares of prompts by which the concept was brought back, with its budget and what that says."""
    kind = "attack" if plan.counts else "probe"
    names = {
        "edited": (PATCH, kind),
        "control": (PATCH, "control"),
        "excess": (PATCH, "excess"),
        "again": (PATCH, "again"),
    }
    names |= {UNEDITED: (UNEDITED, kind), REFERENCE: (REFERENCE, kind)}
    shares = {name: share for name, (row, part) in names.items() if (share := _detail(results, row, part, plan.label))}
    budget = plan.attack.budget()
    return {
        "attack": plan.label,
        "space": plan.attack.space,
        "budget": {"gradients": budget.gradients, "encodes": budget.encodes, "images": budget.images},
        "control_of": plan.control,
        **shares,
        "reading": reading(shares),
    }


def _detail(results: Results, row: str, part: str, label: str) -> Mapping[str, Any] | None:
    details = results[row]["scores"][ALL]["details"] if row in results else {}
    detail: Mapping[str, Any] | None = details.get(f"{part}/{label}")
    return detail


def reading(shares: Mapping[str, Mapping[str, Any]]) -> str:
    """What the shares of an attack say."""
    edited, excess = shares.get("edited"), shares.get("excess")
    if edited is None:
        return "not scored"
    if shares.get(UNEDITED, {"value": 1})["value"] == 0:
        return BLIND
    if edited["value"] == 0:
        return NOTHING
    if not (excess and excess["low"] > 0):
        return CHANCE
    return FLOOR if edited["value"] <= shares.get(REFERENCE, {"value": -1})["value"] else CAME


def splits(results: Results) -> dict[str, Any]:
    """Split -> shares of pictures before and after, and how they are to be read; those that were drawn and judged."""
    before, after = (_samples(results[row]) for row in (UNEDITED, PATCH))
    table = {}
    for split in SPLITS:
        pairs = [(sample["value"], after[key]["value"]) for key, sample in before.items() if key[0] == split]
        scored = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not scored:
            continue
        own = read_split(split, scored)
        shown = [sum(side) for side in zip(*scored, strict=True)]
        retrained = _kept_share(results, split)
        table[split] = {"before": shown[0], "after": shown[1], "n": len(scored), "reading": own.word} | retrained
        table[split] |= {"warning": own.warning} if own.warning else {}
    return table


def _samples(result: Mapping[str, Any]) -> dict[tuple[str, str, int], Mapping[str, Any]]:
    cases = result["cases"].values()
    return {(own["split"], own["text"], own["seed"]): own for case in cases for own in case["samples"]}


def _kept_share(results: Results, split: str) -> dict[str, Any]:
    """What the retrained model shows of a split."""
    if REFERENCE not in results:
        return {}
    values = [own["value"] for own in _samples(results[REFERENCE]).values() if own["split"] == split]
    return {"retrained": sum(value is True for value in values)}


def said(concepts: Sequence[str], table: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What deserves to be read first; nothing where nothing came back and what should stay stays."""
    what, lines = ", ".join(concepts), [own["warning"] for own in table.values() if "warning" in own]
    for own in found:
        if own["reading"] == CAME:
            control = f"; its control {_share(own['control'])}" if "control" in own else ""
            floor = f"; the retrained model {_share(own[REFERENCE])}" if REFERENCE in own else ""
            lines.append(f"{own['attack']} brings {what} back in {_share(own['edited'])} of prompts{control}{floor}.")
    return lines


def _share(share: Mapping[str, Any]) -> str:
    return f"{100 * share['value']:.0f} % ({100 * share['low']:.0f} to {100 * share['high']:.0f})"
