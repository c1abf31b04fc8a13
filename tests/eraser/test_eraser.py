from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from erasers import Concept, get_eraser, list_erasers
from erasers.concept import Concepts
from erasers.eraser import Eraser, eraser_class, parse_options
from erasers.methods.rece import RECE
from erasers.methods.uce import UCE
from erasers.options import describe


def test_registry():
    assert {"uce", "rece"} <= set(list_erasers())
    assert list(eraser_class("uce").presets) == ["uce-v1", "uce-v2"]
    assert list(eraser_class("rece").presets) == ["rece-official"]
    assert isinstance(get_eraser("rece"), RECE)
    assert get_eraser("uce-v2").rows == "last"
    assert get_eraser("uce-v2", rows="all", ridge=2).config()["ridge"] == 2


@pytest.mark.parametrize("name", ["", "nothing", "uce-v9", "uce-", "rece-v1"])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"rece, rece-official, .*uce, uce-v1, uce-v2") as error:
        get_eraser(name)
    assert repr(name) in str(error.value)


def test_unknown_option_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"among everyday, rows, .*ridge.*'lamb'"):
        get_eraser("uce", lamb=1)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("uce", "rows", "first"),
        ("uce", "rows", 3),
        ("uce", "ridge", 0),
        ("uce", "ridge", -1.0),
        ("uce", "ridge", float("nan")),
        ("uce", "ridge", float("inf")),
        ("uce", "ridge", "0.5"),
        ("uce", "ridge", True),
        ("uce", "erase_scale", 0),
        ("uce", "preserve_scale", -0.1),
        ("uce", "preserve_scale", "some"),
        ("uce", "preserve_rows", None),
        ("uce", "preserve_empty", 1),
        ("uce", "rank", 0),
        ("uce", "rank", 1.5),
        ("uce", "templates", ()),
        ("uce", "templates", ("no place",)),
        ("uce", "templates", ("{} {}",)),
        ("uce", "templates", "a {}"),
        ("uce", "preserve_templates", [3]),
        ("uce", "empty_anchor", ""),
        ("uce", "solver", "svd"),
        ("rece", "rounds", -1),
        ("rece", "rounds", 2.5),
        ("rece", "reg", 0),
        ("rece", "round_ridge", 0.0),
        ("rece", "round_rows", "none"),
        ("rece", "round_preserve_scale", -1),
        ("rece", "round_erase_scale", 0),
        ("rece", "round_templates", ("x",)),
        ("rece", "anchor_policy", "old"),
        ("rece", "upstream_compat", "yes"),
    ],
)
def test_bad_values_name_the_field(name, option, value):
    with pytest.raises(ValueError, match=f"expected {option} "):
        get_eraser(name, **{option: value})


def test_oblique_rounds_start_from_the_original():
    with pytest.raises(ValueError, match="anchor_policy='original'"):
        get_eraser("rece", solver="oblique", anchor_policy="current")


def test_lists_become_tuples():
    assert UCE(templates=["a {}", "{}"]).templates == ("a {}", "{}")


def test_parse_options():
    settings = ["ridge=0.25", "rows = all", "preserve_scale=auto", "templates=a {}, the {}", "aliases=no", "rank=7"]
    assert parse_options("uce-v1", settings) == {
        "ridge": 0.25,
        "rows": "all",
        "preserve_scale": "auto",
        "templates": ("a {}", "the {}"),
        "aliases": False,
        "rank": 7,
    }
    assert parse_options("rece", ["preserve_scale=2", "rounds=none", "reg=1e-3", "templates=auto"]) == {
        "preserve_scale": 2.0,
        "rounds": None,
        "reg": 0.001,
        "templates": "auto",
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ridge", "key=value"),
        ("lamb=1", r"among everyday, rows.*'lamb'"),
        ("=1", "among everyday, rows"),
        ("ridge=much", "expected ridge as a number, got 'much'"),
        ("rows=first", "expected rows as last or tail or all, got 'first'"),
        ("rank=1.5", "expected rank as a whole number"),
        ("aliases=perhaps", "expected aliases as true or false"),
        ("preserve_scale=some", "expected preserve_scale as a number or auto"),
        ("ports=text,colour", "ports as text or pooled or joint, separated by commas or auto, got 'text,colour'"),
        ("max_sequence_length=long", "a whole number or none"),
    ],
)
def test_parse_options_says_what_is_allowed(setting, message):
    with pytest.raises(ValueError, match=message):
        parse_options("uce", [setting])


def test_ports_are_checked():
    assert parse_options("uce", ["ports=text, pooled"]) == {"ports": ("text", "pooled")}
    for ports in (("text", "colour"), (), "text", 3):
        with pytest.raises(ValueError, match="ports"):
            get_eraser("uce", ports=ports)


def test_parse_options_of_unknown_method():
    with pytest.raises(ValueError, match="nothing"):
        parse_options("nothing", [])


def test_describe():
    assert describe(float | None) == "a number or none"
    assert describe(tuple[str, ...]) == "comma-separated texts"


@dataclass(frozen=True, kw_only=True)
class Own(Eraser):
    """An eraser of a package of its own, whose `fit` does everything."""

    name: ClassVar[str] = "own"

    def fit(self, pipe: Any, concepts: Concepts, **options: Any) -> Any:
        return pipe, concepts, options


@dataclass(frozen=True, kw_only=True)
class Inner(Eraser):
    """One that leaves checks to `fit`."""

    name: ClassVar[str] = "inner"
    aliases: bool = True

    def check_pipe(self, pipe: Any) -> None:
        if pipe is None:
            raise TypeError("expected a pipeline, got None")

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Any:
        return [concept.name for concept in concepts], generator.initial_seed(), progress


def test_a_method_may_have_a_fit_of_its_own():
    assert Own().fit("pipe", "star", progress=False) == ("pipe", "star", {"progress": False})


def test_fit_checks_and_prepares_before_the_method_begins(pipe):
    assert Inner().fit(pipe, "star") == (["star"], 0, True)
    seeded = torch.Generator().manual_seed(7)
    assert Inner().fit(pipe, ["star", "moon"], generator=seeded, progress=False) == (["star", "moon"], 7, False)
    with pytest.raises(TypeError, match="got None"):
        Inner().fit(None, [])
    with pytest.raises(ValueError, match="got none"):
        Inner().fit(pipe, [])
    with pytest.raises(NotImplementedError, match="expected Eraser with a _fit of its own"):
        Eraser().fit(pipe, "star")
