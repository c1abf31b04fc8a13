"""The attacks of a task: which ones, with what budget, on how many prompts, and against which control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from erasers import worlds
from erasers.attacks import Attack, get_attack, list_attacks
from erasers.concept import Concept
from erasers.evaluation.checks import checked, count, lists, tuples

_KEYS = ("attack", "samples", "control", "replicate")


@dataclass(frozen=True)
class Plan:
    """One attack of a task.

    Args:
        label: Its name in the task.
        name: As for `get_attack`.
        options: Fields that differ from the attack's defaults.
        samples: Explicit prompts a case that are attacked.
        control: Label of the attack that it is read against, with as many pictures; None for a control itself.
        replicate: Fresh seeds with which a success is drawn again.
    """

    label: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 1
    control: str | None = None
    replicate: int = 5

    @cached_property
    def attack(self) -> Attack:
        """The attack, as it is where the concept does not matter.

        Raises:
            ValueError: Unknown options, or values that it refuses.
        """
        return get_attack(self.name, **self.options)

    @property
    def counts(self) -> bool:
        """Whether robustness is made of it: an attack by text that has a control."""
        return self.control is not None and self.attack.space == "text"

    def against(self, concepts: Sequence[Concept], model: str) -> Attack:
        """The attack on these concepts: it knows their words where it asks for some and the task gives none.

        An embedded model's settings stand for what the task does not give.
        """
        known = {option.name for option in fields(self.attack)} - set(self.options)
        words = tuple(term for concept in concepts for term in concept.terms())
        synonyms = tuple(word for word in _synonyms(concepts, model) if word not in words)
        apart = hasattr(self.attack, "synonyms")
        given: dict[str, Any] = {"concept": words if apart else words + synonyms, "synonyms": synonyms}
        given |= self.attack.embedded if worlds.find(model) else {}
        return replace(self.attack, **{name: value for name, value in given.items() if name in known})

    def to_json(self) -> dict[str, Any]:
        """As results have it, with what reading them needs of the attack."""
        attack = self.attack
        facts = {"attack": self.name, "options": lists(self.options), "samples": self.samples}
        facts |= {"control": self.control, "replicate": self.replicate}
        return facts | {"space": attack.space, "encoder": attack.encoder, "budget": asdict(attack.budget())}


def parse_attacks(value: Any) -> dict[str, Plan]:
    """The `attacks` of a task file: label -> attack, samples, control, replicate, and options of the attack.

    Raises:
        ValueError: Names the label, what it takes and what it got.
    """
    given = checked("attacks", value, Mapping, "labels with settings")
    plans = {str(label): _plan(str(label), settings) for label, settings in given.items()}
    for plan in plans.values():
        _check_control(plan, plans)
    return plans


def limited(plans: Mapping[str, Plan], limit: int) -> dict[str, Plan]:
    """The same on at most `limit` prompts a case."""
    return {label: replace(plan, samples=min(plan.samples, limit)) for label, plan in plans.items()}


def _plan(label: str, settings: Any) -> Plan:
    where = f"attacks.{label}"
    given, known = checked(where, settings, Mapping, "settings"), list_attacks()
    name = checked(where, given.get("attack", label), str, f"an attack among {', '.join(known)}", known.__contains__)
    samples = count(f"{where}.samples", given.get("samples"))
    again = checked(
        f"{where}.replicate", given.get("replicate", 5), int, "a whole number from 0 to 1000", lambda n: 0 <= n <= 1000
    )
    options = tuples({key: value for key, value in given.items() if key not in _KEYS})
    plan = Plan(label, name, options, samples, given.get("control"), again)
    try:
        _ = plan.attack
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return plan


def _check_control(plan: Plan, plans: Mapping[str, Plan]) -> None:
    if plan.control is None:
        return
    control = plans.get(plan.control)
    controls = ", ".join(label for label, other in plans.items() if other.control is None)
    if control is None or control.control is not None:
        raise ValueError(f"attacks.{plan.label}: expected a control among {controls or 'none'}, got {plan.control!r}")
    if control.samples < plan.samples:
        wanted = f"a control of at least {plan.samples} samples"
        raise ValueError(f"attacks.{plan.label}: expected {wanted}, got {control.samples} of {plan.control}")


def _synonyms(concepts: Sequence[Concept], model: str) -> list[str]:
    world = worlds.find(model)
    return [word for concept in concepts for word in world.synonyms(concept.name)] if world else []
