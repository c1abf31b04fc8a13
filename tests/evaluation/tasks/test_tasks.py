"""Task files: those of the package, what is refused, and the pictures that they ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tasks import tiny_task

from erasers.asks import SPLITS
from erasers.evaluation.tasks.task import list_tasks, parse_task, read_task, refuse_minors

CONTENT = tiny_task(
    cases=[["star"], ["zorblat", "red"]],
    sampling={"steps": 2, "guidance": 4, "batch": 2},
    references={"star": "somewhere"},
)
SHAPES = [f"shapes-{name}" for name in ("every", "image-prompt", "multi", "quick", "sd3-standard", "smoke", "standard")]


def test_the_package_has_its_tasks() -> None:
    assert [name for name in list_tasks() if not name.startswith("sd14-")] == SHAPES
    for name in list_tasks():
        assert read_task(name).name == name
    for name in SHAPES:
        task = read_task(name)
        assert {sample.split for case in task.named_cases for sample in task.draws(case)} == set(SPLITS)
    assert list(read_task("shapes-standard").named_cases) == ["star", "zorblat", "red", "stamp"]


def test_the_json_of_a_task_gives_the_task_again() -> None:
    for name in list_tasks():
        task = read_task(name)
        plain = json.loads(json.dumps(task.to_json()))
        for label, plan in plain["attacks"].items():
            # Results have the options apart, and facts that reading them needs.
            kept = {key: plan[key] for key in ("attack", "samples", "control", "replicate")}
            plain["attacks"][label] = kept | plan["options"]
        assert parse_task(plain) == task


def test_prompts_are_counted_ordered_and_distinct() -> None:
    task = parse_task(CONTENT)
    star = task.draws("star")
    assert [sample.split for sample in star] == ["explicit"] * 3 + ["unrelated"] * 2
    both = task.draws("zorblat+red")
    assert len(both) == 10
    assert len({(sample.split, sample.text, sample.seed) for sample in both}) == 10
    # What is kept while two concepts are erased names neither.
    assert not any("red" in s.text or "zorblat" in s.text for s in both if s.split == "unrelated")


def test_a_limit_keeps_the_first_prompts_and_its_results_apart() -> None:
    task = parse_task(CONTENT)
    short = task.limited(1)
    firsts = [next(s for s in task.draws("star") if s.split == split) for split in ("explicit", "unrelated")]
    assert short.draws("star") == firsts
    assert (task.folder, short.folder) == ("tiny@1", "tiny@1-limit1")
    assert task.limited(None) is task
    assert "limit" not in task.to_json()
    with pytest.raises(ValueError, match="at least one prompt"):
        task.limited(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": 1}, "keys among name.* got 'nam'"),
        ({"name": "../up"}, "name: expected letters"),
        ({"version": 0}, "version: expected a whole number"),
        ({"version": True}, "version: expected a whole number"),
        ({"model": ""}, "model: expected"),
        ({"cases": []}, "cases: expected"),
        ({"cases": ["star"]}, "cases: expected lists of concepts, got 'star'"),
        ({"cases": [["star"], ["star"]]}, "cases: expected each case once, got twice: star"),
        ({"samples": {}}, "samples: expected prompts"),
        ({"samples": {"explicit": 0}}, "samples.explicit: expected a whole number"),
        ({"samples": {"utility": 3}}, "samples: expected keys among"),
        ({"sampling": {"steps": "20"}}, "sampling.steps: expected a whole number"),
        ({"sampling": {"guidance": "4"}}, "sampling.guidance: expected a number"),
        ({"sampling": [20]}, "sampling: expected keys and values"),
        ({"judge": 3}, "judge: expected the name"),
        ({"scheme": {"pillars": ["beauty"]}}, "scheme: expected pillars among"),
        ({"scheme": {"pillar": []}}, "scheme: expected keys among"),
        ({"references": {"ring": "x"}}, "references: expected keys among star"),
        ({"adult": "no"}, "adult: expected true or false"),
        ({"attacks": [{"name": "p4d"}]}, "attacks: expected labels with settings"),
    ],
)
def test_bad_tasks_are_refused_by_file_and_key(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(CONTENT | change))
    with pytest.raises(ValueError, match=f"bad.yaml: .*{message}"):
        read_task(path)


@pytest.mark.parametrize("key", ["name", "version", "model", "cases", "samples", "judge", "scheme"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"expected the key {key}"):
        parse_task({name: value for name, value in CONTENT.items() if name != key})


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a task among sd14-artists.*shapes-quick.*got 'shapes-tiny'"):
        read_task("shapes-tiny")
    with pytest.raises(FileNotFoundError, match="no task file"):
        read_task(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ValueError, match="list.yaml: task: expected keys and values"):
        read_task(tmp_path / "list.yaml")
    (tmp_path / "torn.yaml").write_text("name: [")
    with pytest.raises(ValueError, match="torn.yaml: expected YAML"):
        read_task(tmp_path / "torn.yaml")


@pytest.mark.parametrize(
    "text", ["a nude child", "Naked BOYS", "sexy schoolgirl", "porn, 12 year old", "underage_sex", "lolicon hentai"]
)
def test_sexual_content_with_minors_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="combines sexual content and minors"):
        refuse_minors(text)
    with pytest.raises(ValueError, match="combines sexual content and minors"):
        parse_task(CONTENT | {"cases": [[text]], "references": {}})
    with pytest.raises(ValueError, match="combines sexual content and minors"):
        parse_task(CONTENT | {"cases": [text.replace("_", " ").split()], "references": {}})


@pytest.mark.parametrize("text", ["a nude woman", "a child with a kite", "Essex", "nudity", "a 45 year old nude", ""])
def test_other_texts_pass(text: str) -> None:
    refuse_minors(text)


def test_prompts_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from erasers.evaluation.profile import profile

    def plain(concept: Any, samples: int, **_: Any) -> dict[str, Any]:
        return {"explicit": [profile.PlainPrompt("a naked child", 0)]}

    monkeypatch.setattr(profile, "plain_prompts", plain)
    task = parse_task(CONTENT | {"model": "someone/model", "cases": [["cat"]], "references": {}})
    with pytest.raises(ValueError, match="combines sexual content and minors"):
        task.draws("cat")
