"""What the features that ItD turns down say: on which words and in which prompts they fire."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from erasers.concept import Concept
from erasers.files.atomic import write_atomically
from erasers.methods.itd.eraser import ItD
from erasers.sae.autoencoder import SAE
from erasers.sae.text_blocks import Block
from erasers.text.contexts import kept_prompts

_TOKENS = 3
_PROMPTS = 14


@dataclass(frozen=True)
class Feature:
    """One feature that a gate knows.

    Args:
        number: Of the autoencoder.
        tokens: The tokens on which it is strongest, the most frequent first.
        share: Share of the concept's prompts in which it passes its gate.
        prompt: The prompt in which it is strongest.
        strongest: Its activity there.
        gate: The activity above which it says that the concept is there.
    """

    number: int
    tokens: tuple[str, ...]
    share: float
    prompt: str
    strongest: float
    gate: float


@dataclass(frozen=True)
class Explanation:
    """What one text encoder knows of a concept.

    Args:
        concept: Its name.
        target: The block.
        features: Those that fire for it alone, the most frequent first.
        caught: Share of the prompts with the concept that pass the gate.
        passed: The same of kept prompts.
        prompts: Prompts with the concept, then kept ones, of which `asked` are the first.
        asked: How many.
        map: The activity over its gate, `[features, prompts]`, in the order of `features`.
    """

    concept: str
    target: str
    features: tuple[Feature, ...]
    caught: float
    passed: float
    prompts: tuple[str, ...]
    asked: int
    map: torch.Tensor


def explanations(pipe: Any, concept: Concept, eraser: ItD) -> list[Explanation]:
    """One explanation for each text encoder of a pipeline; raises as `ItD.fit` does, and for a denoiser."""
    (concept,) = eraser.prepared(pipe, [concept])
    explained = []
    for block, sae, _ in eraser.described(pipe, [concept], torch.Generator().manual_seed(0)):
        if not isinstance(block, Block):
            raise ValueError(f"expected autoencoders of text encoders, got one of {block.target}, which reads no words")
        explained.append(_explain(block, sae, concept, eraser))
    return explained


def _explain(block: Block, sae: SAE, concept: Concept, eraser: ItD) -> Explanation:
    parts = eraser.parts(block, sae, [concept])
    numbers = [int((sae.encoder == row).all(dim=1).nonzero()[0, 0]) for row in parts["encoder"]]
    asked = list(dict.fromkeys(text for _, texts in eraser.asked([concept]) for text in texts))
    near, others = kept_prompts([concept], eraser.templates)
    kept = [*near, *others]
    a = activities(block, parts, asked)
    peaks, where = a.max(dim=1)
    passing = peaks > parts["gate"]
    silent = (activities(block, parts, kept).amax(dim=1) > parts["gate"]).any(dim=1)
    ids = block.tokens(asked)[0]
    order = sorted(
        range(len(parts["gate"])), key=lambda index: (-int(passing[:, index].sum()), -float(peaks[:, index].max()))
    )
    ends = [_words(block, ids, peaks[:, index] > parts["floor"][index], where[:, index]) for index in order]
    features = [
        Feature(
            numbers[index],
            words,
            float(passing[:, index].double().mean()),
            asked[int(peaks[:, index].argmax())],
            float(peaks[:, index].max()),
            float(parts["gate"][index]),
        )
        for index, words in zip(order, ends, strict=True)
    ]
    shown = [*_spread(asked, _PROMPTS), *_spread(kept, _PROMPTS)]
    ratio = activities(block, parts, shown).amax(dim=1) / parts["gate"]
    return Explanation(
        concept.name,
        block.target,
        tuple(features),
        float(passing.any(dim=1).double().mean()),
        float(silent.double().mean()),
        tuple(shown),
        min(_PROMPTS, len(asked)),
        ratio.T[order],
    )


def activities(block: Block, parts: dict[str, torch.Tensor], prompts: list[str]) -> torch.Tensor:
    """a of the features of a gate in the tokens that count, `[prompts, tokens, m]`."""
    rows = block.counted(block.outputs(prompts))
    return torch.relu(rows @ parts["encoder"].T + parts["bias"])


def _words(block: Block, ids: torch.Tensor, strong: torch.Tensor, where: torch.Tensor) -> tuple[str, ...]:
    """The tokens on which a feature is strongest in those prompts where it is active."""
    words = Counter(
        _word(block, int(ids[row, int(where[row]) + block.first])) for row in strong.nonzero().flatten().tolist()
    )
    return tuple(word for word, _ in words.most_common(_TOKENS))


def _word(block: Block, token: int) -> str:
    if token == block.tokenizer.eos_token_id:
        return "(end)"
    return str(block.tokenizer.decode([token])).strip() or "(space)"


def _spread(texts: list[str], count: int) -> list[str]:
    """At most so many texts, from all over a list."""
    return [texts[round(position * (len(texts) - 1) / max(1, count - 1))] for position in range(min(count, len(texts)))]


def draw_explanation(explanation: Explanation, path: Path, features: int = 12) -> None:
    """A heat map of features and prompts: the activity in units of the gate, which is passed above 1."""
    from matplotlib.figure import Figure

    shown = explanation.features[:features]
    figure = Figure(figsize=(12, 3.2 + 0.28 * len(shown)), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(explanation.map[: len(shown)].numpy(), aspect="auto", cmap="RdBu_r", vmin=0, vmax=2)
    labels = [prompt or '""' for prompt in explanation.prompts]
    axis.set_xticks(range(len(labels)), labels, rotation=55, ha="right", fontsize=7)
    axis.set_yticks(
        range(len(shown)), [f"{feature.number}  {' '.join(feature.tokens)}" for feature in shown], fontsize=8
    )
    axis.axvline(explanation.asked - 0.5, color="black", linewidth=1.5)
    axis.set_title(
        f"{explanation.concept}: prompts with it, and kept ones | features of {explanation.target}", fontsize=10
    )
    figure.colorbar(picture, ax=axis, label="activity / gate")
    write_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))
