"""Verifying a result file: against its task, its baseline and the library, as far as that needs no picture.

A file that is consistent in all of this may still be made up: pictures are drawn again by
`erasers.evaluation.run.redrawing`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from erasers import worlds
from erasers.asks import KEPT_SPLITS
from erasers.eraser import get_eraser, options_for
from erasers.evaluation.run.attacking import attacked
from erasers.evaluation.run.case_checks import (
    check_attacks,
    check_patch,
    check_pictures,
    check_samples,
    check_verdicts,
)
from erasers.evaluation.run.drawn import SETTING, picture_facts
from erasers.evaluation.run.states import kept_patch
from erasers.evaluation.scores import scoring
from erasers.evaluation.scores.calibration import stored_by
from erasers.evaluation.scores.records import UNEDITED
from erasers.evaluation.scores.results import REFERENCE, Result, read_result
from erasers.evaluation.store import canonical
from erasers.evaluation.tasks.files import locate
from erasers.evaluation.tasks.task import Sample, Task, list_tasks, parse_task, read_task
from erasers.judges import Judge, get_judge, of_worlds
from erasers.patch import Patch


@dataclass(frozen=True)
class Verification:
    """What became of a file.

    Args:
        wrong: A line for everything that does not hold; none when all does.
        unchecked: What could not be looked at here, and what for.
    """

    wrong: tuple[str, ...]
    unchecked: tuple[str, ...]


class _Open(str):
    """A line on what could not be looked at; other lines say what is wrong."""


class Verifier:
    """Verifies result files.

    Args:
        tasks: Files of tasks that are not of the package.
        prompts: Name of a source -> its file, for tasks whose prompts are files.
        patches: Of rows; each is held against the cases with its digest.

    Raises:
        ValueError: A file that is no task.
        OSError: A file that cannot be read.
    """

    def __init__(
        self,
        tasks: Sequence[Path] = (),
        prompts: Mapping[str, Path] | None = None,
        patches: Sequence[Patch] = (),
    ) -> None:
        self._tasks = {task.name: task for task in map(read_task, tasks)}
        self._prompts = prompts or {}
        self._patches = {patch.digest: patch for patch in patches}
        self._draws: dict[tuple[str, str], list[Sample] | None] = {}
        self._bases: dict[Path, list[str]] = {}

    def verify(self, path: Path) -> Verification:
        """Hold a file against its task, `unedited.json` beside it, and itself.

        Raises:
            ValueError: A damaged file, or files that do not belong together.
            OSError: A file that cannot be read.
        """
        row = read_result(path)
        base = scoring.unedited(row)
        lines = list(self._lines(row, base))
        try:
            lines += scoring.differences(row, base)
        except ValueError as error:
            lines.append(f"scores: {error}")
        wrong = (line for line in lines if not isinstance(line, _Open))
        return Verification(tuple(wrong), tuple(dict.fromkeys(line for line in lines if isinstance(line, _Open))))

    def task_of(self, row: Result) -> Task:
        """The task that a row is held against.

        Raises:
            ValueError: The file has another one under its name.
        """
        task = self._task(row)
        if wrong := next(_unlike_task(row, task), ""):
            raise ValueError(f"{row.path}: {wrong}")
        return task

    def _task(self, row: Result) -> Task:
        """The task of the name and limit that a row has: one that was given, of the package, or as the file says it.

        Raises:
            ValueError: The file has another version, or what is no task.
        """
        name, version, limit = (row.task.get(key) for key in ("name", "version", "limit"))
        known = self._tasks.get(str(name)) or (read_task(str(name)) if name in list_tasks() else None)
        if known is not None and known.version != version:
            raise ValueError(f"task.version is {version}, {name} has version {known.version} here")
        try:
            if known is not None:
                return known.limited(limit)
            return replace(parse_task(_as_file(row.task)), limit=limit)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"task: {error}") from None

    def _lines(self, row: Result, base: Result) -> Iterator[str]:
        """Everything that a row is held against beside its scores."""
        try:
            task = self._task(row)
        except ValueError as error:
            yield str(error)
            return
        if row.task["name"] not in {*self._tasks, *list_tasks()}:
            yield _Open(f"task: {row.title} is not of this package and taken as the file says it; give --task FILE")
        yield from _unlike_task(row, task)
        yield from self._check(row, base, task)
        if row.kind != UNEDITED:
            if base.path not in self._bases:
                lines = self._check(base, base, task)
                self._bases[base.path] = [line for line in lines if not isinstance(line, _Open)]
            yield from (f"{base.path.name}: {line}" for line in self._bases[base.path])
            yield from _drawn_alike(row, base)

    def _check(self, row: Result, base: Result, task: Task) -> Iterator[str]:
        yield from _row(row)
        yield from _options(row, task)
        yield from _judge(row, base, task)
        yield from _model(row, task)
        yield from _cases(row, task)
        for case in (case for case in row.data["cases"] if case in task.named_cases):
            for line in (*self._case(row, base, case, task), *_figures(row, case)):
                yield line if isinstance(line, _Open) else f"{case}: {line}"
        if _measured(row):
            yield _Open("drift, CLIP scores, distances of sets and what is made of them: they need the pictures")
        yield from _agreement(row)

    def _case(self, row: Result, base: Result, case: str, task: Task) -> Iterator[str]:
        facts = row.data["cases"][case]
        samples, draws = facts["samples"], self._drawn(task, case)
        if draws is None:
            names = ", ".join(f"--prompts {name}=FILE" for name in task.sources)
            yield _Open(f"prompts: they are held against unedited.json alone; give {names}")
            draws = [_sample(sample) for sample in base.data["cases"].get(case, {}).get("samples", ())]
        yield from check_samples(samples, draws)
        yield from check_verdicts(samples, _answers(task))
        edited, patch = row.kind not in (UNEDITED, REFERENCE), facts.get("patch")
        yield from check_patch(patch, edited=edited)
        if edited and isinstance(patch, dict):
            yield from self._held_patch(row, case, task, str(patch.get("digest")))
        drawn = _picture_facts(row, case, task)
        if drawn is None:
            yield _Open("keys of pictures: setting or weights are not recorded")
        yield from check_pictures(samples, drawn)
        concepts = task.concepts(case)
        plans = {label: (plan, plan.against(concepts, task.model)) for label, plan in task.attacks.items()}
        # On other devices the last bit of a picture depends on those that are drawn with it.
        again = row.data.get("drawn", {}).get("device", "cpu") == "cpu"
        explicit = [sample for sample in samples if sample["split"] == "explicit"]
        verdicts = {(sample["text"], sample["seed"]): sample["value"] for sample in explicit}
        yield from check_attacks(facts.get("attacks", {}), plans, attacked(draws), verdicts if again else None)

    def _drawn(self, task: Task, case: str) -> list[Sample] | None:
        """The prompts of a case; None where they are in files that were not given."""
        key = task.folder, case
        if key not in self._draws:
            needed = {prompts.source for prompts in task.prompts.values() if prompts.source}
            given = {name: path for name, path in self._prompts.items() if name in needed}
            located = replace(task, sources={name: locate(name, task.sources[name], given[name]) for name in given})
            self._draws[key] = located.draws(case) if needed == set(given) else None
        return self._draws[key]

    def _held_patch(self, row: Result, case: str, task: Task, digest: str) -> Iterator[str]:
        """The patch of a case is one that is here."""
        patch = self._patches.get(digest)
        if patch is None and row.kind == "method" and (eraser := eraser_of(row, task)):
            method, concepts = row.data["row"]["method"], task.concepts(case)
            patch = kept_patch(task.places(task.patches), method, eraser, case, concepts)
        if patch is None:
            yield _Open("patches: options and bytes are as the file says; give --patch FILE")
        elif patch.digest != digest:
            yield f"patch.digest is {digest[:16]}..., the patch of the task has {patch.digest[:16]}..."
        elif row.kind == "patch" and json.loads(canonical(patch.meta["config"])) != row.data["row"]["options"]:
            yield "the options of the row are not those of its patch"


def _unlike_task(row: Result, task: Task) -> Iterator[str]:
    wanted = json.loads(canonical(task.to_json()))
    for name, source in wanted.get("sources", {}).items():
        # A task that names no hash takes any file, and the result says which.
        source.setdefault("sha256", row.task.get("sources", {}).get(name, {}).get("sha256"))
    return scoring.unlike("task", dict(row.task), wanted, "the task has")


def _row(row: Result) -> Iterator[str]:
    """A row is what its name says."""
    if row.path.stem != row.name:
        yield f"row.name is {row.name!r} in {row.path.name}"
    for kind in (UNEDITED, REFERENCE):
        if (row.kind == kind) != (row.name == kind):
            yield f"row.kind is {row.kind!r} of the row {row.name!r}"
    method = row.data["row"].get("method")
    if (row.kind in (UNEDITED, REFERENCE)) != (method is None):
        yield f"row.method is {method!r} of a row of kind {row.kind!r}"


def eraser_of(row: Result, task: Task) -> Any:
    """The method of a row with what it has for options on the task's model; None where it is not installed."""
    method = str(row.data["row"].get("method"))
    try:
        return get_eraser(method, **options_for(method, task.model))
    except (ValueError, TypeError):
        return None


def _options(row: Result, task: Task) -> Iterator[str]:
    """A method runs with its defaults, or with those of the preset that it is named by."""
    if row.kind in (UNEDITED, REFERENCE) and row.options:
        yield "row.options of a row without a method"
    if row.kind != "method":
        return
    eraser = eraser_of(row, task)
    if eraser is None:
        yield _Open(f"options: the method {row.data['row'].get('method')!r} is not installed")
        return
    wanted = json.loads(canonical(eraser.config()))
    if new := [key for key in wanted if key not in row.options]:
        yield _Open(f"options: not recorded: {', '.join(new)}")
    known = {key: value for key, value in wanted.items() if key in row.options}
    yield from scoring.unlike("row.options", dict(row.options), known, "the method has")


def _judge(row: Result, base: Result, task: Task) -> Iterator[str]:
    judge = row.shared["judge"]
    name, fingerprint = judge["name"], judge.get("fingerprint")
    if name != task.judge and not name.startswith(f"{task.judge}/"):
        yield f"judge.name is {name!r}, the task has {task.judge!r}"
    oracle = _oracle(name)
    if oracle is None:
        yield _Open(f"judge: the fingerprint of {name} is as the file says")
    elif fingerprint != oracle.fingerprint.digest:
        known = oracle.fingerprint.digest
        yield f"judge.fingerprint is {str(fingerprint)[:16]}..., that of the package is {known[:16]}..."
    wants = [sample.get("wants", {}) for case in base.data["cases"].values() for sample in case["samples"]]
    wanted = stored_by(name, str(fingerprint), wants)
    yield from scoring.unlike("judge.calibration", judge.get("calibration", {}), wanted, "the package has")


def _model(row: Result, task: Task) -> Iterator[str]:
    model, world = row.shared["model"], worlds.find(task.model)
    if world is None:
        yield _Open(f"model: the fingerprint of {task.model} is as the file says")
    elif model != _fingerprint(world.name):
        yield f"model is {str(model)[:16]}..., that of the package is {_fingerprint(world.name)[:16]}..."
    for case, facts in row.data["cases"].items():
        if row.kind != REFERENCE and facts.get("model", model) != model:
            yield f"{case}: model is {facts['model'][:16]}..., that of the row is {str(model)[:16]}..."


def _cases(row: Result, task: Task) -> Iterator[str]:
    """A row has all cases of the task; a reference those that there is one for, a patch its own."""
    named, known = set(row.data["cases"]), set(task.named_cases)
    fewer = {REFERENCE: named & set(task.references), "patch": named if len(named) == 1 else set()}
    wanted = fewer.get(row.kind, known)
    if missing := sorted(wanted - named):
        yield f"the case {', '.join(missing)} is missing"
    if extra := sorted(named - (wanted & known)):
        yield f"the case {', '.join(extra)} is none of a row of kind {row.kind!r}"


def _picture_facts(row: Result, case: str, task: Task) -> dict[str, Any] | None:
    """What the pictures of a case depend on; None where it is not known."""
    setting, facts = _setting(row), row.data["cases"][case]
    model = facts.get("model") or (row.shared["model"] if row.kind != REFERENCE else None)
    if setting is None or model is None:
        return None
    return picture_facts(model, str((facts.get("patch") or {}).get("digest", "")), task.sampling, setting)


def _setting(row: Result) -> Mapping[str, Any] | None:
    """How a row was drawn; None where it is not known."""
    world = worlds.find(str(row.task.get("model")))
    drawn: Mapping[str, Any] | None = row.data.get("drawn", world.unrecorded if world else None)
    return drawn


def _drawn_alike(row: Result, base: Result) -> Iterator[str]:
    """A row and its baseline were drawn in one setting."""
    mine, theirs = _setting(row), _setting(base)
    if mine is None or theirs is None:
        return
    for key in SETTING:
        if mine[key] != theirs[key]:
            yield f"drawn.{key} is {str(mine[key])[:80]}, in {base.path.name} it is {str(theirs[key])[:80]}"


def _answers(task: Task) -> Mapping[str, Sequence[str]] | None:
    oracle = _oracle(task.judge)
    return oracle.sees if oracle else None


def _figures(row: Result, case: str) -> Iterator[str]:
    """Figures of a set are about all of its kept pictures, each once."""
    kept = sum(sample["split"] in KEPT_SPLITS for sample in row.data["cases"][case]["samples"])
    names = [(figure["metric"], figure["extractor"]) for figure in row.figures.get(case, ())]
    if len(set(names)) < len(names):
        yield "a figure is there twice"
    for figure in row.figures.get(case, ()):
        if figure["n"] != kept:
            yield f"{figure['metric']} of {figure['n']} pictures, where there are {kept}"


def _measured(row: Result) -> bool:
    samples = (sample for case in row.data["cases"].values() for sample in case["samples"])
    return any(row.figures.values()) or any({"drift", "gold", "clip"} & set(sample) for sample in samples)


def _agreement(row: Result) -> Iterator[str]:
    """`agrees` says whether a verdict is that of the reference row."""
    samples = [(case, sample) for case, facts in row.data["cases"].items() for sample in facts["samples"]]
    if row.kind == REFERENCE or not any("agrees" in sample for _, sample in samples):
        return
    path = row.path.with_name(f"{REFERENCE}.json")
    if not path.is_file():
        yield _Open("agrees: there is no reference.json beside the file")
        return
    gold = {(case, *_key(sample)): sample["value"] for case, judged in _samples(path).items() for sample in judged}
    for case, sample in samples:
        both = sample["value"], gold.get((case, *_key(sample)))
        said = None if None in both else both[0] == both[1]
        if sample.get("agrees") != said or ("agrees" in sample) != ((case, *_key(sample)) in gold):
            yield f"{case}: agrees is {sample.get('agrees')} on {sample['text'][:80]!r}, reference.json gives {said}"
            return


def _samples(path: Path) -> dict[str, list[Mapping[str, Any]]]:
    return {case: facts["samples"] for case, facts in read_result(path).data["cases"].items()}


def _key(sample: Mapping[str, Any]) -> tuple[str, str, int]:
    return sample["split"], sample["text"], sample["seed"]


def _sample(fields: Mapping[str, Any]) -> Sample:
    return Sample(fields["split"], fields["text"], fields["seed"], fields.get("wants", {}))


def _as_file(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the task file that a result came from, as far as the result says it."""
    names = ("attack", "samples", "control", "replicate")
    attacks = {
        label: {key: plan[key] for key in names if plan.get(key) is not None} | plan.get("options", {})
        for label, plan in stated.get("attacks", {}).items()
    }
    return {key: value for key, value in stated.items() if key != "limit"} | {"attacks": attacks}


@cache
def _oracle(judge: str) -> Judge | None:
    """The judge of a world by its name; None where it is no such judge."""
    if judge not in ("oracle", *(f"oracle/{profile}" for profile in of_worlds("oracle"))):
        return None
    return get_judge(judge)


@cache
def _fingerprint(world: str) -> str:
    """Of the weights of its model."""
    from erasers.evaluation.run.states import fingerprint
    from erasers.pipeline import load_pipeline

    return fingerprint(load_pipeline(world))


def verified(paths: Sequence[Path], verifier: Verifier) -> tuple[list[Path], dict[Path, str]]:
    """The result files that verify, and of the others why they do not.

    Raises:
        OSError: A file that cannot be read.
    """
    good, refused = [], {}
    for path in paths:
        try:
            wrong = verifier.verify(path).wrong
        except ValueError as error:
            wrong = (str(error),)
        if wrong:
            refused[path] = wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
        else:
            good.append(path)
    return good, refused
