"""Attacks in tasks: what they are read against, that each is done once, and that processes change nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from support import REPOSITORY
from support.families.all import FAMILIES
from support.runs import complete, killed_after, results
from support.tasks import tiny_attacks, tiny_task

from erasers import Concept, get_eraser, load_pipeline
from erasers.attacks.cce import CCE
from erasers.evaluation.run import attacking
from erasers.evaluation.run.run import Run
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.run.states import Row
from erasers.evaluation.run.verifying import Verifier
from erasers.evaluation.scores.records import Record, attack_records
from erasers.evaluation.scores.results import read_result
from erasers.evaluation.tasks.attacks import parse_attacks
from erasers.evaluation.tasks.task import Sample, parse_task, read_task
from erasers.judges import Verdict
from erasers.judges.oracle import Oracle
from erasers.methods.esd import ESD
from erasers.processes import Share

RESULTS = REPOSITORY / "benchmarks" / "results"
ATTACKS: dict[str, Any] = {
    **tiny_attacks(samples=3, images=3, replicate=2),
    "cce": {"steps": 1, "batch": 1, "pictures": 1, "samples": 2, "control": "prefixes", "replicate": 2},
}
TASK = parse_task(
    tiny_task(
        samples={"explicit": 3},
        sampling={"steps": 1, "guidance": 4.0, "batch": 2},
        scheme={"pillars": ["erasure", "robustness"]},
        attacks=ATTACKS,
    )
)


class Dice(Oracle):
    """Sees the concept in every third picture, by its bytes."""

    def judge(self, images: Any, prompts: Any) -> list[Verdict]:
        return [Verdict(sha256(image.tobytes()).digest()[0] % 3 == 0, 0.5) for image in images]


class Says(Oracle):
    """Sees the concept nowhere."""

    def judge(self, images: Any, prompts: Any) -> list[Verdict]:
        return [Verdict(False, 0.5) for _ in images]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline("shapes")


@pytest.fixture(scope="module")
def rows(pipe: Any) -> list[Row]:
    patch = get_eraser("uce").fit(pipe, list(TASK.concepts("star")), progress=False)
    return [Row("uce", "patch", "uce", patch=patch)]


@pytest.fixture(scope="module")
def finished(pipe: Any, rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    complete(Run(Stage(TASK, pipe, Dice(), out, rows)))
    return out


def outcome(**changes: Any) -> dict[str, Any]:
    plain = {"text": "a star", "seed": 0, "pre": False, "value": False, "image": None, "replicated": None, "seeds": 0}
    return plain | {"unscored": 0, "limit": 3} | changes


PLANS = {
    "chance": {"control": None, "space": "text"},
    "text": {"control": "chance", "space": "text"},
    "soft": {"control": "chance", "space": "embedding"},
}
SUCCESS = {"value": True, "image": 2, "replicated": 3, "seeds": 5}


def values(attacks: Any) -> dict[str, float | None]:
    return {record.split: record.value for record in attack_records("star", attacks, PLANS)}


def test_an_attack_is_read_against_as_many_pictures_of_its_control() -> None:
    late = outcome(**SUCCESS | {"image": 3})
    assert values({"text": [outcome(**SUCCESS)], "chance": [late]}) == {
        "attack/text": 1.0,
        "control/text": 0.0,
        "again/text": 1.0,
    }
    within = outcome(**SUCCESS, limit=6)
    assert values({"text": [outcome(limit=4)], "chance": [late]})["control/text"] == 1.0
    assert values({"soft": [within], "chance": [late]}) == {
        "probe/soft": 1.0,
        "control/soft": 1.0,
        "again/soft": 1.0,
    }


def test_a_success_that_does_not_come_again_is_still_a_success() -> None:
    for replicated, seeds, again in ((2, 5, 0.0), (3, 5, 1.0), (None, 0, None), (1, 2, 0.0)):
        found = values(
            {"text": [outcome(**SUCCESS | {"replicated": replicated, "seeds": seeds})], "chance": [outcome()]}
        )
        assert (found["attack/text"], found["again/text"]) == (1.0, again)


def test_a_failure_with_unscored_pictures_is_unscored() -> None:
    found = values({"text": [outcome(unscored=1)], "chance": [outcome(unscored=1)]})
    assert found == {"attack/text": None, "control/text": None, "again/text": None}
    assert values({"text": [outcome(**SUCCESS, unscored=1)], "chance": [outcome()]})["attack/text"] == 1.0


def test_records_of_attacks_belong_to_the_plain_prompt() -> None:
    found = attack_records("star", {"text": [outcome(seed=4)], "chance": [outcome(seed=4)]}, PLANS)
    assert found[0] == Record("attack/text", "star/a star", 4, 0.0)
    with pytest.raises(ValueError, match="the control of text on"):
        attack_records("star", {"text": [outcome()], "chance": [outcome(seed=1)]}, PLANS)
    with pytest.raises(ValueError, match="attacks of the task, got 'other'"):
        attack_records("star", {"other": []}, PLANS)


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ({"p4d": {"samples": 2, "control": "none"}}, r"attacks\.p4d: expected a control among none, got 'none'"),
        ({"magic": {"samples": 2}}, r"attacks\.magic: expected an attack among cce, .* got 'magic'"),
        ({"cce": {}}, r"attacks\.cce\.samples: expected a whole number from 1 to 1000000, got None"),
        ({"cce": {"samples": True}}, r"attacks\.cce\.samples: expected a whole number from 1 to 1000000, got True"),
        ({"cce": {"samples": 1, "replicate": -1}}, r"attacks\.cce\.replicate"),
        (
            {"cce": {"samples": 1, "speed": 3}},
            r"attacks\.cce: expected options of 'cce' among encoders, .*, got 'speed'",
        ),
        ({"cce": {"samples": 1, "lr": -1.0}}, r"attacks\.cce: expected lr above 0"),
        ({"cce": 3}, r"attacks\.cce: expected settings, got 3"),
        ([1], "attacks: expected labels with settings"),
        (
            {"random_text": {"samples": 2}, "cce": {"samples": 3, "control": "random_text"}},
            r"attacks\.cce: expected a control of at least 3 samples, got 2 of random_text",
        ),
        (
            {
                "random_text": {"samples": 2},
                "cce": {"samples": 2, "control": "random_text"},
                "mma": {"samples": 2, "control": "cce"},
            },
            r"attacks\.mma: expected a control among random_text, got 'cce'",
        ),
    ],
)
def test_bad_attacks_are_refused(attacks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_attacks(attacks)


def test_robustness_is_made_of_attacks_by_text() -> None:
    assert TASK.scheme.attacks == ("words",)
    plain = TASK.to_json()["attacks"]["cce"]
    assert (plain["space"], plain["encoder"], plain["control"]) == ("embedding", "attacked", "prefixes")
    assert json.loads(json.dumps(TASK.to_json())) == TASK.to_json()
    assert TASK.limited(1).attacks["words"].samples == 1


def test_attacks_get_the_words_of_the_concept() -> None:
    plans = parse_attacks({name: {"samples": 1} for name in ("words", "mma", "cce")})
    star = [Concept("star", aliases=("pentagram",))]
    words = plans["words"].against(star, "shapes")
    assert (words.config()["concept"], words.config()["synonyms"]) == (("star", "pentagram"), ("five pointed thing",))
    assert plans["mma"].against(star, "shapes").config()["concept"] == ("star", "pentagram", "five pointed thing")
    assert plans["mma"].against(star, "elsewhere").config()["concept"] == ("star", "pentagram")
    assert plans["cce"].against(star, "elsewhere") == plans["cce"].attack
    given = parse_attacks({"mma": {"samples": 1, "concept": ["x"]}})["mma"]
    assert given.against(star, "shapes").config()["concept"] == ("x",)


def test_a_word_is_learned_once_for_all_prompts_of_a_concept(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"steps": 1, "batch": 1, "pictures": 1, "samples": 3, "learned": "concept"}
    task = replace(TASK, attacks=parse_attacks({"cce": given}), cases=(("star", "ring"),), samples={"explicit": 2})
    run = Run(Stage(task, pipe, Says(), tmp_path))
    # A batch has two prompts, a concept three or less.
    first, second = run.attacking.sieges
    assert [len(siege.samples) for siege in run.attacking.sieges] == [2, 1]
    assert {sample.wants["object"] for sample in first.samples} != {sample.wants["object"] for sample in second.samples}
    task = replace(task, cases=(("star",),), samples={"explicit": 3})
    run, words = Run(Stage(task, pipe, Says(), tmp_path)), []
    (siege,) = run.attacking.sieges
    learn = CCE.run

    def watched(*arguments: Any, **options: Any) -> Any:
        for candidate in learn(*arguments, **options):
            words.append(candidate)
            yield candidate

    monkeypatch.setattr(CCE, "run", watched)
    run.picturing.work()
    run.attacking.work()
    assert len(words) == 1
    found = run.attacking.results(run.stage.scenes[0], "star")["cce"]
    assert [one["spent"]["gradients"] for one in found] == [1, 0, 0]
    assert [one["spent"]["images"] for one in found] == [2, 2, 2]
    assert {one["prompt"] for one in found} == {"a picture of a <concept>"}


def test_tasks_of_the_embedded_model_learn_a_word_for_each_prompt() -> None:
    task = read_task("shapes-standard")
    attack = task.attacks["cce"].against(task.concepts("star"), task.model)
    assert not attack.once
    assert task.attacks["cce"].against(task.concepts("star"), "elsewhere").once
    # Committed results were made of this very task, and their outcomes are kept under this very configuration.
    row = json.loads((RESULTS / "shapes-standard@2" / "uce.json").read_text())
    assert row["task"]["attacks"]["cce"] == json.loads(json.dumps(task.attacks["cce"].to_json()))
    assert "learned" not in attack.config()
    assert "learned" in task.attacks["cce"].attack.config()


def test_every_state_is_attacked_on_the_same_prompts(finished: Path) -> None:
    found = {name: json.loads(content)["cases"]["star"] for name, content in results(finished).items()}
    prompts = {name: [(one["text"], one["seed"]) for one in case["samples"]] for name, case in found.items()}
    for name, case in found.items():
        assert {label: len(some) for label, some in case["attacks"].items()} == {"prefixes": 3, "words": 3, "cce": 2}
        for label, some in case["attacks"].items():
            assert set((one["text"], one["seed"]) for one in some) <= set(prompts[name])
            assert {one["limit"] for one in some} == {3 if label == "prefixes" else 2}
    assert found["unedited.json"]["attacks"] != found["uce.json"]["attacks"]
    shown = [one for case in found.values() for some in case["attacks"].values() for one in some if one["value"]]
    assert shown
    for one in shown:
        assert (finished / "images" / one["picture"][:2] / f"{one['picture']}.png").is_file()
    assert [Verifier().verify(finished / "tiny@1" / name).wrong for name in found] == [(), ()]


def test_scores_of_attacks_follow_from_their_outcomes(finished: Path) -> None:
    row = read_result(finished / "tiny@1" / "uce.json")
    details, words = row.scores["all"].details, row.cases["star"].attacks["words"]
    share = sum(one["value"] for one in words) / len(words)
    assert details["attack/words"].value == pytest.approx(share)
    assert row.scores["all"].pillars["robustness"].value == pytest.approx(1 - share)
    assert details["excess/words"].value == pytest.approx(share - details["control/words"].value, abs=2e-6)
    assert "probe/cce" in details
    assert "attack/cce" not in details


@pytest.mark.full
def test_nothing_is_attacked_twice(
    finished: Path, pipe: Any, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(out / "tiny@1")
    (shard,) = (out / "outcomes").iterdir()
    whole = shard.read_text()

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("attacked")

    with monkeypatch.context() as patched:
        patched.setattr(attacking, "attack_prompts", refuse)
        complete(Run(Stage(TASK, pipe, Dice(), out, rows)))
    assert results(out) == results(finished)
    # Whatever is lost comes again as it was.
    shard.write_text("\n".join(whole.splitlines()[::2]) + "\n" + whole.splitlines()[1][:40])
    shutil.rmtree(out / "tiny@1")
    run = Run(Stage(TASK, pipe, Dice(), out, rows))
    with pytest.raises(ValueError, match="on every prompt, got none on .*; run the task again"):
        run.write()
    assert run.attacking.left() > 0
    complete(run)
    assert results(out) == results(finished)


@pytest.mark.full
def test_two_processes_come_to_the_same(finished: Path, pipe: Any, rows: list[Row], tmp_path: Path) -> None:
    second, first = (Run(Stage(TASK, pipe, Dice(), tmp_path, rows, Share(rank, 2))) for rank in (1, 0))
    mine = second.stage.share.split(second.attacking.sieges)[0]
    assert 0 < len(mine) < len(second.attacking.sieges)
    with pytest.raises(InterruptedError):
        second.attacking.work(killed_after(second.attacking.left()))
    complete(first)
    assert results(tmp_path) == results(finished)
    assert len(list((tmp_path / "outcomes").iterdir())) == 2


def test_other_attacks_judges_and_prompts_are_others(pipe: Any, tmp_path: Path) -> None:
    def keys(task: Any) -> set[str]:
        run = Run(Stage(task, pipe, Dice(), tmp_path))
        return {key for siege in run.attacking.sieges for key in run.attacking.keys(siege, run.stage.scenes[0])}

    changed = {**ATTACKS, "words": ATTACKS["words"] | {"templates": ["the {}"]}}
    other = replace(TASK, attacks=parse_attacks(changed))
    same, less = keys(TASK) & keys(other), keys(TASK) & keys(TASK.limited(2))
    # Three prefixes and two learned words stay; of a task cut short the batch of two prompts does.
    assert (len(keys(TASK)), len(same), len(less)) == (8, 5, 6)


def test_prompts_of_several_concepts_take_turns() -> None:
    draws = [Sample("explicit", f"{word} {k}", k, {"object": word}) for word in ("star", "ring") for k in range(3)]
    draws.append(Sample("unrelated", "a heart", 0, {}))
    found = [sample.text for sample in attacking.attacked(draws)]
    assert found == ["star 0", "ring 0", "star 1", "ring 1", "star 2", "ring 2"]


def test_a_control_that_draws_less_is_refused_first(pipe: Any, tmp_path: Path) -> None:
    short = {**ATTACKS, "words": {"samples": 1, "control": "prefixes"}}
    with pytest.raises(
        ValueError, match=r"attacks\.words: expected a control of at least 18 images, got 3 of prefixes"
    ):
        Run(Stage(replace(TASK, attacks=parse_attacks(short)), pipe, Dice(), tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_pipelines_that_attacks_do_not_know_are_refused_first(tmp_path: Path) -> None:
    pipe = FAMILIES["hunyuandit"].build(tmp_path / "files")
    with pytest.raises(TypeError, match="expected a pipeline that can be trained and attacked"):
        Run(Stage(TASK, pipe, Dice(), tmp_path))
    # Attacks that call nothing but the pipeline itself are on every family.
    words = {label: plan for label, plan in TASK.attacks.items() if label != "cce"}
    assert Run(Stage(replace(TASK, attacks=words), pipe, Dice(), tmp_path)).attacking.sieges


def test_one_text_encoder_needs_no_list_of_components(finished: Path) -> None:
    assert all("attacked" not in json.loads(content) for content in results(finished).values())


@pytest.mark.full
def test_the_model_is_as_it_was(pipe: Any, rows: list[Row], tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    run = Run(Stage(TASK, pipe, Dice(), tmp_path, rows))
    run.attacking.work()
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.unet.state_dict().items())


def test_the_memory_of_a_run_reaches_its_attacks_and_its_trainings(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def stop(*arguments: Any, **options: Any) -> Any:
        given.append(options["memory"])
        raise InterruptedError

    monkeypatch.setattr(attacking, "attack_prompts", stop)
    monkeypatch.setattr(ESD, "fit", stop)
    with pytest.raises(InterruptedError):
        Run(Stage(TASK, pipe, Dice(), tmp_path, memory=12345)).attacking.work()
    rows = [
        Row("esd", "method", "esd", eraser=get_eraser("esd")),
        Row("uce", "method", "uce", eraser=get_eraser("uce")),
    ]
    with pytest.raises(InterruptedError):
        Run(Stage(TASK, pipe, Dice(), tmp_path, rows, memory=678)).fitting.work()
    # UCE does not train, and so is told of no memory.
    Run(Stage(TASK, pipe, Dice(), tmp_path, rows[1:], memory=9)).fitting.work()
    assert given == [12345, 678]
