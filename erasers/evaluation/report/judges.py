"""Who judges a report: NudeNet for nudity, CLIP for the rest, or the judges that are named; and what is lacking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from erasers import worlds
from erasers.asks import Ask
from erasers.concept import Concept
from erasers.evaluation.profile.profile import Profile, profile_for
from erasers.evaluation.profile.words import CAPTION, NUDITY, is_unsafe
from erasers.evaluation.report.classes import clip_classes, match_labels
from erasers.files.reading import at_home, read_json, value_of
from erasers.judges import Judge, get_judge, list_judges
from erasers.judges.panel import Panel

NONE = "none"
SAMPLES: Mapping[str, int] = {"embedded": 50, "judged": 20, "blind": 4}
"""Prompts a split where nobody says how many: of an embedded model, of others, of others without a judge."""
CLIP = ("timm/vit_large_patch14_clip_224.openai", "18d0535469bb561bf468d76c1d73aa35156c922b")
"""CLIP ViT-L/14 of OpenAI (MIT), 1.7 GB: the model and the commit that the tasks for Stable Diffusion pin, too."""

_CLIP_CONFIG = "open_clip_config.json"
_OPEN = ("clip_zeroshot", "classifier")
_NEEDS = {
    "nudenet": (("nudenet", "onnxruntime"), "pip install 'erasers[judges]' (NudeNet, AGPL-3.0)"),
    "clip_zeroshot": (("open_clip",), "pip install 'erasers[clip]' (CLIP)"),
}
"""Judge -> the modules that it needs, and how they are had."""


@dataclass(frozen=True)
class Judging:
    """The judges of a report, and in one line what they lack; empty when they lack nothing."""

    judges: tuple[Judge, ...]
    note: str = ""


def settle(
    model: str | Path,
    concepts: Sequence[Concept],
    *,
    unsafe: bool = False,
    samples: int | None = None,
    judges: Sequence[str] = (),
) -> tuple[Profile, int]:
    """How a report on a model is drawn and judged, with the number of prompts a split; before any work.

    Args:
        model: As for `load_pipeline`.
        concepts: What is erased.
        unsafe: Draw the prompts that name unsafe concepts, too.
        samples: Prompts a split; when None `SAMPLES` of them, and fewer where nobody counts them.
        judges: As for `choose_judges`.

    Raises:
        ValueError: From `choose_judges`.
        FileNotFoundError: Likewise.
    """
    profile = profile_for(model, unsafe=unsafe)
    if not judges and worlds.find(model):
        return profile, samples or SAMPLES["embedded"]
    table = profile.prompts(concepts, samples or SAMPLES["judged"])
    asks: dict[str, list[Ask]] = {}
    for splits in table.values():
        for split, listed in splits.items():
            asks.setdefault(split, []).extend(listed)
    judging = choose_judges(concepts, asks, judges)
    hidden = [concept.name for concept in concepts if is_unsafe(concept)] if not unsafe else []
    asleep = f"prompts that name {', '.join(hidden)} are drawn only with --unsafe" if hidden else ""
    note = "; ".join(filter(None, (asleep, judging.note)))
    count = samples or SAMPLES["judged" if judging.judges else "blind"]
    return replace(profile, judges=lambda: judging.judges, note=note), count


def choose_judges(concepts: Sequence[Concept], asks: Mapping[str, Sequence[Ask]], given: Sequence[str] = ()) -> Judging:
    """The judges of a report on a model of no known world. They run on the CPU, for the model may fill the GPU.

    Args:
        concepts: What is erased.
        asks: Split -> its prompts, of all concepts.
        given: Judges by name, `NAME/PROFILE`, `NAME/MODEL` (a folder or `user/repo@commit`) or a folder alone; `none`
            for none; those that are installed when there are none here.

    Raises:
        ValueError: A judge that there is not, or that sees nothing of what the prompts want.
        FileNotFoundError: A model that is not there.
    """
    if NONE in given:
        if len(given) > 1:
            raise ValueError(f"expected --judge none alone, got {', '.join(given)}")
        return Judging((), "--judge none: there are pictures and no numbers")
    wanted = _wanted(asks)
    judges, reasons = _installed(concepts, wanted) if not given else (_named(concepts, wanted, given), [])
    panel = Panel(judges)
    blind = [split for split, listed in asks.items() if not any(panel.member(ask.wants) for ask in listed)]
    return Judging(tuple(judges), _note(blind, len(blind) == len(asks), reasons) if blind else "")


def _wanted(asks: Mapping[str, Sequence[Ask]]) -> dict[str, list[str]]:
    """Property -> the values that some prompt wants."""
    wanted: dict[str, dict[str, None]] = {}
    for listed in asks.values():
        for ask in listed:
            for name, value in ask.wants.items():
                wanted.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in wanted.items()}


def _rest(wanted: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """All but nudity."""
    rest = {name: [value for value in values if (name, value) != NUDITY] for name, values in wanted.items()}
    return {name: values for name, values in rest.items() if values}


def _installed(concepts: Sequence[Concept], wanted: Mapping[str, Sequence[str]]) -> tuple[list[Judge], list[str]]:
    """The judges that are installed, and why others are not there."""
    judges: list[Judge] = []
    reasons: list[str] = []
    for name, needed in (("nudenet", NUDITY[1] in wanted.get(NUDITY[0], ())), ("clip_zeroshot", bool(_rest(wanted)))):
        modules, remedy = _NEEDS[name]
        if needed and not all(map(find_spec, modules)):
            reasons.append(remedy)
        if not needed or remedy in reasons:
            continue
        try:
            judges += _named(concepts, wanted, [name])
        except (ImportError, OSError, ValueError) as error:
            reasons.append(f"{name} is installed but not ready: {' '.join(str(error).split())[:300]}")
    return judges, reasons


def _named(concepts: Sequence[Concept], wanted: Mapping[str, Sequence[str]], given: Iterable[str]) -> list[Judge]:
    judges: list[Judge] = []
    for spec in given:
        try:
            judges += _judges_of(spec, concepts, wanted)
        except ImportError as error:
            raise ValueError(f"--judge {spec}: {error}") from error
        if not any(
            value in judge.sees.get(name, ()) for judge in judges for name, values in wanted.items() for value in values
        ):
            sees = "; ".join(
                f"{name}: {', '.join(values[:20])}" for judge in judges for name, values in judge.sees.items()
            )
            raise ValueError(f"--judge {spec} sees nothing of what the prompts want; it sees {sees}")
    return judges


def _judges_of(spec: str, concepts: Sequence[Concept], wanted: Mapping[str, Sequence[str]]) -> list[Judge]:
    name, _, argument = spec.partition("/")
    folder = at_home(spec)
    if folder.is_dir():
        name, argument = ("clip_zeroshot" if (folder / _CLIP_CONFIG).is_file() else "classifier"), spec
    if name in ("nudenet", "oracle") or spec in set(list_judges()) - {*_OPEN, "q16/vitl14"}:
        return [get_judge(spec)]
    if name == "clip_zeroshot":
        return [_clip(argument, concepts, _rest(wanted))]
    if name == "classifier" and argument:
        return _classifiers(*_model(argument), concepts, wanted)
    expected = "nudenet, clip_zeroshot, NAME/PROFILE, NAME/MODEL, the folder of a model, or none"
    raise ValueError(f"expected --judge as {expected}, got {spec!r}, which is none of these and no folder here")


def _clip(argument: str, concepts: Sequence[Concept], wanted: Mapping[str, Sequence[str]]) -> Judge:
    """CLIP, in which neighbours do not compete with each other: some are kinds of others."""
    model, revision = _model(argument) if argument else CLIP
    label = _label(model) if argument else "openai-vitl14"
    classes = clip_classes(concepts, wanted)
    near = {word for concept in concepts for word in concept.neighbours}
    apart = {name: tuple(value for value in values if value in near) for name, values in classes.items()}
    more: dict[str, Any] = {"classes": classes, "templates": ("{}",)}
    more["apart"] = {name: values for name, values in apart.items() if values}
    return get_judge(f"clip_zeroshot/{label}", model=model, revision=revision, **more)


def _classifiers(
    model: str, revision: str | None, concepts: Sequence[Concept], wanted: Mapping[str, Sequence[str]]
) -> list[Judge]:
    """An image classifier for each property of which it has labels."""
    from erasers.judges.weights import model_folder

    folder = model_folder(model, revision, ("config.json", "preprocessor_config.json"))
    table = value_of(read_json(folder / "config.json"), "id2label", dict)
    labels = [str(table.get(str(number), "")) for number in range(len(table))]
    terms = {concept.name: concept.terms() for concept in concepts} | {NUDITY[1]: Concept.preset("nudity").terms()}
    judges = []
    for name, values in wanted.items():
        classes = match_labels(labels, {value: terms.get(value, (value,)) for value in values})
        if classes:
            judges.append(get_judge(f"classifier/{_label(str(folder))}@top1", model=folder, classes=classes, kind=name))
    if not judges:
        asked = ", ".join(value for name, values in wanted.items() if name != CAPTION for value in values)
        raise ValueError(
            f"--judge {model} has no label for {asked}; its labels are {'; '.join(labels[:20])}"
            f"{'; ...' if len(labels) > 20 else ''}"
        )
    return judges


def _model(argument: str) -> tuple[str, str | None]:
    """A folder, or a Hub id and its commit."""
    if at_home(argument).is_dir():
        return argument, None
    repository, _, revision = argument.partition("@")
    return repository, revision or None


def _label(model: str) -> str:
    """The name of a model in a judge's name, without blanks and slashes."""
    return "-".join(Path(model).name.split()) or "model"


def _note(blind: Sequence[str], all_blind: bool, reasons: Sequence[str]) -> str:
    """One line on what has no numbers, and what would give some."""
    what = "there are pictures and no numbers" if all_blind else f"no numbers for {', '.join(blind)}"
    how = f"; for numbers: {'; '.join(reasons)}; or name a judge with --judge" if reasons else ""
    return what + (how or "; no judge here sees what these prompts want (see --judge)")
