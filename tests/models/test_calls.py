"""With how many tokens a pipeline's own `encode_prompt` is asked."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from support.families.all import FAMILIES

from erasers import Concept, get_eraser
from erasers.diffusion.conditions import conditions
from erasers.eraser import options_for
from erasers.models.calls import handed_on, tokens_a_prompt


@pytest.fixture
def flux(tmp_path: Path) -> Any:
    return FAMILIES["flux"].build(tmp_path)


def test_inside_prompts_have_that_many_tokens_and_afterwards_as_many_as_ever(flux: Any) -> None:
    ever = handed_on(flux)["max_sequence_length"]
    with tokens_a_prompt(flux, 7):
        assert handed_on(flux)["max_sequence_length"] == 7
        assert conditions(flux, ["a star"]).states.shape[1] == 7
        with tokens_a_prompt(flux, None):
            assert handed_on(flux)["max_sequence_length"] == ever
    assert handed_on(flux)["max_sequence_length"] == ever != 7


def test_a_pipeline_that_takes_no_number_says_so(pipe: Any) -> None:
    with tokens_a_prompt(pipe, None):
        assert "max_sequence_length" not in handed_on(pipe)
    words = "expected no max_sequence_length, which StableDiffusionPipeline does not take"
    with pytest.raises(ValueError, match=words), tokens_a_prompt(pipe, 7):
        pass
    with pytest.raises(ValueError, match=words):
        get_eraser("esd", iterations=1, max_sequence_length=7).fit(pipe, Concept("star"), progress=False)


def test_a_training_reads_prompts_of_that_many_tokens(flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, encode = set(), flux.encode_prompt

    def watched(*args: Any, **named: Any) -> Any:
        lengths.add(named["max_sequence_length"])
        return encode(*args, **named)

    watched.__signature__ = inspect.signature(encode)  # type: ignore[attr-defined]
    monkeypatch.setattr(flux, "encode_prompt", watched)
    options = {"iterations": 1, "steps": 2, "batch": 1, "size": 8, "lr": 1e-2, "rank": 2}
    get_eraser("esd", **options, max_sequence_length=9).fit(flux, Concept("star"), progress=False)
    assert lengths == {9}


def test_worlds_say_with_how_many_tokens_they_are_drawn() -> None:
    for method in ("uce", "esd", "adv_unlearn"):
        assert options_for(method, "shapes-sd3")["max_sequence_length"] == 1
        assert "max_sequence_length" not in options_for(method, "shapes")
