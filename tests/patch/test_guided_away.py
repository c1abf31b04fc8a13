"""A hook that guides away from a prompt: only the empty prompt is replaced, and only where it is guided away from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.families.patches import META
from support.tiny import draw

from erasers import Patch, PatchError
from erasers.diffusion.conditions import conditions, unprompted
from erasers.files.hashing import tensor_hash
from erasers.models.ports import text_ports
from erasers.patch.negative_prompt import NegativePrompt, guided_away

EMPTY, NEGATIVE, STAR = torch.zeros(3, 4), torch.ones(3, 4), torch.full((3, 4), 0.5)
PARTS = {"empty": EMPTY, "negative": NEGATIVE}


def rows(*texts: torch.Tensor) -> torch.Tensor:
    return torch.stack(texts)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((EMPTY, EMPTY, STAR, STAR), (NEGATIVE, NEGATIVE, STAR, STAR)),
        ((EMPTY, EMPTY, STAR, EMPTY), (NEGATIVE, EMPTY, STAR, EMPTY)),  # a picture without a prompt
        ((STAR, EMPTY), (STAR, EMPTY)),  # the empty prompt is the picture's own
        ((0.4 * NEGATIVE, STAR), (0.4 * NEGATIVE, STAR)),  # a negative prompt of the user's
        ((EMPTY, EMPTY), (EMPTY, EMPTY)),
        ((EMPTY,), (EMPTY,)),
        ((EMPTY, STAR, STAR), (EMPTY, STAR, STAR)),
    ],
)
def test_only_the_empty_prompt_is_replaced_where_another_is_guided_by_it(texts, expected):
    assert torch.equal(guided_away(rows(*texts), PARTS, 1.0), rows(*expected))


def test_rounding_does_not_hide_the_empty_prompt_and_strength_goes_along_the_step():
    given = rows(EMPTY + 1e-3, STAR).half()
    for strength in (0.5, 1.0, 2.0, -1.0):
        away = guided_away(given, PARTS, strength)
        assert away.dtype == torch.float16
        assert torch.equal(away[0], (strength * NEGATIVE).half())
        assert torch.equal(away[1], given[1])
    assert guided_away(given, PARTS, 0.0) is given
    longer = torch.zeros(2, 5, 4)
    assert guided_away(longer, PARTS, 1.0) is longer


@pytest.fixture
def patch(pipe: Any) -> Patch:
    empty, negative = unprompted(pipe).states[0], conditions(pipe, ["a blue star"]).states[0]
    base = {port.parameter: tensor_hash(port.module.weight) for port in text_ports(pipe)}
    hook = {f"hook/unet/negative_prompt/{name}": value for name, value in (("empty", empty), ("negative", negative))}
    return Patch(hook, {**META, "base": base})


def test_the_pipeline_draws_as_with_that_negative_prompt(pipe, patch):
    plain, asked = draw(pipe, "a ring"), draw(pipe, "a ring", negative_prompt="a blue star")
    own = draw(pipe, "a ring", negative_prompt="moon")
    assert not torch.equal(plain, asked)
    with patch.applied(pipe):
        assert torch.equal(draw(pipe, "a ring"), asked)
        assert torch.equal(draw(pipe, "a ring", negative_prompt="moon"), own)
    assert torch.equal(draw(pipe, "a ring"), plain)


def test_without_guidance_nothing_changes(pipe, patch):
    plain = draw(pipe, "a ring", guidance_scale=1.0)
    with patch.applied(pipe):
        assert torch.equal(draw(pipe, "a ring", guidance_scale=1.0), plain)


@pytest.mark.parametrize(
    "parts",
    [{"empty": EMPTY}, {"empty": EMPTY, "negative": torch.ones(2, 4)}, {"empty": EMPTY[0], "negative": EMPTY[0]}],
)
def test_parts_of_other_sizes_are_refused(parts):
    with pytest.raises(PatchError, match="expected the parts empty"):
        NegativePrompt("unet", parts)


def test_a_hook_of_another_model_is_refused(pipe):
    with pytest.raises(PatchError, match="the patch is for another model: unet reads rows of 32"):
        NegativePrompt("unet", PARTS).check(pipe.unet)
    with pytest.raises(PatchError, match="on a denoiser"):
        NegativePrompt("unet.mid_block", PARTS)
