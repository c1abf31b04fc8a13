from __future__ import annotations

import pytest
import torch
from support.tiny import FAMILIES, TOKENS, draw

from erasers import Concept, get_eraser
from erasers.text.encoding import Reader
from erasers.text.prompts import Prompt, fill, templates_for, whole
from erasers.text.states import Encoded, Segment, pair_rows

TEXTS = [whole(text) for text in ("star", "", "a picture of van gogh", "xyz", "star")]
LASTS = {"star": 1, "": 0, "a picture of van gogh": 5, "xyz": 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_the_pipelines_own(pipes, family):
    pipe = pipes(family)
    full, short = Reader(pipe, "all").encode(TEXTS), Reader(pipe, "last").encode(TEXTS)
    assert list(full) == list(short) == TEXTS[:4]
    for text, last in LASTS.items():
        with torch.no_grad():
            own = pipe.encode_prompt(text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
        prompt = whole(text)
        (whole_segment,), (short_segment,) = full[prompt].segments, short[prompt].segments
        torch.testing.assert_close(whole_segment.states, own[0], rtol=0, atol=1e-6)
        assert whole_segment.last == short_segment.last == last
        assert len(whole_segment.states) == TOKENS
        assert len(short_segment.states) == last + 1
        torch.testing.assert_close(short[prompt].rows("last"), full[prompt].rows("last"), rtol=0, atol=1e-5)


def test_only_as_many_tokens_as_needed_are_encoded(pipe):
    shapes = []
    pipe.text_encoder.register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape)))
    Reader(pipe, "last").encode([*TEXTS, whole("moon"), whole("ring")])
    assert sorted(shapes) == [(1, 1), (1, 4), (1, 6), (3, 2)]
    shapes.clear()
    Reader(pipe, "tail").encode(TEXTS)
    assert shapes == [(4, TOKENS)]


def test_long_prompt_is_cut_like_the_pipeline_does(pipe):
    found = Reader(pipe, "all").encode([whole("star " * 40)])[whole("star " * 40)].segments[0]
    assert found.last == TOKENS - 2


def test_nothing_to_encode(pipe):
    assert Reader(pipe, "all").encode([]) == {}


def test_pairs():
    states = torch.arange(8.0)[:, None]
    old, new = Encoded((Segment(states, 3),)), Encoded((Segment(states + 100, 1),))
    assert [rows.flatten().tolist() for rows in pair_rows(old, new, "last")] == [[3], [101]]
    assert [rows.flatten().tolist() for rows in pair_rows(old, new, "tail")] == [
        [3, 4, 5, 6, 7],
        [101, 102, 103, 104, 105],
    ]
    assert [rows.flatten().tolist() for rows in pair_rows(new, old, "tail")] == [
        [101, 102, 103, 104, 105],
        [3, 4, 5, 6, 7],
    ]
    assert [len(rows) for rows in pair_rows(old, new, "all")] == [8, 8]


def test_templates():
    assert fill("a {} on grass", "") == Prompt("a on grass", "a")
    assert fill("a {} on grass", "big  star") == Prompt("a big star on grass", "a big star")
    assert fill("two {}s, painted", "star") == Prompt("two stars, painted", "two stars")
    assert fill("a boat[ in the style of {}] at sea", "monet") == Prompt(
        "a boat in the style of monet at sea", "a boat in the style of monet"
    )
    assert fill("a boat[ in the style of {}] at sea", "") == Prompt("a boat at sea", "a boat")
    assert fill("[{}]", "") == fill("{}", "") == Prompt("", "")
    assert templates_for(Concept("x"), ["b {}"]) == ("b {}",)
    assert templates_for(Concept("x", kind="style"), "auto") != templates_for(Concept("x"), "auto")


def test_tokenizers_that_disagree_are_refused(pipes):
    pipe = pipes("sdxl")
    pipe.tokenizer_2 = lambda texts, **options: pipe.tokenizer([f"{text} star" for text in texts], **options)
    pipe.tokenizer_2.model_max_length = TOKENS
    with pytest.raises(ValueError, match=r"split 'star' alike"):
        Reader(pipe, "last").encode([whole("star")])


def test_the_subject_may_stand_inside_the_prompt(pipe):
    prompt = fill("a {} picture of van gogh", "star")
    for policy in ("last", "tail"):
        found = Reader(pipe, policy).encode([prompt, whole(prompt.text)])
        assert found[prompt].segments[0].last == 2
        assert found[whole(prompt.text)].segments[0].last > 2
    whole_prompt = Reader(pipe, "all").encode([whole(prompt.text)])[whole(prompt.text)]
    short = Reader(pipe, "last").encode([prompt])[prompt]
    torch.testing.assert_close(short.rows("last")[0], whole_prompt.segments[0].states[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", ["last", "all"])
def test_layers_that_are_skipped_when_drawing_are_skipped_here(pipes, policy):
    prompt = whole("a picture of van gogh")
    xl, plain = pipes("sdxl"), pipes("sd1")
    with torch.no_grad():
        own = xl.encode_prompt(prompt.text, device="cpu", do_classifier_free_guidance=False, clip_skip=1)[0][0]
        ids = plain.tokenizer(prompt.text, return_tensors="pt", padding="max_length", max_length=TOKENS).input_ids
        layers = plain.text_encoder(ids, output_hidden_states=True).hidden_states
        normed = plain.text_encoder.final_layer_norm(layers[-2])[0]
    for pipe, expected in ((xl, own), (plain, normed)):
        segment = Reader(pipe, policy, clip_skip=1).encode([prompt])[prompt].segments[0]
        rows = expected[: len(segment.states)]
        torch.testing.assert_close(segment.states, rows, rtol=0, atol=1e-5)
        assert not torch.allclose(Reader(pipe, policy).encode([prompt])[prompt].segments[0].states, rows, atol=1e-3)
        with pytest.raises(ValueError, match=r"expected clip_skip below the 2 layers of the encoder, got 9"):
            Reader(pipe, policy, clip_skip=9).encode([prompt])


def test_a_concept_is_erased_for_pictures_with_clip_skip(pipes):
    pipe = pipes("sdxl")

    def look(text):
        return draw(pipe, text, guidance_scale=1.0, clip_skip=1)

    options = {"rows": "all", "ridge": 1e-6, "cache": False, "ports": ("text", "pooled")}
    before, anchor = look("star"), look("circle")
    left = {}
    for skip in (None, 1):
        with get_eraser("uce", clip_skip=skip, **options).fit(pipe, Concept("star", anchor="circle")).applied(pipe):
            left[skip] = float((look("star") - anchor).norm() / (before - anchor).norm())
    assert left[1] < 1e-3 < left[None]
