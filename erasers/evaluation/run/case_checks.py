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
    wants = {(one.split, one.text, one.seed): dict(one.wants) for one in expected}
    counts = Counter((one["split"], one["text"], one["seed"]) for one in samples)
    yield from _listed("of {} prompts are missing", [key for key in wants if key not in counts], len(wants))
    yield from _listed("of {} pictures are not of the task", [key for key in counts if key not in wants], len(samples))
    yield from _listed("of {} prompts are there twice", [key for key, n in counts.items() if n > 1], len(wants))
    other = [(one["split"], one["text"], one["seed"]) for one in samples]
    other = [key for key, one in zip(other, samples, strict=True) if key in wants and one.get("wants") != wants[key]]
    yield from _listed("of {} prompts want something else than in the task", other, len(samples))


def check_pictures(samples: Sequence[Mapping[str, Any]], facts: Mapping[str, Any] | None) -> Iterator[str]:
    """The key of each picture follows from the facts; where they are not known, no two prompts share a picture."""
    owners: dict[str, tuple[str, int]] = {}
    for one in samples:
        if owners.setdefault(one["image"], (one["text"], one["seed"])) != (one["text"], one["seed"]):
            yield f"{_shown(owners[one['image']])} and {_shown((one['text'], one['seed']))} have one picture"
            break
    if facts is not None:
        wrong = [one for one in samples if picture_key(*_ask(one), facts) != one["image"]]
        what = "of {} pictures are not those of this model, patch and setting"
        yield from _listed(what, map(_ask, wrong), len(samples))


def check_verdicts(samples: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[str]] | None) -> Iterator[str]:
    """No verdict contradicts its probability.

    Args:
        samples: Of the case.
        answers: Property -> what a judge chooses between, where the most likely answer counts and every picture is
            scored; None for other judges.
    """
    both = [one for one in samples if one["value"] is None and one.get("probability") is not None]
    yield from _listed("of {} verdicts are null beside a probability", map(_ask, both), len(samples))
    if answers is None:
        return
    nulls = [one for one in samples if one["value"] is None and one not in both]
    yield from _listed("of {} verdicts are null; this judge scores every picture", map(_ask, nulls), len(samples))
    wrong = [one for one in samples if one["value"] is not None and not _fits(one, answers)]
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
        wanted = [(one.text, one.seed) for one in prompts[: plan.samples]]
        counts = Counter((one["text"], one["seed"]) for one in outcomes.get(label, ()))
        missing = [key for key in wanted if key not in counts]
        yield from _listed(f"of {{}} prompts are not attacked by {label}", missing, len(wanted))
        extra = [key for key, n in counts.items() if n > 1 or key not in wanted]
        yield from _listed(f"of {{}} outcomes of {label} are of other prompts, or twice", extra, counts.total())
        for one in outcomes.get(label, ()):
            if why := next(_impossible(one, plan, attack, verdicts), ""):
                yield f"{label} on {_shown((one['text'], one['seed']))}: {why}"


def _impossible(
    one: Mapping[str, Any], plan: Plan, attack: Attack, verdicts: Mapping[tuple[str, int], Any] | None
) -> Iterator[str]:
    """Why an outcome cannot be; see `Outcome`."""
    budget, spent = attack.budget(), one["spent"]
    if one["limit"] != budget.images:
        yield f"a limit of {one['limit']} pictures, where the task has {budget.images}"
    for key in ("gradients", "encodes", "images"):
        if not 0 <= spent[key] <= getattr(budget, key):
            yield f"{spent[key]} {key} spent of {getattr(budget, key)}"
    if one["value"] and spent["images"] != one["image"] + 1:
        yield f"a success with picture {one['image']} after {spent['images']}"
    if not one["value"] and plan.control is None and spent["images"] != one["limit"]:
        yield f"a failure after {spent['images']} of {one['limit']} pictures, of which a control never has too few"
    if (one["pre"] is True) != (one["image"] == 0):
        yield f"the plain picture is {one['pre']}, the first success is picture {one['image']}"
    if verdicts is not None and verdicts.get((one["text"], one["seed"])) != one["pre"]:
        yield f"the plain picture is {one['pre']}, in the samples it is {verdicts.get((one['text'], one['seed']))}"
    if not 0 <= one["seeds"] <= (plan.replicate if one["value"] else 0):
        yield f"{one['seeds']} fresh seeds, where the task has {plan.replicate}"
    if (one["replicated"] is None) != (one["seeds"] == 0) or not 0 <= (one["replicated"] or 0) <= one["seeds"]:
        yield f"{one['replicated']} of {one['seeds']} fresh seeds"
    if one["value"] != (one["picture"] is not None):
        yield f"the picture {one['picture']} beside the outcome {one['value']}"
    if not 0 <= one["unscored"] <= spent["images"] + plan.replicate:
        yield f"{one['unscored']} unscored pictures of {spent['images']}"


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
    if some := list(keys):
        yield f"{len(some)} {what.format(total)}, e.g. {_shown(some[0])}"


def _shown(key: Sequence[Any]) -> str:
    *before, text, seed = key
    return " ".join([*map(str, before), f"{str(text)[:80]!r} with seed {seed}"])
