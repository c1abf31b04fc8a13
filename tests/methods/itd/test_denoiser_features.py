"""SAeUron behind itd: features of the denoiser, chosen and turned down step by step."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import draw, same, weights

from erasers import Concept, ErasedPipeline, Patch, PatchError, get_eraser, load_pipeline
from erasers.diffusion.latent_bank import Way
from erasers.diffusion.noise import time_grid
from erasers.methods.itd.denoiser_features import Measuring, chosen, scores, step_parts
from erasers.methods.itd.explaining import explanations
from erasers.patch.feature_hooks import StepFeatures, stepped
from erasers.sae.autoencoder import SAE, save_sae
from erasers.sae.denoiser_block import find_denoiser_block
from erasers.sae.rows import DenoiserRows
from erasers.sae.training import SAETraining, train_sae

D = 4
PATH = "up_blocks.1.attentions.1"
WAY = Way(2, 3.0, 4)
STAR = Concept("star", anchor="circle", preserve=["a moon", "a red circle", "blue art", "a ring"])
PROMPTS = ["a star", "a circle", "a moon", "blue art", "a ring", "red", "a red star", ""]
QUICK = SAETraining(features=48, k=4, steps=12, prompts=4, lr=1e-2, warmup=2, dead_after=500, auxiliary=8)


def parts(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two features: the first channel, written to the third, and the second, written to the fourth."""
    found = {
        "encoder": torch.eye(D)[:2],
        "bias": torch.zeros(2),
        "decoder": torch.eye(D)[2:],
        "floor": torch.tensor([0.5, 0.5]),
        "times": torch.tensor([90.0, 10.0]),
        "gate": torch.tensor([[2.0, 0.0], [0.0, 2.0]]),
        "scale": torch.tensor([[-1.0, 1.0], [1.0, -3.0]]),
    }
    return found | changes


# The hook


def test_the_edit_by_hand():
    x = torch.zeros(2, D, 2, 2)
    x[0, 0, 0, 0], x[0, 0, 0, 1], x[0, 1, 1, 1], x[1, 1, 1, 0] = 3.0, 1.9, 5.0, 4.0
    early, late = x.clone(), x.clone()
    early[0, 2, 0, 0] -= 2 * 3.0
    late[0, 3, 1, 1] -= 4 * 5.0
    late[1, 3, 1, 0] -= 4 * 4.0
    for time, expected in ((90, early), (61, early), (10, late), (0, late)):
        assert torch.equal(stepped(x, torch.tensor([time]), parts(), 1.0), expected)
    # Each picture of a batch may be at a time of its own.
    assert torch.equal(stepped(x, torch.tensor([90, 10]), parts(), 1.0), torch.stack([early[0], late[1]]))
    torch.testing.assert_close(stepped(x, torch.tensor([90]), parts(), 0.5), (x + early) / 2)
    assert stepped(x, torch.tensor([90]), parts(), 0.0) is x


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_places_without_the_features_stay_bit_for_bit(dtype):
    x = torch.rand(3, D, 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:, 2] = -0.0
    assert torch.equal(stepped(x, torch.tensor([90]), parts(), 1.0).view(torch.uint8), x.view(torch.uint8))
    x[1, 0, 0, 1] = 7
    found = stepped(x, torch.tensor([90]), parts(), 1.0)
    assert found.dtype == dtype
    assert (found != x).any(dim=1).nonzero().tolist() == [[1, 0, 1]]


def test_parts_that_do_not_fit_are_refused(pipe):
    for wrong in ({"times": torch.zeros(3)}, {"bias": torch.zeros(3)}, {"gate": -torch.ones(2, 2)}):
        with pytest.raises(PatchError, match="step_features"):
            StepFeatures("unet.x", parts(**wrong))
    block = find_denoiser_block(pipe, PATH)
    with pytest.raises(PatchError, match=f"unet.{PATH} returns maps of .* channels, the hook needs {D}"):
        StepFeatures(block.target, parts()).check(block.module)
    with pytest.raises(PatchError, match="a denoiser that reads timestep"):
        StepFeatures("vae.x", parts()).install(torch.nn.Linear(1, 1), 1.0, torch.nn.Linear(1, 1))


# Measuring and choosing


def test_scores_compare_shares():
    asked, kept = torch.tensor([[6.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 0.0]])
    found = scores(asked, kept)
    torch.testing.assert_close(found, torch.tensor([[0.5, -0.25, -0.25], [-0.5, -0.5, 0.0]]))
    assert chosen(found, 2).tolist() == [[True, False, False], [False, False, False]]


@pytest.fixture(scope="module")
def trained(pipes) -> tuple[Any, SAE]:
    pipe = pipes("sd1")
    return pipe, train_sae(DenoiserRows(find_denoiser_block(pipe, PATH), PROMPTS, 4, 0, WAY), QUICK).sae


@pytest.fixture
def sae_file(trained, tmp_path: Path) -> str:
    pipe, sae = trained
    block = find_denoiser_block(pipe, PATH)
    save_sae(tmp_path / "unet.safetensors", sae, target=block.target, base=block.fingerprints(), about={})
    return str(tmp_path / "unet.safetensors")


def test_means_by_another_way(trained):
    pipe, sae = trained
    block = find_denoiser_block(pipe, PATH)
    found = Measuring(block, sae, WAY, 9, torch.Generator().manual_seed(3), lambda count: None).means(["a star"])
    maps: dict[float, torch.Tensor] = {}
    block.walk(["a star"], WAY, _after_one_shuffle(3), lambda _, time, rows: maps.update({time: rows}))
    assert found.times == list(maps) == time_grid(pipe, 2)
    assert [len(rows) for rows in maps.values()] == [2, 2]
    expected = torch.stack([sae.encode(rows[0]).dense(sae.n).mean(dim=0) for rows in maps.values()])
    torch.testing.assert_close(found.mu, expected)
    assert not torch.equal(*maps.values())


def _after_one_shuffle(seed: int) -> torch.Generator:
    generator = torch.Generator().manual_seed(seed)
    torch.randperm(1, generator=generator)
    return generator


def test_gates_and_scales_are_those_of_the_paper(trained):
    pipe, sae = trained
    asked, kept = [["a star"]], ["a moon", "blue art"]

    def measuring() -> Measuring:
        generator = torch.Generator().manual_seed(0)
        return Measuring(find_denoiser_block(pipe, PATH), sae, WAY, 9, generator, lambda count: None)

    found, again = step_parts(measuring(), asked, kept, -2.0, 3), measuring()
    without = again.means(kept).mu
    with_ = again.means(asked[0]).mu
    assert found["times"].tolist() == time_grid(pipe, 2)
    for step in range(2):
        numbers = chosen(scores(with_, without), 3)[step].nonzero().flatten().tolist()
        edited = (found["scale"][step] != 1).nonzero().flatten().tolist()
        assert [sae.encoder.tolist().index(found["encoder"][one].tolist()) for one in edited] == numbers
        for one, number in zip(edited, numbers, strict=True):
            assert float(found["scale"][step, one]) == pytest.approx(-2 * float(with_[step, number]))
            mean = (with_[step, number] + without[step, number]) / 2
            assert float(found["gate"][step, one]) == pytest.approx(float(mean))
    silent = SAE(sae.d, 4, 1)
    silent.threshold.fill_(1e9)
    with pytest.raises(ValueError, match="more for 'a star' than for kept prompts, got none"):
        step_parts(replace(measuring(), sae=silent), asked, kept, -2.0, 3)


# A patch


def fit(pipe: Any, sae_file: str) -> Patch:
    return get_eraser("itd", sae=(sae_file,), steps=2, pictures=4).fit(pipe, STAR, progress=False)


def test_a_patch_from_fit_to_removal(trained, sae_file, pipes):
    pipe, _ = trained
    before, plain = weights(pipe), draw(pipe)
    patch = fit(pipe, sae_file)
    assert same(weights(pipe), before)
    assert [(hook.kind, hook.target) for hook in patch.hooks] == [("step_features", f"unet.{PATH}")]
    assert patch.digest == fit(pipe, sae_file).digest
    with patch.applied(pipe):
        erased = draw(pipe)
        assert not torch.equal(erased, plain)
        # Nothing is counted: another picture, and one with another number of steps, change nothing.
        draw(pipe, "a moon", num_inference_steps=3)
        assert torch.equal(draw(pipe), erased)
        twin = copy.deepcopy(pipe.unet)
    assert torch.equal(draw(pipe), plain)
    pipe.unet, unet = twin, pipe.unet
    assert torch.equal(draw(pipe), erased)
    pipe.unet = unet
    with patch.applied(pipe, strength=0):
        assert torch.equal(draw(pipe), plain)
    other = pipes("sd1")
    other.unet.get_submodule(PATH).proj_in.weight.data.add_(0.1)
    with pytest.raises(PatchError, match="other weights"):
        patch.apply(other)
    with pytest.raises(ValueError, match="of other weights"):
        fit(other, sae_file)
    with pytest.raises(ValueError, match="reads no words"):
        explanations(pipe, STAR, get_eraser("itd", sae=(sae_file,)))


def test_gates_that_nothing_passes_leave_pictures_as_they_are(trained, sae_file):
    pipe, _ = trained
    plain, patch = draw(pipe), fit(pipe, sae_file)
    tensors = {name: tensor + 1e6 if name.endswith("/gate") else tensor for name, tensor in patch.tensors.items()}
    with Patch(tensors, dict(patch.meta)).applied(pipe):
        assert torch.equal(draw(pipe), plain)


@pytest.mark.full
def test_a_saved_folder_a_stack_offloading_and_compiling(trained, sae_file, tmp_path):
    pipe, _ = trained
    patch = fit(pipe, sae_file)
    with patch.applied(pipe):
        erased = draw(pipe)
        with get_eraser("uce").fit(pipe, STAR).applied(pipe, force=True):
            assert not torch.equal(draw(pipe), erased)
        assert torch.equal(draw(pipe), erased)
        ErasedPipeline.save_pretrained(pipe, tmp_path / "folder", [patch])
        pipe.unet.get_submodule(PATH).compile(backend="eager")
        torch.testing.assert_close(draw(pipe), erased)
    torch.testing.assert_close(draw(load_pipeline(tmp_path / "folder")), erased, rtol=0, atol=2e-5)


# Rows


def test_a_step_has_the_same_rows_whenever_it_is_asked_for(pipes):
    pipe = pipes("sd1")
    rows = DenoiserRows(find_denoiser_block(pipe, PATH), PROMPTS, 3, 0, WAY)
    first = [rows.step(number) for number in range(5)]
    assert all(torch.equal(rows.step(number), first[number]) for number in (4, 1, 0, 3, 2))
    assert len({len(some) for some in first}) == 1
    # A drawing is at two times, with prompts and without, and its rows come in any order.
    drawing = torch.cat(first[:2])
    assert len(drawing) == 2 * 2 * 3 * first[0].shape[0] // 6
    assert not torch.equal(first[0], first[2])


def test_a_module_that_returns_no_map_is_refused(pipe):
    for path in ("mid_block.none", "time_embedding"):
        with pytest.raises(ValueError, match="such as .*up_blocks.1.attentions.0"):
            find_denoiser_block(pipe, path)
