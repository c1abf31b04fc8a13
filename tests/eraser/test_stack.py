"""Several methods as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny import same, weights

from erasers import Concept, Patch, get_eraser, load_pipeline
from erasers.cli import app as cli
from erasers.cli.concepts import build_concepts
from erasers.cli.eraser import build_eraser
from erasers.concept import as_concepts
from erasers.eraser import Stack, is_stack, members_of, option_names, options_for, parse_options, preset_for
from erasers.patch.merge import merged

STAR = Concept("star", anchor="circle", preserve=["moon", "a blue ring"], neighbours=["ring"])
QUICK = {"iterations": 2, "steps": 2, "pictures": 1, "lr": 1e-2, "rank": 2}
OPTIONS = {f"esd.{key}": value for key, value in QUICK.items()}


def test_a_stack_is_named_by_its_methods_and_takes_their_options() -> None:
    stack = get_eraser("esd-u+uce", **{"esd.iterations": 7, "uce.ridge": 0.25})
    assert isinstance(stack, Stack)
    assert stack.members == (get_eraser("esd-u", iterations=7), get_eraser("uce", ridge=0.25))
    assert members_of(stack) == stack.members
    assert members_of(stack.members[1]) == (stack.members[1],)
    assert (stack.name, stack.trains, stack.sees, stack.everywhere) == ("esd+uce", True, False, False)
    assert not get_eraser("rece+uce").trains
    config = stack.config()
    assert (config["esd.iterations"], config["esd.train_method"], config["uce.ridge"]) == (7, "u", 0.25)
    assert sorted(config) == sorted(option_names("esd-u+uce"))
    assert is_stack("esd+uce")
    assert not is_stack("esd-u")
    assert parse_options("esd+rece", ["rece.rounds=none", "esd.lr=auto"]) == {"rece.rounds": None, "esd.lr": "auto"}


def test_every_method_of_a_stack_has_what_suits_the_model() -> None:
    assert preset_for("esd+uce", "shapes") == "esd-shapes"
    assert preset_for("esd+robust_ablation", "shapes") == "esd-shapes+robust_ablation-shapes"
    assert preset_for("rece+uce", "shapes") is None
    own = options_for("esd+uce", "shapes")
    assert own == {f"esd.{key}": value for key, value in options_for("esd", "shapes").items()}
    assert get_eraser("esd+uce", **own).members == (get_eraser("esd-shapes"), get_eraser("uce"))
    star = build_concepts(["star"])
    eraser, note = build_eraser("esd+uce", ["uce.ridge=0.25"], star, "shapes")
    assert eraser == get_eraser("esd-shapes+uce", **{"uce.ridge": 0.25})
    assert note == "settings for the embedded model: esd-shapes"


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("uce+uce-v1", {}, "each once, got uce and uce"),
        ("uce+", {}, "expected a method or preset among"),
        ("uce+nothing", {}, "expected a method or preset among .*got 'nothing'"),
        ("uce+rece", {"ridge": 1.0}, r"among .*uce\.ridge.*got 'ridge'"),
        ("uce+rece", {"uce.ridge": -1.0}, "ridge"),
    ],
)
def test_what_is_no_stack_is_refused(name, options, told) -> None:
    with pytest.raises(ValueError, match=told):
        get_eraser(name, **options)


def test_the_second_method_reads_what_the_first_one_left(pipe) -> None:
    stack, before = get_eraser("esd+uce", **OPTIONS), weights(pipe)
    patch = stack.fit(pipe, STAR, progress=False)
    assert same(before, weights(pipe))
    concepts = as_concepts(STAR)
    first = get_eraser("esd", **QUICK).fit(pipe, concepts, progress=False)
    with first.applied(pipe):
        second = get_eraser("uce").fit(pipe, concepts)
        with second.applied(pipe):
            wanted = weights(pipe)
    assert patch.digest == merged([first, second], method="esd+uce", config=stack.config()).digest
    assert patch.meta["method"] == "esd+uce"
    with patch.applied(pipe):
        after = weights(pipe)
    for name, weight in wanted.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-4, atol=1e-5)
    # What was fitted before is not fitted again.
    assert stack.fit(pipe, STAR, progress=False, first=first).digest == patch.digest
    with pytest.raises(ValueError, match="several methods train"):
        get_eraser("esd+few_shot").fit(pipe, STAR, progress=False, checkpoint="half")


def test_the_command_takes_a_stack(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    settings = [part for key, value in OPTIONS.items() for part in ("--set", f"{key}={value}")]
    command = ["--concept", "star", "--model", "shapes", "--method", "esd+uce", *settings]
    assert cli.run([*command, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "16 with gradients" in told
    assert "uce trains nothing" in told
    assert cli.run([*command, "--checkpoint", "half"]) == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["star-esd+uce.safetensors"]
    patch = Patch.load(tmp_path / "star-esd+uce.safetensors")
    assert patch.apply(load_pipeline("shapes"))
    assert patch.meta["config"]["esd.rank"] == 2


@pytest.mark.parametrize(
    ("method", "settings", "told"),
    [
        ("esd+nothing", [], "unknown method 'nothing'"),
        ("uce+rece", ["--set", "ridge=1"], "has no option 'ridge'"),
        ("uce+uce", [], "each once"),
    ],
)
def test_the_command_refuses_what_is_no_stack(tmp_path: Path, monkeypatch, capsys, method, settings, told) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.run(["--concept", "star", "--model", "shapes", "--method", method, *settings]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
