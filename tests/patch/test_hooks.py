"""Hooks of a patch: the prompt transform, and how patches of hooks and of weights stack."""

from __future__ import annotations

import copy
import itertools
from functools import partial
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw as draw_family
from support.families.patches import META, hand_patch, transform_patch
from support.selection import diagonal, only
from support.tiny import draw, same, weights

from erasers import Patch, PatchError
from erasers.files.hashing import tensor_hash
from erasers.models.ports import port_groups, text_ports
from erasers.patch.edits import Edit
from erasers.patch.hooks import PromptTransform, transform_rows
from erasers.patch.stack import running

D = 32
ROOT = "hook/unet/prompt_transform"
LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
AT_LAYER = f"hook/{LAYER}/prompt_transform"


def parts(seed: int = 0, width: int = D, rank: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "A": 0.3 * torch.randn(rank, width, generator=generator),
        "B": 0.3 * torch.randn(width, rank, generator=generator),
    }


def patch_of(pipe: Any, tensors: dict[str, torch.Tensor], **meta: Any) -> Patch:
    """A patch with the fingerprints of all that reads text."""
    base = {port.parameter: tensor_hash(port.module.weight) for port in text_ports(pipe)}
    return Patch(tensors, {**META, "base": base, **meta})


def on_unet(pipe: Any, seed: int = 0) -> Patch:
    return patch_of(pipe, {f"{ROOT}/{part}": tensor for part, tensor in parts(seed).items()})


def on_layer(pipe: Any, seed: int = 0) -> Patch:
    return patch_of(pipe, {f"{AT_LAYER}/{part}": tensor for part, tensor in parts(seed).items()})


def difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


# The transform itself


@pytest.mark.parametrize("names", [("A", "B"), ("T",)])
def test_rows_read_by_a_weight_are_those_that_an_edited_weight_reads(names):
    rows, weight = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    tensors = {"A": torch.randn(2, 8).double(), "B": torch.randn(8, 2).double(), "T": torch.randn(8, 8).double()}
    chosen = {name: tensors[name] for name in names}
    for strength in (1.0, 0.5, -2.0):
        expected = rows @ Edit("transform", chosen).apply(weight, strength).T
        torch.testing.assert_close(transform_rows(rows, chosen, strength) @ weight.T, expected)
    assert transform_rows(rows, chosen, 0) is rows


def test_rows_keep_their_dtype_and_are_computed_in_single_precision():
    rows, chosen = torch.randn(4, D).half(), parts()
    moved = transform_rows(rows, chosen, 1.0)
    assert moved.dtype == torch.float16
    assert torch.equal(moved, transform_rows(rows.float(), chosen, 1.0).half())


# The same edit as weights and as hooks


@pytest.mark.parametrize(("family", "rank"), diagonal(["sd1", "sd2", "sdxl"], [2, 0]))
def test_hooks_do_what_baked_weights_do(pipes, family, rank):
    pipe = pipes(family)
    patch = transform_patch(pipe, rank)
    hooks = patch.to_hooks(pipe)
    assert {name.rpartition("/")[0] for name in hooks.tensors} == {ROOT}
    assert (hooks.has_hooks, patch.has_hooks) == (True, False)
    assert dict(hooks.meta) == dict(patch.meta)
    before, plain = weights(pipe), draw(pipe)
    for options in ({}, {"guidance_scale": 1.0}, {"num_images_per_prompt": 2}):
        for strength in (1.0, 0.5):
            with patch.applied(pipe, strength=strength):
                baked = draw(pipe, **options)
            with hooks.applied(pipe, strength=strength):
                assert same(weights(pipe), before)
                hooked = draw(pipe, **options)
            assert difference(hooked, baked) <= 2e-5 * max(1.0, float(baked.abs().max()))
            assert difference(baked[:1], plain) > 1e-2
    assert torch.equal(draw(pipe), plain)


def test_hooks_of_a_batch_of_prompts(pipe):
    patch, prompts = transform_patch(pipe, 2), ["a picture of star", "red circle"]
    with patch.applied(pipe):
        baked = draw(pipe, prompts)
    with patch.to_hooks(pipe).applied(pipe):
        assert difference(draw(pipe, prompts), baked) <= 2e-5


def test_ports_that_are_not_all_of_the_text_get_a_hook_each(pipe):
    patch = transform_patch(pipe, 2)
    values = [port.name for port in text_ports(pipe) if port.name.endswith("to_v")]
    patch = Patch(patch.tensors, {**patch.meta, "groups": {"text": values}})
    hooks = patch.to_hooks(pipe)
    assert [hook.target for hook in hooks.hooks] == sorted(values)
    plain = draw(pipe)
    with patch.applied(pipe):
        baked = draw(pipe)
    with hooks.applied(pipe):
        assert difference(draw(pipe), baked) <= 2e-5
    assert difference(plain, baked) > 1e-2
    assert torch.equal(draw(pipe), plain)


@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
@pytest.mark.parametrize("name", ["sd3", "flux", "pixart", "wan", "hunyuandit", "zimage"])
def test_hooks_of_other_families(tmp_path, name):
    pipe = FAMILIES[name].build(tmp_path)
    patch = family_patch(pipe)
    hooks = patch.to_hooks(pipe)
    hooks.save(tmp_path / "x.safetensors")
    picture = partial(draw_family, pipe, "a picture of star", FAMILIES[name].options)
    plain = picture()
    with patch.applied(pipe):
        baked = picture()
    with Patch.load(tmp_path / "x.safetensors").applied(pipe):
        assert difference(picture(), baked) <= 2e-5 * max(1.0, float(baked.abs().max()))
    assert difference(plain, baked) > 1e-3 * float(plain.abs().max())
    assert torch.equal(picture(), plain)


def family_patch(pipe: Any) -> Patch:
    """A transform of each group of ports, pooled ones as well."""
    tensors: dict[str, torch.Tensor] = {}
    groups, base = {}, {}
    for seed, group in enumerate(port_groups(pipe)):
        factors = parts(seed, group.ports[0].module.in_features)
        tensors |= {f"transform/{group.name}/{part}": tensor for part, tensor in factors.items()}
        groups[group.name] = [port.name for port in group.ports]
        base |= {port.parameter: tensor_hash(port.module.weight) for port in group.ports}
    return Patch(tensors, {**META, "groups": groups, "base": base})


def test_only_transforms_become_hooks(pipe, tmp_path):
    for patch in (hand_patch(pipe, [LAYER]), on_unet(pipe)):
        with pytest.raises(PatchError, match="transforms alone"):
            patch.to_hooks(pipe)
    for write in (on_unet(pipe).to_lora, on_unet(pipe).to_delta):
        with pytest.raises(PatchError, match="with hooks, which no file of weights holds"):
            write(pipe, tmp_path / "x")


# Several patches


def form(pipe: Any, patch: Patch, kind: str) -> Patch:
    return patch.to_hooks(pipe) if kind == "hooks" else patch


def three_patches(pipe: Any) -> list[tuple[Patch, float]]:
    """Transforms that do not commute: of all ports, of the values alone, and of all ports again."""
    values = [port.name for port in text_ports(pipe) if port.name.endswith("to_v")]
    every = [port.name for port in text_ports(pipe)]
    patches = []
    for seed, (ports, strength) in enumerate([(every, 1.0), (values, 0.7), (every, 1.0)]):
        tensors = {f"transform/text/{part}": tensor for part, tensor in parts(seed, rank=4).items()}
        patches.append((patch_of(pipe, tensors, groups={"text": ports}), strength))
    return patches


@pytest.mark.parametrize(
    "kinds",
    only(
        itertools.product(["weights", "hooks"], repeat=3),
        ("hooks", "weights", "hooks"),
        ("weights", "hooks", "weights"),
    ),
    ids=" ".join,
)
def test_stacked_hooks_and_weights_act_in_the_order_of_application(pipe, kinds):
    plain, before = draw(pipe), weights(pipe)
    stacked = three_patches(pipe)
    formed = [(form(pipe, patch, kind), strength) for (patch, strength), kind in zip(stacked, kinds, strict=True)]
    expected = {}
    for kept in itertools.chain(itertools.combinations(range(3), 3), itertools.combinations(range(3), 2)):
        for patch, strength in (stacked[i] for i in kept):
            patch.apply(pipe, strength=strength)
        expected[kept] = draw(pipe)
        for i in kept:
            stacked[i][0].remove(pipe)
    for patch, strength in formed:
        patch.apply(pipe, strength=strength)
    assert difference(draw(pipe), expected[0, 1, 2]) <= 2e-5
    for i in range(3):
        formed[i][0].remove(pipe)
        kept = tuple(k for k in range(3) if k != i)
        assert difference(draw(pipe), expected[kept]) <= 2e-5
        formed[i][0].apply(pipe, strength=formed[i][1])
        formed[i][0].remove(pipe)
        for k in kept:
            formed[k][0].remove(pipe)
        assert same(weights(pipe), before)
        assert torch.equal(draw(pipe), plain)
        for patch, strength in formed:
            patch.apply(pipe, strength=strength)


def test_the_order_of_the_stacked_patches_matters(pipe):
    stacked = three_patches(pipe)
    pictures = []
    for order in (stacked, stacked[::-1]):
        for patch, strength in order:
            patch.apply(pipe, strength=strength)
        pictures.append(draw(pipe))
        for patch, _ in order:
            patch.remove(pipe)
    assert difference(*pictures) > 1e-2


@pytest.mark.parametrize("name", ["lowrank", "dense"])
def test_an_edit_that_no_hook_could_follow_takes_the_hook_into_the_weights(pipe, name):
    first = transform_patch(pipe, 2)
    more = {f"dense/{LAYER}.weight": 2 * weights(pipe)[f"{LAYER}.weight"]} if name == "dense" else {}
    second = hand_patch(pipe, [] if more else [LAYER], **more)
    other = hand_patch(pipe, ["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"])
    with first.applied(pipe), second.applied(pipe):
        expected = draw(pipe)
    hooks, before = first.to_hooks(pipe), weights(pipe)
    hooks.apply(pipe)
    assert [hook.target for _, hook in running(pipe)] == ["unet"]
    with second.applied(pipe):
        assert running(pipe) == []
        assert difference(draw(pipe), expected) <= 2e-5
        # One that is added to the stack now is in the weights as long, too.
        with on_unet(pipe, 7).applied(pipe):
            assert [entry.patch for entry, _ in running(pipe)] != [hooks]
    assert same(weights(pipe), before)
    with other.applied(pipe):
        assert [hook.target for _, hook in running(pipe)] == ["unet"]


def test_hooks_and_weights_of_one_patch(pipe, monkeypatch):
    weight = hand_patch(pipe, [LAYER])
    hooks = on_unet(pipe)
    mixed = Patch({**weight.tensors, **hooks.tensors}, {**hooks.meta})
    assert "1 weights, 1 hooks" in repr(mixed)
    plain, before = draw(pipe), weights(pipe)
    with weight.applied(pipe), hooks.applied(pipe):
        expected = draw(pipe)
    with mixed.applied(pipe):
        assert difference(draw(pipe), expected) <= 2e-5
        assert not same(weights(pipe), before)
    assert torch.equal(draw(pipe), plain)
    # All or nothing: neither half stays when the other fails.
    other = Patch({**mixed.tensors, "hook/unet.none/prompt_transform/T": torch.eye(D)}, {**hooks.meta})
    with pytest.raises(PatchError, match=r"with unet\.none, got a unet without it"):
        other.apply(pipe)
    monkeypatch.setattr(Edit, "apply", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mixed.apply(pipe)
    monkeypatch.undo()
    assert torch.equal(draw(pipe), plain)
    assert same(weights(pipe), before)
    assert not mixed.is_applied(pipe)


def test_a_pipeline_says_whether_hooks_run(pipe):
    patch = on_unet(pipe)
    patch.apply(pipe)
    assert patch.is_applied(pipe)
    assert [(entry.patch, hook.target) for entry, hook in running(pipe)] == [(patch, "unet")]
    with pytest.raises(PatchError, match="already carries"):
        patch.apply(pipe)
    pipe.unet._forward_pre_hooks.clear()
    assert not patch.is_applied(pipe)
    patch.remove(pipe)
    with pytest.raises(PatchError, match="does not carry"):
        patch.remove(pipe)


# Which model, which module


def test_hooks_are_refused_on_another_model(pipes):
    pipe = pipes("sd1")
    patch = on_unet(pipe)
    text_ports(pipe)[3].module.weight.data += 0.01
    with pytest.raises(PatchError, match=r"other weights.*1 of 8 do"):
        patch.apply(pipe)
    patch.apply(pipe, force=True)
    patch.remove(pipe)
    with pytest.raises(PatchError, match=r"another model: unet reads rows of 48, the hook needs 32"):
        patch.apply(pipes("sd2"), force=True)
    nameless = patch_of(pipe, dict(patch.tensors), base={})
    with pytest.raises(PatchError, match="fingerprints of the unet.*force=True"):
        nameless.apply(pipe)
    with nameless.applied(pipe, force=True):
        assert len(running(pipe)) == 1


@pytest.mark.parametrize(
    ("target", "width", "message"),
    [
        ("unet.no.such", D, "a unet without it"),
        ("transformer", D, "with a transformer"),
        ("scheduler", D, "with a scheduler"),
        ("vae", D, "vae as a denoiser that reads encoder_hidden_states, got AutoencoderKL"),
        ("text_encoder", D, "reads encoder_hidden_states"),
        (LAYER, D + 1, "reads rows of 32, the hook needs 33"),
    ],
)
def test_modules_that_are_not_there_or_do_not_fit(pipe, target, width, message):
    tensors = {f"hook/{target}/prompt_transform/{part}": tensor for part, tensor in parts(width=width).items()}
    with pytest.raises(PatchError, match=message):
        patch_of(pipe, tensors).apply(pipe, force=True)
    assert running(pipe) == []


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"hook/unet/sae/W": torch.eye(2)},
            "kind prompt_transform or .*, got 'sae' on unet; upgrade erasers",
        ),
        ({"hook/unet/prompt_transform": torch.eye(2)}, "upgrade erasers"),
        ({"hook/unet/../prompt_transform/T": torch.eye(2)}, "upgrade erasers"),
        ({"hook//prompt_transform/T": torch.eye(2)}, "upgrade erasers"),
        ({f"{ROOT}/A": torch.ones(2, D)}, r"A \[r, d\] and B"),
        ({f"{ROOT}/A": torch.ones(2, D), f"{ROOT}/B": torch.ones(2, D)}, r"A \[r, d\] and B"),
        ({f"{ROOT}/A": torch.ones(0, D), f"{ROOT}/B": torch.ones(D, 0)}, r"A \[r, d\] and B"),
        ({f"{ROOT}/T": torch.ones(2, D)}, r"T \[d, d\]"),
        ({f"{ROOT}/T": torch.ones(D)}, r"T \[d, d\]"),
        ({f"{ROOT}/T": torch.eye(2), f"{ROOT}/A": torch.eye(2), f"{ROOT}/B": torch.eye(2)}, r"T \[d, d\]"),
        ({f"{ROOT}/C": torch.eye(2)}, r"T \[d, d\]"),
        ({f"{ROOT}/T": torch.full((D, D), float("nan"))}, "NaN"),
        ({f"{ROOT}/T": torch.eye(D, dtype=torch.int32)}, "int32"),
    ],
)
def test_bad_hooks(tensors, message):
    with pytest.raises(PatchError, match=message):
        Patch(tensors, META)


def test_save_load_and_show(pipe, tmp_path, capsys, monkeypatch):
    from erasers.cli import app as cli

    patch = on_layer(pipe)
    patch.save(tmp_path / "x.safetensors")
    loaded = Patch.load(tmp_path / "x.safetensors")
    assert loaded.digest == patch.digest
    assert loaded.parameters == []
    assert repr(loaded) == "Patch(by hand: 'star'; 1 hooks, 512 bytes)"
    assert copy.deepcopy(loaded) is loaded
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(["inspect", str(tmp_path / "x.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert f"hooks     prompt_transform on {LAYER}" in shown
    Patch(patch.tensors, {**patch.meta, "base": {}}).save(tmp_path / "x.safetensors")
    assert cli.run(["inspect", str(tmp_path / "x.safetensors")]) == 0
    assert "base      0 weights" in capsys.readouterr().out


# How a module is called


def test_the_text_may_come_by_name_or_by_position(pipe):
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, 16, D)
    moved = transform_rows(text, parts(), 1.0)
    with torch.no_grad():
        expected = pipe.unet(sample, 1, moved).sample
        with on_unet(pipe).applied(pipe):
            assert torch.equal(pipe.unet(sample, 1, text).sample, expected)
            assert torch.equal(pipe.unet(sample, 1, encoder_hidden_states=text).sample, expected)
            assert torch.equal(pipe.unet(sample=sample, timestep=1, encoder_hidden_states=text).sample, expected)
        layer, moved = text_ports(pipe)[0].module, transform_rows(text, parts(), 1.0)
        expected = layer(moved)
        name = text_ports(pipe)[0].name
        tensors = {f"hook/{name}/prompt_transform/{part}": tensor for part, tensor in parts().items()}
        with patch_of(pipe, tensors).applied(pipe):
            assert torch.equal(layer(text), expected)
            assert torch.equal(layer(input=text), expected)


def test_text_that_is_missing_or_no_tensor_of_that_width(pipe):
    hook = PromptTransform("unet", parts())
    (handle,) = hook.install(pipe.unet, 1.0, pipe.unet)
    sample = torch.randn(1, 4, 8, 8)
    for text in (torch.randn(1, 16, D + 1), [torch.randn(1, 16, D)]):
        with pytest.raises(PatchError, match=r"encoder_hidden_states of unet as a tensor \[\.\.\., 32\]"):
            pipe.unet(sample, 1, text)
    handle.remove()
    probe = Probe()
    (handle,) = PromptTransform("probe", parts()).install(probe, 1.0, probe)
    assert probe(1) == (1, None)
    assert probe(1, None) == (1, None)
    assert not torch.equal(probe(1, torch.ones(1, D))[1], torch.ones(1, D))
    # The tensors follow the text to its device, once.
    (installed,) = probe._forward_pre_hooks.values()
    assert probe(1, torch.ones(1, D, device="meta"))[1].is_meta
    assert all(part.is_meta for part in installed.parts.values())


class Probe(torch.nn.Module):
    def forward(self, sample: Any, encoder_hidden_states: Any = None) -> tuple[Any, Any]:
        return sample, encoder_hidden_states
