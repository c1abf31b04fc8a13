"""Tasks of the benchmark: what is erased from which model, and how it is drawn, judged and scored; YAML files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from erasers import worlds
from erasers.asks import SPLITS, Ask
from erasers.concept import Concept
from erasers.evaluation.checks import checked, count, lists, mapping, tuples
from erasers.evaluation.profile.profile import profile_for
from erasers.evaluation.refusal.refusal import refuse_minors
from erasers.evaluation.scores.pillars import Scheme
from erasers.evaluation.tasks.attacks import Plan, limited, parse_attacks
from erasers.evaluation.tasks.files import Source, locate
from erasers.evaluation.tasks.prompts import ALL_SPLITS, Prompts, Tally, parse_prompts, parse_sources, prompts_of, tally
from erasers.files.reading import read_yaml

FOLDER = Path(__file__).parent
"""The tasks of the package."""

MAX_SAMPLES, MAX_PICTURES = 50_000, 100_000
"""Prompts a split, and pictures of a row over all cases and splits."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Args:
        steps: Denoising steps; None takes the pipeline's own default.
        guidance: Guidance scale; likewise.
        batch: Pictures at a time.
        size: Side of the pictures in pixels; None takes the model's own.
        tokens: Tokens that a prompt is padded or cut to, where the pipeline takes `max_sequence_length`; None takes its
            own default.
    """

    steps: int | None = None
    guidance: float | None = None
    batch: int = 1
    size: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Sample:
    """One picture of a case: its prompt, what the judge must see, the seed of its noise."""

    split: str
    text: str
    seed: int
    wants: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as its file says it.

    Args:
        name: What `erase bench run` takes.
        version: Rises with every change that moves a number.
        model: As for `load_pipeline`.
        cases: Each is the concepts that are erased together.
        samples: Split -> prompts a concept; splits that the concept has no prompts for are absent.
        sampling: How pictures are drawn.
        judge: As for `get_judge`.
        judge_options: What that judge's class takes beside the profile.
        clip: `model` and `revision` of the open_clip model for CLIP scores; an embedded world has its own.
        sources: Name -> file of prompts.
        prompts: Split -> where its prompts come from; without any, the model's own prompts are drawn.
        scheme: What the scores are made of.
        references: Case -> folder of a denoiser that never saw its concepts.
        patches: Folder of patches `<method>-<case>.safetensors` of methods that train; others are fitted.
        attacks: Label -> attack, on the explicit prompts.
        adult: The task has sexual content.
        limit: At most this many prompts a split, of a task cut short; its results are kept apart.
        known: Concepts by name, where there is more to say of one than its name; no file says so.
    """

    name: str
    version: int
    model: str
    cases: tuple[tuple[str, ...], ...]
    samples: Mapping[str, int]
    sampling: Sampling
    judge: str
    scheme: Scheme
    judge_options: Mapping[str, Any] = field(default_factory=dict)
    clip: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    prompts: Mapping[str, Prompts] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    patches: str = ""
    attacks: Mapping[str, Plan] = field(default_factory=dict)
    adult: bool = False
    limit: int | None = None
    known: Mapping[str, Concept] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the folder of its results."""
        return f"{self.name}@{self.version}" + (f"-limit{self.limit}" if self.limit else "")

    @property
    def named_cases(self) -> dict[str, tuple[str, ...]]:
        """Name -> concepts."""
        return {"+".join(case): case for case in self.cases}

    def limited(self, limit: int | None) -> Task:
        """The first prompts of every split; the task itself when None.

        Raises:
            ValueError: limit < 1.
        """
        if limit is None:
            return self
        if limit < 1:
            raise ValueError(f"expected a limit of at least one prompt a split, got {limit}")
        samples = {split: min(n, limit) for split, n in self.samples.items()}
        return replace(self, samples=samples, attacks=limited(self.attacks, limit), limit=limit)

    def concepts(self, case: str) -> tuple[Concept, ...]:
        """What is erased in a case."""
        world = worlds.find(self.model)
        make = world.concept if world else Concept.of
        return tuple(self.known.get(word) or make(word) for word in self.named_cases[case])

    def places(self, path: str) -> list[Path]:
        """Where a path of the task file may lead: from here, or from the root of the model's world; none for ""."""
        world = worlds.find(self.model)
        roots = [Path(), *([world.root] if world and world.root else [])]
        return [root / path for root in roots if path]

    def located(self, given: Mapping[str, Path] | None = None) -> Task:
        """The task with its files of prompts on this machine, and their sha256 in it.

        Args:
            given: Name of a source -> the user's own copy of its file.

        Raises:
            ValueError: An unknown name, or another file than the task names.
            FileNotFoundError: A file that is neither given nor to be had.
        """
        given = given or {}
        if unknown := [name for name in given if name not in self.sources]:
            raise ValueError(f"expected prompts among {', '.join(self.sources) or 'none'}, got {unknown[0]!r}")
        return replace(
            self, sources={name: locate(name, source, given.get(name)) for name, source in self.sources.items()}
        )

    def tallies(self, case: str) -> dict[str, list[Tally]]:
        """Split -> for each concept what was made of its file, for the splits of files that were located."""
        concepts = self.concepts(case)
        return {
            split: [tally(split, prompts, self.sources, concept, concepts, n, adult=self.adult) for concept in concepts]
            for split, n in self.samples.items()
            if (prompts := self.prompts.get(split)) and prompts.source
        }

    def draws(self, case: str) -> list[Sample]:
        """The pictures of a case, in order; none occurs twice.

        Raises:
            ValueError: A word that the model does not know, a prompt that is refused, or a file that was not located.
        """
        prompts = self._prompts(case)
        samples: dict[tuple[str, str, int], Sample] = {}
        for splits in prompts.values():
            for split, n in self.samples.items():
                for ask in splits.get(split, ())[:n]:
                    refuse_minors(ask.text)
                    sample = Sample(split, ask.text, ask.seed, dict(ask.wants))
                    samples.setdefault((split, ask.text, ask.seed), sample)
        return sorted(samples.values(), key=lambda sample: ALL_SPLITS.index(sample.split))

    def _prompts(self, case: str) -> dict[str, dict[str, list[Ask]]]:
        """Concept -> split -> prompts."""
        concepts = self.concepts(case)
        if self.prompts:
            return prompts_of(self.prompts, self.sources, concepts, self.samples, adult=self.adult)
        return profile_for(self.model, unsafe=self.adult).prompts(concepts, max(self.samples.values()))

    def to_json(self) -> dict[str, Any]:
        """The task as plain values."""
        plain = asdict(replace(self, known={})) | {"cases": [list(case) for case in self.cases]}
        del plain["known"]
        if self.sampling.tokens is None:
            del plain["sampling"]["tokens"]
        plain |= {
            "scheme": lists(plain["scheme"]),
            "attacks": {label: plan.to_json() for label, plan in self.attacks.items()},
        }
        for key in ("sources", "prompts"):
            plain[key] = {name: entry.to_json() for name, entry in getattr(self, key).items()}
        optional = ("limit", "judge_options", "clip", "sources", "prompts", "patches")
        return {key: value for key, value in plain.items() if key not in optional or value}


def list_tasks() -> list[str]:
    """Names of the tasks of the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_task(task: str | Path) -> Task:
    """Read a task by its name, or from a YAML file.

    Raises:
        ValueError: No such task, or a file whose keys or values are wrong; names file and key.
        FileNotFoundError: No such file.
    """
    path = Path(task)
    if path.suffix not in (".yaml", ".yml"):
        if str(task) not in list_tasks():
            raise ValueError(f"expected a task among {', '.join(list_tasks())}, or a .yaml file, got {str(task)!r}")
        path = FOLDER / f"{task}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"no task file {path}; the tasks of the package are {', '.join(list_tasks())}")
    content = read_yaml(path)
    try:
        return parse_task(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_task(content: Any) -> Task:
    """A task from the content of its file.

    Raises:
        ValueError: Names the key, what it takes and what it got.
    """
    known = [field.name for field in fields(Task) if field.name not in ("limit", "known")]
    values = mapping("task", content, known)
    for name in ("name", "version", "model", "cases", "samples", "judge", "scheme"):
        if name not in values:
            raise ValueError(f"expected the key {name}, got none")
    attacks = parse_attacks(values.get("attacks", {}))
    if any(plan.samples > MAX_SAMPLES for plan in attacks.values()):
        raise ValueError(f"attacks: expected at most {MAX_SAMPLES} samples of each, got more")
    name = checked("name", values["name"], str, "letters, digits, dots and dashes", lambda text: _NAME.fullmatch(text))
    cases = _cases(values["cases"])
    sources = parse_sources(values.get("sources", {}))
    prompts = parse_prompts(values.get("prompts", {}), sources, [word for case in cases for word in case])
    samples = _samples(values["samples"], prompts)
    if (pictures := sum(map(len, cases)) * sum(samples.values())) > MAX_PICTURES:
        raise ValueError(f"samples: expected at most {MAX_PICTURES} pictures a row, got {pictures}")
    return Task(
        name=name,
        version=checked(
            "version", values["version"], int, "a whole number from 1 to 1000000", lambda n: 1 <= n <= 1_000_000
        ),
        model=checked("model", values["model"], str, "a model's name or folder", bool),
        cases=cases,
        samples=samples,
        sampling=_sampling(values.get("sampling", {})),
        judge=checked("judge", values["judge"], str, "the name of a judge", bool),
        judge_options=dict(mapping("judge_options", values.get("judge_options", {}))),
        clip=_clip(values.get("clip", {})),
        sources=sources,
        prompts=prompts,
        scheme=_scheme(values["scheme"], [label for label, plan in attacks.items() if plan.counts]),
        attacks=attacks,
        references=_references(values.get("references", {}), ["+".join(case) for case in cases]),
        patches=checked("patches", values.get("patches", ""), str, "a folder"),
        adult=checked("adult", values.get("adult", False), bool, "true or false"),
    )


def _cases(value: Any) -> tuple[tuple[str, ...], ...]:
    cases = checked("cases", value, list, "a list of lists of concepts", bool)
    for case in cases:
        if not isinstance(case, list) or not case or not all(isinstance(word, str) and word.strip() for word in case):
            raise ValueError(f"cases: expected lists of concepts, got {case!r}")
        refuse_minors(" ".join(term for word in case for term in (word, *Concept.of(word).aliases)))
    names = ["+".join(case) for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"cases: expected each case once, got twice: {', '.join(twice)}")
    return tuple(tuple(case) for case in cases)


def _samples(value: Any, prompts: Mapping[str, Prompts]) -> dict[str, int]:
    samples = mapping("samples", value, list(prompts) or SPLITS)
    if not samples:
        raise ValueError(f"samples: expected prompts for some of {', '.join(SPLITS)}, got none")
    if lacking := [split for split in prompts if split not in samples]:
        raise ValueError(f"samples: expected a number of {lacking[0]} prompts, got none")
    counts = {name: count(f"samples.{name}", samples[name], MAX_SAMPLES) for name in samples}
    return {split: counts[split] for split in ALL_SPLITS if split in counts}


def _sampling(value: Any) -> Sampling:
    values = mapping("sampling", value, [field.name for field in fields(Sampling)])
    given = {key: setting for key, setting in values.items() if setting is not None}
    most = {"steps": 10_000, "batch": 10_000, "size": 16_384, "tokens": 10_000}
    counts = {key: count(f"sampling.{key}", given[key], most[key]) for key in most if key in given}
    guidance = given.get("guidance")
    if guidance is not None:
        guidance = float(checked("sampling.guidance", guidance, (int, float), "a number", lambda x: abs(x) < 1e6))
    return Sampling(**counts, guidance=guidance)


def _scheme(value: Any, attacks: Sequence[str]) -> Scheme:
    given = mapping("scheme", value, [field.name for field in fields(Scheme)])
    try:
        return Scheme(**{"attacks": tuple(attacks)} | tuples(given))
    except (ValueError, TypeError) as error:
        raise ValueError(f"scheme: {error}") from None


def _clip(value: Any) -> dict[str, str]:
    given = mapping("clip", value, ("model", "revision"))
    if given and "model" not in given:
        raise ValueError("clip.model: expected a folder or a Hub id, got none")
    return {key: checked(f"clip.{key}", given[key], str, "a text", bool) for key in given}


def _references(value: Any, cases: Sequence[str]) -> dict[str, str]:
    given = mapping("references", value, cases)
    return {case: checked(f"references.{case}", given[case], str, "a folder", bool) for case in given}
