"""The sparse autoencoder: codes, decoding, losses, what training keeps, files; and the hook that uses its features."""

from __future__ import annotations

import json

import pytest
import torch
from support.tiny import make_text_encoder, make_tokenizer

from erasers import PatchError
from erasers.files.tensors import KEY, write_tensors
from erasers.patch.feature_hooks import FeatureGate, gated
from erasers.sae.autoencoder import SAE, geometric_median, load_sae, quality, save_sae, unexplained

D, N, K = 8, 24, 3
BASE = {"text_encoder.embeddings.weight": "0" * 64}


def rows(count: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def fresh(activation: str = "batchtopk") -> SAE:
    sae = SAE(D, N, K, activation=activation)  # type: ignore[arg-type]
    sae.b_lat.data = 0.1 * torch.randn(N, generator=torch.Generator().manual_seed(2))
    sae.b_pre.data.fill_(0.2)
    sae.threshold.fill_(0.4)
    return sae


# Codes


def test_topk_keeps_the_k_largest_of_a_row():
    sae, x = fresh("topk"), rows()
    z = sae.encode(x).dense(N)
    a = sae.activations(x)
    for code, values in zip(z, a, strict=True):
        kept = values.topk(K).indices
        expected = torch.zeros(N).index_put((kept,), values[kept])
        assert torch.equal(code, expected)


def test_batchtopk_keeps_as_many_over_a_batch_and_a_threshold_afterwards():
    sae, x = fresh(), rows()
    z = sae.encode_batch(x).dense(N)
    assert int((z > 0).sum()) == K * len(x)
    assert z[z > 0].min() >= sae.activations(x)[z == 0].max()
    assert len({int(count) for count in (z > 0).sum(dim=1)}) > 1
    a = sae.activations(x)
    assert torch.equal(sae.encode(x).dense(N), torch.where(a > 0.4, a, 0.0))
    # After training, a code does not depend on the batch.
    torch.testing.assert_close(sae.encode(x[:1]).dense(N), sae.encode(x).dense(N)[:1])


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_sparse_decoding_is_dense_decoding(activation):
    sae, x = fresh(activation), rows()
    sae.b_lat.data -= 0.1
    x[3] = sae.b_pre.data  # has next to no active feature
    codes = sae.encode_batch(x)
    found = sae.decode(codes)
    z = codes.dense(N)
    torch.testing.assert_close(found, z @ sae.decoder + sae.b_pre)
    found.square().sum().backward()
    first = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.zero_grad()
    (sae.encode_batch(x).dense(N) @ sae.decoder + sae.b_pre).square().sum().backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, first[name], rtol=1e-4, atol=1e-4)
    assert (first["decoder"].abs().sum(dim=1) > 0).sum() <= len(z.nonzero()[:, 1].unique())


# Losses and what a step keeps


def test_the_geometric_median_has_the_least_sum_of_distances():
    x = rows()
    x[:5] += 100
    median = geometric_median(x)
    least = (x - median).norm(dim=1).sum()
    assert least < (x - x.mean(dim=0)).norm(dim=1).sum()
    for direction in torch.randn(20, D):
        assert least <= (x - median - 0.01 * direction).norm(dim=1).sum() + 1e-4


def test_unexplained_is_one_for_the_mean_and_nothing_for_the_rows():
    x = rows()
    assert float(unexplained(x, x)) == 0
    assert float(unexplained(x, x.mean(dim=0).expand_as(x))) == pytest.approx(1)


def test_the_auxiliary_loss_moves_dead_features_alone():
    sae, x = fresh(), rows()
    dead = torch.zeros(N, dtype=torch.bool)
    assert float(sae.auxiliary(x, x, dead, 4)) == 0
    dead[[2, 7, 9]] = True
    error = (x - sae.decode(sae.encode_batch(x))).detach()
    sae.auxiliary(x, error, dead, 2).backward()
    moved = sae.encoder.grad.abs().sum(dim=1) > 0
    assert moved.any()
    assert not (moved & ~dead).any()


def test_columns_keep_their_length():
    sae, x = fresh(), rows()
    unexplained(x, sae.decode(sae.encode_batch(x))).backward()
    along = (sae.decoder.grad * sae.decoder).sum(dim=1)
    assert along.abs().max() > 1e-4
    sae.keep_norms()
    assert (sae.decoder.grad * sae.decoder).sum(dim=1).abs().max() < 1e-6
    sae.decoder.data *= 3
    sae.normalise()
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(N))


def test_quality_by_hand():
    sae, x = fresh().requires_grad_(False), rows()
    found = quality(sae, [x[:15], x[15:]])
    z = sae.encode(x).dense(N)
    assert found.explained_variance == pytest.approx(1 - float(unexplained(x, z @ sae.decoder + sae.b_pre)), abs=1e-5)
    assert found.l0 == pytest.approx(float((z > 0).sum(dim=1).double().mean()))
    assert found.dead == pytest.approx(float(((z > 0).sum(dim=0) == 0).double().mean()))
    with pytest.raises(ValueError, match="got none"):
        quality(sae, [])


@pytest.mark.parametrize("options", [{"n": 4, "k": 5}, {"k": 0}, {"d": 0}, {"activation": "relu"}])
def test_bad_sizes(options):
    with pytest.raises(ValueError, match="expected"):
        SAE(**{"d": D, "n": N, "k": K, **options})


# Files


def test_save_and_load(tmp_path):
    sae, path = fresh(), tmp_path / "x.safetensors"
    save_sae(path, sae, target="text_encoder.encoder.layers.1", base=BASE, about={"steps": 3})
    loaded, meta = load_sae(path)
    assert (loaded.n, loaded.d, loaded.k, loaded.activation) == (N, D, K, "batchtopk")
    assert (meta["target"], meta["base"], meta["about"]) == ("text_encoder.encoder.layers.1", BASE, {"steps": 3})
    assert torch.equal(loaded.encoder, sae.encoder.half().float())
    assert torch.equal(loaded.b_lat, sae.b_lat)
    assert torch.equal(loaded.threshold, sae.threshold)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def damaged(path, tensors=None, **changes):
    good = {
        "encoder": torch.ones(N, D),
        "decoder": torch.ones(N, D),
        "b_pre": torch.ones(D),
        "b_lat": torch.ones(N),
        "threshold": torch.ones(1),
    }
    meta = {"format": 1, "kind": "sae", "target": "a.b", "k": 2, "activation": "topk", "base": BASE, "about": {}}
    write_tensors(path, {**good, **(tensors or {})}, {KEY: json.dumps({**meta, **changes})})
    return path


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({}, {"kind": "patch"}, "is it a patch"),
        ({}, {"format": 2}, "format 1"),
        ({}, {"k": 0}, "k from 1 to 24"),
        ({}, {"k": 25}, "k from 1 to 24"),
        ({}, {"k": "2"}, "k and an activation"),
        ({}, {"activation": "relu"}, "k and an activation"),
        ({}, {"target": "../x"}, "<component>.<module>"),
        ({}, {"base": {}}, "fingerprints"),
        ({}, {"base": {"x": "y"}}, "fingerprints"),
        ({"encoder": torch.ones(N, D + 1)}, {}, "fit each other"),
        ({"b_lat": torch.ones(N - 1)}, {}, "fit each other"),
        ({"threshold": torch.ones(2)}, {}, "fit each other"),
        ({"other": torch.ones(2)}, {}, "the tensors"),
        ({"decoder": torch.full((N, D), float("nan"))}, {}, "NaN"),
    ],
)
def test_damaged_files_are_refused(tmp_path, tensors, changes, message):
    assert load_sae(damaged(tmp_path / "good.safetensors"))[0].n == N
    with pytest.raises(ValueError, match=message):
        load_sae(damaged(tmp_path / "x.safetensors", tensors, **changes))


def test_no_file_and_a_truncated_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load_sae(tmp_path / "none.safetensors")
    path = damaged(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="sparse autoencoder in x.safetensors: .*truncated"):
        load_sae(path)


# The hook


def parts(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two features: the first and the second coordinate."""
    found = {
        "encoder": torch.eye(D)[:2],
        "bias": torch.zeros(2),
        "decoder": torch.eye(D)[2:4],
        "floor": torch.tensor([0.5, 0.5]),
        "gate": torch.tensor([2.0, 2.0]),
        "scale": torch.tensor([-1.0]),
    }
    return found | changes


def test_the_edit_by_hand():
    x = torch.zeros(3, 4, D)
    x[0, 2, 0], x[0, 3, 1], x[0, 1, 0] = 3.0, 1.0, 0.4  # passes the gate; above the floor; below it
    x[1, 2, 0] = 1.9  # active, but not past the gate
    x[2, 0, 0] = 9.0  # the first token counts for nothing
    found = gated(x, parts(), 1.0)
    expected = x.clone()
    expected[0, 2, 2] -= 2 * 3.0
    expected[0, 3, 3] -= 2 * 1.0
    assert torch.equal(found, expected)
    torch.testing.assert_close(gated(x, parts(), 0.5)[0], (x + expected)[0] / 2)
    assert gated(x, parts(), 0) is x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_prompts_without_the_concept_are_the_same_bit_for_bit(dtype):
    x = torch.randn(5, 6, D, generator=torch.Generator().manual_seed(0)).clamp(-1, 1).to(dtype)
    x[:, :, 4] = -0.0
    x[2, 3, 0] = 5
    found = gated(x, parts(), 1.0)
    assert found.dtype == dtype
    view = {torch.float64: torch.int64, torch.float32: torch.int32}.get(dtype, torch.int16)
    changed = (found.view(view) != x.view(view)).flatten(1).any(dim=1)
    assert changed.tolist() == [False, False, True, False, False]
    assert torch.equal(found[:, 0], x[:, 0])
    # Alone or in a batch.
    torch.testing.assert_close(gated(x[2:3], parts(), 1.0)[0], found[2])


def test_gradients_go_through_the_edit_and_its_gate():
    x = torch.zeros(1, 3, D)
    x[0, 1, 0] = 3.0
    plain = gated(x, parts(), 1.0)
    x.requires_grad_()
    found = gated(x, parts(), 1.0)
    assert torch.equal(found, plain)
    found[0, 1, 2].backward()
    # (scale - 1) of the activity, and through the gate 1 / gate of the edit of -2 * 3.
    assert float(x.grad[0, 1, 0]) == -2 - 6 / 2


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_prompt_below_the_gate_sees_where_it_opens(strength):
    x = torch.zeros(1, 3, D)
    x[0, 1, 0] = 1.0  # active, below the gate
    x.requires_grad_()
    gated(x, parts(), strength)[0, 1, 2].backward()
    assert float(x.grad[0, 1, 0]) == -strength * 2 / 2


class Block(torch.nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.norm, self.form = torch.nn.LayerNorm(D, elementwise_affine=False), form

    def forward(self, x: torch.Tensor) -> object:
        return {"tensor": x, "tuple": (x, "more")}[self.form]


def test_the_form_of_the_output_is_kept():
    x = torch.zeros(1, 3, D)
    x[0, 1, 0] = 3.0
    expected = gated(x, parts(), 1.0)
    for form in ("tensor", "tuple"):
        block = Block(form)
        hook = FeatureGate("text_encoder.x", parts())
        hook.check(block)
        (handle,) = hook.install(block, 1.0, block)
        found = block(x)
        assert torch.equal(found if form == "tensor" else found[0], expected)
        assert form == "tensor" or found[1] == "more"
        (installed,) = block._forward_hooks.values()
        block(x.to("meta"))
        assert all(part.is_meta for part in installed.parts.values())
        with pytest.raises(PatchError, match=r"return a tensor \[prompts, T, 8\]"):
            block(x[..., :-1])
        handle.remove()
        assert torch.equal(block(x) if form == "tensor" else block(x)[0], x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": torch.ones(3, D)}, "expected the parts"),
        ({"bias": torch.ones(3)}, "expected the parts"),
        ({"scale": torch.ones(2)}, "expected the parts"),
        ({"encoder": torch.ones(0, D), "decoder": torch.ones(0, D)}, "expected the parts"),
        ({"other": torch.ones(2)}, "expected the parts"),
        ({"gate": torch.tensor([0.1, 2.0])}, "floor <= gate"),
        ({"floor": torch.tensor([-0.1, 0.5])}, "floor <= gate"),
    ],
)
def test_parts_that_do_not_fit(changes, message):
    with pytest.raises(PatchError, match=message):
        FeatureGate("text_encoder.x", parts(**changes))


def test_a_block_of_another_width():
    with pytest.raises(PatchError, match="rows of 8, the hook needs 9"):
        FeatureGate("text_encoder.x", parts(encoder=torch.ones(2, 9), decoder=torch.ones(2, 9))).check(Block("tensor"))


def test_recorded_states_are_those_after_the_edit(tmp_path):
    """transformers records a block's states by a hook of its own, which may be there first."""
    encoder = make_text_encoder(make_tokenizer(tmp_path), D)
    ids = torch.randint(0, 40, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = encoder(ids, output_hidden_states=True).hidden_states
        some = parts(floor=torch.zeros(2), gate=torch.zeros(2))
        block = encoder.get_submodule("encoder.layers.0")
        (handle,) = FeatureGate("text_encoder.encoder.layers.0", some).install(block, 1.0, encoder)
        after = encoder(ids, output_hidden_states=True).hidden_states
        handle.remove()
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], gated(before[1], some, 1.0))
    assert not torch.equal(after[1], before[1])
