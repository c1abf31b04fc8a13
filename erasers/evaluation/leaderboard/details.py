"""What stands behind the scores of a leaderboard: which details and figures there are, and what attacks spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from erasers.asks import SPLITS
from erasers.evaluation.leaderboard.text import mean_text, options_text
from erasers.evaluation.scores.records import AGAIN, ATTACK, CONTROL, EXCESS, PROBE, UNEDITED
from erasers.evaluation.scores.results import ALL, Result
from erasers.evaluation.scores.statistics import detectable_difference, detectable_difference_paired

CORRECTED = "corrected/"
BESIDE = {CONTROL: "control", EXCESS: "excess", AGAIN: "again"}
"""Details of an attack that stand below its success, and what they are called there."""

MEASURES = {
    "drift": "Drift: distance of a picture's features from those of the unedited model's picture on the same prompt "
    "and noise, 0 where nothing changed, at most 4. Erased splits have to move; the others should stay.",
    "probability": "Probability: mean of what the judge gives for the answer yes, which moves before verdicts do.",
    "clip": "CLIP: mean score of how well a picture fits its prompt.",
    "gold": "Gold: drift is the distance from the pictures of the reference, a model retrained without the concept; "
    "agreement the share of verdicts that are the reference's.",
}
_SPENT = {"gradients": "gradients", "encodes": "encodes", "images": "pictures"}
_OWN = (ATTACK, PROBE, *BESIDE, CORRECTED, *(f"{name}/" for name in (UNEDITED, *MEASURES)))
_DISCORDANT = 0.2


def shares(details: Sequence[str]) -> list[str]:
    """Shares of verdicts by split, also where there is only a corrected one, then every detail that is nothing else."""
    splits = [name for name in SPLITS if name in details or CORRECTED + name in details]
    return splits + [name for name in details if name not in SPLITS and not name.startswith(_OWN)]


def attacks(details: Sequence[str]) -> list[str]:
    """Success of every attack, then of every probe."""
    return [name for start in (ATTACK, PROBE) for name in details if name.startswith(start)]


def measures(details: Sequence[str]) -> dict[str, list[str]]:
    """Measure -> its details, splits in their order."""
    names = {measure: [name for name in details if name.startswith(f"{measure}/")] for measure in MEASURES}
    return {measure: sorted(mine, key=_place) for measure, mine in names.items() if mine}


def beside(attack: str) -> dict[str, str]:
    """The details that stand below the success of an attack or a probe, and what they are called there."""
    return {start + label_of(attack): name for start, name in BESIDE.items()}


def label_of(name: str) -> str:
    """A detail's name without what kind it is."""
    return name.partition("/")[2]


def figure_names(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Metric without its settings, and extractor, of every figure over all cases."""
    return sorted(
        {(metric_of(figure)[0], figure["extractor"]) for row in results for figure in row.figures.get(ALL, ())}
    )


def metric_of(figure: Mapping[str, Any]) -> tuple[str, str]:
    """The name of a figure's metric, and its settings."""
    name, _, settings = figure["metric"].partition(" (")
    return name, settings.removesuffix(")")


def budgets(results: Sequence[Result]) -> dict[str, str]:
    """Attack -> its budget, as the task has it, and what a prompt really took, in words."""
    plans, on = results[0].task.get("attacks") or {}, results[0].data.get("attacked", {})
    cases = [case for result in results for case in result.cases.values()]
    run = {label: [outcome for case in cases for outcome in case.attacks.get(label, ())] for label in sorted(plans)}
    return {
        label: f"{_plan(label, plans[label], outcomes, on.get(label, ()))} {_spent(outcomes)}"
        for label, outcomes in run.items()
    }


def _plan(label: str, plan: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]], components: Sequence[str]) -> str:
    # How many pictures an attack may draw can depend on the concept.
    limits = plan["budget"] | ({"images": max(outcome["limit"] for outcome in outcomes)} if outcomes else {})
    facts = [
        str(plan["attack"]) if plan.get("attack", label) != label else "",
        f"{plan['samples']} prompts a concept" if "samples" in plan else "",
        f"at most {_amounts(limits)}",
        f"control {plan['control']}" if plan["control"] else "a control",
        f"{plan['replicate']} fresh seeds after a success" if "replicate" in plan else "",
        options_text(plan.get("options", {})),
        f"on {' and '.join(components)}" if components else "",
    ]
    return f"{'; '.join(filter(None, facts))}."


def _spent(outcomes: Sequence[Mapping[str, Any]]) -> str:
    if not outcomes:
        return "Not run."
    means = {name: fmean(outcome["spent"][name] for outcome in outcomes) for name in _SPENT}
    return f"Spent on average: {_amounts(means)} ({len(outcomes)} attacks)."


def _amounts(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{mean_text(amounts[name])} {word}" for name, word in _SPENT.items() if name in amounts)


def detectable(results: Sequence[Result]) -> str:
    """What a row's prompts can tell apart, of the split and of the attack with the fewest; empty without any."""
    prompts: dict[str, int] = {}
    for name, estimate in (detail for row in results for detail in row.scores[ALL].details.items()):
        prompts[name] = max(estimate.prompts, prompts.get(name, 0))
    lines = []
    for what, names in (("a split", SPLITS), ("an attack", attacks(sorted(prompts)))):
        if n := min((prompts[name] for name in names if prompts.get(name)), default=0):
            near, half = (_least(detectable_difference(n, share)) for share in (0.1, 0.5))
            paired = _least(detectable_difference_paired(n, _DISCORDANT))
            lines.append(f"{n} prompts {what}: {near} from a share of 0.10, {half} from 0.50, paired {paired}")
    if not lines:
        return ""
    text = "; ".join(lines)
    return (
        f"Smallest difference that shows with a power of 80 % at a level of 5 %, {text}. Paired: by prompt and seed, "
        f"where {100 * _DISCORDANT:.0f} % of the verdicts differ."
        + (" None: so few prompts show no difference there." if "none" in text else "")
    )


def _least(difference: float | None) -> str:
    return "none" if difference is None else f"{difference:.2f}"


def _place(name: str) -> tuple[int, str]:
    split = label_of(name)
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), split
