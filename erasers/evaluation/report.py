"""The before/after report: pictures of one model with and without a patch, and honest numbers about them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from erasers.atomic import write_atomically
from erasers.concept import Concept
from erasers.evaluation.grid import Cell, Row, draw_grid, save_image
from erasers.evaluation.metrics import score
from erasers.evaluation.profile import ERASED_SPLITS, KEPT_SPLITS, SPLITS, Ask, Profile
from erasers.evaluation.refusal import refuse_minors
from erasers.judges import Judge, Verdict
from erasers.patch import Patch
from erasers.version import library_version

_MAX_ROWS = 24


@dataclass(frozen=True)
class Case:
    """One prompt of one split of one concept."""

    concept: str
    split: str
    ask: Ask


@dataclass
class _Side:
    """What one model (before or after) made of the cases: verdicts of all, pictures of those in the grid."""

    verdicts: list[Verdict] = field(default_factory=list)
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
    """Draw the same prompts with the same noise before and after, judge them, and write `grid.png` and `summary.json`.

    Args:
        pipe: The unedited pipeline; it is unedited again afterwards.
        patch: The erasure.
        concepts: What was erased.
        folder: Where the report goes; created when missing.
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
    shown = _grid_cases(cases)
    judge = profile.judge() if profile.judge else None
    with progress(console, "drawing and judging", 2 * len(cases)) as advance:
        before = _run(pipe, cases, shown, profile, judge, advance)
        with patch.applied(pipe):
            after = _run(pipe, cases, shown, profile, judge, advance)
    splits = {} if judge is None else _tables(cases, before, after)
    summary: dict[str, Any] = {**splits} if splits else {"splits": {}, "concepts": {}}
    summary |= dict(facts or {})
    summary |= {"method": patch.meta["method"], "library": library_version()}
    settings = {"steps": profile.steps, "guidance": profile.guidance}
    summary |= {key: value for key, value in settings.items() if value is not None} | {"samples": samples}
    if notes := [*([profile.note] if profile.note else []), *(_unscored_note(cases, before, after) if judge else [])]:
        summary["note"] = "; ".join(notes)
    names = ", ".join(concept.name for concept in concepts)
    title = f"{names} erased with {patch.meta['method']}" + (
        f" from {facts['model']}" if facts and "model" in facts else ""
    )
    save_image(draw_grid(title, [_row(cases, i, before, after) for i in shown]), folder / "grid.png")
    summary["seconds"] = round(time.perf_counter() - started, 3)
    text = json.dumps(summary, indent=2) + "\n"
    write_atomically(folder / "summary.json", lambda part: part.write_text(text, encoding="utf-8"))
    return summary


def collect(prompts: Mapping[str, Mapping[str, Sequence[Ask]]]) -> list[Case]:
    """All cases, by concept and then by split."""
    return [
        Case(concept, split, ask)
        for concept, splits in prompts.items()
        for split in SPLITS
        for ask in splits.get(split, ())
    ]


def generate(
    pipe: Any,
    asks: Sequence[Ask],
    *,
    steps: int | None,
    guidance: float | None,
    batch: int = 1,
    size: int | None = None,
    latents: torch.Tensor | None = None,
) -> Iterator[list[Image.Image]]:
    """Pictures in batches, in order. Each has noise of its own from a CPU generator, so batches change nothing.

    Args:
        pipe: A diffusers pipeline; of a video the middle frame counts.
        asks: Prompts with seeds.
        steps: Denoising steps; None takes the pipeline's own default.
        guidance: Guidance scale; likewise.
        batch: Pictures at a time.
        size: Side of the pictures in pixels; None takes the model's own.
        latents: Noise `[1, c, h, w]` in place of that of the seeds.

    Raises:
        ValueError: A prompt that combines sexual content and minors; nothing has been drawn then.
    """
    for ask in asks:
        refuse_minors(ask.text)
    settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}
    settings["latents"] = latents
    settings = {key: value for key, value in settings.items() if value is not None}
    with _no_bars(pipe):
        for start in range(0, len(asks), batch):
            part = asks[start : start + batch]
            noise = [torch.Generator("cpu").manual_seed(ask.seed) for ask in part]
            output = pipe(prompt=[ask.text for ask in part], generator=noise, output_type="pil", **settings)
            videos = getattr(output, "frames", None)
            yield [frames[len(frames) // 2] for frames in videos] if videos is not None else list(output.images)


def _run(
    pipe: Any,
    cases: Sequence[Case],
    shown: Sequence[int],
    profile: Profile,
    judge: Judge | None,
    advance: Callable[[int], None],
) -> _Side:
    side = _Side()
    asks = [case.ask for case in cases]
    done, wanted = 0, set(shown)
    settings: dict[str, Any] = {key: getattr(profile, key) for key in ("steps", "guidance", "batch", "size")}
    for images in generate(pipe, asks, **settings):
        part = range(done, done + len(images))
        if judge is not None:
            side.verdicts += judge.judge(images, [asks[i] for i in part])
        side.images.update({i: image for i, image in zip(part, images, strict=True) if i in wanted})
        done += len(images)
        advance(len(images))
    return side


def _tables(cases: Sequence[Case], before: _Side, after: _Side) -> dict[str, Any]:
    """`splits`, pooled over concepts, and `concepts`; what has no score is absent."""
    names = list(dict.fromkeys(case.concept for case in cases))
    pooled = {split: [i for i, case in enumerate(cases) if case.split == split] for split in SPLITS}
    alone = {
        name: {split: [i for i in rows if cases[i].concept == name] for split, rows in pooled.items()} for name in names
    }
    return {
        "splits": _scores(pooled, before, after),
        "concepts": {name: _scores(rows, before, after) for name, rows in alone.items()},
    }


def _scores(rows: Mapping[str, Sequence[int]], before: _Side, after: _Side) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for split, indices in rows.items():
        pair = [score(side.verdicts[i] for i in indices) for side in (before, after)]
        if pair[0] is not None and pair[1] is not None:
            table[split] = {"before": pair[0].to_json(), "after": pair[1].to_json()}
    return table


def _unscored_note(cases: Sequence[Case], before: _Side, after: _Side) -> list[str]:
    lost = sum(verdict.value is None for side in (before, after) for verdict in side.verdicts)
    return [f"{lost} of {2 * len(cases)} pictures could not be judged and are left out"] if lost else []


def _grid_cases(cases: Sequence[Case]) -> list[int]:
    """The first few cases of every concept and split."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, case in enumerate(cases):
        groups.setdefault((case.concept, case.split), []).append(i)
    each = max(1, min(4, _MAX_ROWS // len(groups)))
    return [i for rows in groups.values() for i in rows[:each]]


def _row(cases: Sequence[Case], index: int, before: _Side, after: _Side) -> Row:
    case = cases[index]
    erased = case.split in ERASED_SPLITS
    goes, stays = f"{case.split}: {case.concept} should go", f"{case.split}, {case.concept} erased: should stay"
    section = goes if erased else stays
    return Row(section, case.ask.text, [_cell(case, index, before, True), _cell(case, index, after, not erased)])


def _cell(case: Case, index: int, side: _Side, good: bool) -> Cell:
    image = side.images[index]
    if not side.verdicts:
        return Cell(image)
    value = side.verdicts[index].value
    if value is None:
        return Cell(image, "unscored")
    if case.split in KEPT_SPLITS:
        return Cell(image, "as asked" if value else "not as asked", value == good)
    return Cell(image, case.concept if value else f"no {case.concept}", value == good)


@contextmanager
def progress(console: Console | None, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left, which is gone in the end; nothing without a console."""
    if console is None:
        yield lambda count: None
        return
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _no_bars(pipe: Any) -> Iterator[None]:
    before = dict(getattr(pipe, "_progress_bar_config", None) or {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
