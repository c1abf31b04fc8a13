"""What verdicts do not say: how far pictures moved, how well they fit their prompts, how far sets of them are apart.

The stage between verdicts and scores. Each number is kept in the store's journal `measures` under all that it was
measured from, and is measured once. Only pictures of embedded worlds have networks here that can see them; of other
models there are CLIP scores, where the task names a CLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor

from erasers import worlds
from erasers.asks import KEPT_SPLITS, UTILITY
from erasers.evaluation.pictures.distances import Figure, cmmd, feature_drift, fid, kid, kid_rise
from erasers.evaluation.pictures.features import ClipFeatures, FeatureExtractor, JudgeFeatures, Layers, judge_layers
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.scores.results import ALL, REFERENCE
from erasers.evaluation.scores.scoring import Cases
from erasers.evaluation.store import Journal, Store, key_of
from erasers.files.hashing import file_sha256
from erasers.judges.weights import file_hashes, model_folder
from erasers.progress import Advance
from erasers.worlds import World

if TYPE_CHECKING:
    from erasers.worlds.judge import JudgeNetwork

Figures = dict[str, list[dict[str, Any]]]
"""Case or `ALL` -> figures of its sets of pictures."""
_Where = tuple[str, str, int]
"""Row, case and number of a sample."""

_LEAST, _AT_ONCE = 4, 100


@dataclass(frozen=True, eq=False)
class _Job:
    """A number of a sample: where that is, its name there, its key in the journal, and how it is measured."""

    where: _Where
    name: str
    key: str
    measure: Callable[[], float]


@dataclass(frozen=True, eq=False)
class Measured:
    """Rows with what was measured in their pictures.

    Args:
        cases: Row -> cases, whose samples have their numbers.
        figures: Row -> figures.
    """

    cases: Mapping[str, Cases]
    figures: Mapping[str, Figures]


@dataclass(frozen=True, eq=False)
class _Set:
    """Kept pictures of a row, those of the unedited model and the drawn ones with the hash of each case's.

    The key names the network, too.
    """

    key: str
    edited: Sequence[str]
    unedited: Sequence[str]
    drawn: Sequence[tuple[Sequence[Image.Image], str]]
    extractor: str


class Measures:
    """Measures the pictures of a store.

    Args:
        store: The pictures; the numbers go beside them.
        model: Of the task.
        words: Case -> the concepts that are erased together.
        clip: `model` and `revision` of the open_clip model for CLIP scores; an embedded world may have its own.
    """

    def __init__(
        self, store: Store, model: str, words: Mapping[str, Sequence[str]], clip: Mapping[str, str] | None = None
    ) -> None:
        self.store, self.words, self._world = store, words, worlds.find(model)
        self._given = clip or {}
        self._seen: dict[tuple[str, str], Tensor] = {}
        self._drawn: dict[str, tuple[list[Image.Image], str]] = {}

    @cached_property
    def journal(self) -> Journal:
        """Read with the first measurement, which most processes never come to."""
        return Journal(self.store.root / "measures")

    @property
    def lacking(self) -> list[str]:
        """What cannot be measured on this machine, and why, in words."""
        if not self._world and not self._given:
            seen = ", ".join(worlds.list())
            return [f"no drift, CLIP scores and distances of sets: only pictures of {seen} have a network here"]
        if isinstance(self._folder, str):
            return [f"no CLIP scores: {self._folder}"]
        if find_spec("open_clip") is None:
            return ["no new CLIP scores and no CMMD: they need the extra [clip], pip install 'erasers[clip]'"]
        return []

    def left(self, rows: Mapping[str, Cases]) -> int:
        """Numbers that are to be measured, and pictures of sets that are."""
        lacking, sets = self._lacking(self._jobs(rows)), self._open_sets(self._sets(rows))
        return len(lacking) + sum(len(pictures.edited) for pictures in sets)

    def measure(self, rows: Mapping[str, Cases], advance: Advance = lambda count: None) -> Measured:
        """Measure what is missing; the rows stay as they are, and copies of their samples get the numbers.

        A sample gets `drift` (distance from the unedited row's picture of the same prompt and seed; absent in that
        row), `gold` and `agrees` (distance from the reference row's picture, and whether the verdicts are the same;
        absent where the case has no reference), and on kept splits and utility `clip` (CLIP score with its prompt).

        Args:
            rows: Name -> cases; the unedited row is among them.
            advance: Called with how many of `left` are done.
        """
        jobs, sets = list(self._jobs(rows)), list(self._sets(rows))
        lacking = self._lacking(jobs)
        for start in range(0, len(lacking), _AT_ONCE):
            batch = lacking[start : start + _AT_ONCE]
            self.journal.add([(job.key, job.measure()) for job in batch])
            advance(len(batch))
        for pictures in self._open_sets(sets):
            self.journal.add([(pictures.key, self._figures(pictures))])
            advance(len(pictures.edited))
        figures: dict[str, Figures] = {}
        for row, name, pictures in sets:
            figures.setdefault(row, {}).setdefault(name, []).extend(self.journal.get(pictures.key) or ())
        return Measured(self._with_numbers(rows, jobs), figures)

    def _with_numbers(self, rows: Mapping[str, Cases], jobs: Iterable[_Job]) -> dict[str, Cases]:
        """The rows, copies of whose samples have what the journal knows of them."""
        numbers: dict[_Where, dict[str, Any]] = {where: {} for where, _ in _samples(rows)}
        for job in jobs:
            if (value := self.journal.get(job.key)) is not None:
                numbers[job.where][job.name] = value
        for where, sample, gold in _pairs(rows, REFERENCE):
            both = (sample["value"], gold["value"])
            numbers[where]["agrees"] = None if None in both else both[0] == both[1]

        def copied(row: str, case: str, facts: Mapping[str, Any]) -> dict[str, Any]:
            samples = [sample | numbers[row, case, place] for place, sample in enumerate(facts["samples"])]
            return {**facts, "samples": samples}

        return {row: {case: copied(row, case, facts) for case, facts in cases.items()} for row, cases in rows.items()}

    def _lacking(self, jobs: Iterable[_Job]) -> list[_Job]:
        """What is not in the journal and can be measured; each number once."""
        lacking = {job.key: job for job in jobs if self.journal.get(job.key) is None}
        return [job for job in lacking.values() if job.name != "clip" or self._clip]

    def _jobs(self, rows: Mapping[str, Cases]) -> Iterator[_Job]:
        """The numbers of all samples."""
        for name, other in (("drift", UNEDITED), ("gold", REFERENCE)) if self._world else ():
            for where, sample, before in _pairs(rows, other):
                pair = (before["image"], sample["image"])
                key = key_of({"measure": "feature drift", "extractor": self._digests["judge"], "pictures": pair})
                yield _Job(where, name, key, partial(self._distance, *pair))
        fits = (*KEPT_SPLITS, UTILITY) if isinstance(self._folder, Path) else ()
        for where, sample in ((where, sample) for where, sample in _samples(rows) if sample["split"] in fits):
            facts = {"measure": "clip score", "extractor": self._digests["clip"], "text": sample["text"]}
            key = key_of(facts | {"picture": sample["image"]})
            yield _Job(where, "clip", key, partial(self._fit, sample["image"], sample["text"]))

    def _open_sets(self, sets: Iterable[tuple[str, str, _Set]]) -> list[_Set]:
        """The sets whose figures are not in the journal and can be measured, each once."""
        unknown = {pictures.key: pictures for _, _, pictures in sets if self.journal.get(pictures.key) is None}
        return [pictures for pictures in unknown.values() if pictures.extractor != "clip" or self._clip]

    def _sets(self, rows: Mapping[str, Cases]) -> Iterator[tuple[str, str, _Set]]:
        """Row, case or `ALL`, and set: the pictures of both kept splits together, for both have to stay as they are.

        The reference pictures are drawn by the renderer, one for each prompt. Those of other prompts, or of the whole
        world, would differ from the pictures by what the prompts ask for, which no model should change.
        """
        for row, cases in rows.items() if self._world else ():
            for name, members in {**{case: [case] for case in sorted(cases)}, ALL: sorted(cases)}.items():
                edited, unedited = _paired(cases, rows[UNEDITED], members)
                drawn = [self._reference(case, _kept(cases, [case])) for case in members]
                for extractor in ("judge", "clip") if len(edited) >= _LEAST else ():
                    key = {"measure": "figures", "extractor": self._digests[extractor], "edited": edited}
                    key |= {"unedited": unedited, "reference": [digest for _, digest in drawn]}
                    yield row, name, _Set(key_of(key), edited, unedited, drawn, extractor)

    def _figures(self, pictures: _Set) -> list[dict[str, Any]]:
        """FID, KID and its rise over the unedited model's, in what the judge sees; CMMD in what CLIP sees."""
        extractor: FeatureExtractor | None = self._clip if pictures.extractor == "clip" else self._features
        if extractor is None:
            return []
        edited, unedited = (self._see(extractor, keys) for keys in (pictures.edited, pictures.unedited))
        reference, name = torch.cat([self._see_drawn(extractor, *facts) for facts in pictures.drawn]), extractor.name
        if pictures.extractor == "clip":
            return [cmmd(edited, reference, extractor=name).to_json()]
        figures: list[Figure] = [fid(edited, reference, extractor=name), kid(edited, reference, extractor=name)]
        return [figure.to_json() for figure in (*figures, kid_rise(edited, unedited, reference, extractor=name))]

    def _see(self, extractor: FeatureExtractor, keys: Sequence[str]) -> Tensor:
        """Features [n, d] of pictures of the store, each of which is read once."""
        for key in keys:
            if (extractor.name, key) not in self._seen:
                self._seen[extractor.name, key] = extractor([self.store.read_image(key)])[0]
        return torch.stack([self._seen[extractor.name, key] for key in keys])

    def _see_drawn(self, extractor: FeatureExtractor, images: Sequence[Image.Image], digest: str) -> Tensor:
        """Features [n, d] of drawn pictures, which all rows share."""
        if (extractor.name, digest) not in self._seen:
            self._seen[extractor.name, digest] = extractor(images)
        return self._seen[extractor.name, digest]

    def _distance(self, before: str, after: str) -> float:
        images = [[self.store.read_image(key)] for key in (before, after)]
        return round(float(feature_drift(images[0], images[1], self._layers)), 6)

    def _fit(self, image: str, text: str) -> float:
        if self._clip is None:
            raise ImportError("CLIP scores need the extra [clip]: pip install 'erasers[clip]'")
        return round(float(self._clip.scores([self.store.read_image(image)], [text])), 6)

    def _reference(self, case: str, samples: Sequence[Mapping[str, Any]]) -> tuple[list[Image.Image], str]:
        """What the renderer draws for the kept prompts of a case, which all rows share, and its hash."""
        if case not in self._drawn:
            asks = [(sample["text"], sample["wants"]) for sample in samples]
            images = cast(World, self._world).draw(asks, self.words[case])
            self._drawn[case] = images, key_of([image.tobytes().hex() for image in images])
        return self._drawn[case]

    @cached_property
    def _digests(self) -> dict[str, str]:
        """Network -> hash of its weights."""
        clip = file_hashes(self._folder) if isinstance(self._folder, Path) else {}
        judge = {"judge": file_sha256(self._world.judge_file)} if self._world else {}
        return judge | {"clip": key_of(clip)}

    @cached_property
    def _folder(self) -> Path | str:
        """Of the open_clip model; why it is not there."""
        if self._world and self._world.clip:
            return self._world.clip.folder
        if not self._given:
            return "neither the task nor the model has a CLIP for them"
        try:
            return model_folder(self._given["model"], self._given.get("revision"), ("open_clip_config.json",))
        except FileNotFoundError as error:
            return str(error)

    @cached_property
    def _network(self) -> JudgeNetwork:
        """Of the world; without one nothing is measured with it."""
        return cast(World, self._world).network()

    @cached_property
    def _layers(self) -> Layers:
        return judge_layers(self._network)

    @cached_property
    def _features(self) -> FeatureExtractor:
        return JudgeFeatures(self._network)

    @cached_property
    def _clip(self) -> ClipFeatures | None:
        if isinstance(self._folder, str):
            return None
        try:
            own = self._world.clip if self._world else None
            return ClipFeatures(self._folder, own.name if own else self._given["model"])
        except ImportError:
            return None


def _kept(cases: Cases, names: Sequence[str]) -> list[dict[str, Any]]:
    """The samples of kept splits, case after case."""
    return [sample for case in names for sample in cases[case]["samples"] if sample["split"] in KEPT_SPLITS]


def _samples(rows: Mapping[str, Cases]) -> Iterator[tuple[_Where, dict[str, Any]]]:
    """All samples, each with where it is."""
    for row, cases in rows.items():
        for case, facts in cases.items():
            for place, sample in enumerate(facts["samples"]):
                yield (row, case, place), sample


def _pairs(rows: Mapping[str, Cases], other: str) -> Iterator[tuple[_Where, dict[str, Any], dict[str, Any]]]:
    """The samples of all rows but one, each with that row's of the same case, split, prompt and seed if it has one."""
    index = {(case, *_ask(sample)): sample for (row, case, _), sample in _samples(rows) if row == other}
    for where, sample in _samples({row: cases for row, cases in rows.items() if row != other}):
        _, case, _ = where
        if counterpart := index.get((case, *_ask(sample))):
            yield where, sample, counterpart


def _paired(cases: Cases, unedited: Cases, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The kept pictures of a row, and in their order those of the unedited row."""
    index = {(case, *_ask(sample)): sample["image"] for case in names for sample in _kept(unedited, [case])}
    pairs = [(sample["image"], index[(case, *_ask(sample))]) for case in names for sample in _kept(cases, [case])]
    return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]


def _ask(sample: Mapping[str, Any]) -> tuple[str, str, int]:
    return sample["split"], sample["text"], sample["seed"]
