import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.judging import classifier_folder

from erasers.judges import Verdict, get_judge, weights
from erasers.judges.classifier import Classifier, pick_labels

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
COMMIT = "0" * 40
LABELS = ["red, scarlet", "green", "crane", "blue", "crane"]


def ask(value: str) -> Any:
    return SimpleNamespace(wants={"object": value})


def plain(colour: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose logits are 8 x the channels of the first pixel: red, green, 0, blue, 0."""
    return classifier_folder(tmp_path_factory.mktemp("models") / "tiny-vit", LABELS)


@pytest.fixture
def judge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Classifier:
    """The folder's judge, with a model that is easy to foresee in place of the random one."""
    made = get_judge(
        "classifier", model=folder, classes={"red": "red, scarlet", "green": ["green"], "cool": [1, "blue"]}
    )
    assert isinstance(made, Classifier)

    def logits(pixel_values: torch.Tensor) -> Any:
        red, green, blue = (4 * (pixel_values[:, :, 0, 0] + 1)).T
        return SimpleNamespace(logits=torch.stack([red, green, 0 * red, blue, 0 * red], 1))

    monkeypatch.setattr(made, "_model", logits)
    return made


def test_the_most_likely_label_decides(judge: Classifier) -> None:
    images = [plain("red"), plain("green"), plain("blue"), plain("green")]
    verdicts = judge.judge(images, [ask("red"), ask("red"), ask("cool"), ask("cool")])
    assert [verdict.value for verdict in verdicts] == [True, False, True, True]
    share = torch.tensor([8.0, 0, 0, 0, 0]).softmax(0)
    assert verdicts[0].probability == pytest.approx(float(share[0]))
    # Of two labels of one value the shares add up.
    assert verdicts[2].probability == pytest.approx(float(share[0] + share[1]))


def test_more_answers_may_count(folder: Path, judge: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    two = Classifier(model=folder, classes={"red": 0, "blue": 3}, top=2)
    monkeypatch.setattr(two, "_model", judge._model)
    purple = Image.new("RGB", (9, 9), (255, 0, 200))
    assert [verdict.value for verdict in two.judge([purple, purple], [ask("red"), ask("blue")])] == [True, True]
    assert [verdict.value for verdict in judge.judge([purple, purple], [ask("red"), ask("cool")])] == [True, False]


def test_the_real_model_runs_whatever_comes_beside_a_picture(folder: Path) -> None:
    judge = Classifier(model=folder)
    images = [plain("red"), plain("green", (64, 64)), plain("blue", (3, 90))]
    prompts = [ask("green"), ask("blue"), ask("red, scarlet")]
    together = judge.judge(images, prompts)
    assert together == [judge.judge([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    assert all(verdict.value is not None for verdict in together)
    # "crane" is the name of two labels, so it is no value.
    assert judge.sees == {"object": ("red, scarlet", "green", "blue")}
    assert judge.name == "classifier/tiny-vit@top1"


def test_numbers_that_are_none_are_unscored(judge: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = torch.full((1, 5), float("nan"))
    monkeypatch.setattr(judge, "_model", lambda pixel_values: SimpleNamespace(logits=nan))
    assert judge.judge([plain("red")], [ask("red")]) == [Verdict(None, reason="the judge's score is nan")]


def test_the_fingerprint_names_files_classes_and_rule(folder: Path, judge: Classifier) -> None:
    assert set(judge.fingerprint.files) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert judge.fingerprint.classes == {"object": {"red": [0], "green": [1], "cool": [1, 3]}}
    others = [Classifier(model=folder, top=2), Classifier(model=folder), Classifier(model=folder, kind="style")]
    assert len({other.fingerprint.digest for other in [*others, judge]}) == 4


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        ({"sea": "ocean"}, "label of the model, got 'ocean'; it has red, scarlet; green"),
        ({"red": "scarlet"}, r"got 'scarlet'; it has red, scarlet$"),
        ({"bird": "crane"}, "stands for 2, 4; give a number"),
        ({"red": [5]}, "between 0 and 4, got 5"),
        ({"red": []}, "at least one label for 'red'"),
        ({}, "at least one class"),
    ],
)
def test_labels_must_be_clear(classes: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pick_labels(classes, LABELS)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"top": 0}, "between 1 and 4, got 0"),
        ({"top": 5}, "between 1 and 4, got 5"),
        ({"revision": COMMIT}, "which has none"),
        ({"profile": "a/b"}, "without slashes and blanks, got 'a/b'"),
    ],
)
def test_bad_options_are_refused(folder: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Classifier(**{"model": folder, **options})


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_a_model_without_its_head_is_refused(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path / "model")
    state = {name: tensor for name, tensor in load_file(path / "model.safetensors").items() if "classifier" not in name}
    save_file(state, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks classifier\.bias, classifier\.weight; they would be random"):
        Classifier(model=path)


@pytest.mark.parametrize(
    ("name", "lacks"),
    [("model.safetensors", "weights as .safetensors"), ("preprocessor_config.json", "preprocessor_config.json")],
)
def test_incomplete_folders_are_refused(folder: Path, tmp_path: Path, name: str, lacks: str) -> None:
    path = copied(folder, tmp_path / "model")
    (path / name).rename(path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=f"which lacks {lacks}"):
        Classifier(model=path)


def test_code_in_a_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    own = {"AutoConfig": "own.Own", "AutoModelForImageClassification": "own.Own"}
    (path / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    (path / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        Classifier(model=path)


def test_an_index_that_names_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path / "model")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    with pytest.raises(OSError, match="pickles can run code"):
        Classifier(model=path)


def test_a_model_on_the_hub_is_pinned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    judge = Classifier(model="some/model", revision=COMMIT)
    assert judge.name == "classifier/model@top1"
    assert judge.fingerprint == Classifier(model=folder).fingerprint
    assert asked == [("some/model", COMMIT, ["*.json", "*.safetensors"])]
    for revision in (None, "main", "v1", "abc123"):
        with pytest.raises(ValueError, match="40 hex digits"):
            Classifier(model="some/model", revision=revision)
    assert len(asked) == 1


def test_a_model_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(FileNotFoundError, match="cannot load the model 'some/model': .*Hub cannot be reached"):
        weights.model_folder("some/model", COMMIT, ())
    for model in ("nowhere", Path("some/model"), "a/b/c"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            weights.model_folder(model, COMMIT, ())
