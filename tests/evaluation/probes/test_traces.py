"""Traces of a concept in the weights of text encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from erasers import Concept, Patch
from erasers.evaluation.probes.traces import (
    OTHERS,
    Encoder,
    draw_traces,
    jaccard,
    lines,
    moved,
    needle,
    pointing,
    projected,
    read,
    traces,
)
from erasers.files.hashing import tensor_hash
from erasers.models.families import UnsupportedPipeline
from erasers.patch.build import patch_meta

STAR = Concept("star", neighbours=["ring"])
COLUMNS, ATTENTION = "encoder.layers.1.mlp.fc2.weight", "encoder.layers.1.self_attn.q_proj.weight"


def encoder(n: int = 12, d: int = 6, vocabulary: int = 9) -> Encoder:
    generator = torch.Generator().manual_seed(0)
    columns, table = (torch.randn(count, d, generator=generator) for count in (n, vocabulary))
    return Encoder(columns, {"a": n // 2, "b": n - n // 2}, table, {})


def dense(pipe: Any, name: str, shift: float) -> Patch:
    """A patch that moves all of one weight."""
    component, _, path = name.partition(".")
    weight = getattr(pipe, component).get_parameter(path).detach()
    meta = patch_meta("uce", {}, [STAR], {name: tensor_hash(weight)}, torch.float32)
    return Patch({f"dense/{name}": weight + shift * torch.ones_like(weight).cumsum(0)}, meta)


def test_the_same_columns_are_unchanged_to_the_bit() -> None:
    state = encoder()
    facts = moved(state, state, torch.arange(12), 3, [4])
    assert (facts.changed, facts.cosine, facts.distance, facts.jaccard) == (0, 1.0, 0.0, 1.0)
    assert facts.before == facts.after


def test_noise_on_some_columns_is_seen_there_and_nowhere_else() -> None:
    state, index = encoder(), torch.tensor([2, 7])
    noised = needle(state, index, 0.5, torch.Generator().manual_seed(1))
    rest = torch.tensor([number for number in range(12) if number not in (2, 7)])
    assert torch.equal(noised.columns[rest], state.columns[rest])
    assert moved(state, noised, rest, 3).cosine == 1.0
    facts = moved(state, noised, index, 3)
    assert (facts.changed, facts.jaccard < 1, facts.distance > 0) == (2, True, True)
    assert facts.cosine < 0.99
    # The size is a share of that of all columns.
    shift = noised.columns[index] - state.columns[index]
    assert float(shift.square().mean().sqrt() / state.columns.square().mean().sqrt()) == pytest.approx(0.5, rel=0.5)


def test_a_column_that_was_turned_round_shares_no_token() -> None:
    before = encoder()
    after = Encoder(-before.columns, before.parameters, before.table, {})
    facts = moved(before, after, torch.arange(12), 3, [1])
    assert facts.cosine == pytest.approx(-1)
    assert facts.jaccard == 0
    assert facts.after == pytest.approx(-float(facts.before or 0), abs=1e-6)


def test_overlap_is_that_of_sets() -> None:
    before, after = torch.tensor([[1, 2, 3], [1, 2, 3], [4, 5, 6]]), torch.tensor([[3, 2, 1], [3, 4, 5], [1, 2, 3]])
    assert jaccard(before, after).tolist() == pytest.approx([1.0, 1 / 5, 0.0])


def test_a_planted_column_points_at_its_word() -> None:
    state = encoder()
    state.columns[5] = 2 * (state.table[3] - state.table.mean(dim=0))
    scores = pointing(state.columns, state.table, [3])
    # By hand: the projection of the word, over the standard deviation of all.
    logits = state.columns @ state.table.T
    expected = (logits[:, 3] - logits.mean(dim=1)) / logits.std(dim=1, correction=0)
    torch.testing.assert_close(scores, expected)
    assert int(scores.argmax()) == 5
    assert int(projected(state.columns[5:6], state.table - state.table.mean(dim=0), 1)) == 3


def test_a_table_that_moves_is_seen_in_columns_that_do_not() -> None:
    before = encoder()
    after = Encoder(before.columns, before.parameters, -before.table, {})
    assert moved(before, after, torch.arange(12), 3).jaccard == 0


def test_where_a_patch_is_says_what_it_reads(pipe: Any, tmp_path: Path) -> None:
    patches = {
        "denoiser": dense(pipe, "unet.conv_in.weight", 0.5),
        "attention": dense(pipe, f"text_encoder.{ATTENTION}", 0.05),
        "columns": dense(pipe, f"text_encoder.{COLUMNS}", 0.05),
    }
    before = read(pipe, "text_encoder")
    measured = traces(pipe, patches, columns=4)
    assert read(pipe, "text_encoder").digests == before.digests
    rows = {row: facts["concepts"]["star"]["text_encoder"] for row, facts in measured["rows"].items()}
    readings = {row: facts["reading"] for row, facts in rows.items()}
    assert readings == {"denoiser": "unchanged", "attention": "changed elsewhere", "columns": "changed"}
    still = {"changed": 0, "cosine": 1.0, "distance": 0.0, "jaccard": 1.0}
    for row in ("denoiser", "attention"):
        assert all(still.items() <= facts.items() for facts in rows[row]["groups"].values())
    assert list(rows["columns"]["groups"]) == ["star", "ring", OTHERS]
    blocks = {path: facts["changed"] for path, facts in rows["columns"]["blocks"].items()}
    assert blocks == {"encoder.layers.0.mlp.fc2.weight": 0, COLUMNS: 64}
    control = rows["denoiser"]["control"]
    assert control["star"]["changed"] == 4
    assert control["star"]["cosine"] < 0.97
    assert still.items() <= control[OTHERS].items()
    draw_traces(measured, tmp_path / "traces.png")
    with Image.open(tmp_path / "traces.png") as figure:
        assert figure.width > 600
    assert [name for name, _ in lines(measured)] == [
        "denoiser: unchanged",
        "attention: changed elsewhere",
        "columns: changed",
        "control: noise on the columns of star",
    ]


def test_bad_numbers_and_models_are_refused(pipe: Any) -> None:
    patch = {"denoiser": dense(pipe, "unet.conv_in.weight", 0.5)}
    with pytest.raises(ValueError, match="expected at most"):
        traces(pipe, patch, columns=10_000)
    for block in pipe.text_encoder.encoder.layers:
        block.mlp = torch.nn.Identity()
    with pytest.raises(UnsupportedPipeline, match=r"mlp\.fc2"):
        read(pipe, "text_encoder")
