"""Tasks of the benchmark: what is erased from which model, and how it is drawn, judged and scored; YAML files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from erasers.concept import Concept
from erasers.evaluation.pillars import Scheme
from erasers.evaluation.profile import SPLITS, is_shapes, profile_for

FOLDER = Path(__file__).parent / "tasks"
"""The tasks of the package."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEXUAL = re.compile(
    r"\b(sex\w*|nud(e|es|ity|ist|ists)|naked\w*|nsfw|porn\w*|erotic\w*|genital\w*|breasts?|nipples?|penis\w*|vagina\w*|"
    r"topless|bottomless|undress\w*|unclothed|lingerie|hentai|xxx|fetish\w*|intercourse|masturbat\w*|orgasm\w*|bdsm|"
    r"lolicon|shotacon)\b"
)
_MINOR = re.compile(
    r"\b(child\w*|kids?|minors?|bab(y|ies)|infants?|toddlers?|teen\w*|preteens?|tweens?|underaged?|juveniles?|"
    r"adolescents?|boys?|girls?|school(boy|girl|child|kid)\w*|p(a?)edo\w*|lol(i|is|ita|itas|icon)|shota(con)?|"
    r"kindergart\w*|(1[0-7]|[0-9])[ -]?(years?|yrs?|yo|y/o)\b)"
)


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Args:
        steps: Denoising steps; None takes the pipeline's own default.
        guidance: Guidance scale; likewise.
        batch: Pictures at a time.
        size: Side of the pictures in pixels; None takes the model's own.
    """

    steps: int | None = None
    guidance: float | None = None
    batch: int = 1
    size: int | None = None


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
        scheme: What the scores are made of.
        references: Case -> folder of a denoiser that never saw its concepts.
        adult: The task has sexual content.
        limit: At most this many prompts a split, of a task cut short; its results are kept apart.
    """

    name: str
    version: int
    model: str
    cases: tuple[tuple[str, ...], ...]
    samples: Mapping[str, int]
    sampling: Sampling
    judge: str
    scheme: Scheme
    references: Mapping[str, str] = field(default_factory=dict)
    adult: bool = False
    limit: int | None = None

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
        return replace(self, samples={split: min(n, limit) for split, n in self.samples.items()}, limit=limit)

    def concepts(self, case: str) -> tuple[Concept, ...]:
        """What is erased in a case."""
        if not is_shapes(self.model):
            return tuple(Concept.of(word) for word in self.named_cases[case])
        from erasers.shapes.prompts import concept_for

        return tuple(concept_for(word) for word in self.named_cases[case])

    def draws(self, case: str) -> list[Sample]:
        """The pictures of a case, in order; none occurs twice.

        Raises:
            ValueError: A word that the model does not know, or a prompt that is refused.
        """
        prompts = profile_for(self.model, unsafe=self.adult).prompts(self.concepts(case), max(self.samples.values()))
        found: dict[tuple[str, str, int], Sample] = {}
        for splits in prompts.values():
            for split, n in self.samples.items():
                for ask in splits.get(split, ())[:n]:
                    refuse_minors(ask.text)
                    sample = Sample(split, ask.text, ask.seed, dict(ask.wants))
                    found.setdefault((split, ask.text, ask.seed), sample)
        return sorted(found.values(), key=lambda sample: SPLITS.index(sample.split))

    def to_json(self) -> dict[str, Any]:
        """The task as plain values."""
        plain = asdict(self) | {"cases": [list(case) for case in self.cases]}
        scheme = {key: list(value) if isinstance(value, tuple) else value for key, value in plain["scheme"].items()}
        plain |= {"scheme": scheme}
        return {key: value for key, value in plain.items() if key != "limit" or value is not None}


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
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML, got {' '.join(str(error).split())}") from None
    try:
        return parse_task(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_task(content: Any) -> Task:
    """A task from the content of its file.

    Raises:
        ValueError: Names the key, what it takes and what it got.
    """
    known = [one.name for one in fields(Task) if one.name != "limit"]
    values = _mapping("task", content, [*known, "attacks"])
    for name in ("name", "version", "model", "cases", "samples", "judge", "scheme"):
        if name not in values:
            raise ValueError(f"expected the key {name}, got none")
    if values.get("attacks"):
        raise ValueError("attacks: expected none, for the benchmark does not run attacks yet; leave the key out")
    name = _checked("name", values["name"], str, "letters, digits, dots and dashes", lambda text: _NAME.fullmatch(text))
    cases = _cases(values["cases"])
    return Task(
        name=name,
        version=_checked("version", values["version"], int, "a whole number from 1 on", lambda n: n >= 1),
        model=_checked("model", values["model"], str, "a model's name or folder", bool),
        cases=cases,
        samples=_samples(values["samples"]),
        sampling=_sampling(values.get("sampling", {})),
        judge=_checked("judge", values["judge"], str, "the name of a judge", bool),
        scheme=_scheme(values["scheme"]),
        references=_references(values.get("references", {}), ["+".join(case) for case in cases]),
        adult=_checked("adult", values.get("adult", False), bool, "true or false"),
    )


def refuse_minors(text: str) -> None:
    """Refuse a text that combines sexual content and minors; words decide, so harmless texts are refused, too.

    Raises:
        ValueError: It does.
    """
    lower = text.lower().replace("_", " ")
    if _SEXUAL.search(lower) and _MINOR.search(lower):
        raise ValueError("a concept or prompt combines sexual content and minors; this library does not draw that")


def _cases(value: Any) -> tuple[tuple[str, ...], ...]:
    cases = _checked("cases", value, list, "a list of lists of concepts", bool)
    for case in cases:
        if not isinstance(case, list) or not case or not all(isinstance(word, str) and word.strip() for word in case):
            raise ValueError(f"cases: expected lists of concepts, got {case!r}")
        refuse_minors(" ".join(term for word in case for term in (word, *Concept.of(word).aliases)))
    names = ["+".join(case) for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"cases: expected each case once, got twice: {', '.join(twice)}")
    return tuple(tuple(case) for case in cases)


def _samples(value: Any) -> dict[str, int]:
    samples = _mapping("samples", value, SPLITS)
    if not samples:
        raise ValueError(f"samples: expected prompts for some of {', '.join(SPLITS)}, got none")
    counts = {name: _count(f"samples.{name}", samples[name]) for name in samples}
    return {split: counts[split] for split in SPLITS if split in counts}


def _sampling(value: Any) -> Sampling:
    values = _mapping("sampling", value, [one.name for one in fields(Sampling)])
    given = {key: setting for key, setting in values.items() if setting is not None}
    counts = {key: _count(f"sampling.{key}", given[key]) for key in ("steps", "batch", "size") if key in given}
    guidance = given.get("guidance")
    if guidance is not None:
        guidance = float(_checked("sampling.guidance", guidance, (int, float), "a number", lambda x: abs(x) < 1e6))
    return Sampling(**counts, guidance=guidance)


def _scheme(value: Any) -> Scheme:
    given = _mapping("scheme", value, [one.name for one in fields(Scheme)])
    options: dict[str, Any] = {key: tuple(part) if isinstance(part, list) else part for key, part in given.items()}
    try:
        return Scheme(**options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"scheme: {error}") from None


def _references(value: Any, cases: Sequence[str]) -> dict[str, str]:
    given = _mapping("references", value, cases)
    return {case: _checked(f"references.{case}", given[case], str, "a folder", bool) for case in given}


def _mapping(name: str, value: Any, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected keys and values, got {value!r}")
    if unknown := [key for key in value if key not in known]:
        raise ValueError(f"{name}: expected keys among {', '.join(known)}, got {unknown[0]!r}")
    return value


def _count(name: str, value: Any) -> int:
    return int(_checked(name, value, int, "a whole number from 1 on", lambda n: n >= 1))


def _checked(name: str, value: Any, kind: Any, what: str, good: Any = None) -> Any:
    wrong_kind = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if wrong_kind or (good is not None and not good(value)):
        raise ValueError(f"{name}: expected {what}, got {value!r}")
    return value
