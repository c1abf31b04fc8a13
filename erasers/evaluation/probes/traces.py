"""Traces of a concept in a text encoder: which columns of its feed-forward weights write the concept's word, and
whether a patch moves them.

ConceptVectors (Hong et al., "Intrinsic Test of Unlearning Using Parametric Knowledge Traces", arXiv 2406.11614) reads
language models so; this is *adapted* to the text encoders of diffusion models. There a column of the layer that writes
into the stream is projected on the tokens of the model's output; here on those of its input, the only ones it has. A
column is the concept's where that projection points at the concept's word more than at others. The paper chooses by
hand and holds each choice against what the model then answers; we choose by the projection alone.

A patch of the denoiser leaves all of this as it was and reads "unchanged", whatever it does to pictures; so does a
model whose denoiser never learned the concept, for a text encoder knows words, not pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from erasers.diffusion.adaptors.adaptor import module_of
from erasers.diffusion.tokens import token_table, tokenizer_of
from erasers.files.atomic import write_atomically
from erasers.files.hashing import raw_bytes
from erasers.models.encoder_blocks import in_block, plain_path
from erasers.models.families import UnsupportedPipeline
from erasers.models.feeding import feeds_of
from erasers.patch import Patch

Reading = Literal["unchanged", "changed elsewhere", "changed"]
"""Whether a patch changes no weight of a text encoder, some but none of these columns, or columns."""

# What writes into the stream: of CLIP, T5 and language models.
_WRITES = ("mlp.fc2", "DenseReluDense.wo", "mlp.down_proj")
_PUBLISHED, _SHARE, _AT_ONCE = 200, 20, 1024
NEEDLE = 0.5
"""Size of the control's noise, as a share of the mean square root of the columns."""
OTHERS = "all others"


@dataclass(frozen=True)
class Encoder:
    """A text encoder in one state.

    Args:
        columns: Those of all blocks as rows `[n, d]`.
        parameters: Parameter -> how many of them are its, in their order.
        table: Token embeddings `[V, d]`.
        digests: sha256 of every parameter by name.
    """

    columns: torch.Tensor
    parameters: Mapping[str, int]
    table: torch.Tensor
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Moved:
    """What became of some columns, means over them.

    Args:
        columns: How many there are.
        changed: How many differ in any bit.
        cosine: Of a column before and after.
        distance: Its length of the difference.
        jaccard: Overlap of the strongest tokens of its projection.
        before: How far its projection points at the word, in standard deviations over the vocabulary; absent for those
            of no word.
        after: Likewise.
    """

    columns: int
    changed: int
    cosine: float
    distance: float
    jaccard: float
    before: float | None = None
    after: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that are there, to six digits."""
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in vars(self).items()
            if value is not None
        }


def projected(columns: torch.Tensor, table: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` tokens `[n, count]` that a projection of columns `[n, d]` on a table `[V, d]` is largest for."""
    return torch.cat([(part @ table.T).topk(count).indices for part in columns.split(_AT_ONCE)])


def jaccard(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Overlap `[n]` of sets in rows `[n, count]`: those in both over those in any."""
    ordered = torch.cat([before, after], dim=1).sort(dim=1).values
    shared = (ordered[:, 1:] == ordered[:, :-1]).sum(dim=1)
    return shared / (2 * before.shape[1] - shared)


def pointing(columns: torch.Tensor, table: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """How far columns `[n, d]` point at tokens: their projection, in standard deviations over the vocabulary `[n]`."""
    centred = table - table.mean(dim=0)
    spread = ((columns @ (centred.T @ centred / len(table))) * columns).sum(dim=1).sqrt()
    return (columns @ centred[list(tokens)].mean(dim=0)) / spread.clamp(min=torch.finfo(columns.dtype).tiny)


def moved(before: Encoder, after: Encoder, index: torch.Tensor, count: int, word: Sequence[int] = ()) -> Moved:
    """What became of some columns.

    Source: arXiv 2406.11614, section 4.2, for cosine, distance and Jaccard.

    Args:
        before: The unedited text encoder.
        after: The edited one.
        index: Numbers of columns among all.
        count: Tokens of a projection that are compared; 200 in the paper.
        word: Tokens of the word that they stand for.
    """
    old, new = before.columns[index], after.columns[index]
    # A projection moves with the table, too.
    same_table = torch.equal(before.table, after.table)
    changed = (old != new).any(dim=1)
    looked = changed if same_table else torch.ones_like(changed)
    cosine, overlap = torch.ones(len(index)), torch.ones(len(index))
    cosine[changed] = functional.cosine_similarity(old[changed], new[changed], dim=1)
    tables = (old[looked], before.table), (new[looked], after.table)
    if looked.any():
        overlap[looked] = jaccard(*(projected(columns, table, count) for columns, table in tables))
    words = [float(pointing(c, t, word).mean()) if word else None for c, t in ((old, before.table), (new, after.table))]
    return Moved(
        len(index),
        int(changed.sum()),
        float(cosine.mean()),
        float((new - old).norm(dim=1).mean()),
        float(overlap.mean()),
        *words,
    )


def needle(encoder: Encoder, index: torch.Tensor, share: float, generator: torch.Generator) -> Encoder:
    """The encoder with Gaussian noise on some columns and on nothing else: what must be seen, as the control.

    Source: arXiv 2406.11614, section 5.1 ("Needle"), there an eraser.

    Args:
        encoder: In any state.
        index: Numbers of columns among all.
        share: Standard deviation of the noise, in mean square roots of all columns.
        generator: Draws it.
    """
    columns = encoder.columns.clone()
    noise = torch.randn(len(index), columns.shape[1], generator=generator)
    columns[index] += share * float(columns.square().mean().sqrt()) * noise
    return replace(encoder, columns=columns)


def read(pipe: Any, name: str) -> Encoder:
    """A text encoder of a pipeline as it is now, copied to the CPU in float32.

    Raises:
        UnsupportedPipeline: Its blocks have no such columns.
    """
    model = module_of(pipe, name)
    written = {
        f"{path}.weight": module.weight.detach()
        for path, module in ((plain_path(path), module) for path, module in model.named_modules())
        if isinstance(module, nn.Linear) and (place := in_block(path)) and place.inner.endswith(_WRITES)
    }
    if not written:
        raise UnsupportedPipeline(
            f"expected a text encoder with layers named {', '.join(_WRITES)}, got {name}, a {type(model).__name__}"
        )
    return Encoder(
        torch.cat([weight.float().cpu().T for weight in written.values()]),
        {path: weight.shape[1] for path, weight in written.items()},
        token_table(pipe, name).float().cpu().clone(),
        {path: sha256(raw_bytes(weight.detach())).hexdigest() for path, weight in model.named_parameters()},
    )


def traces(pipe: Any, patches: Mapping[str, Patch], *, columns: int = 10, count: int | None = None) -> dict[str, Any]:
    """What patches leave of their concepts in the text encoders of a pipeline.

    Args:
        pipe: The pipeline that they were fitted on; it is left as it was.
        patches: Name of a row -> patch.
        columns: How many count as those of a word: its strongest ones over all blocks.
        count: Tokens of a projection that are compared; None: 200 as in the paper, a twentieth of a small vocabulary.

    Returns:
        `rows` -> name -> concepts -> encoders: a `reading`, what became of each block, and of the columns of the
        concept's word, of its neighbours' and of all others, and the `control`, the same measured with noise on the
        word's columns.

    Raises:
        UnsupportedPipeline: No text encoder with such columns.
        PatchError: A patch for other weights.
    """
    before = {name: read(pipe, name) for name in feeds_of(pipe)}
    rows = {}
    for title, patch in patches.items():
        with patch.applied(pipe):
            after = {name: read(pipe, name) for name in before}
        concepts = [_names(concept) for concept in patch.meta["concepts"]]
        rows[title] = {
            "method": patch.meta["method"],
            "hooks": sum(hook.component in before for hook in patch.hooks),
            "concepts": {
                word: {
                    name: _compared(tokenizer_of(pipe, name), word, near, (before[name], after[name]), columns, count)
                    for name in before
                }
                for word, near in concepts
            },
        }
    return {"measurement": "traces", "rows": rows}


def _names(concept: Mapping[str, Any]) -> tuple[str, Sequence[str]]:
    near = concept.get("neighbours", ())
    return str(concept.get("name", "")), tuple(map(str, near)) if isinstance(near, list | tuple) else ()


def _compared(
    tokenizer: Any, word: str, near: Sequence[str], states: tuple[Encoder, Encoder], columns: int, count: int | None
) -> dict[str, Any]:
    before, after = states
    own = before.columns
    count = count or min(_PUBLISHED, max(1, len(before.table) // _SHARE))
    if count > len(before.table) or columns > len(own):
        raise ValueError(
            f"expected at most {len(before.table)} tokens and {len(own)} columns, got {count} and {columns}"
        )
    tokens = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, *near)}
    strongest = {
        text: pointing(own, before.table, ids).topk(columns).indices for text, ids in tokens.items() if len(ids)
    }
    if word not in strongest:
        raise ValueError(f"expected a concept of at least one token, got {word!r}")
    rest = torch.ones(len(own), dtype=torch.bool)
    rest[torch.cat(list(strongest.values()))] = False
    changed = [path for path, digest in before.digests.items() if digest != after.digests[path]]
    groups = {text: moved(before, after, index, count, tokens[text]) for text, index in strongest.items()}
    groups[OTHERS] = moved(before, after, rest.nonzero()[:, 0], count)
    noised = needle(before, strongest[word], NEEDLE, torch.Generator().manual_seed(0))
    control = {word: moved(before, noised, strongest[word], count, tokens[word])}
    control[OTHERS] = moved(before, noised, rest.nonzero()[:, 0], count)
    now = pointing(after.columns, after.table, tokens[word]).topk(columns).values.mean()
    first = projected(own[strongest[word][:1]], before.table, min(5, count))[0]
    return {
        "reading": _reading(changed, before),
        "weights_changed": len(changed),
        "weights": len(before.digests),
        "tokens_compared": count,
        "chance": round(count / (2 * len(before.table) - count), 6),
        "strongest_column": [str(tokenizer.decode([int(token)])).strip() for token in first],
        "strongest_after": round(float(now), 6),
        "blocks": {path: moved(before, after, index, count).to_json() for path, index in _blocks(before)},
        "groups": {text: facts.to_json() for text, facts in groups.items()},
        "control": {text: facts.to_json() for text, facts in control.items()},
    }


def _reading(changed: Sequence[str], encoder: Encoder) -> Reading:
    if not changed:
        return "unchanged"
    return "changed" if set(changed) & set(encoder.parameters) else "changed elsewhere"


def _blocks(encoder: Encoder) -> list[tuple[str, torch.Tensor]]:
    """Numbers of the columns of each parameter among all."""
    parts = torch.arange(len(encoder.columns)).split(list(encoder.parameters.values()))
    return list(zip(encoder.parameters, parts, strict=True))


def draw_traces(measured: Mapping[str, Any], path: Path) -> None:
    """The figure of `traces`: what became of the columns of each word, row by row, and of the control's."""
    from matplotlib.figure import Figure

    rows = lines(measured)
    figure = Figure(figsize=(11, 1.3 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (field, title) in zip(axes, _PANELS.items(), strict=True):
        for place, (_, groups) in enumerate(rows):
            for shift, (text, facts) in enumerate(groups.items()):
                colour, marker = ("#b3261e", "o") if not shift else ("#6b7178", "|" if text == OTHERS else "x")
                axis.plot(facts[field], place, marker, color=colour, markersize=8, markeredgewidth=1.6)
        axis.set_title(title, fontsize=10)
        axis.set_xlim(0, max(1.05, 1.05 * max(facts[field] for _, groups in rows for facts in groups.values())))
        axis.grid(axis="x", color="#e6e8eb")
    axes[0].set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    axes[0].invert_yaxis()
    figure.supxlabel("columns of the concept's word (o), of its neighbours (x), all others (|)", fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, dpi=90, format="png"))


_PANELS = {
    "cosine": "cosine before and after",
    "distance": "length of the change",
    "jaccard": "shared strongest tokens",
}


def lines(measured: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What `traces` measured as lines for people: a name, and what became of each group; the control is the last."""
    listed, control = [], []
    for row, facts in measured["rows"].items():
        for word, encoders in facts["concepts"].items():
            for name, encoder in encoders.items():
                where = f" in {name}" if len(encoders) > 1 else ""
                listed.append((f"{row}{where}: {encoder['reading']}", encoder["groups"]))
                control = [(f"control: noise on the columns of {word}{where}", encoder["control"])]
    return listed + control
