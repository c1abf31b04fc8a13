"""The runner on the embedded model: what it draws, what it never does twice, and that processes change nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from support.runs import complete, killed_after, results
from support.tasks import tiny_task

from erasers import Patch, PatchError, get_eraser, load_pipeline
from erasers.evaluation.drawing import generate
from erasers.evaluation.run import units as drawing
from erasers.evaluation.run.run import Run
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.run.states import Row, kept_patch
from erasers.evaluation.run.units import units
from erasers.evaluation.run.verifying import Verifier
from erasers.evaluation.tasks.task import Task, parse_task
from erasers.judges.oracle import Oracle
from erasers.processes import Share
from erasers.worlds.shapes.drawn import UNRECORDED

GOLD = "benchmarks/reference/unet-without-star"
TASK = parse_task(tiny_task(cases=[["star"], ["star", "ring"]], references={"star": GOLD, "star+ring": "nowhere"}))
UCE = Row("uce", "method", "uce", eraser=get_eraser("uce"))


@pytest.fixture(scope="module")
def shapes() -> Any:
    return load_pipeline("shapes")


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture(scope="module")
def finished(shapes: Any, oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the task was run by one process."""
    out = tmp_path_factory.mktemp("finished")
    weights = {name: tensor.clone() for name, tensor in shapes.unet.state_dict().items()}
    complete(Run(Stage(TASK, shapes, oracle, out, [UCE])))
    assert all(torch.equal(weights[name], tensor) for name, tensor in shapes.unet.state_dict().items())
    return out


@pytest.fixture
def start(shapes: Any, oracle: Oracle) -> Callable[..., Run]:
    def make(out: Path, task: Task = TASK, rows: Any = (UCE,), share: Share = Share()) -> Run:  # noqa: B008
        return Run(Stage(task, shapes, oracle, out, rows, share))

    return make


@pytest.fixture
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("drawn")

    monkeypatch.setattr(drawing, "generate", refuse)


def pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "images").rglob("*.png")}


def samples(out: Path, row: str, case: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "tiny@1" / f"{row}.json").read_text())["cases"][case]["samples"]
    return found


def test_every_row_has_its_cases_and_scores_that_follow(finished: Path) -> None:
    rows = {name: json.loads(content) for name, content in results(finished).items()}
    assert {name: sorted(row["cases"]) for name, row in rows.items()} == {
        "unedited.json": ["star", "star+ring"],
        "reference.json": ["star"],
        "uce.json": ["star", "star+ring"],
    }
    assert [Verifier().verify(finished / "tiny@1" / name).wrong for name in rows] == [()] * 3
    uce = rows["uce.json"]
    options = json.loads(json.dumps(get_eraser("uce").config()))
    assert uce["row"] == {"name": "uce", "kind": "method", "method": "uce", "options": options}
    assert uce["cases"]["star"]["patch"]["bytes"] > 0 < uce["cases"]["star"]["patch"]["edit_seconds"]
    assert rows["unedited.json"]["cases"]["star"]["patch"] is None
    assert uce["judge"]["name"] == "oracle/shapes"
    assert [len(uce["cases"][case]["samples"]) for case in ("star", "star+ring")] == [5, 10]


def test_rows_record_how_they_were_drawn(finished: Path) -> None:
    import diffusers
    import transformers

    for row in (json.loads(content) for content in results(finished).values()):
        drawn = row["drawn"]
        assert (row["format"], drawn["dtype"], drawn["device"]) == (2, "float32", "cpu")
        assert drawn["scheduler"]["class"] == "DDIMScheduler"
        versions = {module.__name__: module.__version__ for module in (diffusers, torch, transformers)}
        assert drawn["versions"] == {name: str(version) for name, version in versions.items()}
        assert all("pixels" in sample for case in row["cases"].values() for sample in case["samples"])
    # Rows of the embedded model that do not record it were drawn so.
    assert {key: drawn[key] for key in ("scheduler", "dtype")} == {
        key: UNRECORDED[key] for key in ("scheduler", "dtype")
    }


def test_a_store_that_was_tampered_with_gives_the_same_results(
    start: Callable[..., Run], finished: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    shutil.rmtree(out / "tiny@1")
    shown = sorted((out / "images").rglob("*.png"))
    first, second = (path.read_bytes() for path in shown[:2])
    shown[0].write_bytes(second)
    shown[1].write_bytes(first)
    Image.new("RGB", (32, 32)).save(shown[2], format="BMP")
    verdicts = next((out / "verdicts").rglob("*.jsonl"))
    lines = verdicts.read_text().splitlines(keepends=True)
    for number in (0, 1):
        lines[number] = lines[number].replace(":true", ":x").replace(":false", ":true").replace(":x", ":false")
    verdicts.write_text("".join(lines))
    run = start(out)
    complete(run)
    assert run.damaged == 5
    assert results(out) == results(finished)
    assert pictures(out) == pictures(finished)
    patch = next((out / "patches").glob("*.safetensors"))
    content = patch.read_bytes()
    patch.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    run = start(out)
    complete(run)
    # The two lines of verdicts are still there.
    assert run.damaged == 3
    assert patch.read_bytes() == content


def test_patches_that_a_folder_has_are_not_fitted_again(
    start: Callable[..., Run], shapes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    esd = get_eraser("esd", iterations=1, steps=1, pictures=1, lr=1e-2)
    patch = esd.fit(shapes, list(TASK.concepts("star")), progress=False)
    (tmp_path / "patches").mkdir()
    patch.save(tmp_path / "patches" / "esd-star.safetensors")
    task = replace(TASK, cases=(("star",),), references={}, patches=str(tmp_path / "patches"))
    fitted: list[str] = []
    fit = type(esd).fit

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        fitted.append(self.name)
        return fit(self, *arguments, **options)

    monkeypatch.setattr(type(esd), "fit", watched)
    run = start(tmp_path / "out", task, [Row("esd", "method", "esd", eraser=esd)])
    assert run.fitting.left() == 1
    run.fitting.work()
    assert fitted == []
    assert run.fitting.left() == 0
    (scene,) = [scene for scene in run.stage.scenes if scene.row.name == "esd"]
    assert scene.patch == {"digest": patch.digest, "bytes": scene.patch["bytes"], "edit_seconds": None}
    # Other options are another patch.
    other = get_eraser("esd", iterations=1, steps=1, pictures=1, lr=2e-2)
    start(tmp_path / "other", task, [Row("esd", "method", "esd", eraser=other)]).fitting.work()
    assert fitted == ["esd"]


def test_a_stack_is_fitted_on_the_patch_that_a_folder_has_of_its_first_method(
    start: Callable[..., Run], shapes: Any, tmp_path: Path
) -> None:
    options = {"iterations": 1, "steps": 1, "pictures": 1, "lr": 1e-2, "rank": 2}
    first = get_eraser("esd", **options).fit(shapes, list(TASK.concepts("star")), progress=False)
    (tmp_path / "patches").mkdir()
    first.save(tmp_path / "patches" / "esd-star.safetensors")
    stack = get_eraser("esd+uce", **{f"esd.{key}": value for key, value in options.items()})
    row = Row("esd+uce", "method", "esd+uce", eraser=stack)

    def fitted(folder: str, patches: str) -> Any:
        task = replace(TASK, cases=(("star",),), references={}, patches=str(tmp_path / patches))
        run = start(tmp_path / folder, task, [row])
        counts = run.fitting.costs()
        run.fitting.work()
        (scene,) = [scene for scene in run.stage.scenes if scene.row.name == "esd+uce"]
        return counts["esd+uce"], scene.patch

    calls, kept = fitted("out", "patches")
    assert calls.denoiser == 0
    assert kept["edit_seconds"] is None
    calls, anew = fitted("other", "nowhere")
    assert calls.denoiser > 0
    assert anew["edit_seconds"] > 0
    assert kept["digest"] == anew["digest"]


def test_a_folder_with_the_patch_of_a_first_method_has_none_of_the_stack(tmp_path: Path, shapes: Any) -> None:
    stack, star = get_eraser("esd+uce", **{"esd.iterations": 1, "esd.steps": 1}), list(TASK.concepts("star"))
    get_eraser("uce").fit(shapes, star).save(tmp_path / "esd-star.safetensors")
    assert kept_patch([tmp_path], "esd+uce", stack, "star", star) is None
    # One of that name with other options is none of it either.
    get_eraser("uce").fit(shapes, star).save(tmp_path / "esd+uce-star.safetensors")
    assert kept_patch([tmp_path], "esd+uce", stack, "star", star) is None


def test_a_stack_is_fitted_on_the_patch_that_the_store_has_of_its_first_method(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    options = {"iterations": 1, "steps": 1, "pictures": 1, "lr": 1e-2, "rank": 2}
    alone = Row("esd", "method", "esd", eraser=get_eraser("esd", **options))
    task = replace(TASK, cases=(("star",),), references={}, patches="")

    def stacked(**options: Any) -> Row:
        eraser = get_eraser("esd+uce", **{f"esd.{key}": value for key, value in options.items()})
        return Row("esd+uce", "method", "esd+uce", eraser=eraser)

    def fitted(folder: str, row: Row) -> tuple[int, Any]:
        run = start(tmp_path / folder, task, [row])
        calls = run.fitting.costs()[row.name]
        run.fitting.work()
        (scene,) = [scene for scene in run.stage.scenes if scene.row.name == row.name]
        return calls.denoiser, scene.patch

    _, first = fitted("out", alone)
    calls, kept = fitted("out", stacked(**options))
    assert calls == 0
    assert kept["edit_seconds"] > first["edit_seconds"]
    calls, anew = fitted("other", stacked(**options))
    assert calls > 0
    assert kept["digest"] == anew["digest"]
    # With other options the first patch is another one.
    calls, _ = fitted("out", stacked(**options | {"lr": 2e-2}))
    assert calls > 0


def test_pictures_are_those_of_plain_calls_in_each_state(finished: Path, shapes: Any) -> None:
    def drawn(row: str, case: str = "star") -> list[bytes]:
        found = {(s["text"], s["seed"]): s["image"] for s in samples(finished, row, case)}
        shown = pictures(finished)
        return [shown[f"{found[ask.text, ask.seed]}.png"] for ask in TASK.draws(case)[:2]]

    def plain() -> list[bytes]:
        images = next(iter(generate(shapes, TASK.draws("star")[:2], steps=2, guidance=4.0, batch=2)))
        return [_png(image) for image in images]

    assert drawn("unedited") == plain()
    patch = get_eraser("uce").fit(shapes, list(TASK.concepts("star")), generator=torch.Generator().manual_seed(0))
    with patch.applied(shapes):
        assert drawn("uce") == plain()
    before = shapes.unet
    shapes.unet = UNet2DConditionModel.from_pretrained(GOLD)
    try:
        assert drawn("reference") == plain()
    finally:
        shapes.unet = before
    assert len({tuple(drawn(row)) for row in ("unedited", "uce", "reference")}) == 3


def _png(image: Any) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_picture_that_two_cases_ask_for_is_drawn_once(finished: Path) -> None:
    unedited = [s["image"] for case in ("star", "star+ring") for s in samples(finished, "unedited", case)]
    # The explicit prompts about stars are those of both cases.
    assert len(set(unedited)) <= len(unedited) - 3
    uce = [s["image"] for case in ("star", "star+ring") for s in samples(finished, "uce", case)]
    assert len(set(uce)) == len(uce)


@pytest.mark.usefixtures("nothing_is_drawn")
def test_what_is_done_is_not_done_again(finished: Path, start: Callable[..., Run], tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    before = results(out)
    shards = sorted((out / "verdicts").rglob("*.jsonl"))
    run = start(out)
    assert set(run.picturing.missing().values()) == {0}
    complete(run)
    assert results(out) == before
    assert sorted((out / "verdicts").rglob("*.jsonl")) == shards


@pytest.mark.usefixtures("nothing_is_drawn")
def test_another_judge_judges_anew_and_draws_nothing(finished: Path, shapes: Any, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "copy")
    other = Oracle()
    other.fingerprint = replace(other.fingerprint, rule="another")
    complete(Run(Stage(TASK, shapes, other, out, [UCE])))
    assert len(list((out / "verdicts").iterdir())) == 2
    old, new = (json.loads(files["uce.json"]) for files in (results(finished), results(out)))
    assert (old["cases"], old["figures"]) == (new["cases"], new["figures"])
    assert old["judge"] != new["judge"]
    # What was measured of the old judge corrects nothing of the new one.
    details = [row["scores"]["all"].pop("details") for row in (old, new)]
    assert old["scores"]["all"] == new["scores"]["all"]
    assert {name for name in details[0] if name not in details[1]} == {"corrected/explicit", "corrected/unrelated"}


def test_whatever_is_missing_comes_again_as_it_was(
    finished: Path, start: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[Any]] = []

    def spy(pipe: Any, asks: Any, **settings: Any) -> Any:
        batches.append(asks)
        return generate(pipe, asks, **settings)

    monkeypatch.setattr(drawing, "generate", spy)
    out = shutil.copytree(finished, tmp_path / "copy")
    for path in sorted((out / "images").rglob("*.png"))[::3]:
        path.unlink()
    shard = next((out / "verdicts").rglob("*.jsonl"))
    shard.write_bytes(shard.read_bytes()[:-400])
    shutil.rmtree(out / "tiny@1")
    run = start(out)
    assert run.picturing.left() > 0
    assert sum(run.picturing.missing().values()) == len(pictures(finished)) - len(pictures(out))
    complete(run)
    assert pictures(out) == pictures(finished)
    assert results(out) == results(finished)
    # The last bits of a picture depend on how many are drawn with it, so batches are drawn whole.
    whole = [units(run.stage, scene) for scene in run.stage.scenes]
    prompts = [[shared[0] for _, shared in unit.pictures] for scene in whole for unit in scene]
    assert batches
    assert all(batch in prompts for batch in batches)


@pytest.mark.full
def test_other_numbers_of_processes_give_the_same_files(
    finished: Path, start: Callable[..., Run], tmp_path: Path
) -> None:
    # The costs are those of the first fit, so both have to start from it.
    shutil.copytree(finished / "patches", tmp_path / "patches")
    second, first = (start(tmp_path, share=Share(rank, 2)) for rank in (1, 0))
    with pytest.raises(InterruptedError):
        second.picturing.work(killed_after(second.picturing.left()))
    assert 0 < len(pictures(tmp_path)) < len(pictures(finished))
    # The first does its own share, and the rest if the second never comes back.
    complete(first)
    assert pictures(tmp_path) == pictures(finished)
    assert results(tmp_path) == results(finished)
    assert len(list((tmp_path / "verdicts").rglob("*.jsonl"))) == 2


@pytest.mark.usefixtures("nothing_is_drawn")
def test_counting_what_is_missing_fits_and_draws_nothing(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start(tmp_path)
    unique = {(s.text, s.seed) for case in TASK.named_cases for s in TASK.draws(case)}
    assert run.picturing.missing() == {"unedited": len(unique), "reference": 5, "uce": 15}
    assert run.stage.lacking == ["star+ring"]
    assert list(tmp_path.iterdir()) == []


def test_a_patch_is_a_row_of_its_own_case(start: Callable[..., Run], shapes: Any, tmp_path: Path) -> None:
    patch = get_eraser("uce").fit(shapes, list(TASK.concepts("star")))
    task = replace(TASK, references={}).limited(1)
    paths = complete(start(tmp_path, task, [Row("mine", "patch", "uce", patch=patch)]))
    assert [path.name for path in paths] == ["unedited.json", "mine.json"]
    assert paths[0].parent.name == "tiny@1-limit1"
    mine = json.loads(paths[1].read_text())
    assert list(mine["cases"]) == ["star"]
    assert mine["cases"]["star"]["patch"] == {"digest": patch.digest, "bytes": patch.nbytes, "edit_seconds": None}
    assert mine["row"]["options"] == dict(patch.meta["config"])
    assert Verifier().verify(paths[1]).wrong == ()


def test_a_patch_that_fits_nothing_is_refused_first(start: Callable[..., Run], shapes: Any, tmp_path: Path) -> None:
    other = get_eraser("uce").fit(shapes, "heart")
    with pytest.raises(ValueError, match="a patch for one of star, star\\+ring, got one for heart"):
        start(tmp_path, rows=[Row("mine", "patch", "uce", patch=other)])
    fitted = get_eraser("uce").fit(shapes, "star")
    base = dict.fromkeys(fitted.meta["base"], 64 * "0")
    foreign = Patch(fitted.tensors, dict(fitted.meta) | {"base": base})
    with pytest.raises(PatchError):
        start(tmp_path, rows=[Row("mine", "patch", "uce", patch=foreign)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["unedited", "reference", "uce"])
def test_rows_need_names_of_their_own(name: str, start: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"got twice: {name}"):
        start(tmp_path, rows=[UCE, replace(UCE, name=name)])


def test_every_setting_has_pictures_of_its_own(start: Callable[..., Run], tmp_path: Path) -> None:
    sampling = TASK.sampling
    others = [replace(sampling, steps=3), replace(sampling, guidance=2.0), replace(sampling, size=64)]
    tasks = [TASK, *(replace(TASK, sampling=other) for other in others)]
    keys = []
    for task in tasks:
        run = start(tmp_path, task, [])
        keys.append({key for scene in run.stage.scenes for unit in units(run.stage, scene) for key, _ in unit.pictures})
    assert len(set.union(*keys)) == sum(map(len, keys))
    # How many are drawn together is not a setting.
    batched = start(tmp_path, replace(TASK, sampling=replace(sampling, batch=1)), [])
    assert {
        k for scene in batched.stage.scenes for unit in units(batched.stage, scene) for k, _ in unit.pictures
    } == keys[0]


def test_writing_before_everything_is_judged_is_refused(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start(tmp_path, replace(TASK, references={}), [])
    with pytest.raises(ValueError, match="a verdict on every picture, got none on"):
        run.write()
    with pytest.raises(ValueError, match="fit comes first"):
        start(tmp_path).picturing.work()
