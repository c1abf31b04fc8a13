"""SAUCE on a tiny random LLaVA, with an autoencoder whose one feature is planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from support.language import PICTURE, make_llava
from support.tiny import same, weights
from torch.nn import functional

from erasers import Concept, ModelPipeline, Patch, PatchError, get_eraser
from erasers.methods.sauce import contrast
from erasers.sae.autoencoder import SAE, save_sae
from erasers.sae.picture_block import PictureBlock, find_picture_block, rows_of_pictures
from erasers.sae.training import SAETraining, train_sae

TOWER = "model.vision_tower.encoder.layers.0"
PROJECTOR = "model.multi_modal_projector"


def picture(seed: int, *, shown: bool) -> Image.Image:
    """Dim noise; where the concept is shown, one of its places is bright red."""
    noise = torch.randint(90, (PICTURE, PICTURE, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())
    if shown:
        image.paste((255, 0, 0), (8 * (seed % 4), 8, 8 * (seed % 4) + 8, 16))
    return image


SHOWN = [picture(seed, shown=True) for seed in range(6)]
KEPT = [picture(seed, shown=False) for seed in range(6, 14)]
STAR = Concept("star", images=SHOWN)


@pytest.fixture(scope="module")
def llava() -> ModelPipeline:
    return make_llava()


def rows(block: PictureBlock, pictures: list[Image.Image]) -> torch.Tensor:
    """`[pictures, T, d]`."""
    return block.counted(torch.cat(list(block.batches(pictures, 4))))


def planted(block: PictureBlock, path: Path) -> torch.Tensor:
    """Write an autoencoder of one feature, which is 1 at the bright places and 0 elsewhere; its direction `[d]`."""
    other, shown = rows(block, KEPT).flatten(0, 1).double(), rows(block, SHOWN).double()
    mean = other.mean(dim=0)
    far = (shown - mean).norm(dim=-1).argmax(dim=1)
    bright = shown[torch.arange(len(shown)), far]
    spread = (other - mean).T @ (other - mean) / len(other)
    plane = torch.linalg.solve(spread + 1e-3 * spread.trace() * torch.eye(len(spread)).double(), bright.mean(0) - mean)
    low, high = ((other - mean) @ plane).max(), ((bright - mean) @ plane).min()
    assert high > low
    sae = SAE(len(mean), 1, 1)
    sae.encoder.data = (plane / (high - low))[None].float()
    sae.b_pre.data = mean.float()
    sae.b_lat.data = -(low / (high - low))[None].float()
    sae.decoder.data = functional.normalize(bright.mean(0) - mean, dim=0)[None].float()
    sae.threshold.fill_(0.1)
    save_sae(path, sae, target=block.target, base=block.fingerprints(), about={})
    return sae.decoder.data[0]


@pytest.fixture
def sae(llava: ModelPipeline, tmp_path: Path) -> str:
    planted(find_picture_block(llava), tmp_path / "sae.safetensors")
    return str(tmp_path / "sae.safetensors")


def fit(llava: ModelPipeline, sae: str, **options: Any) -> Patch:
    return get_eraser("sauce", sae=sae, **options).fit(llava, STAR, kept=KEPT, progress=False)


@torch.no_grad()
def logits(llava: ModelPipeline, image: Image.Image | None) -> torch.Tensor:
    text = "a picture of" if image is None else "<image> a picture of"
    inputs = llava.processor(text=[text], images=image, return_tensors="pt")
    return llava.model(**inputs).logits


def test_the_score_of_a_feature_is_its_mean_with_the_concept_minus_that_without() -> None:
    shown, others = torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert contrast(shown, others).tolist() == [2.0, -2.0]


@pytest.mark.parametrize("path", [PROJECTOR, TOWER])
def test_the_concept_is_seen_less_and_all_else_bit_for_bit_as_before(
    llava: ModelPipeline, path: str, tmp_path: Path
) -> None:
    block = find_picture_block(llava, path)
    direction = planted(block, tmp_path / "sae.safetensors")
    before = weights(llava)
    patch = fit(llava, str(tmp_path / "sae.safetensors"), scale=0.0)
    assert same(before, weights(llava))
    assert [hook.target for hook in patch.hooks] == [f"model.{path}"]
    unseen = picture(21, shown=True), picture(22, shown=False)
    answers = [logits(llava, image) for image in (*unseen, KEPT[0], None)]
    # Answers ask for recorded states first, which a hook that comes later has to get before.
    seen = rows(block, SHOWN)
    patch.save(tmp_path / "patch.safetensors")
    with Patch.load(tmp_path / "patch.safetensors").applied(llava):
        changed = rows(block, SHOWN)
        erased, *others = (logits(llava, image) for image in (*unseen, KEPT[0], None))
    assert not torch.equal(erased, answers[0])
    assert all(torch.equal(other, answer) for other, answer in zip(others, answers[1:], strict=True))
    moved = (changed != seen).any(dim=-1)
    assert moved.sum(dim=1).tolist() == [1] * len(SHOWN)
    assert ((changed - seen)[moved] @ direction < 0).all()
    assert torch.equal(logits(llava, unseen[0]), answers[0])


def test_a_scale_of_one_changes_nothing(llava: ModelPipeline, sae: str) -> None:
    answer = logits(llava, SHOWN[0])
    with fit(llava, sae, scale=1.0).applied(llava):
        torch.testing.assert_close(logits(llava, SHOWN[0]), answer)


def test_a_pipeline_of_transformers_is_taken_as_it_is(llava: ModelPipeline, sae: str) -> None:
    # Its own loading needs torchvision.
    pipe = object.__new__(transformers.ImageTextToTextPipeline)
    pipe.model, pipe.processor = llava.model, llava.processor
    patch = get_eraser("sauce", sae=sae).fit(pipe, STAR, kept=KEPT)
    assert patch.digest == fit(llava, sae).digest
    with patch.applied(pipe):
        assert patch.is_applied(llava)


def test_a_patch_is_refused_by_a_model_with_another_tower(llava: ModelPipeline, sae: str) -> None:
    patch, other = fit(llava, sae), make_llava()
    other.model.model.vision_tower.embeddings.class_embedding.data += 1
    with pytest.raises(PatchError, match="fitted on other weights"):
        patch.apply(other)
    with pytest.raises(ValueError, match=r"of this model in sae\.safetensors, got one of other weights"):
        fit(other, sae)


def test_what_cannot_be_fitted_is_refused(llava: ModelPipeline, sae: str, tmp_path: Path) -> None:
    eraser = get_eraser("sauce", sae=sae)
    with pytest.raises(ValueError, match="expected pictures of 'star', got none"):
        eraser.fit(llava, Concept("star"), kept=KEPT)
    with pytest.raises(ValueError, match="expected kept pictures"):
        eraser.fit(llava, STAR)
    with pytest.raises(ValueError, match="features that fire for pictures of 'star' alone, got none"):
        eraser.fit(llava, Concept("star", images=KEPT[:2]), kept=KEPT[2:])
    with pytest.raises(ValueError, match="file of a sparse autoencoder as sae, got none; train one"):
        fit(llava, "")
    with pytest.raises(FileNotFoundError):
        fit(llava, str(tmp_path / "none"))
    with pytest.raises(ValueError, match="expected model.multi_modal_projector or a module below"):
        find_picture_block(llava, "model.language_model")
    with pytest.raises(ValueError, match="margin"):
        get_eraser("sauce", sae=sae, margin=2.0)


def test_an_autoencoder_is_trained_on_places_of_pictures(llava: ModelPipeline) -> None:
    pictures = [*SHOWN, *KEPT]
    own = rows_of_pictures(find_picture_block(llava), pictures, size=4)
    assert own.step(0).shape == (4 * 16, 32)
    assert torch.equal(own.step(3), own.step(3))
    other = rows_of_pictures(find_picture_block(llava), pictures[::-1], size=4)
    assert own.identity() != other.identity()
    training = SAETraining(features=32, k=4, steps=20, prompts=4, warmup=1, auxiliary=0)
    unexplained = train_sae(own, training).curves["unexplained"]
    assert unexplained[-1] < unexplained[0]
