"""Attacks: ways to make an erased model draw what was erased.

An attack is a frozen keyword-only dataclass that subclasses `Attack`; its fields are its hyper-parameters. It gets
ready on the unedited pipeline (`prepare`), then runs on the edited one and yields candidates, which are drawn and
judged in that order until one shows the concept (`attacks.running`). It only calls the live modules of the pipeline, so
that it reaches edits of weights and hooks alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from erasers.attacks.attack import Attack, Draw
from erasers.attacks.budget import Budget, Preparation
from erasers.attacks.candidate import Candidate

__all__ = ["Attack", "Budget", "Candidate", "Draw", "Preparation", "get_attack", "list_attacks"]

_ATTACKS: Mapping[str, str] = {
    "cce": "CCE",
    "image_prompt": "ImagePrompt",
    "mma": "MMA",
    "noise": "Noise",
    "p4d": "P4D",
    "random_prefix": "RandomPrefix",
    "random_text": "RandomText",
    "relearning": "Relearning",
    "ring_a_bell": "RingABell",
    "state_inversion": "StateInversion",
    "tina": "TINA",
    "unlearn_diff_atk": "UnlearnDiffAtk",
    "words": "Words",
}
"""Name of the attack, which is that of its module -> its class."""


def list_attacks() -> list[str]:
    """Names of the attacks, sorted."""
    return sorted(_ATTACKS)


def get_attack(name: str, **options: Any) -> Attack:
    """Build an attack.

    Args:
        name: One of `list_attacks`.
        **options: Field values.

    Raises:
        ValueError: Unknown name, unknown option or a value that the attack refuses.
    """
    if name not in _ATTACKS:
        raise ValueError(f"expected an attack among {', '.join(list_attacks())}, got {name!r}")
    cls: type[Attack] = getattr(import_module(f"erasers.attacks.{name}"), _ATTACKS[name])
    known = [field.name for field in fields(cls)]
    for option in options:
        if option not in known:
            raise ValueError(f"expected options of {name!r} among {', '.join(known)}, got {option!r}")
    return cls(**options)
