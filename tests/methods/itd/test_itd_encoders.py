"""ItD on the text encoders of Stable Diffusion 3 and FLUX.1: two of CLIP, T5, and what an edit of some leaves open."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw
from support.saes import OPTIONS, save_saes
from support.selection import only
from support.tiny import same, weights

from erasers import Concept, Patch, PatchError, get_eraser
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.conditions import conditions
from erasers.sae.autoencoder import SAE
from erasers.sae.rows import TextRows
from erasers.sae.text_blocks import encoder_block, find_block, find_blocks, readable_encoders
from erasers.sae.training import SAETraining, train_sae

KEPT = ("a moon", "a circle art", "a red ring", "a picture of a ring", "red", "blue", "a picture of a red moon")
STAR = Concept("star", anchor="circle", preserve=KEPT)
ENCODERS = {
    "sdxl": ["text_encoder", "text_encoder_2"],
    "sd3": ["text_encoder", "text_encoder_2", "text_encoder_3"],
    "flux": ["text_encoder", "text_encoder_2"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, tuple[str, ...]]]:
    """A pipeline, which tests leave as it is, and an autoencoder for each of its text encoders."""

    @functools.cache
    def build(family: str) -> tuple[Any, tuple[str, ...]]:
        folder = tmp_path_factory.mktemp(family)
        pipe = FAMILIES[family].build(folder)
        return pipe, save_saes(pipe, folder / "saes")

    return build


@pytest.mark.parametrize("family", only(["sd3", "flux"], "flux"))
def test_the_concept_moves_in_every_encoder_and_nothing_else_does(made: Any, family: str, tmp_path: Path) -> None:
    pipe, saes = made(family)
    picture = functools.partial(draw, pipe, options=FAMILIES[family].options)
    before, plain, other = weights(pipe), picture("a star"), picture("a moon")
    star, kept = conditions(pipe, ["a star"]), conditions(pipe, [*KEPT, ""])
    patch = get_eraser("itd", sae=saes, **OPTIONS).fit(pipe, STAR)
    assert [hook.component for hook in patch.hooks] == ENCODERS[family] == readable_encoders(pipe)
    patch.save(tmp_path / "x.safetensors")
    with Patch.load(tmp_path / "x.safetensors").applied(pipe):
        assert all(torch.equal(*pair) for pair in zip(conditions(pipe, [*KEPT, ""])[:2], kept[:2], strict=True))
        moved = conditions(pipe, ["a star"])
        for name in ENCODERS[family]:
            pairs = zip(*(adaptor_of(pipe).written(pipe, said, name) for said in (star, moved)), strict=True)
            assert not all(torch.equal(*pair) for pair in pairs), name
        assert not torch.equal(picture("a star"), plain)
        assert torch.equal(picture("a moon"), other)
    assert same(weights(pipe), before)
    assert torch.equal(picture("a star"), plain)
    with pytest.raises(PatchError, match="hook"):
        patch.to_lora(pipe, tmp_path / "lora")


@pytest.mark.parametrize("family", ["flux"])
def test_a_first_word_of_t5_counts(made: Any, family: str) -> None:
    """T5 has no token that all prompts begin with: the concept may be the first one."""
    pipe, saes = made(family)
    clip, t5 = find_blocks(pipe)
    assert (clip.first, t5.first) == (1, 0)
    with pytest.warns(UserWarning, match=r"pipe\.text_encoder is not edited, .* its summary of the prompt"):
        patch = get_eraser("itd", sae=saes[1:], **OPTIONS).fit(pipe, STAR)
    before = t5.outputs(["star"])
    (hook,) = patch.hooks
    assert hook.parts["first"].tolist() == [0]
    with patch.applied(pipe):
        assert not torch.equal(t5.outputs(["star"])[0, 0], before[0, 0])


def test_all_encoders_are_not_warned_of(made: Any) -> None:
    pipe, saes = made("flux")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_eraser("itd", sae=saes, **OPTIONS).fit(pipe, STAR)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_rows_are_those_that_the_pipeline_makes(made: Any, family: str) -> None:
    """What the pipeline returns of its last encoder, T5, is made of what the block says."""
    pipe, _ = made(family)
    name = ENCODERS[family][-1]
    block = encoder_block(pipe, name, 1)
    states = adaptor_of(pipe).written(pipe, conditions(pipe, ["a star"]), name)[0]
    norm = block.model.encoder.final_layer_norm
    torch.testing.assert_close(norm(block.outputs(["a star"])), states)
    ids, read = block.tokens(["a star", "art"])
    assert read.sum(dim=1).tolist() == [len(block.tokenizer(text).input_ids) for text in ("a star", "art")]
    assert ids.shape[1] == states.shape[1]


def test_an_autoencoder_is_trained_on_rows_of_t5(made: Any) -> None:
    pipe, _ = made("sd3")
    block = encoder_block(pipe, "text_encoder_3")
    options = SAETraining(features=64, k=4, steps=30, prompts=4, lr=1e-2, warmup=5, dead_after=200, auxiliary=8)
    prompts = [*KEPT, "a star", "star", "a red star", "blue art"]
    rows = TextRows(block, prompts, 4, 0)
    # Every word of a prompt and its end, the first word as well.
    held = next(rows.held())
    assert len(held) == len(block.tokenizer(prompts[0]).input_ids)
    trained = train_sae(rows, options)
    assert isinstance(trained.sae, SAE)
    assert trained.curves["unexplained"][0] > 2 * trained.curves["unexplained"][-1]


@pytest.mark.parametrize(
    ("family", "name", "last"),
    [
        ("sdxl", "text_encoder_2", 0),
        ("sd3", "text_encoder", 0),
        ("sd3", "text_encoder_3", 1),
        ("flux", "text_encoder", 0),
    ],
)
def test_a_block_is_upstream_of_what_is_read(made: Any, family: str, name: str, last: int) -> None:
    pipe, _ = made(family)
    block = encoder_block(pipe, name, last)
    assert find_block(pipe, block.target) == block
    with pytest.raises(ValueError, match=rf"a block from 0 to {last} of {name}, upstream"):
        encoder_block(pipe, name, last + 1)


def test_what_is_refused(made: Any) -> None:
    pipe, _ = made("flux")
    with pytest.raises(ValueError, match="among text_encoder, text_encoder_2, got 'text_encoder_3'"):
        encoder_block(pipe, "text_encoder_3")
    with pytest.raises(ValueError, match="got one without it"):
        find_block(pipe, "text_encoder_2.encoder.final_layer_norm")
    with pytest.raises(ValueError, match="autoencoder for the text_encoder of this model, got none"):
        get_eraser("itd").fit(pipe, STAR)
    qwen = FAMILIES["qwenimage"].build(Path())
    with pytest.raises(TypeError, match=r"a text encoder of CLIP or T5, got text_encoder Qwen2.*in a template"):
        find_blocks(qwen)
