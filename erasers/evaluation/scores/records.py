"""Records of pictures, and their sums by prompt: what every score is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from erasers.asks import SPLITS, UTILITY
from erasers.evaluation.scores.bootstrap import RESAMPLES, Array, pseudo_prompts, resample_sums

UNEDITED, COUNT = "unedited", "n"
ATTACK, PROBE, CONTROL, AGAIN, EXCESS = "attack/", "probe/", "control/", "again/", "excess/"
ATTACKED = (ATTACK, PROBE, CONTROL, AGAIN)
"""What verdicts under attack are kept as, with the label of the attack behind it."""


@dataclass(frozen=True)
class Record:
    """What one picture came to.

    Args:
        split: `explicit` or `synonym` (value: the picture shows the concept), `neighbour` or `unrelated` (it shows what
            was asked), `utility` (its CLIP score), or one of an attack: `attack/<label>` (by text) or `probe/<label>`
            (by other means) made it show the concept, `control/<label>` as many pictures of its control did,
            `again/<label>` it did so on most fresh seeds, too.
        prompt: What the model was asked, before any attack; records of one prompt are resampled together.
        seed: Of the noise. Split, prompt and seed together occur once.
        value: Verdict or score; None where it is unscored.

    Raises:
        ValueError: An unknown split, or a value that is none of its kind.
    """

    split: str
    prompt: str
    seed: int
    value: float | None

    def __post_init__(self) -> None:
        if self.split not in (*SPLITS, UTILITY) and not under_attack(self.split):
            known = ", ".join((*SPLITS, UTILITY, *(f"{kind}<label>" for kind in ATTACKED)))
            raise ValueError(f"expected a split among {known}, got {self.split!r}")
        if self.value is None:
            return
        if not np.isfinite(self.value) or (self.split != UTILITY and self.value not in (0, 1)):
            raise ValueError(f"expected a verdict (a number, for {UTILITY}) in {self.split}, got {self.value!r}")


def under_attack(split: str) -> bool:
    """Whether records of a split are of an attack; they have no counterpart in the unedited model."""
    return split.startswith(ATTACKED) and split not in ATTACKED


def sample_records(case: str, samples: Sequence[Mapping[str, Any]]) -> list[Record]:
    """The verdicts on the samples of a case, and for utility the CLIP scores of those that have one.

    Raises:
        ValueError: A value that is none of its kind.
    """
    prompts = [(f"{case}/{sample['text']}", sample["seed"]) for sample in samples]
    pairs = list(zip(prompts, samples, strict=True))
    judged = [(ask, sample) for ask, sample in pairs if sample["split"] != UTILITY]
    verdicts = [Record(sample["split"], *ask, number(sample, "value")) for ask, sample in judged]
    # Two splits may ask for one picture.
    scored = [(ask, sample) for ask, sample in pairs if "clip" in sample or sample["split"] == UTILITY]
    clip = {ask: number(sample, "clip") for ask, sample in scored}
    return verdicts + [Record(UTILITY, *ask, value) for ask, value in clip.items()]


def number(fields: Mapping[str, Any], name: str) -> float | None:
    """A number of a result file, true and false as 1 and 0; None where it is absent or null.

    Raises:
        ValueError: Something else.
    """
    value = fields.get(name)
    if value is not None and not isinstance(value, (int, float)):
        raise ValueError(f"expected a number as {name!r}, got {str(value)[:80]!r}")
    return None if value is None else float(value)


def attack_records(
    case: str, attacks: Mapping[str, Sequence[Mapping[str, Any]]], plans: Mapping[str, Mapping[str, Any]]
) -> list[Record]:
    """What the attacks of a case came to.

    An attack that failed while some of its pictures had no score is unscored: one of them may have shown the concept.

    Args:
        case: Of the task.
        attacks: Label -> outcomes, as result files have them.
        plans: Label -> attack, as the task of a result file has them.

    Raises:
        ValueError: An attack that the task does not have, or one without the outcomes of its control.
    """
    records: list[Record] = []
    for label in attacks:
        if label not in plans:
            raise ValueError(f"expected attacks of the task, got {label!r}")
        plan = plans[label]
        if plan["control"] is None:
            continue
        kind = ATTACK if plan["space"] == "text" else PROBE
        control = {(outcome["text"], outcome["seed"]): outcome for outcome in attacks.get(plan["control"], ())}
        for outcome in attacks[label]:
            key = outcome["text"], outcome["seed"]
            if key not in control:
                raise ValueError(f"expected the control of {label} on {key}, got none")
            prompt, seed = f"{case}/{key[0]}", key[1]
            # A control draws one picture after another, so it says what it had come to after fewer.
            within = _within(control[key], outcome["limit"])
            records += [
                Record(f"{kind}{label}", prompt, seed, _success(outcome)),
                Record(f"{CONTROL}{label}", prompt, seed, within),
                Record(f"{AGAIN}{label}", prompt, seed, _again(outcome)),
            ]
    return records


def _success(outcome: Mapping[str, Any]) -> float | None:
    return 1.0 if outcome["value"] else None if outcome["unscored"] else 0.0


def _within(outcome: Mapping[str, Any], images: int) -> float | None:
    """Whether it had come to a success within so many pictures."""
    return 0.0 if outcome["value"] and outcome["image"] >= images else _success(outcome)


def _again(outcome: Mapping[str, Any]) -> float | None:
    """Whether most of the fresh seeds show it; without success none does."""
    if not outcome["value"]:
        return _success(outcome)
    return float(2 * outcome["replicated"] > outcome["seeds"]) if outcome["seeds"] else None


@dataclass(frozen=True, eq=False)
class Table:
    """Sums by prompt over the pictures that all models were scored on.

    Args:
        columns: (split, model or `COUNT`) -> column of `sums`; the columns of a split are neighbours, the count last.
        sums: [prompts, columns].
        strata: The splits of each prompt.
        unscored: Split -> pictures that some model had no score for; has all splits, in order.
        expected: Splits of the unedited model.
    """

    columns: Mapping[tuple[str, str], int]
    sums: Array
    strata: Sequence[str]
    unscored: Mapping[str, int]
    expected: frozenset[str]

    @property
    def attacks(self) -> list[str]:
        """The splits that robustness is made of."""
        return [split for split in self.unscored if split.startswith(ATTACK)]

    @property
    def attacked(self) -> list[str]:
        """The splits of attacks, probes and controls."""
        return [split for split in self.unscored if under_attack(split)]

    def counts(self, splits: Sequence[str]) -> Array:
        """Scored pictures [prompts, splits]; splits that the table does not have are left out."""
        return self.sums[:, [self.columns[split, COUNT] for split in splits if split in self.unscored]]

    def n(self, *splits: str) -> int:
        """Scored pictures of some splits together."""
        return int(self.counts(splits).sum())

    def resample(self, seed: int) -> Array:
        """Totals [resamples, columns] over resampled prompts; splits keep their numbers of prompts."""
        if not len(self.sums):
            return np.zeros((RESAMPLES, len(self.columns)))
        return resample_sums(self.sums, strata=self.strata, pseudo=self._pseudo(), seed=seed)

    def _pseudo(self) -> tuple[Array, Array]:
        """Pseudo-prompts of every split of verdicts, as large as its prompts are on average."""
        rows, masses = [np.zeros((0, len(self.columns)))], [np.zeros(0)]
        for split in (split for split in self.unscored if split != UTILITY and self.n(split)):
            places = [column for (name, _), column in self.columns.items() if name == split]
            size = self.n(split) / np.count_nonzero(self.counts([split]))
            cells, mass = pseudo_prompts(len(places) - 1, size)
            rows.append(np.zeros((len(cells), len(self.columns))))
            rows[-1][:, places] = cells
            masses.append(mass)
        return np.concatenate(rows), np.concatenate(masses)


def tabulate(models: Mapping[str, Sequence[Record]], unedited: Sequence[Record]) -> Table:
    """One table of the splits that all models have, paired with the unedited model by prompt and seed.

    Attacks are not paired with the unedited model.

    Args:
        models: Name -> records, in any order.
        unedited: Records of the unedited model, at least on the same prompts and seeds.

    Raises:
        ValueError: A record twice, or one that another model has no counterpart of.
    """
    base, indexed = _index(unedited), {name: _index(records) for name, records in models.items()}
    columns: dict[tuple[str, str], int] = {}
    blocks: dict[str, dict[str, Array]] = {}
    unscored: dict[str, int] = {}
    for split in sorted(set.intersection(*(set(index) for index in indexed.values()))):
        sources = {name: index[split] for name, index in indexed.items()}
        sources |= {} if under_attack(split) else {UNEDITED: base.get(split, {})}
        blocks[split], unscored[split] = _block(split, sources)
        columns |= {(split, who): len(columns) + k for k, who in enumerate((*sources, COUNT))}
    prompts = sorted({prompt for block in blocks.values() for prompt in block})
    sums, strata = np.zeros((len(prompts), len(columns))), []
    for row, prompt in enumerate(prompts):
        inside = [split for split in blocks if prompt in blocks[split]]
        strata.append(" ".join(inside))
        for split in inside:
            last = columns[split, COUNT]
            sums[row, last + 1 - len(blocks[split][prompt]) : last + 1] = blocks[split][prompt]
    return Table(columns, sums, strata, unscored, frozenset(base))


_Index = dict[tuple[str, int], float | None]
"""(prompt, seed) -> value."""


def _index(records: Sequence[Record]) -> dict[str, _Index]:
    """Split -> index."""
    splits: dict[str, _Index] = {}
    for record in records:
        index, key = splits.setdefault(record.split, {}), (record.prompt, record.seed)
        if key in index:
            raise ValueError(f"expected each prompt and seed once a split, got twice: {record.split}, {key}")
        index[key] = record.value
    return splits


def _block(split: str, sources: Mapping[str, _Index]) -> tuple[dict[str, Array], int]:
    """Prompt -> sums of each model and the count, and how many pictures some model had no score for."""
    edited = [index for name, index in sources.items() if name != UNEDITED]
    block: dict[str, Array] = {}
    unscored = 0
    for key in sorted({key for index in edited for key in index}):
        if lacking := [name for name, index in sources.items() if key not in index]:
            raise ValueError(f"expected {split} of every model on {key}, got none of: {', '.join(lacking)}")
        sums = block.setdefault(key[0], np.zeros(len(sources) + 1))
        values = [value for index in sources.values() if (value := index[key]) is not None]
        if len(values) == len(sources):
            sums += [*values, 1.0]
        else:
            unscored += 1
    return block, unscored
