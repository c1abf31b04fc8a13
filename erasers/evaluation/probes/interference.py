"""What erasing a concept does to every other one: a matrix of all concepts of a world by all of them.

Rows are emitters, each erased by a patch of its own; columns are receivers, which are asked for by prompts that name no
emitter beside them. The same prompts and noise by the unedited model are what every cell is held against:

* `kept`: of the pictures that showed what was asked before, the share that still do;
* `drift`: how far the pictures moved, 0 to 4 (`feature_drift`).

Whether concepts go together because their words are alike is asked of the cells off the diagonal: the rank correlation
of `drift` with the cosine of the names' text states, and how often it is as large when the concepts of one matrix are
shuffled (N. Mantel, Cancer Research 27 (1967), 209-220), for cells of one row are no independent observations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from erasers.asks import Ask
from erasers.eraser import Eraser
from erasers.evaluation.drawing import generate
from erasers.evaluation.pictures.distances import feature_drift
from erasers.evaluation.pictures.features import judge_layers
from erasers.evaluation.probes.blindspots import asked
from erasers.files.atomic import write_atomically
from erasers.judges import get_judge
from erasers.progress import Advance
from erasers.text.encoding import Reader
from erasers.text.prompts import whole
from erasers.worlds import World

_SHUFFLES = 2000


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two vectors `[n]`, equal values at the middle of their ranks; NaN where one is constant."""
    a, b = (_ranks(values) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm()))


def mantel(matrix: Tensor, other: Tensor, seed: int = 0) -> tuple[float, float]:
    """Rank correlation of two matrices `[n, n]` off their diagonals, and its one-sided p-value.

    Args:
        matrix: Need not be symmetric.
        other: Its rows and columns are shuffled together.
        seed: Of the shuffles.

    Returns:
        The correlation, and the share of shuffles, the identity among them, with one at least as large; NaN as the
        correlation where a matrix is constant.
    """
    off = ~torch.eye(len(matrix), dtype=torch.bool)
    generator, found = torch.Generator().manual_seed(seed), spearman(matrix[off], other[off])
    orders = (torch.randperm(len(matrix), generator=generator) for _ in range(_SHUFFLES))
    larger = sum(spearman(matrix[off], other[order][:, order][off]) >= found - 1e-12 for order in orders)
    return found, (larger + 1) / (_SHUFFLES + 1)


def likeness(pipe: Any, concepts: Sequence[str]) -> Tensor:
    """Cosines `[n, n]` of the text states of names at their last token, the mean of all names taken off."""
    prompts = [whole(name) for name in concepts]
    encoded = Reader(pipe, "last").encode(prompts)
    states = torch.stack([encoded[prompt].rows("last").flatten() for prompt in prompts]).float()
    states = torch.nn.functional.normalize(states - states.mean(dim=0), dim=1)
    return states @ states.T


def pictures(world: World, emitters: Sequence[str], samples: int, methods: int) -> int:
    """How many pictures the matrices of so many methods take."""
    asks = _asks(world, emitters, samples)
    return len(_distinct(asks)) + methods * sum(len(own) for table in asks.values() for own in table.values())


def interference(
    pipe: Any,
    erasers: Mapping[str, Eraser],
    world: World,
    emitters: Sequence[str],
    settings: Mapping[str, Any],
    *,
    samples: int = 8,
    advance: Advance = lambda count: None,
) -> dict[str, Any]:
    """A matrix for every method.

    Args:
        pipe: The unedited pipeline.
        erasers: Row -> method.
        world: Of the model.
        emitters: Concepts that are erased, each alone.
        settings: Of `generate`.
        samples: Pictures of each receiver.
        advance: Told of every picture.

    Returns:
        `emitters`, `receivers`, `likeness` (emitter -> receiver -> cosine) and `rows` -> method -> `kept`, `drift`
        (emitter -> receiver -> number; None where nothing was drawn as asked before), `worst` pairs and `correlation`
        of drift and likeness, where every receiver was an emitter and some pictures moved.
    """
    asks = _asks(world, emitters, samples)
    receivers = list(dict.fromkeys(name for own in asks.values() for name in own))
    judge, layers, prompts = get_judge(world.judge), judge_layers(world.network()), _distinct(asks)
    before = dict(zip(prompts, _draw(pipe, list(prompts.values()), settings, advance), strict=True))

    def effect(eraser: Eraser, emitter: str) -> tuple[dict[str, float | None], dict[str, float]]:
        """Receiver -> what is kept, and how far its pictures moved."""
        some = [ask for own in asks[emitter].values() for ask in own]
        patch = eraser.fit(pipe, world.concept(emitter), generator=torch.Generator().manual_seed(0), progress=False)
        with patch.applied(pipe):
            after = _draw(pipe, some, settings, advance)
        first = [before[ask.text, ask.seed] for ask in some]
        was, still = ([verdict.value for verdict in judge.judge(seen, some)] for seen in (first, after))
        moved, kept, drift = iter(feature_drift(first, after, layers).tolist()), {}, {}
        verdicts = iter(zip(was, still, strict=True))
        for receiver, own in asks[emitter].items():
            stayed = [bool(now) for then, now in islice(verdicts, len(own)) if then]
            kept[receiver] = fmean(stayed) if stayed else None
            drift[receiver] = round(fmean(islice(moved, len(own))), 5)
        return kept, drift

    close = likeness(pipe, receivers)
    table: dict[str, Any] = {}
    for row, eraser in erasers.items():
        effects = {emitter: effect(eraser, emitter) for emitter in emitters}
        kept = {emitter: shares for emitter, (shares, _) in effects.items()}
        drift = {emitter: moved for emitter, (_, moved) in effects.items()}
        table[row] = {"options": eraser.config(), "kept": kept, "drift": drift, "worst": _worst(kept, drift)}
        if list(emitters) == receivers and all(len(own) == len(receivers) for own in drift.values()):
            rho, p = mantel(torch.tensor([[own[name] for name in receivers] for own in drift.values()]), close)
            table[row] |= {} if isnan(rho) else {"correlation": {"rho": round(rho, 4), "p": round(p, 5)}}
    places = [receivers.index(emitter) for emitter in emitters]
    return {
        "measurement": "interference",
        "samples": samples,
        "drawn": {name: settings.get(name) for name in ("steps", "guidance")},
        "emitters": list(emitters),
        "receivers": receivers,
        "likeness": {
            emitter: {name: round(float(close[place, k]), 4) for k, name in enumerate(receivers)}
            for emitter, place in zip(emitters, places, strict=True)
        },
        "rows": table,
    }


def draw_interference(measured: Mapping[str, Any], path: Path) -> None:
    """The figure of `interference`: two maps a method, what is erased from top to bottom, what is asked for across."""
    from matplotlib.figure import Figure

    rows, names = measured["rows"], measured["receivers"]
    side = 0.17 * len(names) + 1.2
    figure = Figure(
        figsize=(2 * side + 1.6, 0.9 + len(rows) * (0.17 * len(measured["emitters"]) + 0.9)), layout="constrained"
    )
    axes = figure.subplots(len(rows), 2, squeeze=False)
    top = max(max(own.values()) for facts in rows.values() for own in facts["drift"].values()) or 1.0
    for (row, facts), pair in zip(rows.items(), axes, strict=True):
        correlation = facts.get("correlation")
        said = "" if correlation is None else f", with likeness of words {correlation['rho']:.2f}"
        for axis, name, colours, most, title in (
            (pair[0], "kept", "magma", 1.0, f"{row}: kept"),
            (pair[1], "drift", "magma_r", top, f"{row}: drift{said}"),
        ):
            values = [[_number(facts[name][emitter].get(receiver)) for receiver in names] for emitter in facts[name]]
            picture = axis.imshow(values, cmap=colours, vmin=0, vmax=most, aspect="auto")
            axis.set_title(title, fontsize=9)
            axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axis.set_yticks(range(len(values)), list(facts[name]), fontsize=6)
            figure.colorbar(picture, ax=axis, shrink=0.7).ax.tick_params(labelsize=6)
    figure.supxlabel("asked for", fontsize=9)
    figure.supylabel("erased", fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def _asks(world: World, emitters: Sequence[str], samples: int) -> dict[str, dict[str, list[Ask]]]:
    """Emitter -> receiver -> prompts."""
    return {emitter: asked(world, [emitter], samples) for emitter in emitters}


def _distinct(asks: Mapping[str, Mapping[str, Sequence[Ask]]]) -> dict[tuple[str, int], Ask]:
    """Text and seed -> prompt, each once."""
    return {(ask.text, ask.seed): ask for table in asks.values() for own in table.values() for ask in own}


def _worst(
    kept: Mapping[str, Mapping[str, float | None]], drift: Mapping[str, Mapping[str, float]], count: int = 5
) -> list[dict[str, Any]]:
    """The pairs of two concepts of which least is kept, of equals those that moved farthest."""
    pairs = [
        (share, -drift[emitter][receiver], emitter, receiver)
        for emitter, own in kept.items()
        for receiver, share in own.items()
        if share is not None and receiver != emitter
    ]
    return [
        {"erased": emitter, "asked": receiver, "kept": share, "drift": -moved}
        for share, moved, emitter, receiver in sorted(pairs)[:count]
    ]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _ranks(values: Tensor) -> Tensor:
    ordered = values.double().sort().values
    low, high = (torch.searchsorted(ordered, values.double().contiguous(), right=right) for right in (False, True))
    return (low + high).double() / 2


def _draw(pipe: Any, asks: Sequence[Ask], settings: Mapping[str, Any], advance: Advance) -> list[Image.Image]:
    pictures: list[Image.Image] = []
    for batch in generate(pipe, asks, **settings):
        pictures += batch
        advance(len(batch))
    return pictures
