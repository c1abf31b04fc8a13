"""What else a patch took along: sparse features of pictures by the edited model against those by the unedited one.

Bohacek et al., "Uncovering Conceptual Blindspots in Generative Image Models Using Sparse Autoencoders" (arXiv
2506.19708), compare generated pictures with real ones; here the unedited model takes the place of the real ones, with
the same prompts and noise. A feature k with activations xi_k has

    delta(k) = sigmoid(mean xi_k over edited pictures - mean xi_k over unedited ones)

so that .5 is "as often as before", 0 "gone" and 1 "new". The paper calls less than .1 suppressed and more than .9
exaggerated, which says nothing without a scale of xi. Ours is: a feature's mean where its concept is shown, above that
where it is not, is twice logit(.9), so that less than .1 means that more than half of it is gone.

Differs from the paper: features are those of an autoencoder on the last layer of a world's judge, trained on true
pictures of that world, and each concept is read by the one feature that tells its pictures best; the paper has DINOv2
and 32,000 features without names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from erasers.asks import Ask, PlainPrompt
from erasers.concept import names
from erasers.evaluation.drawing import generate
from erasers.evaluation.pictures.features import JudgeFeatures
from erasers.files.atomic import write_atomically
from erasers.progress import Advance
from erasers.sae.autoencoder import SAE
from erasers.sae.rows import Rows
from erasers.sae.training import SAETraining, train_sae
from erasers.worlds import World

UNEDITED, RETRAINED, CONTROL = "unedited", "retrained", "other noise"
SUPPRESSED, EXAGGERATED = 0.1, 0.9
SCALE = 2 * log(EXAGGERATED / SUPPRESSED)
"""Of a concept that is shown, above one that is not: what is wholly gone has a delta of .012, half gone .1."""
LEAST = 0.9
"""Of the area under its curve, so that a feature may stand for a concept."""
_TRUE, _SPARE, _OTHER_NOISE = 40, 20, 1_000_000
_TRAINING = SAETraining(features=96, k=6, steps=400, prompts=256, lr=3e-3, warmup=40, auxiliary=32, dead_after=10_000)


def delta(edited: torch.Tensor, unedited: torch.Tensor) -> torch.Tensor:
    """How often features are there, against before: .5 as often, 0 gone, 1 new.

    Source: arXiv 2506.19708, section 3; of its two forms the one in which "suppressed" is below .1.

    Args:
        edited: xi `[n, k]` of pictures by the edited model.
        unedited: Likewise `[m, k]`.

    Returns:
        `[k]`.
    """
    return torch.sigmoid(edited.mean(dim=0) - unedited.mean(dim=0))


def area(scores: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Area under the curve of every feature as a test of what is shown: how often it is larger where it is.

    Args:
        scores: `[n, k]`.
        shown: Boolean `[n]`, with both values in it.
    """
    rows = scores.T.contiguous()
    ordered = rows.sort(dim=1).values
    # Those that are equal share the middle of their ranks.
    below, above = (torch.searchsorted(ordered, rows, right=right) for right in (False, True))
    ranks, count = (below + above + 1).double() / 2, int(shown.sum())
    return (ranks[:, shown].mean(dim=1) - (count + 1) / 2) / (len(shown) - count)


@dataclass(frozen=True)
class Reader:
    """Reads concepts in pictures.

    Args:
        see: Pictures to features `[n, d]`.
        sae: Of these features.
        features: Concept -> the number of its feature.
        areas: Concept -> the area under its curve on true pictures; also of those that have no feature.
        zero: Mean of each of the features where its concept is not shown `[k]`.
        unit: What is `SCALE` above that `[k]`.
    """

    see: Callable[[Sequence[Image.Image]], torch.Tensor]
    sae: SAE
    features: Mapping[str, int]
    areas: Mapping[str, float]
    zero: torch.Tensor
    unit: torch.Tensor

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """xi `[n, k]` in the order of `features`."""
        codes = self.sae.encode(self.see(images).float()).dense(self.sae.n)[:, list(self.features.values())]
        return SCALE * (codes - self.zero) / self.unit


@torch.no_grad()
def reader_of(
    world: World, concepts: Mapping[str, Ask], training: SAETraining = _TRAINING, count: int = _TRUE
) -> Reader:
    """A reader of a world, trained on its true pictures; the same arguments give the same one.

    Args:
        world: Has the judge and the pictures.
        concepts: Name -> a prompt that wants it alone.
        training: Of the autoencoder.
        count: Pictures for each concept.

    Raises:
        ValueError: No concept has a feature.
    """
    network = world.network()
    asks = [ask for name in concepts for ask in world.split_prompts(name, count)["explicit"]]
    pictures = world.draw([(ask.text, ask.wants) for ask in asks], [])
    see = JudgeFeatures(network)
    seen = see(pictures).float()
    answers = network.read(network.prepare(pictures))
    with torch.enable_grad():
        sae = train_sae(_PictureRows(None, [str(n) for n in range(len(seen))], training.prompts, 0, seen), training).sae
    codes = sae.encode(seen).dense(sae.n)
    features, areas, zero, unit = {}, {}, [], []
    for name, ask in concepts.items():
        shown = _shown(answers, network.answers, ask.wants)
        if not 0 < int(shown.sum()) < len(shown):
            continue
        scores = area(codes, shown)
        areas[name], feature = float(scores.max()), int(scores.argmax())
        if areas[name] >= LEAST:
            features[name] = feature
            zero.append(codes[~shown, feature].mean())
            unit.append(codes[shown, feature].mean() - zero[-1])
    if not features:
        raise ValueError(f"expected a feature for some concept of {world.name}, got none that tells {LEAST:.0%} of it")
    return Reader(see, sae, features, areas, torch.stack(zero), torch.stack(unit))


def _shown(
    answers: Mapping[str, torch.Tensor], known: Mapping[str, Sequence[str]], wants: Mapping[str, str]
) -> torch.Tensor:
    """Which pictures show all that is wanted, by what the judge takes them for `[n]`."""
    sides = [answers[name].argmax(dim=1) == known[name].index(value) for name, value in wants.items()]
    return torch.stack(sides).all(dim=0)


@dataclass
class _PictureRows(Rows):
    """Features of pictures as rows; `prompts` are their numbers."""

    features: torch.Tensor

    @property
    def target(self) -> str:
        """No module."""
        return "pictures"

    @property
    def device(self) -> torch.device:
        """Where features are."""
        return self.features.device

    def fingerprints(self) -> dict[str, str]:
        """None: no model makes them."""
        return {}

    def first(self) -> torch.Tensor:
        """See `Rows.first`."""
        return self.features[[int(number) for number in self._kept]]

    def step(self, number: int) -> torch.Tensor:
        """See `Rows.step`."""
        rows = self.first()
        generator = torch.Generator().manual_seed(self.seed + number)
        return rows[torch.randint(len(rows), (self.size,), generator=generator)]

    def held(self) -> Iterator[torch.Tensor]:
        """See `Rows.held`."""
        yield self.features[[int(number) for number in self._held]]


State = Callable[[], AbstractContextManager[Any]]
"""Inside of what it gives, the pipeline is in the state of a row."""


def blindspots(
    pipe: Any,
    rows: Mapping[str, State],
    world: World,
    erased: Sequence[str],
    settings: Mapping[str, Any],
    *,
    samples: int = 8,
    advance: Advance = lambda count: None,
    read: Reader | None = None,
) -> dict[str, Any]:
    """Hold pictures of every concept of a world against those by the unedited model, with the same noise.

    Args:
        pipe: The unedited pipeline.
        rows: Name -> state; `UNEDITED` is what the others are held against.
        world: Of the model.
        erased: Concepts that the patches erase.
        settings: Of `generate`.
        samples: Pictures of each concept; prompts that name an erased one beside another are left out.
        advance: Told of every picture.
        read: Reads concepts in pictures; None: one is trained.

    Returns:
        `concepts` (with the area under the curve of each one's feature), `unseen` (those without one), and `rows` ->
        name -> `map` (concept that is asked for -> concept that is seen -> delta) and what stands out in it. The row
        `CONTROL` is the unedited model with other noise: what chance does.
    """
    asks = asked(world, erased, samples)
    read = read or reader_of(world, {name: own[0] for name, own in asks.items()})
    other: dict[str, list[Ask]] = {
        name: [PlainPrompt(ask.text, ask.seed + _OTHER_NOISE, ask.wants) for ask in own] for name, own in asks.items()
    }

    def seen(own: Mapping[str, Sequence[Ask]]) -> dict[str, torch.Tensor]:
        return {name: read(_draw(pipe, prompts, settings, advance)) for name, prompts in own.items()}

    with rows[UNEDITED]():
        before, chance = seen(asks), seen(other)
    table = {CONTROL: _mapped(chance, before, list(read.features), erased)}
    for row, state in rows.items():
        if row != UNEDITED:
            with state():
                table[row] = _mapped(seen(asks), before, list(read.features), erased)
    return {
        "measurement": "blindspots",
        "erased": list(erased),
        "samples": samples,
        "drawn": {name: settings.get(name) for name in ("steps", "guidance")},
        "concepts": {name: round(read.areas[name], 4) for name in read.features},
        "unseen": [name for name in asks if name not in read.features],
        "rows": table,
    }


def asked(world: World, erased: Sequence[str], samples: int) -> dict[str, list[Ask]]:
    """Concept of a world -> prompts about it, without those that name an erased one beside it."""
    known = dict.fromkeys(world.concept(word).name for word in world.words)
    banned = [text for name in erased for text in (name, *world.synonyms(name))]
    table: dict[str, list[Ask]] = {}
    for name in known:
        pool = world.split_prompts(name, _SPARE * samples)["explicit"]
        allowed = [ask for ask in pool if name in erased or not any(names(ask.text, word) for word in banned)]
        table[name] = list(allowed[:samples])
    return {name: own for name, own in table.items() if own}


def _mapped(
    seen: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor], features: Sequence[str], erased: Sequence[str]
) -> dict[str, Any]:
    """The map of a row, its own concepts in it, and the pairs of others that moved most."""
    cells = {name: dict(zip(features, map(float, delta(seen[name], before[name])), strict=True)) for name in seen}
    own = {name: cells[name][name] for name in features if name in cells}
    kept = {name: value for name, value in own.items() if name not in erased}
    away = [
        (abs(value - 0.5), asked_for, feature, value)
        for asked_for, row in cells.items()
        for feature, value in row.items()
        if asked_for not in erased
    ]
    return {
        "map": {name: {feature: round(value, 4) for feature, value in row.items()} for name, row in cells.items()},
        "erased": {name: round(own[name], 4) for name in erased if name in own},
        "kept_mean": round(sum(kept.values()) / len(kept), 4) if kept else None,
        "kept_least": min(((round(value, 4), name) for name, value in kept.items()), default=None),
        "suppressed": sorted(name for name, value in kept.items() if value < SUPPRESSED),
        "farthest": [[asked_for, seen_as, round(value, 4)] for _, asked_for, seen_as, value in sorted(away)[:-4:-1]],
    }


def _draw(pipe: Any, asks: Sequence[Ask], settings: Mapping[str, Any], advance: Advance) -> list[Image.Image]:
    images = [image for drawn in generate(pipe, asks, **settings) for image in drawn]
    advance(len(images))
    return images


def draw_blindspots(measured: Mapping[str, Any], path: Path) -> None:
    """The figure of `blindspots`: the map of every row, what was asked for from top to bottom, what is seen across."""
    from matplotlib.figure import Figure

    rows, seen = measured["rows"], list(measured["concepts"])
    across = min(3, len(rows))
    down = -(-len(rows) // across)
    figure = Figure(figsize=(3.9 * across + 1, 3.9 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for number, (row, facts) in enumerate(rows.items()):
        asked_for = list(facts["map"])
        values = [[facts["map"][name][feature] for feature in seen] for name in asked_for]
        picture = axes[number].imshow(values, cmap="RdBu_r", vmin=0, vmax=1, aspect="auto")
        axes[number].set_title(row, fontsize=10)
        left = asked_for if number % across == 0 else [""] * len(asked_for)
        axes[number].set_yticks(range(len(asked_for)), left, fontsize=6)
        axes[number].set_xticks(range(len(seen)), seen, rotation=90, fontsize=6)
        for name in measured["erased"]:
            if name in asked_for:
                axes[number].axhline(asked_for.index(name) - 0.5, color="black", linewidth=0.6)
                axes[number].axhline(asked_for.index(name) + 0.5, color="black", linewidth=0.6)
    for axis in axes[len(rows) :]:
        axis.set_axis_off()
    figure.colorbar(picture, ax=list(axes), label="gone     as before     new", shrink=0.6)
    figure.supxlabel("seen", fontsize=9)
    figure.supylabel("asked for", fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, dpi=80, format="png"))
