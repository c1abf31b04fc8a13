"""The negative prompt as an eraser: pictures are those of the pipeline's own negative prompt."""

from __future__ import annotations

import pytest
import torch
from support.families.all import FAMILIES
from support.families.base import draw as draw_family
from support.run_time import UNGUIDED, check_lives_on
from support.tiny import draw
from support.trained import family_pipe

from erasers import Concept, UnsupportedPipeline, get_eraser
from erasers.methods.negative_prompt import NegativePromptEraser

STAR = Concept("star", aliases=["pentagram"], anchor="circle")


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_pictures_are_those_of_that_negative_prompt(family, tmp_path):
    pipe, options = family_pipe(family, tmp_path), FAMILIES[family].options | {"guidance_scale": 4.0}
    plain = draw_family(pipe, "moon", options)
    asked = draw_family(pipe, "moon", options, negative_prompt="star, pentagram")
    own = draw_family(pipe, "moon", options, negative_prompt="a red ring")
    assert not torch.equal(plain, asked)
    eraser = get_eraser("negative_prompt", max_sequence_length=options.get("max_sequence_length"))
    patch = eraser.fit(pipe, STAR)
    assert ("pooled" in patch.hooks[0].parts) == (family != "sd1")
    with patch.applied(pipe):
        assert torch.equal(draw_family(pipe, "moon", options), asked)
        assert torch.equal(draw_family(pipe, "moon", options, negative_prompt="a red ring"), own)
    assert torch.equal(draw_family(pipe, "moon", options), plain)


def test_run_time(pipe, tmp_path):
    patch = get_eraser("negative_prompt").fit(pipe, STAR)
    plain = draw(pipe, ["moon", "star"], **UNGUIDED)
    with patch.applied(pipe):
        assert torch.equal(draw(pipe, ["moon", "star"], **UNGUIDED), plain)
    check_lives_on(pipe, patch, "moon", tmp_path)


def test_other_families_are_refused(tmp_path):
    with pytest.raises(UnsupportedPipeline, match="guide by asking for both"):
        NegativePromptEraser().fit(family_pipe("flux", tmp_path), STAR)
