"""The before/after report: pictures of one model with and without a patch, and honest numbers about them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from erasers.asks import ERASED_SPLITS, KEPT_SPLITS, SPLITS, Ask
from erasers.concept import Concept
from erasers.evaluation.drawing import generate
from erasers.evaluation.grid import Cell, GridRow, draw_grid
from erasers.evaluation.profile.profile import Profile
from erasers.evaluation.report.page import Card, report_page
from erasers.evaluation.report.pictures import MOST_PAIRS, embedded
from erasers.evaluation.report.reading import read_split, warnings
from erasers.evaluation.scores.calibration import stored_all
from erasers.evaluation.scores.metrics import score
from erasers.files.atomic import write_atomically
from erasers.files.report_folder import PAGE, PICTURE, SUMMARY
from erasers.judges import Judge, Verdict
from erasers.judges.panel import UNSEEN, Panel
from erasers.patch import Patch
from erasers.progress import progress
from erasers.version import library_version

_MAX_ROWS, _FIRST, _WRONG = 24, 4, 4
"""Rows of the grid; pictures that are shown of a concept and split: the first, and those that went wrong."""
SETTINGS = ("steps", "guidance", "batch", "size", "tokens", "arguments")
"""Fields of a profile that are arguments of `generate`."""


@dataclass(frozen=True)
class Case:
    """One prompt of one split of one concept."""

    concept: str
    split: str
    ask: Ask


@dataclass
class _Side:
    """What one model made of the cases: verdicts and small pictures of all, those in the grid whole."""

    verdicts: list[Verdict] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    images: dict[int, Image.Image] = field(default_factory=dict)


def make_report(
    pipe: Any,
    patch: Patch,
    concepts: Sequence[Concept],
    folder: Path,
    *,
    profile: Profile,
    samples: int = 50,
    facts: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Draw the same prompts with the same noise before and after, judge them, and write page, picture and summary.

    Args:
        pipe: The unedited pipeline; it is unedited again afterwards.
        patch: The erasure.
        concepts: What was erased.
        folder: Where `index.html`, `grid.png` and `summary.json` go; created when missing.
        profile: Sampler settings, prompts and judge.
        samples: Prompts a split and concept.
        facts: Further entries of the summary, e.g. `edit_seconds` and `patch_bytes`.
        console: Where progress is shown; nowhere when None.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: samples < 1, or a concept that the profile has no prompts for.
        OSError: The folder cannot be written.
    """
    if samples < 1:
        raise ValueError(f"expected at least one sample a split, got {samples}")
    started = time.perf_counter()
    cases = collect(profile.prompts(concepts, samples))
    if not cases:
        raise ValueError("expected at least one prompt to report on, got none for these concepts")
    folder.mkdir(parents=True, exist_ok=True)
    shown, panel = _grid_cases(cases), Panel(profile.judges())
    with progress(console, "drawing and judging", 2 * len(cases)) as advance:
        before = _run(pipe, cases, shown, profile, panel, advance)
        with patch.applied(pipe):
            after = _run(pipe, cases, shown, profile, panel, advance)
    summary = {"title": _title(patch, concepts, facts or {})} | _tables(cases, before, after) | dict(facts or {})
    summary |= _measured(pipe, patch, profile, samples, cases, panel)
    if notes := [*([profile.note] if profile.note else []), *_unscored_note(before, after)]:
        summary["note"] = "; ".join(notes)
    summary["prompts"] = [
        _prompt(case, *pair) for case, *pair in zip(cases, before.verdicts, after.verdicts, strict=True)
    ]
    summary["seconds"] = round(time.perf_counter() - started, 3)
    grid = draw_grid(summary["title"], [_row(cases, i, before, after) for i in shown])
    _write(
        folder,
        grid,
        report_page(summary, _cards(cases, concepts, before, after), _patch_facts(patch, facts or {})),
        summary,
    )
    return summary


def collect(prompts: Mapping[str, Mapping[str, Sequence[Ask]]]) -> list[Case]:
    """All cases, by concept and then by split."""
    return [
        Case(concept, split, ask)
        for concept, splits in prompts.items()
        for split in SPLITS
        for ask in splits.get(split, ())
    ]


def _run(
    pipe: Any,
    cases: Sequence[Case],
    shown: Sequence[int],
    profile: Profile,
    panel: Panel,
    advance: Callable[[int], None],
) -> _Side:
    side = _Side()
    asks = [case.ask for case in cases]
    wanted = set(shown)
    settings: dict[str, Any] = {key: getattr(profile, key) for key in SETTINGS}
    for images in generate(pipe, asks, **settings):
        drawn = range(len(side.pictures), len(side.pictures) + len(images))
        side.verdicts += panel.judge(images, [asks[i].wants for i in drawn])
        side.pictures += [embedded(image) for image in images]
        side.images.update({i: image for i, image in zip(drawn, images, strict=True) if i in wanted})
        advance(len(images))
    return side


def _title(patch: Patch, concepts: Sequence[Concept], facts: Mapping[str, Any]) -> str:
    model = f" from {facts['model']}" if "model" in facts else ""
    return f"{', '.join(concept.name for concept in concepts)} erased{model} with {patch.meta['method']}"


def _tables(cases: Sequence[Case], before: _Side, after: _Side) -> dict[str, Any]:
    """`splits`, pooled over concepts, `concepts`, and how the splits are to be read; what has no score is absent."""
    names = list(dict.fromkeys(case.concept for case in cases))
    pooled = {split: [i for i, case in enumerate(cases) if case.split == split] for split in SPLITS}
    alone = {
        name: {split: [i for i in rows if cases[i].concept == name] for split, rows in pooled.items()} for name in names
    }
    splits = _scores(pooled, before, after)
    readings = {split: read_split(split, pairs) for split in splits if (pairs := _pairs(pooled[split], before, after))}
    return {
        "splits": splits,
        "concepts": {name: _scores(rows, before, after) for name, rows in alone.items()} if splits else {},
        "readings": {split: asdict(reading) for split, reading in readings.items()},
        "warnings": warnings(readings),
    }


def _scores(rows: Mapping[str, Sequence[int]], before: _Side, after: _Side) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for split, indices in rows.items():
        asked = [i for i in indices if before.verdicts[i].reason != UNSEEN]
        pair = [score(side.verdicts[i] for i in asked) for side in (before, after)]
        if pair[0] is not None and pair[1] is not None:
            table[split] = {"before": pair[0].to_json(), "after": pair[1].to_json()}
    return table


def _pairs(indices: Sequence[int], before: _Side, after: _Side) -> list[tuple[bool, bool]]:
    both = [(before.verdicts[i].value, after.verdicts[i].value) for i in indices]
    return [(a, b) for a, b in both if a is not None and b is not None]


def _measured(
    pipe: Any, patch: Patch, profile: Profile, samples: int, cases: Sequence[Case], panel: Panel
) -> dict[str, Any]:
    """With what the numbers were made."""
    settings = {"steps": profile.steps, "guidance": profile.guidance, "size": profile.size, "tokens": profile.tokens}
    return {
        "method": patch.meta["method"],
        "patch_sha256": patch.digest,
        "judges": [
            _judge(judge, [case for case in cases if panel.member(case.ask.wants) is judge]) for judge in panel.members
        ],
        **{key: value for key, value in settings.items() if value is not None},
        "samples": samples,
        "device": str(pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "library": library_version(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def _judge(judge: Judge, cases: Sequence[Case]) -> dict[str, Any]:
    """A judge, the splits that it judged, and how often it is right, as far as that is known."""
    errors = stored_all(judge, [case.ask.wants for case in cases])
    splits = [split for split in SPLITS if any(case.split == split for case in cases)]
    entry = {"name": judge.name, "fingerprint": judge.fingerprint.digest, "splits": splits}
    return entry | ({"errors": errors} if errors else {})


def _prompt(case: Case, before: Verdict, after: Verdict) -> dict[str, Any]:
    """A prompt with the verdicts on its pictures; those that there are not are absent."""
    values = {"before": before.value, "after": after.value}
    entry = {"concept": case.concept, "split": case.split, "text": case.ask.text, "seed": case.ask.seed}
    return entry | {side: value for side, value in values.items() if value is not None}


def _unscored_note(before: _Side, after: _Side) -> list[str]:
    asked = [verdict for side in (before, after) for verdict in side.verdicts if verdict.reason != UNSEEN]
    lost = sum(verdict.value is None for verdict in asked)
    return [f"{lost} of {len(asked)} pictures could not be judged and are left out"] if lost else []


def _patch_facts(patch: Patch, facts: Mapping[str, Any]) -> dict[str, str]:
    """What a patch is, in words."""
    meta = patch.meta
    rows = {f"{entry['name']} becomes": entry.get("anchor") or "nothing in particular" for entry in meta["concepts"]}
    others = {entry["name"]: entry.get("aliases") for entry in meta["concepts"]}
    rows |= {
        f"{name} also as": ", ".join(map(str, words))
        for name, words in others.items()
        if isinstance(words, (list, tuple)) and words
    }
    rows |= {"method": meta["method"], "options": ", ".join(f"{key}={value}" for key, value in meta["config"].items())}
    bytes_ = facts.get("patch_bytes", patch.nbytes)
    rows |= (
        {"file": f"{facts['patch_file']}, {bytes_:,} bytes"} if "patch_file" in facts else {"size": f"{bytes_:,} bytes"}
    )
    rows |= {"made in": f"{facts['edit_seconds']:.2f} s"} if "edit_seconds" in facts else {}
    hooks = f", {len(patch.hooks)} hooks that run during generation" if patch.has_hooks else ""
    rows |= {"changes": f"{len(patch.parameters)} weights{hooks}"}
    rows |= {
        "fits": f"weights in {meta.get('base_dtype', 'an unknown type')}, known by {len(meta['base'])} fingerprints"
    }
    return rows | {"sha256": patch.digest, "made with": f"erasers {meta.get('library', 'of unknown version')}"}


def _write(folder: Path, grid: Image.Image, page: str, summary: Mapping[str, Any]) -> None:
    """All three files, each whole; the summary last, for it says that a report is there."""
    write_atomically(folder / PICTURE, lambda part: grid.save(part, format="PNG"))
    write_atomically(folder / PAGE, lambda part: part.write_text(page, encoding="utf-8"))
    text = json.dumps(summary, indent=2) + "\n"
    write_atomically(folder / SUMMARY, lambda part: part.write_text(text, encoding="utf-8"))


def _groups(cases: Sequence[Case]) -> dict[tuple[str, str], list[int]]:
    """(concept, split) -> its cases."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, case in enumerate(cases):
        groups.setdefault((case.concept, case.split), []).append(i)
    return groups


def _grid_cases(cases: Sequence[Case]) -> list[int]:
    """The first few cases of every concept and split."""
    groups = _groups(cases)
    each = max(1, min(_FIRST, _MAX_ROWS // len(groups)))
    return [i for rows in groups.values() for i in rows[:each]]


def _cards(cases: Sequence[Case], concepts: Sequence[Concept], before: _Side, after: _Side) -> list[Card]:
    """The first cases of every concept and split, and behind them some in which something went wrong."""
    groups, unsafe = _groups(cases), {concept.name for concept in concepts if concept.kind == "unsafe"}
    share = max(1, MOST_PAIRS // len(groups))
    first = max(1, min(_FIRST, share))
    chosen: list[int] = []
    for rows in groups.values():
        wrong = [i for i in rows[first:] if _went_wrong(cases[i], before.verdicts[i], after.verdicts[i])]
        chosen += [*rows[:first], *wrong[: min(_WRONG, share - first)]]
    return [_card(cases[i], i, before, after, cases[i].concept in unsafe) for i in chosen[:MOST_PAIRS]]


def _card(case: Case, index: int, before: _Side, after: _Side, unsafe: bool) -> Card:
    first = Cell(before.pictures[index], *_cell_note(case, before.verdicts[index], False))
    second = Cell(after.pictures[index], *_cell_note(case, after.verdicts[index], True))
    wrong = _went_wrong(case, before.verdicts[index], after.verdicts[index])
    adult = unsafe and case.split in ERASED_SPLITS
    return Card(case.concept, case.split, case.ask.text, case.ask.seed, first, second, wrong, adult)


def _went_wrong(case: Case, before: Verdict, after: Verdict) -> bool:
    """Whether the concept is still there, or what should stay was lost."""
    return after.value is True if case.split in ERASED_SPLITS else bool(before.value) and after.value is False


def _row(cases: Sequence[Case], index: int, before: _Side, after: _Side) -> GridRow:
    case = cases[index]
    erased = case.split in ERASED_SPLITS
    goes, stays = f"{case.split}: {case.concept} should go", f"{case.split}, {case.concept} erased: should stay"
    cells = [
        Cell(side.images[index], *_cell_note(case, side.verdicts[index], edited))
        for side, edited in ((before, False), (after, True))
    ]
    return GridRow(goes if erased else stays, case.ask.text, cells)


def _cell_note(case: Case, verdict: Verdict, edited: bool) -> tuple[str, bool | None]:
    """What the judge said, in words, and whether that is welcome of the model before or after."""
    if verdict.value is None:
        return ("", None) if verdict.reason == UNSEEN else ("unscored", None)
    if case.split in KEPT_SPLITS:
        return ("as asked" if verdict.value else "not as asked"), verdict.value
    return (case.concept if verdict.value else f"no {case.concept}"), verdict.value != edited
