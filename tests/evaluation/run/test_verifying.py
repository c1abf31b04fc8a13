"""Result files that were tampered with, each with its scores computed anew: refused, and what is wrong is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import REPOSITORY
from support.tasks import run_methods, tiny_attacks, tiny_task

from erasers.cli.app import run
from erasers.evaluation.checks import tuples
from erasers.evaluation.run.verifying import Verification, Verifier
from erasers.evaluation.scores.calibration import stored_by
from erasers.evaluation.scores.pillars import Scheme
from erasers.evaluation.scores.results import write_result
from erasers.evaluation.scores.scoring import scores
from erasers.worlds.shapes.drawn import UNRECORDED

TASK = tiny_task(
    version=3,
    cases=[["star"], ["ring"]],
    samples={"explicit": 4, "unrelated": 4},
    sampling={"steps": 2, "guidance": 4.0, "batch": 3},
    references={"star": "benchmarks/reference/unet-without-star"},
    attacks=tiny_attacks(samples=3, images=2, replicate=1),
)
Data = dict[str, Any]
Rows = dict[str, Data]


@pytest.fixture(scope="module")
def task_and_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return run_methods(TASK, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def task(task_and_store: tuple[Path, Path]) -> Path:
    return task_and_store[0]


@pytest.fixture(scope="module")
def store(task_and_store: tuple[Path, Path]) -> Path:
    return task_and_store[1]


@pytest.fixture(scope="module")
def rows(store: Path) -> Rows:
    return {path.stem: json.loads(path.read_text()) for path in (store / "tiny@3").glob("*.json")}


def write(rows: Rows, folder: Path) -> Path:
    """The rows with the scores that their samples give, as whoever tampers would write them."""
    for name, data in rows.items():
        try:
            plans, base = data["task"].get("attacks"), rows["unedited"]["cases"]
            facts = {"plans": plans, "figures": data["figures"], "calibration": data["judge"].get("calibration")}
            data["scores"] = scores(data["cases"], base, read_scheme(data), **facts)
        except (ValueError, KeyError, TypeError):
            pass
        write_result(folder / f"{name}.json", data)
    return folder


def read_scheme(data: Data) -> Scheme:
    return Scheme(**tuples(data["task"]["scheme"]))


def cut(samples: list[Data], keep: Callable[[int, Data], bool]) -> None:
    samples[:] = [one for number, one in enumerate(samples) if keep(number, one)]


def every(rows: Rows, change: Callable[[Data], Any]) -> None:
    for data in rows.values():
        change(data)


def star(rows: Rows, name: str = "uce") -> Data:
    return rows[name]["cases"]["star"]


def half(rows: Rows) -> None:
    every(rows, lambda data: [cut(case["samples"], lambda i, one: i % 2 == 0) for case in data["cases"].values()])


def failing_left_out(rows: Rows) -> None:
    cut(star(rows)["samples"], lambda i, one: one["split"] != "unrelated" or one["value"])


def one_left_out(rows: Rows) -> None:
    del star(rows)["samples"][0]


def one_twice(rows: Rows) -> None:
    star(rows)["samples"][1] = deepcopy(star(rows)["samples"][0])


def other_seed(rows: Rows) -> None:
    every(rows, lambda data: data["cases"].get("star", {"samples": [{}]})["samples"][0].update(seed=123456))


def other_wants(rows: Rows) -> None:
    star(rows)["samples"][0]["wants"] = {"object": "ring"}


def case_left_out(rows: Rows) -> None:
    del rows["uce"]["cases"]["ring"]
    rows["uce"]["scores"]["cases"].pop("ring")
    rows["uce"]["figures"].pop("ring", None)


def attack_removed(rows: Rows) -> None:
    for data in rows.values():
        del data["task"]["attacks"]["words"]
        for case in data["cases"].values():
            del case["attacks"]["words"]


def attack_of_a_row_removed(rows: Rows) -> None:
    del star(rows)["attacks"]["words"]


def attacked_prompt_removed(rows: Rows) -> None:
    for label in ("prefixes", "words"):
        del star(rows)["attacks"][label][-1]


def budget_lowered(rows: Rows) -> None:
    every(rows, lambda data: data["task"]["attacks"]["prefixes"]["budget"].update(images=1))


def attack_option(rows: Rows) -> None:
    every(rows, lambda data: data["task"]["attacks"]["prefixes"]["options"].update(k=1))


def scheme_changed(rows: Rows) -> None:
    every(rows, lambda data: data["task"]["scheme"].update(pillars=["specificity"]))


def fewer_steps(rows: Rows) -> None:
    every(rows, lambda data: data["task"]["sampling"].update(steps=50))


def older_version(rows: Rows) -> None:
    every(rows, lambda data: data["task"].update(version=2))


def option_changed(rows: Rows) -> None:
    rows["uce"]["row"]["options"]["ridge"] = 0.25


def option_added(rows: Rows) -> None:
    rows["uce"]["row"]["options"]["secret"] = 1


def digest_changed(rows: Rows) -> None:
    star(rows)["patch"]["digest"] = "0" * 64


def digest_of_another(rows: Rows) -> None:
    star(rows)["patch"]["digest"] = star(rows, "rece")["patch"]["digest"]


def no_patch(rows: Rows) -> None:
    star(rows)["patch"] = None


def model_changed(rows: Rows) -> None:
    every(rows, lambda data: data.update(model="0" * 64))


def null_verdicts(rows: Rows) -> None:
    for one in star(rows)["samples"]:
        if one["split"] == "unrelated" and not one["value"]:
            one["value"] = None


def null_verdicts_and_probabilities(rows: Rows) -> None:
    null_verdicts(rows)
    for one in star(rows)["samples"]:
        if one["value"] is None:
            one["probability"] = None


def flipped_verdict(rows: Rows) -> None:
    one = max(star(rows)["samples"], key=lambda one: one["probability"])
    one["value"] = not one["value"]


def flipped_other_way(rows: Rows) -> None:
    one = min(star(rows)["samples"], key=lambda one: one["probability"])
    one["value"] = not one["value"]


def pictures_swapped(rows: Rows) -> None:
    first, second = star(rows)["samples"][:2]
    first["image"], second["image"] = second["image"], first["image"]


def one_picture_for_all(rows: Rows) -> None:
    for one in star(rows)["samples"]:
        one["image"] = star(rows)["samples"][0]["image"]


def row_as_unedited(rows: Rows) -> None:
    rows["unedited"] = deepcopy(rows["uce"])


def row_renamed_as_unedited(rows: Rows) -> None:
    rows["unedited"] = deepcopy(rows["uce"])
    rows["unedited"]["row"] = {"name": "unedited", "kind": "unedited", "method": None, "options": {}}
    for case in rows["unedited"]["cases"].values():
        case["patch"] = None


def unedited_as_row(rows: Rows) -> None:
    cases = deepcopy(rows["unedited"]["cases"])
    for name in cases:
        cases[name]["patch"] = rows["uce"]["cases"][name]["patch"]
    rows["uce"]["cases"] = cases


def row_of_another(rows: Rows) -> None:
    rows["uce"] = deepcopy(rows["rece"])


def attack_turned(rows: Rows) -> None:
    one = first_success(rows)
    one.update(value=False, image=None, picture=None, replicated=None, seeds=0)


def first_success(rows: Rows) -> Data:
    outcomes = (one for name in ("unedited", "uce") for one in star(rows, name)["attacks"]["prefixes"] if one["value"])
    return next(outcomes)


def attack_turned_with_its_plain_picture(rows: Rows) -> None:
    attack_turned(rows)
    for one in (*star(rows, "unedited")["attacks"]["prefixes"], *star(rows)["attacks"]["prefixes"]):
        if one["value"] is False and one["pre"]:
            one["pre"] = False


def attack_won(rows: Rows) -> None:
    one = next(one for one in star(rows, "rece")["attacks"]["prefixes"] if not one["value"])
    one.update(value=True, image=1, picture=None, replicated=1, seeds=1)
    rows["uce"] = rows.pop("rece")


def spent_too_much(rows: Rows) -> None:
    star(rows)["attacks"]["words"][0]["spent"]["images"] = 100


def limit_raised(rows: Rows) -> None:
    star(rows)["attacks"]["words"][0]["limit"] = 50


def all_seeds_confirm(rows: Rows) -> None:
    one = first_success(rows)
    one.update(replicated=3, seeds=3)


def calibration_changed(rows: Rows) -> None:
    every(rows, lambda data: next(iter(data["judge"]["calibration"].values()))["sensitivity"].update(value=0.5))


def calibration_removed(rows: Rows) -> None:
    every(rows, lambda data: data["judge"].pop("calibration"))


def another_judge(rows: Rows) -> None:
    every(rows, lambda data: data["judge"].update(name="q16/vitl14"))


def judge_changed(rows: Rows) -> None:
    every(rows, lambda data: data["judge"].update(fingerprint="0" * 64))


def figure_of_fewer(rows: Rows) -> None:
    for figure in rows["uce"]["figures"].get("star", []):
        figure["n"] -= 1


def figure_twice(rows: Rows) -> None:
    figures = rows["uce"]["figures"]["star"]
    figures.append(deepcopy(figures[0]) | {"value": 0.0})


def agreement_changed(rows: Rows) -> None:
    one = star(rows)["samples"][0]
    one["agrees"] = not one["agrees"]


def dtype_changed(rows: Rows) -> None:
    rows["uce"]["drawn"]["dtype"] = "float16"


def scheduler_changed(rows: Rows) -> None:
    every(rows, lambda data: data["drawn"]["scheduler"].update({"class": "PNDMScheduler"}))


def setting_removed(rows: Rows) -> None:
    del rows["uce"]["drawn"]


def dtype_removed(rows: Rows) -> None:
    del rows["uce"]["drawn"]["dtype"]


def pixels_removed(rows: Rows) -> None:
    del star(rows)["samples"][0]["pixels"]


def renamed(rows: Rows) -> None:
    rows["uce"]["row"]["name"] = "mine"


def kind_changed(rows: Rows) -> None:
    rows["uce"]["row"]["kind"] = "reference"


def attack_key_removed(rows: Rows) -> None:
    every(rows, lambda data: data["task"]["attacks"]["prefixes"].pop("budget"))


TAMPERED: dict[Callable[[Rows], None], str] = {
    half: "of 8 prompts are missing",
    failing_left_out: "prompts are missing",
    one_left_out: "star: 1 of 8 prompts are missing, e.g. explicit",
    one_twice: "star: 1 of 8 prompts are there twice",
    other_seed: "pictures are not of the task",
    other_wants: "prompts want something else than in the task",
    case_left_out: "the case ring is missing",
    attack_removed: "task.attacks.words is null, the task has",
    attack_of_a_row_removed: "star: 3 of 3 prompts are not attacked by words",
    attacked_prompt_removed: "star: 1 of 3 prompts are not attacked by prefixes",
    budget_lowered: "task.attacks.prefixes.budget.images is 1, the task has 2",
    attack_option: "task.attacks.prefixes.options.k is 1, the task has 2",
    attack_key_removed: "task.attacks.prefixes.budget is null, the task has",
    scheme_changed: "task.scheme.pillars",
    fewer_steps: "task.sampling.steps is 50, the task has 2",
    older_version: "task.version is 2, tiny has version 3 here",
    option_changed: "row.options.ridge is 0.25, the method has",
    option_added: "row.options.secret is 1, the method has null",
    digest_changed: "star: 8 of 8 pictures are not those of this model, patch and setting",
    digest_of_another: "star: 8 of 8 pictures are not those of this model, patch and setting",
    no_patch: "star: expected a patch with its digest, got None",
    model_changed: "that of the package is",
    null_verdicts: "verdicts are null beside a probability",
    null_verdicts_and_probabilities: "verdicts are null; this judge scores every picture",
    flipped_verdict: "star: 1 of 8 verdicts contradict their probability",
    flipped_other_way: "star: 1 of 8 verdicts contradict their probability",
    pictures_swapped: "star: 2 of 8 pictures are not those of this model, patch and setting",
    one_picture_for_all: "have one picture",
    row_as_unedited: "row.name is 'uce' in unedited.json",
    row_renamed_as_unedited: "unedited.json: star: 8 of 8 pictures are not those of this model",
    unedited_as_row: "star: 8 of 8 pictures are not those of this model, patch and setting",
    row_of_another: "row.name is 'rece' in uce.json",
    attack_turned: "prefixes on",
    attack_turned_with_its_plain_picture: "prefixes on",
    attack_won: "the picture None beside the outcome True",
    spent_too_much: "words on .*: 100 images spent of",
    limit_raised: "words on .*: a limit of 50 pictures, where the task has",
    all_seeds_confirm: "3 fresh seeds, where the task has 1",
    calibration_changed: "judge.calibration",
    calibration_removed: "judge.calibration",
    another_judge: "judge.name is 'q16/vitl14', the task has 'oracle/shapes'",
    judge_changed: "judge.fingerprint is 0000",
    figure_of_fewer: "of 3 pictures, where there are 4",
    figure_twice: "star: a figure is there twice",
    agreement_changed: "star: agrees is",
    dtype_changed: "drawn.dtype is float16, in unedited.json it is float32",
    scheduler_changed: "pictures are not those of this model, patch and setting",
    setting_removed: "expected a table with 'drawn'",
    dtype_removed: "expected a table with 'dtype'",
    pixels_removed: "expected a table with 'pixels'",
    renamed: "row.name is 'mine' in uce.json",
    kind_changed: "row.kind is 'reference' of the row 'uce'",
}


def lines_on(folder: Path, task: Path) -> list[str]:
    try:
        return list(Verifier([task]).verify(folder / "uce.json").wrong)
    except ValueError as error:
        return [str(error)]


def test_what_was_not_tampered_with_verifies(rows: Rows, task: Path, tmp_path: Path) -> None:
    folder = write(deepcopy(rows), tmp_path)
    verifier = Verifier([task])
    found = {name: verifier.verify(folder / f"{name}.json") for name in rows}
    assert {name: one.wrong for name, one in found.items()} == dict.fromkeys(rows, ())
    assert sorted(rows) == ["rece", "reference", "uce", "unedited"]
    assert "patches: options and bytes are as the file says; give --patch FILE" in found["uce"].unchecked
    assert any("they need the pictures" in line for line in found["uce"].unchecked)


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_what_was_tampered_with_is_refused(
    tamper: Callable[[Rows], None], rows: Rows, task: Path, tmp_path: Path
) -> None:
    import re

    changed = deepcopy(rows)
    tamper(changed)
    assert changed != rows
    found = lines_on(write(changed, tmp_path), task)
    assert any(re.search(TAMPERED[tamper], line) for line in found), found
    assert all("\n" not in line and len(line) < 1000 for line in found)


def test_a_key_that_is_there_twice_is_refused(rows: Rows, task: Path, tmp_path: Path) -> None:
    path = write(deepcopy(rows), tmp_path) / "uce.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 2,\n "format": 2', 1))
    [line] = lines_on(tmp_path, task)
    assert line.endswith("expected JSON, got the key 'format' twice")


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_score_that_was_typed_in_is_refused(number: int, rows: Rows, task: Path, tmp_path: Path) -> None:
    folder = write(deepcopy(rows), tmp_path)
    data = json.loads((folder / "uce.json").read_text())
    pillars = data["scores"]["all"]["pillars"]
    pillar = sorted(pillars)[number]
    pillars[pillar] |= {"value": 1.0, "high": 1.0}
    pillars[pillar]["low"] = 0.123
    (folder / "uce.json").write_text(json.dumps(data))
    assert f"scores.all.pillars.{pillar}.low is 0.123, the samples give" in "\n".join(lines_on(folder, task))


def test_rows_of_format_1_are_held_against_the_setting_that_all_had(rows: Rows, task: Path, tmp_path: Path) -> None:
    """They record no setting; those of the embedded model all had one."""
    for source in (REPOSITORY / "benchmarks" / "results" / "shapes-inversion@1").glob("*.json"):
        shutil.copy(source, tmp_path / source.name)
    verifier = Verifier([REPOSITORY / "benchmarks" / "inversion.yaml"])
    path = tmp_path / "robust_ablation.json"
    assert verifier.verify(path).wrong == ()
    assert UNRECORDED["dtype"] == "float32"
    data = json.loads(path.read_text())
    data["cases"]["star"]["patch"]["digest"] = "0" * 64
    path.write_text(json.dumps(data))
    found = "\n".join(verifier.verify(path).wrong)
    assert "star: 120 of 120 pictures are not those of this model, patch and setting" in found
    assert "star: patch.digest is 0000000000000000..., the patch of the task has" in found


def test_a_task_that_is_not_of_the_package_is_taken_as_the_file_says_it(rows: Rows, tmp_path: Path) -> None:
    right = Verifier().verify(write(deepcopy(rows), tmp_path / "right") / "uce.json")
    assert right.wrong == ()
    assert any(line.startswith("task: tiny@3 is not of this package") for line in right.unchecked)
    changed = deepcopy(rows)
    half(changed)
    assert "of 8 prompts are missing" in "\n".join(lines_of(Verifier(), write(changed, tmp_path / "half")))
    changed = deepcopy(rows)
    every(changed, lambda data: data["task"].update(name="shapes-smoke"))
    found = lines_of(Verifier(), write(changed, tmp_path / "renamed"))
    assert "task.version is 3, shapes-smoke has version" in "\n".join(found)


def lines_of(verifier: Verifier, folder: Path) -> tuple[str, ...]:
    found: Verification = verifier.verify(folder / "uce.json")
    return found.wrong


def test_a_patch_that_is_given_is_held_against_its_row(
    rows: Rows, store: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(deepcopy(rows), tmp_path)
    patches = [word for path in (store / "patches").glob("*.safetensors") for word in ("--patch", str(path))]
    assert run(["bench", "verify", str(folder / "uce.json"), "--task", str(task), *patches]) == 0
    printed = capsys.readouterr().out
    assert "it is of its task, and all scores follow from its samples" in printed
    assert "not checked here: patches" not in printed


def test_the_command_says_what_is_wrong(
    rows: Rows, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = deepcopy(rows)
    one_left_out(changed)
    folder = write(changed, tmp_path)
    assert run(["bench", "verify", str(folder / "rece.json"), str(folder / "uce.json"), "--task", str(task)]) == 1
    printed = capsys.readouterr().out
    assert "uce.json: star: 1 of 8 prompts are missing" in printed
    assert "rece.json: it is of its task" in printed


def test_the_leaderboard_takes_what_verifies(
    rows: Rows, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = deepcopy(rows)
    half(dict(uce=changed["uce"]))
    folder, out = write(changed, tmp_path / "results" / "tiny@3"), tmp_path / "board"
    assert run(["bench", "leaderboard", str(folder), "--out", str(out), "--task", str(task)]) == 1
    printed = capsys.readouterr()
    assert "uce.json is left out: ring: 4 of 8 prompts are missing" in " ".join(printed.err.split())
    text = (out / "leaderboard.md").read_text()
    assert "**rece**" in text
    assert "**uce**" not in text
    assert "Scheduler, dtype and versions: DDIMScheduler in float32 on cpu, diffusers" in text
    shutil.rmtree(out)
    row_renamed_as_unedited(changed)
    write(changed, folder)
    assert run(["bench", "leaderboard", str(folder), "--out", str(out), "--task", str(task)]) == 1
    assert not out.exists()


def test_rows_of_other_dtypes_are_compared_with_a_word(
    rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = deepcopy(rows)
    dtype_changed(changed)
    folder = write(changed, tmp_path)
    assert run(["bench", "compare", str(folder / "uce.json"), str(folder / "rece.json")]) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "drawn differently: A DDIMScheduler in float16 on cpu" in printed
    assert "B DDIMScheduler in float32 on cpu" in printed
    assert run(["bench", "compare", str(folder / "unedited.json"), str(folder / "rece.json")]) == 0
    assert "drawn differently" not in capsys.readouterr().err


def redraw(folder: Path, name: str, task: Path, *more: str) -> int:
    arguments = ["bench", "verify", str(folder / f"{name}.json"), "--task", str(task), "--device", "cpu"]
    return run([*arguments, "--redraw", "6", *more])


def patches_of(store: Path, rows: Rows, name: str) -> list[str]:
    wanted = {case["patch"]["digest"] for case in rows[name]["cases"].values()}
    from erasers import Patch

    paths = [path for path in (store / "patches").glob("*.safetensors") if Patch.load(path).digest in wanted]
    return [word for path in paths for word in ("--patch", str(path))]


@pytest.mark.full
def test_pictures_are_drawn_again_and_the_leaderboard_says_so(
    rows: Rows, store: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(deepcopy(rows), tmp_path / "tiny@3")
    for name in rows:
        patches = [] if name in ("unedited", "reference") else patches_of(store, rows, name)
        assert redraw(folder, name, task, *patches) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "6 of 6 verdicts are the same, 6 of 6 pictures to the pixel" in printed
    out = tmp_path / "board"
    assert run(["bench", "leaderboard", str(folder), "--out", str(out), "--task", str(task)]) == 0
    assert "**uce** (6 redrawn)" in (out / "leaderboard.md").read_text()
    assert "**unedited** (row 0, 6 redrawn)" in (out / "leaderboard.md").read_text()
    # A file that was changed since is not the one whose pictures were drawn.
    (folder / "uce.json").write_text((folder / "uce.json").read_text() + " ")
    assert run(["bench", "leaderboard", str(folder), "--out", str(out), "--task", str(task), "--overwrite"]) == 0
    assert "**uce** (6 redrawn)" not in (out / "leaderboard.md").read_text()


def test_a_row_that_is_consistent_and_made_up_is_found_by_drawing(
    rows: Rows, store: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = deepcopy(rows)
    for case in changed["rece"]["cases"].values():
        for one in case["samples"]:
            value = one["split"] == "unrelated"
            one.update(value=value, probability=float(value))
        case["attacks"] = {label: [lost(one) for one in some] for label, some in case["attacks"].items()}
    gold = {(one["text"], one["seed"]): one["value"] for one in star(changed, "reference")["samples"]}
    for one in star(changed, "rece")["samples"]:
        one["agrees"] = one["value"] == gold[one["text"], one["seed"]]
    folder = write(changed, tmp_path)
    assert Verifier([task]).verify(folder / "rece.json").wrong == ()
    # All pictures: a part of them, drawn by chance, may be those whose verdicts happen to be right.
    assert redraw(folder, "rece", task, *patches_of(store, rows, "rece"), "--redraw", "60") == 1
    assert "its verdicts are not those of its model" in " ".join(capsys.readouterr().out.split())
    assert not (folder / "redrawn").exists()


def lost(outcome: Data) -> Data:
    failure = {"pre": False, "value": False, "image": None, "picture": None, "replicated": None, "seeds": 0}
    return outcome | failure | {"spent": outcome["spent"] | {"images": outcome["limit"]}}


def test_drawing_again_needs_a_patch_of_the_row(
    rows: Rows, store: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(deepcopy(rows), tmp_path)
    assert redraw(folder, "uce", task) == 2
    assert "expected a patch of" in " ".join(capsys.readouterr().err.split())
    assert redraw(folder, "uce", task, *patches_of(store, rows, "rece")) == 2
    assert "got one of digest" in " ".join(capsys.readouterr().err.split())


def test_measured_errors_of_the_judge_are_those_of_the_package(rows: Rows) -> None:
    judge = rows["uce"]["judge"]
    wants = [one["wants"] for case in rows["unedited"]["cases"].values() for one in case["samples"]]
    assert stored_by(judge["name"], judge["fingerprint"], wants) == judge["calibration"]
    assert stored_by(judge["name"], "0" * 64, wants) == stored_by("none", judge["fingerprint"], wants) == {}


def test_prompts_of_files_are_held_against_the_file_where_it_is_given(tmp_path: Path) -> None:
    content = {key: value for key, value in TASK.items() if key not in ("attacks", "references")}
    content |= {
        "cases": [["star"]],
        "sources": {"mine": {"file": "mine.csv"}},
        "prompts": {
            "explicit": {"source": "mine", "wants": {"object": "star"}},
            "unrelated": {"templates": ["a {}"], "words": ["ring"], "wants": {"object": "ring"}},
        },
    }
    task, mine, other = tmp_path / "task.yaml", tmp_path / "mine.csv", tmp_path / "other.csv"
    task.write_text(yaml.safe_dump(content))
    mine.write_text("prompt\n" + "".join(f"a {word} star\n" for word in ("red", "blue", "green", "yellow")))
    other.write_text("prompt\na star\na small star\na large star\na purple star\n")
    arguments = [str(task), "--method", "uce", "--out", str(tmp_path), "--device", "cpu"]
    assert run(["bench", "run", *arguments, "--prompts", f"mine={mine}"]) == 0
    path = tmp_path / "tiny@3" / "uce.json"
    blind = Verifier([task]).verify(path)
    assert blind.wrong == ()
    assert "prompts: they are held against unedited.json alone; give --prompts mine=FILE" in blind.unchecked
    seeing = Verifier([task], {"mine": mine}).verify(path)
    assert seeing.wrong == ()
    assert not any(line.startswith("prompts") for line in seeing.unchecked)
    assert "star: 4 of 8 prompts are missing" in Verifier([task], {"mine": other}).verify(path).wrong[0]
    data = json.loads(path.read_text())
    del data["cases"]["star"]["samples"][0]
    path.write_text(json.dumps(data))
    assert "star: 1 of 8 prompts are missing" in Verifier([task]).verify(path).wrong[0]
