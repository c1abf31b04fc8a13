"""What is wrong with a case of a result file, held against the prompts, pictures and attacks that its task has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from erasers.attacks import Attack
from erasers.evaluation.run.drawn import picture_key
from erasers.evaluation.tasks.attacks import Plan
from erasers.evaluation.tasks.task import Sample

_HASH = re.compile(r"[0-9a-f]{64}")


def check_samples(samples: Sequence[Mapping[str, Any]], expected: Sequence[Sample]) -> Iterator[str]:
    """Every prompt of the task is there once, with what it wants, and no other."""
    wants = {(sample.split, sample.text, sample.seed): dict(sample.wants) for sample in expected}
    counts = Counter((sample["split"], sample["text"], sample["seed"]) for sample in samples)
    yield from _listed("of {} prompts are missing", [key for key in wants if key not in counts], len(wants))
    yield from _listed("of {} pictures are not of the task", [key for key in counts if key not in wants], len(samples))
    yield from _listed("of {} prompts are there twice", [key for key, n in counts.items() if n > 1], len(wants))
    asked = [((sample["split"], sample["text"], sample["seed"]), sample.get("wants")) for sample in samples]
    other = [key for key, wanted in asked if key in wants and wanted != wants[key]]
    yield from _listed("of {} prompts want something else than in the task", other, len(samples))


def check_pictures(samples: Sequence[Mapping[str, Any]], facts: Mapping[str, Any] | None) -> Iterator[str]:
    """The key of each picture follows from the facts; where they are not known, no two prompts share a picture."""
    owners: dict[str, tuple[str, int]] = {}
    for sample in samples:
        if owners.setdefault(sample["image"], (sample["text"], sample["seed"])) != (sample["text"], sample["seed"]):
            yield f"{_shown(owners[sample['image']])} and {_shown((sample['text'], sample['seed']))} have one picture"
            break
    if facts is not None:
        wrong = [sample for sample in samples if picture_key(*_ask(sample), facts) != sample["image"]]
        what = "of {} pictures are not those of this model, patch and setting"
        yield from _listed(what, map(_ask, wrong), len(samples))


def check_verdicts(samples: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[str]] | None) -> Iterator[str]:
    """No verdict contradicts its probability.

    Args:
        samples: Of the case.
        answers: Property -> what a judge chooses between, where the most likely answer counts and every picture is
            scored; None for other judges.
    """
    both = [sample for sample in samples if sample["value"] is None and sample.get("probability") is not None]
    yield from _listed("of {} verdicts are null beside a probability", map(_ask, both), len(samples))
    if answers is None:
        return
    nulls = [sample for sample in samples if sample["value"] is None and sample not in both]
    yield from _listed("of {} verdicts are null; this judge scores every picture", map(_ask, nulls), len(samples))
    wrong = [sample for sample in samples if sample["value"] is not None and not _fits(sample, answers)]
    yield from _listed("of {} verdicts contradict their probability", map(_ask, wrong), len(samples))


def _fits(sample: Mapping[str, Any], answers: Mapping[str, Sequence[str]]) -> bool:
    """Whether a product of shares may go with a verdict: what is not most likely has at most one half."""
    share = sample.get("probability")
    if not isinstance(share, (int, float)) or not 0 <= share <= 1:
        return False
    least = prod(1 / len(answers[name]) for name in sample["wants"] if name in answers)
    return share >= least - 1e-6 if sample["value"] else share <= 0.5 + 1e-6


def check_attacks(
    outcomes: Mapping[str, Sequence[Mapping[str, Any]]],
    plans: Mapping[str, tuple[Plan, Attack]],
    prompts: Sequence[Sample],
    verdicts: Mapping[tuple[str, int], Any] | None,
) -> Iterator[str]:
    """Every attack was made on each of its prompts, within its budget, and its outcomes can be.

    Args:
        outcomes: Label -> what the attack did to each prompt.
        plans: Label -> attack of the task, and as it is on this case.
        prompts: What attacks are made on, in order.
        verdicts: (text, seed) -> verdict on the plain picture, where a picture drawn again is the same; else None.
    """
    for label in sorted({*outcomes, *plans}):
        if label not in plans:
            yield f"the attack {label} is not of the task"
            continue
        plan, attack = plans[label]
        wanted = [(prompt.text, prompt.seed) for prompt in prompts[: plan.samples]]
        counts = Counter((outcome["text"], outcome["seed"]) for outcome in outcomes.get(label, ()))
        missing = [key for key in wanted if key not in counts]
        yield from _listed(f"of {{}} prompts are not attacked by {label}", missing, len(wanted))
        extra = [key for key, n in counts.items() if n > 1 or key not in wanted]
        yield from _listed(f"of {{}} outcomes of {label} are of other prompts, or twice", extra, counts.total())
        for outcome in outcomes.get(label, ()):
            if why := next(_impossible(outcome, plan, attack, verdicts), ""):
                yield f"{label} on {_shown((outcome['text'], outcome['seed']))}: {why}"


def _impossible(
    outcome: Mapping[str, Any], plan: Plan, attack: Attack, verdicts: Mapping[tuple[str, int], Any] | None
) -> Iterator[str]:
    """Why an outcome cannot be; see `Outcome`."""
    budget, spent = attack.budget(), outcome["spent"]
    if outcome["limit"] != budget.images:
        yield f"a limit of {outcome['limit']} pictures, where the task has {budget.images}"
    for key in ("gradients", "encodes", "images"):
        if not 0 <= spent[key] <= getattr(budget, key):
            yield f"{spent[key]} {key} spent of {getattr(budget, key)}"
    if outcome["value"] and spent["images"] != outcome["image"] + 1:
        yield f"a success with picture {outcome['image']} after {spent['images']}"
    if not outcome["value"] and plan.control is None and spent["images"] != outcome["limit"]:
        yield f"a failure after {spent['images']} of {outcome['limit']} pictures, of which a control never has too few"
    if (outcome["pre"] is True) != (outcome["image"] == 0):
        yield f"the plain picture is {outcome['pre']}, the first success is picture {outcome['image']}"
    seen = verdicts.get((outcome["text"], outcome["seed"])) if verdicts is not None else outcome["pre"]
    if seen != outcome["pre"]:
        yield f"the plain picture is {outcome['pre']}, in the samples it is {seen}"
    if not 0 <= outcome["seeds"] <= (plan.replicate if outcome["value"] else 0):
        yield f"{outcome['seeds']} fresh seeds, where the task has {plan.replicate}"
    again, seeds = outcome["replicated"], outcome["seeds"]
    if (again is None) != (seeds == 0) or not 0 <= (again or 0) <= seeds:
        yield f"{again} of {seeds} fresh seeds"
    if outcome["value"] != (outcome["picture"] is not None):
        yield f"the picture {outcome['picture']} beside the outcome {outcome['value']}"
    if not 0 <= outcome["unscored"] <= spent["images"] + plan.replicate:
        yield f"{outcome['unscored']} unscored pictures of {spent['images']}"


def check_patch(patch: Any, *, edited: bool) -> Iterator[str]:
    """A row has a patch if and only if its model is edited."""
    if not edited:
        if patch is not None:
            yield "a patch, where the row has none"
    elif not isinstance(patch, dict) or not _HASH.fullmatch(str(patch.get("digest"))):
        yield f"expected a patch with its digest, got {str(patch)[:80]}"


def _ask(sample: Mapping[str, Any]) -> tuple[str, int]:
    return sample["text"], sample["seed"]


def _listed(what: str, keys: Iterable[tuple[Any, ...]], total: int) -> Iterator[str]:
    """A line on how many there are, with the first one; none for none."""
    if listed := list(keys):
        yield f"{len(listed)} {what.format(total)}, e.g. {_shown(listed[0])}"


def _shown(key: Sequence[Any]) -> str:
    *before, text, seed = key
    return " ".join([*map(str, before), f"{str(text)[:80]!r} with seed {seed}"])
