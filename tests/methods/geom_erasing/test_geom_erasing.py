"""Geom-Erasing: new tokens say where a concept is, and the pipeline is guided away from their prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image
from support.tiny import draw, same, weights
from support.trained import family_pipe

from erasers import Concept, Patch, PatchError, UnsupportedPipeline, get_eraser
from erasers.concept import as_concepts
from erasers.diffusion.conditions import conditions, unprompted
from erasers.diffusion.tokens import tokenise
from erasers.methods.geom_erasing.eraser import weighted_error
from erasers.methods.geom_erasing.lessons import Drawn, Lessons, first_prompts, lessons_of
from erasers.methods.geom_erasing.marked import read_marked
from erasers.methods.geom_erasing.places import LocatedPrompt

STAR = Concept("star", anchor="", kind="implicit", preserve=["a moon", "a red ring", "blue art"])
QUICK: dict[str, Any] = {
    "iterations": 3, "lr": 1e-2, "tokens_lr": 1e-1, "steps": 2, "pictures": 4, "batch": 2, "grid": 2, "everyday": False,
    "templates": ("a {}",),
}  # fmt: skip


def test_a_located_prompt_has_a_token_for_every_bin(pipe):
    width, texts = pipe.text_encoder.config.hidden_size, {}
    tokens = torch.randn(16, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for bins in ((1,), (1, 2), (4, 5, 8, 9)):
        condition = LocatedPrompt(pipe, "a moon", {"star": bins}).condition(tokens)
        (slope,) = torch.autograd.grad(condition.states.square().sum() + condition.states.sum(), tokens)
        assert slope.abs().sum(dim=1).nonzero()[:, 0].tolist() == list(bins)
        texts[bins] = condition.states.detach()
    plain = conditions(pipe, ["a moon star"]).states
    first = int((tokenise(pipe, "a moon star")[0] == pipe.tokenizer.eos_token_id).nonzero()[0])
    for states in texts.values():
        torch.testing.assert_close(states[:, :first], plain[:, :first])
        assert not torch.allclose(states[:, first], plain[:, first])


def test_a_prompt_that_names_the_concept_does_not_name_it_twice_and_words_make_room(pipe):
    tokens = torch.zeros(4, pipe.text_encoder.config.hidden_size)
    named, twice = (LocatedPrompt(pipe, text, {"star": (0,)}) for text in ("a star", "a"))
    torch.testing.assert_close(named.condition(tokens).states, twice.condition(tokens).states)
    long = LocatedPrompt(pipe, "a moon " * 20, {"star": (0, 1, 2, 3)})
    assert long.condition(tokens).states.shape == unprompted(pipe).states.shape
    cut = LocatedPrompt(pipe, "a " * 12 + "star", {"star": (0, 1, 2, 3)})
    kept = LocatedPrompt(pipe, "a " * 9, {"star": (0, 1, 2, 3)})
    torch.testing.assert_close(cut.condition(tokens).states, kept.condition(tokens).states)
    unmarked = LocatedPrompt(pipe, "a moon", {"star": ()}).condition(tokens).states
    assert torch.equal(unmarked, conditions(pipe, ["a moon"]).states)


def test_new_tokens_alone_change_nothing_else(pipe):
    before, table = weights(pipe), pipe.text_encoder.get_input_embeddings().weight.clone()
    plain = draw(pipe, "a moon")
    patch = get_eraser("geom_erasing", **QUICK, variant="model").fit(pipe, STAR, progress=False)
    assert patch.parameters == []
    assert {hook.kind for hook in patch.hooks} == {"negative_prompt"}
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, table)
    assert torch.equal(patch.hooks[0].parts["empty"], unprompted(pipe).states[0])
    with patch.applied(pipe):
        assert same(before, weights(pipe))
        assert not torch.equal(draw(pipe, "a moon"), plain)
        assert torch.equal(draw(pipe, "a moon", guidance_scale=1.0), draw_unguided(pipe))
    assert torch.equal(draw(pipe, "a moon"), plain)
    twice = get_eraser("geom_erasing", **QUICK | {"scale": 2.0}, variant="model").fit(pipe, STAR, progress=False)
    steps = [own.hooks[0].parts["negative"] - own.hooks[0].parts["empty"] for own in (patch, twice)]
    torch.testing.assert_close(steps[1], 2 * steps[0])
    untrained = get_eraser("geom_erasing", **QUICK | {"tokens_lr": 1e-9}, variant="model")
    other = untrained.fit(pipe, STAR, progress=False).hooks[0].parts["negative"]
    assert not torch.allclose(other, patch.hooks[0].parts["negative"], atol=1e-3)


def draw_unguided(pipe: Any) -> torch.Tensor:
    return draw(pipe, "a moon", guidance_scale=1.0)


def test_a_patch_of_tokens_alone_knows_its_model(pipe, tmp_path):
    patch = get_eraser("geom_erasing", **QUICK, variant="model").fit(pipe, STAR, progress=False)
    patch.save(tmp_path / "star.safetensors")
    with Patch.load(tmp_path / "star.safetensors").applied(pipe):
        pass
    with torch.no_grad():
        pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.mul_(1.01)
    with pytest.raises(PatchError, match="other weights: unet"):
        patch.apply(pipe)


def test_fine_tuning_moves_the_denoiser_and_carries_the_negative_prompt(pipe):
    patch = get_eraser("geom_erasing", **QUICK, train_method="x").fit(pipe, STAR, progress=False)
    assert patch.parameters
    assert all(".attn2." in name for name in patch.parameters)
    assert [hook.kind for hook in patch.hooks] == ["negative_prompt"]


def test_a_detector_of_ones_own_says_where(pipe):
    seen: list[str] = []

    def detect(picture: Image.Image, concept: str) -> list[tuple[float, ...]]:
        seen.append(concept)
        width, height = picture.size
        return [(0, 0, width / 2, height / 2)] if len(seen) > 1 else []

    patch = get_eraser("geom_erasing", **QUICK, variant="model").fit(pipe, STAR, detector=detect, progress=False)
    assert seen == ["star"] * 4
    whole = get_eraser("geom_erasing", **QUICK, variant="model").fit(pipe, STAR, progress=False)
    assert not torch.equal(patch.hooks[0].parts["negative"], whole.hooks[0].parts["negative"])
    with pytest.raises(ValueError, match="expected pictures that show 'star', got none among 4"):
        get_eraser("geom_erasing", **QUICK).fit(pipe, STAR, detector=lambda *_: [], progress=False)


def test_half_of_a_batch_is_marked_where_there_are_others(pipe):
    drawn = Drawn(torch.zeros(4, 4, 8, 8), ["a star", "a moon", "a ring", "art"])
    lessons = lessons_of(pipe, drawn, [{"star": (0,)}, {"star": ()}, {"star": ()}, {"star": (1,)}], 2, 2.0)
    generator = torch.Generator().manual_seed(0)
    for count, with_ in ((4, 2), (5, 3), (1, 1)):
        rows = lessons.draw(count, generator, marked=False)
        assert sum(row in (0, 3) for row in rows.tolist()) == with_
        assert len(rows) == count
    assert set(lessons.draw(20, generator, marked=True).tolist()) == {0, 3}
    shown: Lessons = lessons_of(pipe, drawn, [{"star": (0,)}] * 4, 2, 2.0)
    assert set(shown.draw(40, generator, marked=False).tolist()) == {0, 1, 2, 3}


def test_a_quarter_of_a_batch_shows_prompts_of_marked_pictures_without_the_concept(pipe):
    drawn = Drawn(torch.zeros(4, 4, 8, 8), ["a ring", "a moon", "a ring", "art"])
    lessons = lessons_of(pipe, drawn, [{"star": (0,)}, {"star": ()}, {"star": ()}, {"star": ()}], 2, 2.0)
    rows = lessons.draw(40, torch.Generator().manual_seed(0), marked=False).tolist()
    assert [sum(row in own for row in rows) for own in ((0,), (2,), (1, 3))] == [20, 10, 10]
    same = lessons_of(pipe, Drawn(drawn.latents[:2], ["a ring"] * 2), [{"star": (0,)}, {"star": ()}], 2, 2.0)
    assert sorted(same.draw(4, torch.Generator().manual_seed(0), marked=False).tolist()) == [0, 0, 1, 1]


def test_a_quarter_is_drawn_of_named_prompts_and_a_quarter_of_others():
    assert first_prompts(["a", "b"], ["x", "y", "z"], 16) == (["a", "b", "a", "b"], ["x", "y", "z", "x"])
    assert first_prompts(["a"], [], 8) == (["a"] * 4, [])
    assert first_prompts(["a"], ["x"], 2) == (["a"], [])


def test_the_loss_weighs_places():
    guess, target, weighting = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2), torch.zeros(1, 1, 2, 2)
    weighting[0, 0, 0, 0] = 4.0
    assert float(weighted_error(guess, target, weighting)) == 1.0
    target[:, :, 1] = 7.0
    assert float(weighted_error(guess, target, weighting)) == 1.0


# Pictures of one's own


def test_a_file_of_boxes_is_learned_from(pipe, tmp_path):
    file = marked_file(tmp_path, [[0, 0, 8, 8]])
    eraser = get_eraser("geom_erasing", **QUICK, marked=str(file))
    patch = eraser.fit(pipe, STAR, progress=False)
    assert patch.meta["config"]["marked"] == "marked.json"
    assert patch.parameters
    assert eraser.cost(pipe, STAR).denoiser == 0


def marked_file(folder: Any, places: Any, **more: Any) -> Any:
    Image.new("RGB", (16, 16), "teal").save(folder / "a.png")
    entry = {"file": "a.png", "prompt": "a moon", "boxes": {"star": places, "other": [[0, 0, 1, 1]]}} | more
    (folder / "marked.json").write_text(json.dumps([entry]))
    return folder / "marked.json"


def test_boxes_are_read_by_concept(tmp_path):
    (picture,) = read_marked(marked_file(tmp_path, [[0, 0, 8, 8], [4, 4, 16, 16]]), ["star"])
    assert picture.boxes == {"star": [(0, 0, 8, 8), (4, 4, 16, 16)]}
    assert picture.prompt == "a moon"
    assert read_marked(marked_file(tmp_path, []), ["star"])[0].boxes == {}


@pytest.mark.parametrize(
    ("boxes", "more", "words"),
    [
        ([[0, 0, 17, 8]], {}, r"within 16 x 16 pixels, got \[0, 0, 17, 8\]"),
        ([[8, 0, 8, 8]], {}, "within 16 x 16 pixels"),
        ([[0, 0, 8]], {}, "within 16 x 16 pixels"),
        ([8], {}, "within 16 x 16 pixels"),
        (3, {}, "picture 1: expected"),
        ([], {"file": "none.png"}, "picture 1: expected a picture at"),
        ([], {"prompt": 3}, "picture 1: expected str as 'prompt'"),
        ([], {"boxes": []}, "picture 1: expected dict as 'boxes'"),
    ],
)
def test_bad_entries_are_named(tmp_path, boxes, more, words):
    with pytest.raises(ValueError, match=words):
        read_marked(marked_file(tmp_path, boxes, **more), ["star"])


def test_no_list_of_pictures_is_refused(tmp_path):
    (tmp_path / "marked.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a list of 1 to"):
        read_marked(tmp_path / "marked.json", ["star"])


# What is refused


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_other_families_are_refused(family, tmp_path):
    with pytest.raises(UnsupportedPipeline, match="expected a pipeline of Stable Diffusion 1 or 2"):
        get_eraser("geom_erasing").fit(family_pipe(family, tmp_path), STAR)


def test_a_grid_that_no_prompt_has_room_for_is_refused(pipe):
    with pytest.raises(ValueError, match="expected a grid whose bins fit a prompt of 14 tokens, got 4 x 4"):
        get_eraser("geom_erasing", **QUICK | {"grid": 4}).fit(pipe, STAR)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"scale": 0.0}, "scale"),
        ({"tokens_lr": -1.0}, "tokens_lr"),
        ({"often": 1.5}, "often"),
        ({"grid": 0}, "grid"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=f"expected {words}"):
        get_eraser("geom_erasing", **options)


def test_several_concepts_share_the_grid(pipe):
    concepts = as_concepts([STAR, Concept("ring", anchor="", kind="implicit", preserve=["a moon"])])
    patch = get_eraser("geom_erasing", **QUICK | {"grid": 1, "pictures": 8}, variant="model").fit(
        pipe, concepts, progress=False
    )
    assert len(patch.hooks) == 1
