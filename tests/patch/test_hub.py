"""References to patches, model cards, and publishing."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import errors
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from erasers import Concept, ErasedPipeline, Patch, PatchError, get_eraser
from erasers.cli import app as cli
from erasers.patch.card import Facts, model_card
from erasers.patch.find import find_patch
from erasers.patch.publish import read_report

SCORE = {"value": 0.95, "n": 40, "low": 0.835, "high": 0.986}
GONE = {"value": 0.0, "n": 40, "low": 0.0, "high": 0.088}
SUMMARY = {
    "splits": {"explicit": {"before": SCORE, "after": GONE}},
    "concepts": {"star": {"explicit": {"before": SCORE, "after": GONE}}},
    "method": "uce",
    "model": "maker/model",
}


@pytest.fixture
def patch(pipe: Any) -> Patch:
    return get_eraser("uce").fit(pipe, Concept("star", anchor="circle", aliases=("moon",), preserve=("ring", "red")))


def renamed(patch: Patch, **fields: Any) -> Patch:
    """The patch with other metadata of its first concept."""
    return Patch(patch.tensors, {**patch.meta, "concepts": [{**patch.meta["concepts"][0], **fields}]})


def card_of(patch: Patch, **options: Any) -> str:
    return model_card(Facts(patch.meta, len(patch.parameters), len(patch.hooks), patch.nbytes), **options)


def http(kind: type[Exception]) -> Exception:
    return kind("no\nentry", response=SimpleNamespace(headers={}, request=None))


class FakeHub:
    """Repositories in memory: what is asked of the Hub, and what is put there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, error: Exception | None = None) -> None:
        self.folder, self.error, self.asked, self.created = folder, error, [], []
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.download)
        monkeypatch.setattr("huggingface_hub.HfApi", self.api)

    def api(self, token: str | None = None) -> Any:
        self.token = token
        return SimpleNamespace(list_repo_files=self.files, create_repo=self.create, upload_folder=self.upload)

    def download(self, repo: str, file: str, revision: str | None = None) -> str:
        self.asked.append((repo, file, revision))
        if self.error:
            raise self.error
        if not (self.folder / repo).is_dir():
            raise http(errors.RepositoryNotFoundError)
        if not (self.folder / repo / file).is_file():
            raise http(errors.RemoteEntryNotFoundError)
        return str(self.folder / repo / file)

    def files(self, repo: str, revision: str | None = None) -> list[str]:
        root = self.folder / repo
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

    def create(self, repo: str, private: bool | None, exist_ok: bool) -> Any:
        if self.error:
            raise self.error
        self.created.append((repo, private, exist_ok))
        return type("Url", (str,), {"repo_id": repo})(f"https://hub/{repo}")

    def upload(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert "\n" not in commit_message
        shutil.copytree(folder_path, self.folder / repo_id)


def test_a_file_or_a_folder_with_one_patch_is_a_reference(patch: Patch, pipe: Any, tmp_path: Path) -> None:
    patch.save(tmp_path / "star.safetensors")
    (tmp_path / "notes.txt").write_text("")
    torch_file = tmp_path / "other.safetensors"
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, torch_file)
    (tmp_path / "broken.safetensors").write_bytes(b"\x10")
    patch.to_delta(pipe, tmp_path)
    for reference in (tmp_path, str(tmp_path), tmp_path / "star.safetensors", str(tmp_path / "star.safetensors")):
        assert find_patch(reference) == tmp_path / "star.safetensors"
    patch.save(tmp_path / "star2.safetensors")
    with pytest.raises(PatchError, match=r"got star\.safetensors, star2\.safetensors; name the file"):
        find_patch(tmp_path)
    patch.save(tmp_path / "patch.safetensors")
    assert find_patch(tmp_path) == tmp_path / "patch.safetensors"


def test_a_folder_without_a_patch_is_refused(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="got none$"):
        find_patch(tmp_path)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="give it as the base"):
        find_patch(tmp_path)


@pytest.mark.parametrize(
    ("reference", "asked"),
    [
        ("me/star", ("me/star", "patch.safetensors", None)),
        ("me/star@v1.0", ("me/star", "patch.safetensors", "v1.0")),
        ("me/star/patch.safetensors", ("me/star", "patch.safetensors", None)),
        ("me/star/deep/er.safetensors@refs/pr/1", ("me/star", "deep/er.safetensors", "refs/pr/1")),
    ],
)
def test_a_hub_id_is_a_reference(
    reference: str, asked: tuple[str, ...], patch: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "me/star/deep").mkdir(parents=True)
    for name in ("patch.safetensors", "deep/er.safetensors"):
        patch.save(tmp_path / "me/star" / name)
    hub = FakeHub(monkeypatch, tmp_path)
    assert Patch.load(find_patch(reference)).digest == patch.digest
    assert hub.asked == [asked]


def test_the_only_safetensors_file_of_a_repository_is_taken(
    patch: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "me/star/deep").mkdir(parents=True)
    for name in ("star.safetensors", "deep/er.safetensors"):
        patch.save(tmp_path / "me/star" / name)
    (tmp_path / "me/star/pytorch_model.bin").write_bytes(b"pickle")
    FakeHub(monkeypatch, tmp_path)
    assert find_patch("me/star").name == "star.safetensors"
    patch.save(tmp_path / "me/star/ring.safetensors")
    with pytest.raises(PatchError, match=r"got ring\.safetensors, star\.safetensors; name it: me/star/FILE"):
        find_patch("me/star")
    with pytest.raises(FileNotFoundError, match=r"me/star has no file nothing\.safetensors"):
        find_patch("me/star/nothing.safetensors")


@pytest.mark.parametrize(
    "reference",
    ["star.safetensors", "folder/star.safetensors", "./a/b", "../a/b", "~/a/b", "/a/b", "a/b/c", "a", "", "a\\b/c",
     "a/b/../c.safetensors", "a/b/patch.bin", "a/b@", Path("me/star")],
)  # fmt: skip
def test_what_is_no_hub_id_never_reaches_the_hub(
    reference: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = FakeHub(monkeypatch, tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a patch") as caught:
        find_patch(reference)
    assert hub.asked == []
    assert "\n" not in str(caught.value)


def test_offline_and_unknown_repositories_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = errors.LocalEntryNotFoundError("not in\nthe cache")
    lost.__cause__ = errors.OfflineModeIsEnabled("off")
    for error, words in (
        (lost, "cannot be reached; connect, or give a file"),
        (type("ConnectError", (Exception,), {})("lost"), "cannot be reached"),
        (None, "check the spelling"),
        (http(errors.HfHubHTTPError), r"no \(HfHubHTTPError\)"),
    ):
        FakeHub(monkeypatch, tmp_path, error)
        with pytest.raises(FileNotFoundError, match=words) as caught:
            find_patch("me/star")
        assert "\n" not in str(caught.value)


def test_the_real_client_offline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"cannot load the patch 'me/star': no such file, and the Hub cannot"):
        find_patch("me/star")


def test_a_card_says_what_the_patch_is(patch: Patch) -> None:
    card = card_of(patch, repo_id="me/star", license="apache-2.0", summary=SUMMARY, picture="grid.png")
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "erasers",
        "tags": ["diffusers", "concept-erasure"],
        "base_model": "maker/model",
        "license": "apache-2.0",
    }
    assert "# star erased" in text
    assert "| star | circle | moon | 2 |" in text
    assert "| explicit | the erased concept | 40 | 95.0 (83.5 to 98.6) | 0.0 (0.0 to 8.8) |" in text
    assert "neighbour |" not in text
    assert "Judged by" not in text
    judges = [{"name": "clip|zeroshot/x"}, {"name": "nudenet/y"}, "odd"]
    assert "interval. Judged by clip\\|zeroshot/x, nudenet/y." in card_of(patch, summary={**SUMMARY, "judges": judges})
    assert "Judged" not in card_of(patch, summary={**SUMMARY, "judges": 7})
    assert "![Pictures before and after](grid.png)" in text
    assert f"maker/model; {len(patch.parameters)} weights in float32" in text
    assert f"{patch.nbytes:,} bytes" in text
    for word in ("uce", "Erasing is not deleting", "Neighbours", "prompt trained against"):
        assert word in text


def test_a_card_says_that_hooks_are_not_in_the_checkpoint(patch: Patch, pipe: Any) -> None:
    hooked = card_of(patch.to_hooks(pipe))
    assert "| edited weights | 0 |\n| hooks | 1, which run during generation |" in hooked
    assert "| hooks | none |" in card_of(patch)
    assert "weights saved without the patch are not erased" in hooked
    assert "into a plain diffusers folder" not in hooked
    assert "into a plain diffusers folder" in card_of(patch)


def test_the_usage_in_a_card_runs(patch: Patch, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("maker/model")
    patch.save("patch.safetensors")
    monkeypatch.setattr(
        "erasers.pipeline.load_pipeline", lambda base: pipe if base == "maker/model" else pytest.fail(base)
    )
    pipe.__class__ = type("Quick", (type(pipe),), {"__call__": lambda self, prompt: SimpleNamespace(images=[prompt])})
    code = re.search(r"```python\n(.*?)```", card_of(patch, base_model="maker/model"), re.DOTALL)[1]
    assert len(code.splitlines()) <= 6
    names: dict[str, Any] = {}
    exec(code, names)
    assert patch.is_applied(names["pipe"])


def test_what_a_card_is_not_told_is_missing(patch: Patch) -> None:
    card = card_of(patch)
    assert set(yaml.safe_load(card.split("---\n")[1])) == {"library_name", "tags"}
    assert "no judge has scored this patch" in card
    assert "grid.png" not in card
    assert "not named" in card
    for damage in ({"explicit": {"before": SCORE}}, {"explicit": {"before": SCORE, "after": {"value": 0}}}, [], None):
        assert "no judge" in card_of(patch, summary={**SUMMARY, "splits": damage})
    with pytest.raises(ValueError, match="Hub id"):
        card_of(patch, base_model="/home/me/model")
    assert "/home/me" not in card_of(patch, summary={**SUMMARY, "model": "/home/me/model"})
    assert "the model in the package" in card_of(patch, summary={**SUMMARY, "model": "shapes"})


def test_text_out_of_a_patch_is_not_markup(patch: Patch) -> None:
    name = (
        "x\n---\n# big | <script>alert(1)</script> [a](javascript:b) `c` ![d](http://www.e.f) \u202e\x1b[31m *g* &amp;"
    )
    evil = renamed(patch, name=name, anchor=name, aliases=[name])
    card = card_of(evil, summary={**SUMMARY, "note": name})
    plain = re.sub(r"\\.", "", card_of(patch, summary={**SUMMARY, "note": "n"}))
    bare = re.sub(r"\\.", "", card)  # without escaped characters no markup of the name is left
    for mark in ("|", "<", "[", "]", "`", "!", "#", "*", "&"):
        assert bare.count(mark) == plain.count(mark), mark
    assert len(card.splitlines()) == len(card_of(patch, summary=SUMMARY).splitlines())
    assert not set("\u202e\x1b") & set(card)
    assert "www.e" not in card
    assert yaml.safe_load(card.split("---\n")[1]).keys() == {"library_name", "tags", "base_model"}


def test_a_card_stays_readable(patch: Patch) -> None:
    many = Patch(patch.tensors, {**patch.meta, "concepts": [{"name": "s" * 500}, *[{"name": i} for i in range(60)]]})
    card = card_of(many)
    assert "and 11 more." in card
    assert max(len(line) for line in card.splitlines() if "sss" in line and line.startswith("|")) < 200
    listed = card_of(renamed(patch, preserve={"count": 200, "sha256": "0"}, aliases={"count": 40, "sha256": "0"}))
    assert "| star | circle | 40 | 200 |" in listed


def test_a_report_of_another_erasure_is_refused(patch: Patch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"erase --report.*without summary\.json"):
        read_report(patch.meta, patch.digest, tmp_path)
    for other, words in (
        ({**SUMMARY, "method": "rece"}, "on star with rece"),
        ({**SUMMARY, "concepts": {"heart": {}}}, "on heart with uce"),
        ([], "something else"),
    ):
        (tmp_path / "summary.json").write_text(json.dumps(other))
        with pytest.raises(ValueError, match=words):
            read_report(patch.meta, patch.digest, tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match="as JSON"):
        read_report(patch.meta, patch.digest, tmp_path)


def test_push(patch: Patch, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report"
    report.mkdir()
    (report / "summary.json").write_text(json.dumps(SUMMARY))
    Image.new("RGB", (7, 5), (1, 2, 3)).save(report / "grid.png", pnginfo=secret_text())
    with (report / "grid.png").open("ab") as file:
        file.write(b"SECRET behind the picture")
    hub = FakeHub(monkeypatch, tmp_path / "hub")
    url = patch.push_to_hub("me/star", private=True, token="t", report=report, license="mit")
    assert url == "https://hub/me/star"
    assert hub.created == [("me/star", True, True)]
    assert hub.token == "t"
    assert hub.files("me/star") == ["README.md", "grid.png", "patch.safetensors"]
    pushed = tmp_path / "hub/me/star/grid.png"
    assert b"SECRET" not in pushed.read_bytes()
    with Image.open(pushed, formats=["PNG"]) as picture:
        assert (picture.size, picture.getpixel((6, 4))) == ((7, 5), (1, 2, 3))
    card = (tmp_path / "hub/me/star/README.md").read_text(encoding="utf-8")
    assert card == card_of(patch, repo_id="me/star", license="mit", summary=SUMMARY, picture="grid.png")
    pipe.save_pretrained(tmp_path / "base")
    erased = ErasedPipeline.from_pretrained(tmp_path / "base", patches=["me/star"])
    expected = patch.apply(pipe).unet.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in erased.unet.state_dict().items())


def secret_text() -> PngInfo:
    info = PngInfo()
    info.add_text("comment", "SECRET")
    return info


def plant(report: Path, what: str, name: str) -> None:
    """Put something in the place of a file of a report that is not that file."""
    secret, place = report.parent / "secret", report / name
    secret.write_text(json.dumps(SUMMARY))
    place.unlink(missing_ok=True)
    if what == "link":
        place.symlink_to(secret)
    elif what == "dangling":
        place.symlink_to(report / "nothing")
    elif what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    elif what == "text":
        place.write_text("SECRET")
    else:
        Image.new("RGB", (8, 8)).save(place, format=what)


@pytest.mark.parametrize("name", ["grid.png", "summary.json"])
@pytest.mark.parametrize("what", ["link", "dangling", "pipe", "folder", "text", "JPEG", "GIF", "EPS", "TIFF"])
def test_only_a_reports_own_files_are_pushed(
    what: str, name: str, patch: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report"
    report.mkdir()
    (report / "summary.json").write_text(json.dumps(SUMMARY))
    plant(report, what, name)
    hub = FakeHub(monkeypatch, tmp_path / "hub")
    with pytest.raises(ValueError, match=re.escape(name)) as caught:
        patch.push_to_hub("me/star", report=report)
    assert "\n" not in str(caught.value)
    assert hub.created == []


def test_a_cut_picture_is_not_pushed(patch: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    Image.effect_noise((64, 64), 50).save(tmp_path / "grid.png")
    (tmp_path / "grid.png").write_bytes((tmp_path / "grid.png").read_bytes()[:-900])
    hub = FakeHub(monkeypatch, tmp_path / "hub")
    with pytest.raises(ValueError, match="whole PNG picture"):
        patch.push_to_hub("me/star", report=tmp_path)
    assert hub.created == []


def test_a_report_on_another_fit_is_refused(patch: Patch, pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({**SUMMARY, "patch_sha256": patch.digest}))
    assert read_report(patch.meta, patch.digest, tmp_path)["method"] == "uce"
    other = get_eraser("uce", ridge=0.25).fit(pipe, "star")
    with pytest.raises(ValueError, match="another fit"):
        read_report(other.meta, other.digest, tmp_path)


def test_a_push_that_fails_is_one_line(patch: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, words in (
        (errors.OfflineModeIsEnabled("off"), "cannot push to 'me/star': the Hub cannot be reached"),
        (http(errors.RepositoryNotFoundError), "hf auth login"),
    ):
        FakeHub(monkeypatch, tmp_path, error)
        with pytest.raises(OSError, match=words):
            patch.push_to_hub("me/star")
    hub = FakeHub(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="user/name"):
        patch.push_to_hub("../star")
    with pytest.raises(FileNotFoundError, match="erase --report"):
        patch.push_to_hub("me/star", report=tmp_path)
    assert hub.created == []


def test_the_command_takes_references_and_pushes(
    patch: Patch, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    pipe.save_pretrained(tmp_path / "base")
    (tmp_path / "folder").mkdir()
    patch.save(tmp_path / "folder" / "star.safetensors")
    hub = FakeHub(monkeypatch, tmp_path / "hub")
    assert cli.run(["push", "folder", "me/star", "--private", "--base", "maker/model"]) == 0
    assert "https://hub/me/star" in capsys.readouterr().out
    assert hub.created == [("me/star", True, True)]
    assert 'from_pretrained("maker/model", patches=["me/star"])' in (tmp_path / "hub/me/star/README.md").read_text()
    assert cli.run(["inspect", "me/star"]) == 0
    assert "star  -> 'circle'" in capsys.readouterr().out
    assert cli.run(["apply", "me/star", "--model", "base", "--save", "erased"]) == 0
    assert json.loads((tmp_path / "erased/erasure.json").read_text())["patches"][0]["sha256"] == patch.digest
    for command in (["apply", "--save", "twice"], ["generate", "star"]):
        option = ["--patch", "folder"] if command[0] == "generate" else ["folder"]
        assert cli.run([*command, *option, "--model", "erased"]) == 2
        assert "carries Patch(uce: 'star'" in capsys.readouterr().err


def test_a_push_without_private_leaves_the_choice_to_the_account(
    patch: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch.save(tmp_path / "star.safetensors")
    hub = FakeHub(monkeypatch, tmp_path / "hub")
    assert cli.run(["push", str(tmp_path / "star.safetensors"), "me/star"]) == 0
    assert hub.created == [("me/star", None, True)]
