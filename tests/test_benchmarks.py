"""The scripts about committed results: the leaderboard beside them is theirs, and rows can be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import REPOSITORY
from support.made_results import PILLARS, write_results
from support.scripts import benchmark

from erasers import Concept, load_pipeline, worlds
from erasers.concept import as_concepts, names
from erasers.eraser import get_eraser, options_for
from erasers.evaluation.leaderboard.write import shown_images, write_leaderboard
from erasers.evaluation.scores.scoring import compare as compare_rows
from erasers.evaluation.scores.statistics import holm
from erasers.methods.rece import RECE

FILES = ("leaderboard.md", "leaderboard.html")


LEADERBOARD, COMPARE, METHODS = benchmark("leaderboard"), benchmark("compare"), benchmark("method_table")
ABLATION, REVERSAL, SPEED = benchmark("ablation"), benchmark("reversal"), benchmark("speed")
MEASURED, MANY = benchmark("measured"), benchmark("many")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run wrote: two tasks, of which nothing else is changed."""
    store = tmp_path_factory.mktemp("run")
    write_results(store, name="first", detailed=True, pillars=[*PILLARS, "robustness"])
    write_results(store, name="second", cases=["heart"])
    return store


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up results are of no task."""
    monkeypatch.setattr(LEADERBOARD, "refuse_wrong", lambda paths: None)


def kept(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "results" / "images").rglob("*.png")}


def content(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


@pytest.mark.full
def test_the_committed_leaderboard_is_that_of_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    folder = REPOSITORY / "benchmarks"
    assert LEADERBOARD.main(["--check"]) == 0, capsys.readouterr().out
    there = [(folder / name).exists() for name in FILES]
    assert there == [any((folder / "results").glob("*@*"))] * 2


@pytest.mark.usefixtures("made_up")
def test_a_run_is_adopted_with_the_pictures_that_are_shown(store: Path, tmp_path: Path) -> None:
    assert LEADERBOARD.main(["--adopt", str(store)], tmp_path) == 0
    assert kept(tmp_path) == set(shown_images([store]))
    for path in store.glob("*@*/*.json"):
        assert (tmp_path / "results" / path.parent.name / path.name).read_bytes() == path.read_bytes()
    write_leaderboard([store], tmp_path / "whole")
    assert content(tmp_path) == content(tmp_path / "whole")
    assert LEADERBOARD.main(["--check"], tmp_path) == 0
    assert LEADERBOARD.main([], tmp_path) == 0
    assert content(tmp_path) == content(tmp_path / "whole")


@pytest.mark.usefixtures("made_up")
def test_what_a_task_lost_since_is_dropped(store: Path, tmp_path: Path) -> None:
    LEADERBOARD.main(["--adopt", str(store)], tmp_path)
    shutil.copytree(store, tmp_path / "later")
    (tmp_path / "later" / "first@1" / "noise.json").unlink()
    assert LEADERBOARD.main(["--adopt", str(tmp_path / "later" / "first@1")], tmp_path) == 0
    assert not (tmp_path / "results" / "first@1" / "noise.json").exists()
    assert (tmp_path / "results" / "second@1" / "noise.json").exists()
    assert kept(tmp_path) == set(shown_images([tmp_path / "results"])) < set(shown_images([store]))


@pytest.mark.usefixtures("made_up")
def test_large_pictures_are_kept_as_large_as_they_are_shown(tmp_path: Path) -> None:
    write_results(tmp_path / "run", cases=["star"])
    key = shown_images([tmp_path / "run"])[0]
    Image.new("RGB", (600, 300)).save(tmp_path / "run" / "images" / key[:2] / f"{key}.png")
    LEADERBOARD.main(["--adopt", str(tmp_path / "run")], tmp_path)
    with Image.open(tmp_path / "results" / "images" / key[:2] / f"{key}.png") as image:
        assert image.size == (256, 128)
    assert LEADERBOARD.main(["--check"], tmp_path) == 0


@pytest.mark.usefixtures("made_up")
def test_tasks_that_were_cut_short_and_adult_ones_stay_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "run", name="adult", adult=True, cases=["heart"])
    write_results(tmp_path / "run", name="whole", cases=["star"], pictures=False)
    for path in write_results(tmp_path / "run", name="short", cases=["star"], pictures=False):
        data = json.loads(path.read_text())
        data["task"]["limit"] = 3
        path.write_text(json.dumps(data))
    assert LEADERBOARD.main(["--adopt", str(tmp_path / "run")], tmp_path) == 0
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["whole@1"]
    out = capsys.readouterr().out
    assert "adult@1 stays out: adult content" in out
    assert "short@1-limit3 stays out: it was cut short" in out


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("name", [*FILES, "results/images/00/stray.png"])
def test_the_check_names_what_differs(
    store: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    LEADERBOARD.main(["--adopt", str(store)], tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(b"\n")
    capsys.readouterr()
    before = path.read_bytes()
    assert LEADERBOARD.main(["--check"], tmp_path) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{name} is not what the results say; run python benchmarks/leaderboard.py"
    ]
    assert path.read_bytes() == before


@pytest.mark.usefixtures("made_up")
def test_the_check_wants_a_leaderboard_where_there_are_results_and_none_else(store: Path, tmp_path: Path) -> None:
    assert LEADERBOARD.wrong(tmp_path) == []
    for name in FILES:
        (tmp_path / name).write_text("old")
    assert LEADERBOARD.wrong(tmp_path) == list(FILES)
    shutil.copytree(store / "second@1", tmp_path / "results" / "second@1")
    for name in FILES:
        (tmp_path / name).unlink()
    assert LEADERBOARD.wrong(tmp_path) == list(FILES)


@pytest.mark.usefixtures("made_up")
def test_results_are_not_adopted_from_where_they_lie(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LEADERBOARD.main(["--adopt", str(store)], tmp_path)
    before = sorted((tmp_path / "results").rglob("*"))
    assert LEADERBOARD.main(["--adopt", str(tmp_path / "results")], tmp_path) == 2
    assert "expected the folder of a run" in capsys.readouterr().err
    assert sorted((tmp_path / "results").rglob("*")) == before


@pytest.mark.usefixtures("made_up")
def test_damaged_results_change_nothing(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LEADERBOARD.main(["--adopt", str(store)], tmp_path)
    before = content(tmp_path)
    shutil.copytree(store, tmp_path / "bad")
    (tmp_path / "bad" / "first@1" / "uce.json").write_text("{")
    assert LEADERBOARD.main(["--adopt", str(tmp_path / "bad")], tmp_path) == 2
    assert "uce.json" in capsys.readouterr().err
    assert content(tmp_path) == before
    assert LEADERBOARD.main(["--check"], tmp_path) == 0


def test_only_results_that_verify_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(
        shutil.copytree(REPOSITORY / "benchmarks" / "results" / "shapes-inversion@1", tmp_path / "shapes-inversion@1")
    )
    data = json.loads((run / "uce.json").read_text())
    del data["cases"]["star"]["samples"][0]
    (run / "uce.json").write_text(json.dumps(data))
    for arguments in (["--adopt", str(run)], []):
        assert LEADERBOARD.main(arguments, tmp_path) == 2
        message = capsys.readouterr().err
        assert "uce.json does not verify: star: 1 of 120 prompts are missing, e.g. explicit" in message
        assert "unedited.json" not in message
        shutil.copytree(run, tmp_path / "results" / run.name, dirs_exist_ok=True)
    assert LEADERBOARD.main(["--check"], tmp_path) == 2
    assert not any((tmp_path / name).exists() for name in FILES)


def table(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]


def test_all_pairs_are_compared_with_p_values_for_the_whole_table(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store / "second@1"
    assert COMPARE.main([str(folder)]) == 0
    heads, _, *lines = table(capsys)
    assert heads == list(COMPARE.HEADS)
    assert len(lines) == 10 * 4
    raw: dict[Any, float] = {}
    for one, other in {(line[0], line[1]) for line in lines}:
        for found in compare_rows(folder / f"{one}.json", folder / f"{other}.json"):
            raw[one, other, found.name] = found.difference.p
    adjusted = holm(raw)
    for line in lines:
        assert line[7] == f"{adjusted[line[0], line[1], line[2]]:.3g}"
        assert (line[8] == "tie") == (adjusted[line[0], line[1], line[2]] > 0.05)
    assert ["unedited", "noise", "erasure"] in [line[:3] for line in lines if line[8] == "B"]
    assert {line[8] for line in lines} == {"A", "B", "tie"}


def test_two_rows_of_results_are_compared_by_the_name_of_the_task(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(COMPARE, "RESULTS", store)
    monkeypatch.chdir(tmp_path)
    assert COMPARE.main(["first@1", "uce", "rece"]) == 0
    lines = table(capsys)[2:]
    assert [line[2] for line in lines] == [*PILLARS, "robustness", "overall"]
    for line, found in zip(
        lines, compare_rows(*(store / "first@1" / f"{x}.json" for x in ("uce", "rece"))), strict=True
    ):
        assert line[:2] == ["uce", "rece"]
        assert line[3:6] == [
            f"{found.first:.3f}",
            f"{found.second:.3f}",
            f"{found.difference.value:+.3f} ({found.difference.low:+.3f} to {found.difference.high:+.3f})",
        ]
        assert line[7] == f"{found.p:.3g}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["third@1"], "expected a folder with results or one of first@1, second@1, got 'third@1'"),
        (["second@1", "uce", "esd"], "expected rows among unedited, retrained, noise, rece, uce, got esd"),
        (["second@1", "uce"], "expected two rows or more, got uce"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    store: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(COMPARE, "RESULTS", store)
    assert COMPARE.main(arguments) == 2
    assert capsys.readouterr().err.strip() == message


def test_the_table_of_methods_is_what_the_results_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert METHODS.main(["--check"]) == 0
    results = tmp_path / "benchmarks" / "results" / METHODS.TASK
    results.mkdir(parents=True)
    (tmp_path / "README.md").write_text((REPOSITORY / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    uce = json.loads((REPOSITORY / "benchmarks" / "results" / METHODS.TASK / "uce.json").read_text())
    uce["scores"]["all"]["pillars"]["erasure"]["value"] = 0.123
    (results / "uce.json").write_text(json.dumps(uce))
    assert METHODS.main(["--check"], tmp_path) == 1
    assert "run python benchmarks/method_table.py" in capsys.readouterr().out
    assert METHODS.main([], tmp_path) == 0
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| 0.12 |" in text
    # What has no result is not measured, never zero.
    assert (
        "| `rece` | [RECE](https://arxiv.org/abs/2407.12383) | closed form, text maps | - | - | - | - | - | - |" in text
    )
    (results.parent / METHODS.COST).write_text(json.dumps({"methods": {"rece": {"cpu_seconds": 12.3}}}))
    assert METHODS.main([], tmp_path) == 0
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| closed form, text maps | - | - | - | 12 | - |" in text
    with pytest.raises(ValueError, match="once each"):
        METHODS.written("no marks", {}, {}, {})


CLEAN = {"tensors": 14, "hooks": 0, "picture": True, "tensors_left": 0, "hooks_left": 0, "picture_left": False}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "bit for bit"),
        ({"tensors_left": 1}, "no"),
        ({"hooks_left": 1}, "no"),
        ({"picture_left": True}, "no"),
        ({"picture": False}, "-"),
    ],
)
def test_a_patch_that_changed_no_picture_or_left_a_trace_is_not_called_reversible(
    change: dict[str, Any], said: str
) -> None:
    head, _, first, *_ = METHODS.table({}, {}, {"uce": {**CLEAN, **change}}).splitlines()
    names, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (head, first))
    assert cells[names.index("reversible")] == said


@pytest.mark.full
def test_reversal_counts_what_a_patch_changes_and_what_it_leaves() -> None:
    class Careless:
        """Leaves a weight and a hook behind."""

        @contextmanager
        def applied(self, pipe: Any) -> Iterator[None]:
            pipe.unet.conv_in.weight.data += 1
            pipe.unet.conv_out.weight.data += 1
            yield
            pipe.unet.conv_out.weight.data -= 2
            pipe.unet.register_forward_hook(lambda *_: None)

    pipe = load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    patch = REVERSAL.patch_of("uce", "star", pipe)
    found = REVERSAL.reversal(patch, pipe, "a star")
    assert found == {**CLEAN, "tensors": len(patch.parameters)}
    assert REVERSAL.reversal(Careless(), pipe, "a star") == {
        "tensors": 2,
        "hooks": 0,
        "picture": True,
        "tensors_left": 2,
        "hooks_left": 1,
        "picture_left": True,
    }


def test_each_ablation_changes_what_its_name_says_and_nothing_else() -> None:
    for method, variants in ABLATION.VARIANTS.items():
        whole = get_eraser(method, **options_for(method, "shapes")).config()
        names = [ABLATION.name_of(method, variant) for variant in variants]
        assert len(set(names)) == len(names)
        for variant, changed in variants.items():
            config = get_eraser(method, **{**options_for(method, "shapes"), **changed}).config()
            assert {key for key in config if config[key] != whole[key]} == set(changed), variant


def test_the_table_of_ablations_has_every_interval_and_says_what_is_missing() -> None:
    score = {"value": 0.25, "low": 0.1, "high": 0.456}
    rows = {"unedited": {"explicit": score}, "dense": {"explicit": score, "probe/cce": {"value": None}}}
    found = {"robust_ablation": {"settings": {"dense": {"rank": 0}}, "rows": rows}}
    title, _, head, _, first, second, _ = ABLATION.table(found)
    assert title == "## `robust_ablation`"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, first, second)]
    assert cells[1] == ["unedited", "0.25 (0.10 to 0.46)", *["-"] * (len(ABLATION.SCORES) - 1)]
    assert cells[2][0] == "dense (`rank=0`)"
    assert cells[2][cells[0].index("CCE")] == "-"


@pytest.mark.parametrize("gram_cached", [False, True])
def test_the_edit_that_is_timed_is_that_of_the_method(gram_cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    edits: list[bool] = []
    edit = RECE.edit

    def watched(self: RECE, *given: Any) -> Any:
        edits.append(self.cache)
        return edit(self, *given)

    monkeypatch.setattr(RECE, "edit", watched)
    pipe, concept = SPEED.make_pipe("tiny"), Concept("van gogh", anchor="art")
    case = SPEED.edit_case(pipe, RECE(rounds=1, reg=0.1), [concept], 2, gram_cached=gram_cached)
    # One to warm up and two that count; then the whole fit, which remembers what it may.
    assert edits == [gram_cached] * 3 + [True]
    assert len(case["ratio_of_each_run"]) == 2


def test_what_is_recommended_is_what_the_committed_results_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert MEASURED.main(["--check"]) == 0, capsys.readouterr().out
    for part in ("benchmarks/results", "erasers/evaluation/recommend"):
        (tmp_path / part).mkdir(parents=True)
    for task in MEASURED.TASKS:
        shutil.copytree(REPOSITORY / "benchmarks" / "results" / task, tmp_path / "benchmarks" / "results" / task)
    for cost in (*MEASURED.COSTS.values(), *MEASURED.MANY.values()):
        shutil.copyfile(REPOSITORY / "benchmarks" / "results" / cost, tmp_path / "benchmarks" / "results" / cost)
    assert MEASURED.main(["--check"], tmp_path) == 1
    assert MEASURED.main([], tmp_path) == 0
    assert MEASURED.main(["--check"], tmp_path) == 0
    (tmp_path / "benchmarks" / "results" / MEASURED.TASKS[0] / "uce.json").unlink()
    assert MEASURED.main(["--check"], tmp_path) == 1
    assert "run python benchmarks/measured.py" in capsys.readouterr().out


def test_a_measured_score_is_that_of_the_leaderboard() -> None:
    result = json.loads((REPOSITORY / "benchmarks/results/shapes-standard@2/uce.json").read_text())
    row = MEASURED.row(result, {})
    own, pillars = row.figures["all"], result["scores"]["all"]["pillars"]
    assert own.erasure.value == pillars["erasure"]["value"]
    assert own.texts.value == pillars["robustness"]["value"]
    probes = {key: value for key, value in result["scores"]["all"]["details"].items() if key.startswith("probe/")}
    worst = probes[f"probe/{own.worst}"]
    assert worst["value"] == max(value["value"] for value in probes.values()) >= 1 - own.texts.value
    assert (own.probes.value, own.probes.low) == (1 - worst["value"], 1 - worst["high"])
    assert row.figures["stamp"].neighbours is None


@pytest.mark.parametrize("count", [1, 6, len(MANY.WORDS)])
def test_many_concepts_at_once_do_not_contradict_each_other(count: int) -> None:
    world, words = worlds.get("shapes"), MANY.WORDS[:count]
    concepts = as_concepts(MANY.concepts_of(world, words))
    assert [concept.name for concept in concepts] == list(words)
    for concept in concepts:
        assert concept.preserve
        kept = (concept.anchor, *concept.neighbours, *concept.preserve)
        assert not any(names(text, word) for text in kept for word in words)
    erased, kept = MANY.prompts_of(world, concepts, 20)
    assert len(erased) >= 20
    assert len(kept) == 20
    assert all(any(names(ask.text, word) for word in words) for ask in erased)
    assert not any(names(ask.text, word) for ask in kept for word in words)
