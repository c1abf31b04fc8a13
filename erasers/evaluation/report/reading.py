"""What the numbers of a report say in plain words: which splits fell or stay, and what deserves a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from erasers.asks import ERASED_SPLITS
from erasers.evaluation.scores.statistics import mcnemar

Pairs: TypeAlias = Sequence[tuple[bool, bool]]
"""Verdicts before and after, of the pictures that were judged both times."""

LEVEL, SELDOM, STILL = 0.05, 0.5, 0.25
"""p-value up to which a change is more than chance; share before below which a row says little; share after from which
the concept is still there."""


@dataclass(frozen=True)
class Reading:
    """How one split is to be read.

    Args:
        word: In a few words.
        warning: A sentence on what deserves a look; empty when nothing does.
    """

    word: str
    warning: str = ""


def read_split(split: str, pairs: Pairs) -> Reading:
    """How a split changed, by McNemar's exact test on its pairs.

    Args:
        split: Its name; those of `ERASED_SPLITS` should fall, others should stay.
        pairs: At least one.
    """
    before, after = (sum(side) for side in zip(*pairs, strict=True))
    lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    read = _read_erased if split in ERASED_SPLITS else _read_kept
    return read(split, before, after, len(pairs), mcnemar(lost, won) <= LEVEL)


def warnings(readings: Mapping[str, Reading]) -> list[str]:
    """What deserves a look, in the order of the splits."""
    return [reading.warning for reading in readings.values() if reading.warning]


def _read_erased(split: str, before: int, after: int, n: int, sure: bool) -> Reading:
    if before < SELDOM * n:
        rarely = f"{split}: before, only {before} of {n} pictures showed the concept, so this row says little"
        return Reading("was seldom there before", f"{rarely}. Does the model know it by this name?")
    if after >= before or not sure and after > SELDOM * n:
        return Reading("did not fall", f"{split}: {after} of {n} pictures still show the concept ({before} before).")
    if after >= STILL * n:
        return Reading("fell in part", f"{split}: {after} of {n} pictures still show the concept ({before} before).")
    return Reading("fell" if sure else "fell; too few pictures to be sure")


def _read_kept(split: str, before: int, after: int, n: int, sure: bool) -> Reading:
    if before < SELDOM * n:
        rarely = f"{split}: before, only {before} of {n} pictures showed what was asked for, so this row says little"
        return Reading("was seldom right before", f"{rarely}.")
    if after >= before:
        return Reading("stays")
    if sure:
        lost = f"{split}: {after} of {n} pictures show what was asked for, {before} did before"
        return Reading("fell", f"{lost}. Should it stay, give it to --preserve or erase less.")
    if 4 * after >= 3 * before:
        return Reading("stays; a little lower, within chance")
    few = f"{split}: {after} of {n} pictures show what was asked for, {before} did before, which may be chance"
    return Reading("lower; too few pictures to be sure", f"{few}. Draw more with --samples.")
