from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, TOKENS

from erasers import Concept
from erasers.methods.rows import Encoded, Prompt, encode, fill, pair_rows, templates_for, whole

TEXTS = [whole(text) for text in ("star", "", "a picture of van gogh", "xyz", "star")]
LASTS = {"star": 1, "": 0, "a picture of van gogh": 5, "xyz": 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_the_pipelines_own(pipes, family):
    pipe = pipes(family)
    full, short = encode(pipe, TEXTS, "all"), encode(pipe, TEXTS, "last")
    assert list(full) == list(short) == TEXTS[:4]
    for text, last in LASTS.items():
        with torch.no_grad():
            own = pipe.encode_prompt(text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
        prompt = whole(text)
        torch.testing.assert_close(full[prompt].states, own[0], rtol=0, atol=1e-6)
        assert full[prompt].last == short[prompt].last == last
        assert len(full[prompt].states) == TOKENS
        assert len(short[prompt].states) == last + 1
        torch.testing.assert_close(short[prompt].rows("last"), full[prompt].rows("last"), rtol=0, atol=1e-5)


def test_only_as_many_tokens_as_needed_are_encoded(pipe):
    shapes = []
    pipe.text_encoder.register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape)))
    encode(pipe, [*TEXTS, whole("moon"), whole("ring")], "last")
    assert sorted(shapes) == [(1, 1), (1, 4), (1, 6), (3, 2)]
    shapes.clear()
    encode(pipe, TEXTS, "tail")
    assert shapes == [(4, TOKENS)]


def test_long_prompt_is_cut_like_the_pipeline_does(pipe):
    found = encode(pipe, [whole("star " * 40)], "all")[whole("star " * 40)]
    assert found.last == TOKENS - 2


def test_nothing_to_encode(pipe):
    assert encode(pipe, [], "all") == {}


def test_pairs():
    states = torch.arange(8.0)[:, None]
    old, new = Encoded(states, 3), Encoded(states + 100, 1)
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
        encode(pipe, [whole("star")], "last")


def test_the_subject_may_stand_inside_the_prompt(pipe):
    prompt = fill("a {} picture of van gogh", "star")
    for policy in ("last", "tail"):
        found = encode(pipe, [prompt, whole(prompt.text)], policy)
        assert found[prompt].last == 2
        assert found[whole(prompt.text)].last > 2
    whole_prompt = encode(pipe, [whole(prompt.text)], "all")[whole(prompt.text)]
    short = encode(pipe, [prompt], "last")[prompt]
    torch.testing.assert_close(short.rows("last")[0], whole_prompt.states[2], rtol=0, atol=1e-5)
