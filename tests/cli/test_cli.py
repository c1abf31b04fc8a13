"""The `erase` command: the main job on the embedded model, and one clear line for every bad input."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from diffusers import LCMScheduler
from PIL import Image

from erasers import Concept, Patch, worlds
from erasers.cli import app as cli
from erasers.cli.concepts import build_concepts
from erasers.cli.eraser import build_eraser
from erasers.cli.model import ModelOptions
from erasers.cli.targets import default_out

STAR = ("--concept", "star", "--model", "shapes")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def star_patch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch of the embedded model, saved."""
    from erasers import get_eraser, load_pipeline
    from erasers.worlds.shapes.prompts import concept_for

    path = tmp_path_factory.mktemp("patch") / "star.safetensors"
    get_eraser("uce").fit(load_pipeline("shapes"), concept_for("star")).save(path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr with which a command ends; its exit code has to be 2."""
    capsys.readouterr()  # what was said before the command
    code = cli.run([str(argument) for argument in arguments])
    output, error = capsys.readouterr()
    assert code == 2
    assert output == ""
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("error: ")
    return error


def save_in_few_steps(pipe: Any, folder: str) -> None:
    """Save a pipeline with a scheduler that draws in four steps."""
    pipe.scheduler = LCMScheduler(steps_offset=1)
    pipe.save_pretrained(folder)


def test_the_main_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.run([*STAR, "--method", "rece", "--out", "star.safetensors", "--report", "a/report", "--samples", "3"]) == 0
    )
    output = capsys.readouterr().out
    assert "star -> 'circle'" in output
    assert "explicit" in output
    assert "a/report/index.html" in output
    assert "next      erase generate PROMPT --model shapes --patch star.safetensors" in output
    patch = Patch.load("star.safetensors")
    assert patch.meta["concepts"][0]["name"] == "star"
    summary = json.loads(Path("a/report/summary.json").read_text())
    assert list(summary["splits"]) == ["explicit", "synonym", "neighbour", "unrelated"]
    for split in summary["splits"].values():
        for side in ("before", "after"):
            assert set(split[side]) == {"value", "n", "low", "high"}
            assert split[side]["n"] == 3
            assert 0 <= split[side]["low"] <= split[side]["value"] <= split[side]["high"] <= 1
    assert summary["concepts"] == {"star": summary["splits"]}
    assert summary["patch_bytes"] == Path("star.safetensors").stat().st_size
    assert summary["edit_seconds"] > 0
    with Image.open("a/report/grid.png") as grid:
        assert grid.width > 500


def test_several_concepts_in_one_solve(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--model",
        "shapes",
        "--method",
        "uce",
        "--concept",
        "star",
        "--concept",
        "red",
        "--preserve",
        "circle",
    ]
    assert cli.run([*arguments, "--anchor", "star=square", "--anchor", "red=blue", "--alias", "red=crimson"]) == 0
    assert "star+red-uce.safetensors" in capsys.readouterr().out
    concepts = Patch.load("star+red-uce.safetensors").meta["concepts"]
    assert [(entry["name"], entry["anchor"]) for entry in concepts] == [("star", "square"), ("red", "blue")]
    assert concepts[1]["aliases"] == ["crimson"]
    # Two hundred captions of the world, and the one given; a list this long is kept as its length and sha256.
    assert all(entry["preserve"]["count"] == 201 for entry in concepts)


def test_options_reach_the_method() -> None:
    assert (
        cli.run([*STAR, "--method", "uce", "--set", "ridge=0.25", "--set", "rows=last", "--out", "p.safetensors"]) == 0
    )
    config = Patch.load("p.safetensors").meta["config"]
    assert (config["ridge"], config["rows"]) == (0.25, "last")


def test_presets_bring_the_options_of_their_paper() -> None:
    nudity, monet = build_concepts(["nudity"]), build_concepts(["nudity", "monet"])
    eraser, note = build_eraser("rece", [], nudity)
    assert (eraser.rounds, eraser.reg) == (3, 0.1)  # type: ignore[attr-defined]
    assert "rounds=3" in note
    assert build_eraser("rece", ["rounds=1"], nudity)[0].rounds == 1  # type: ignore[attr-defined]
    assert "its defaults are used" in build_eraser("rece", [], monet)[1]


def test_a_synonym_stands_for_its_word() -> None:
    assert [concept.name for concept in build_concepts(["pentagram"], world=worlds.get("shapes"))] == ["star"]


def named(*names: str) -> str:
    return str(default_out([Concept(name) for name in names], "uce"))


def test_default_file_names_are_readable_in_any_script() -> None:
    assert str(default_out(build_concepts(["van gogh", "star"]), "uce")) == "van_gogh+star-uce.safetensors"
    assert named("梵高") == "梵高-uce.safetensors"
    assert named("हिन्दी") == "हिन्दी-uce.safetensors"
    assert named("Vigée Le Brun") == "Vigée_Le_Brun-uce.safetensors"
    assert re.fullmatch(r"a_b-[0-9a-f]{8}-uce\.safetensors", named("a/b"))


def test_different_concepts_never_share_a_default_file() -> None:
    long = [f"painter number {number}" for number in range(20)]
    names = [
        ("梵高",),
        ("皮卡丘",),
        ("a/b",),
        ("a_b",),
        ("a b",),
        ("a", "b"),
        ("a+b",),
        ("../a b",),
        ("!",),
        ("?",),
        ("🙂",),
    ]
    files = [named(*name) for name in (*names, long, [*long[:-1], "another"], ["画" * 90], ["画" * 91])]
    assert len(set(files)) == len(files)
    assert all(len(name.encode()) < 200 and "/" not in name for name in files)
    assert named("e\u0301tude") == named("\u00e9tude")


OUTPUTS: list[tuple[tuple[str, ...], list[str]]] = [
    ((*STAR, "--method", "uce"), ["star-uce.safetensors"]),
    ((*STAR, "--method", "uce", "--out", "x.safetensors"), ["x.safetensors"]),
    (("generate", "a star", "--model", "shapes", "--n", "1", "--steps", "1"), ["out.png"]),
    (("export", "PATCH", "--model", "shapes", "--out", "lora"), ["lora/pytorch_lora_weights.safetensors"]),
    (
        ("export", "PATCH", "--model", "shapes", "--form", "delta", "--out", "delta"),
        ["delta/delta_weights.safetensors"],
    ),
    pytest.param(
        ("explain", "--concept", "star", "--model", "shapes", "--out", "map.png"),
        ["map.png"],
        marks=pytest.mark.full,
    ),
    pytest.param(
        ("sae", "train", "--model", "shapes", "--steps", "60", "--features", "32", "--out", "s.st"),
        ["s.st", "s.json", "s.png"],
        marks=pytest.mark.full,
    ),
]


@pytest.mark.parametrize(("arguments", "files"), OUTPUTS)
def test_nothing_is_overwritten_without_a_word(
    arguments: tuple[str, ...], files: list[str], star_patch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(star_patch) if word == "PATCH" else word for word in arguments]
    for file in files:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("mine")
        assert "is there already; give another name, or --overwrite to replace it" in refused(capsys, *words)
        assert Path(file).read_text() == "mine"
        Path(file).unlink()
    assert cli.run(words) == 0
    assert cli.run([*words, "--overwrite"]) == 0
    assert all(Path(file).stat().st_size for file in files)


@pytest.mark.parametrize(("arguments", "files"), OUTPUTS)
def test_what_appears_while_a_command_runs_stays(
    arguments: tuple[str, ...], files: list[str], star_patch: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    load = ModelOptions.load

    def beside_another_command(*given: Any, **options: Any) -> Any:
        Path(files[0]).parent.mkdir(exist_ok=True)
        Path(files[0]).write_text("of the other command")
        return load(*given, **options)

    monkeypatch.setattr(ModelOptions, "load", beside_another_command)
    monkeypatch.setattr("tempfile.tempdir", str(star_patch.parent))
    words = [str(star_patch) if word == "PATCH" else word for word in arguments]
    assert cli.run(words) == 2
    assert "a file appeared there meanwhile" in " ".join(capsys.readouterr().err.split())
    assert Path(files[0]).read_text() == "of the other command"
    assert [path.name for path in Path(files[0]).parent.iterdir() if path.is_file()] == [Path(files[0]).name]


def test_apply_writes_a_folder_that_plain_diffusers_loads(star_patch: Path) -> None:
    assert cli.run(["apply", str(star_patch), "--model", "shapes", "--save", "erased"]) == 0
    code = (
        "import sys, torch; from diffusers import StableDiffusionPipeline\n"
        "pipe = StableDiffusionPipeline.from_pretrained('erased')\n"
        "image = pipe('a red star', num_inference_steps=2).images[0]; print(image.size, 'erasers' in sys.modules)"
    )
    plain = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert plain.stdout.strip() == "(32, 32) False"
    assert json.loads(Path("erased/erasure.json").read_text())["patches"][0]["method"] == "uce"


def test_inspect_says_what_a_patch_does(star_patch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(star_patch)]) == 0
    output = capsys.readouterr().out
    for word in ("uce", "star", "circle", "transform/text", "float32", "attn2.to_k"):
        assert word in output


def test_a_chosen_anchor_and_kept_captions_are_told(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.save_pretrained("sd")
    capsys.readouterr()  # the bars of that
    options = ("--concept", "dragon", "--concept", "moon", "--anchor", "moon=ring", "--model", "sd", "--method", "uce")
    assert cli.run([*options, "--out", "two.safetensors"]) == 0
    output, error = capsys.readouterr()
    assert error == "dragon: creature was chosen as its anchor; --anchor names another\n"
    assert "dragon -> 'creature'" in output
    concepts = Patch.load("two.safetensors").meta["concepts"]
    assert [concept["anchor"] for concept in concepts] == ["creature", "ring"]
    recorded = {"captions": {"name": "everyday@1", "sha256": "0" * 64, "count": 287}}
    meta = dict(Patch.load("two.safetensors").meta) | {"concepts": [concepts[0] | recorded]}
    Patch(dict(Patch.load("two.safetensors").tensors), meta).save("kept.safetensors")
    assert cli.run(["inspect", "kept.safetensors"]) == 0
    assert "keeps     287 everyday captions (everyday@1)" in capsys.readouterr().out


def test_generate_draws_before_and_after(star_patch: Path) -> None:
    options = ["--model", "shapes", "--n", "2", "--steps", "2"]
    assert cli.run(["generate", "a red star", *options, "--out", "plain.png"]) == 0
    assert cli.run(["generate", "a red star", *options, "--patch", str(star_patch), "--out", "both.png"]) == 0
    with Image.open("plain.png") as plain, Image.open("both.png") as both:
        assert plain.size == (2 * 136 + 8, 144)
        assert both.height > 2 * 128


def test_generate_tells_of_unknown_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["generate", "a red dog", "--model", "shapes", "--n", "1", "--steps", "1"]) == 0
    assert "shapes does not know dog" in capsys.readouterr().err


def test_methods_lists_options_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["methods"]) == 0
    output = capsys.readouterr().out
    for word in ("uce", "rece", "ridge", "uce-v1", "rece-official", "last or tail or all"):
        assert word in output


@pytest.mark.parametrize("command", [[], ["apply"], ["inspect"], ["generate"], ["methods"]])
def test_help_and_version(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*command, "--help"]) == 0
    assert "Usage: erase" in capsys.readouterr().out
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("erasers ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--concept star"),
        (("--model", "shapes"), "--concept star"),
        (("--concept", "", "--model", "shapes"), "an empty --concept"),
        (("--concept", "star", "--concept", " ", "--model", "shapes"), "an empty --concept"),
        (("--concept", "stra", "--model", "shapes"), "did you mean 'star'?"),
        (("--concept", "dog", "--model", "shapes"), "shapes does not know 'dog'; it knows circle"),
        (("--concept", "star", "--concept", "star", "--model", "shapes"), "star"),
        ((*STAR, "--method", "rce"), "did you mean 'rece'?"),
        ((*STAR, "--method", "uce-v9"), "uce-v1"),
        ((*STAR, "--set", "rige=1"), "did you mean 'ridge'?"),
        ((*STAR, "--set", "ridge"), "key=value"),
        ((*STAR, "--set", "ridge=much"), "ridge as a number"),
        ((*STAR, "--set", "ridge=-1"), "ridge"),
        ((*STAR, "--set", "rows=some"), "last or tail or all"),
        ((*STAR, "--anchor", "dog"), "shapes does not know the word 'dog'"),
        ((*STAR, "--anchor", "circle", "--anchor", "ring"), "expected one --anchor"),
        ((*STAR, "--anchor", "rng=circle"), "no --concept 'rng'"),
        ((*STAR, "--alias", ""), "alias"),
        ((*STAR, "--alias", "pentagrm"), "did you mean 'pentagram'?"),
        ((*STAR, "--concept", "red", "--alias", "crimson"), "--alias star=crimson"),
        ((*STAR, "--preserve", "dog"), "dog"),
        ((*STAR, "--samples", "0"), "--samples"),
        ((*STAR, "--samples", "many"), "--samples"),
        ((*STAR, "--dtype", "int8"), "unknown dtype 'int8'"),
        ((*STAR, "--device", "tpu"), "unknown device 'tpu'"),
        ((*STAR, "--device", "cuda:99"), "no device 'cuda:99'"),
        ((*STAR, "--out", "no/such/x.safetensors"), "does not exist; create it first"),
        ((*STAR, "--out", "."), "is a folder"),
        ((*STAR, "--report", "file"), "is a file"),
        ((*STAR, "--report", "file/below"), "is a file"),
        ((*STAR, "--sampels", "3"), "--samples"),
        (("star",), "--concept TEXT"),
        (("--model", "shapes", "methods"), "--model stands before 'methods'"),
        (("--concept", "star", "--model", "./nowhere"), "no model folder './nowhere'"),
        (("--concept", "nudity"), "--model shapes"),
        (("--concept", "star", "--model", "no/such-model"), "--model shapes"),
        (("apply", "missing.safetensors", "--model", "shapes", "--save", "new"), "does not exist"),
        (("apply", "--save", "new"), "PATCH"),
        (("inspect", "missing.safetensors"), "does not exist"),
        (("inspect", "file"), "not a safetensors file"),
        (("inspect", "."), "folder"),
        (("generate", "", "--model", "shapes"), "an empty prompt"),
        (("generate", "a star", "--model", "shapes", "--n", "0"), "--n"),
        (("generate", "a star", "--model", "shapes", "--patch", "missing"), "does not exist"),
        (("generate", "a star", "--model", "shapes", "--out", "no/such/x.png"), "create it first"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_clear_line(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("text")
    assert words in refused(capsys, *arguments)
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_truncated_and_foreign_patches(star_patch: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    whole = star_patch.read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "few").write_bytes(whole[:5])
    save_file({"lora.weight": torch.zeros(2, 2)}, tmp_path / "lora")
    for name, words in (("half", "truncated"), ("few", "truncated"), ("lora", "is not a patch")):
        assert words in refused(capsys, "inspect", name)
        assert words in refused(capsys, "apply", name, "--model", "shapes", "--save", "new")
        assert words in refused(capsys, "generate", "a star", "--model", "shapes", "--patch", name)


def test_a_patch_for_another_base(star_patch: Path, pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from erasers import load_pipeline

    pipe.save_pretrained("tiny")
    refused(capsys, "apply", star_patch, "--model", "tiny", "--save", "new")
    other = load_pipeline("shapes")
    for parameter in other.unet.parameters():
        parameter.data.mul_(1.5)
    other.save_pretrained("other")
    assert "--force" in refused(capsys, "apply", star_patch, "--model", "other", "--save", "new")
    assert "other weights" in refused(capsys, "generate", "a star", "--model", "other", "--patch", star_patch)
    assert not Path("new").exists()


def test_a_full_folder_is_not_overwritten(star_patch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    assert "not empty" in refused(capsys, "apply", star_patch, "--model", "shapes", "--save", "full")
    assert "not empty" in refused(capsys, "apply", star_patch, "--model", "shapes", "--save", "full", "--overwrite")
    assert [path.name for path in Path("full").iterdir()] == ["mine"]


def test_an_erased_model_is_replaced_by_another(star_patch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apply = ("apply", str(star_patch), "--model", "shapes", "--out", "erased")
    assert cli.run([*apply, "--strength", "0.5"]) == 0
    first = json.loads(Path("erased/erasure.json").read_text())
    assert "not empty" in refused(capsys, *apply)
    assert "is also --model erased" in refused(
        capsys, "apply", star_patch, "--model", "erased", "--save", "erased", "--overwrite"
    )
    assert json.loads(Path("erased/erasure.json").read_text()) == first
    assert cli.run([*apply, "--overwrite"]) == 0
    assert json.loads(Path("erased/erasure.json").read_text()) != first
    assert [path.name for path in Path().iterdir()] == ["erased"]


def test_an_unsupported_pipeline_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, **blocks)
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained("unconditional")
    capsys.readouterr()
    assert "Stable Diffusion" in refused(capsys, "--concept", "star", "--model", "unconditional")


def test_a_bug_is_not_taken_for_bad_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, star_patch: Path
) -> None:
    monkeypatch.setattr("erasers.cli.patches.show_patch", lambda *_: {}["key"])
    assert cli.run(["inspect", str(star_patch)]) == 1
    assert "ERASERS_DEBUG=1" in capsys.readouterr().err
    monkeypatch.setenv("ERASERS_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.run(["inspect", str(star_patch)])


def test_a_judge_of_ones_own_counts_on_any_model(
    pipe: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from support.judging import clip_folder

    folder = clip_folder(tmp_path / "clip", monkeypatch)
    save_in_few_steps(pipe, "tiny")
    tiny = ("--concept", "moon", "--model", "tiny", "--method", "uce", "--judge", folder)
    assert "--judge is for the pictures of a report" in refused(capsys, *tiny)
    assert cli.run([*map(str, tiny), "--report", "report", "--samples", "2"]) == 0
    summary = json.loads(Path("report/summary.json").read_text())
    assert list(summary["splits"]) == ["explicit", "unrelated"]
    assert summary["splits"]["explicit"]["after"]["n"] == 2
    (judge,) = summary["judges"]
    assert (judge["name"], judge["splits"]) == ("clip_zeroshot/clip", ["explicit", "unrelated"])
    assert judge["name"] in Path("report/index.html").read_text()
    assert "note" not in summary
    assert "nothing of what the prompts want" in refused(
        capsys, "--concept", "moon", "--model", "tiny", "--report", "r", "--judge", "oracle/shapes"
    )


def test_a_report_overwrites_reports_alone(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    save_in_few_steps(pipe, "tiny")
    before = ("--concept", "star", "--model", "tiny", "--method", "uce", "--out", "p.safetensors", "--report")
    assert "an empty --report; give the folder" in refused(capsys, *before, "")
    assert "an empty --report" in refused(capsys, *before, "  ")
    Path("site").mkdir()
    for name, content in (("index.html", "<h1>mine</h1>"), ("grid.png", "mine"), ("summary.json", '{"mine": 1}')):
        Path("site", name).write_text(content)
        assert f"--report site holds {name} that no report wrote" in refused(capsys, *before, "site")
        assert Path("site", name).read_text() == content
        Path("site", name).unlink()
    Path("site/notes.txt").write_text("mine")
    assert cli.run([*before, "site", "--samples", "1"]) == 0
    assert "is there already" in refused(capsys, *before, "site")
    assert cli.run([*before, "site", "--samples", "1", "--overwrite"]) == 0
    assert Path("site/notes.txt").read_text() == "mine"


def test_what_comes_next_can_be_pasted(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.save_pretrained("my model")
    assert (
        cli.run(["--concept", "moon", "--model", "my model", "--method", "uce", "--out", "my $patch.safetensors"]) == 0
    )
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next"))
    words = shlex.split(line.partition("  (")[0])[1:]
    assert words[2:] == ["PROMPT", "--model", "my model", "--patch", "my $patch.safetensors"]
    assert cli.run([*words[1:], "--steps", "1", "--n", "1"]) == 0
    assert cli.run(["inspect", "my $patch.safetensors"]) == 0
    assert "use       erase apply 'my $patch.safetensors' --model MODEL" in capsys.readouterr().out


def test_a_patch_of_another_model_is_refused_with_a_hint(
    pipe: Any, capsys: pytest.CaptureFixture[str], star_patch: Path
) -> None:
    pipe.save_pretrained("tiny")
    error = refused(capsys, "apply", star_patch, "--model", "tiny", "--save", "erased")
    assert "is it the model that it was fitted on?" in error


def test_interrupting_leaves_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, star_patch: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("erasers.cli.patches.show_patch", interrupt)
    assert cli.run(["inspect", str(star_patch)]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_model_without_a_judge_gets_a_picture_and_a_note(
    pipe: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erasers.evaluation.report.judges.find_spec", lambda name: None)
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler()
    pipe.save_pretrained("tiny")
    assert (
        cli.run(["--concept", "star", "--model", "tiny", "--method", "uce", "--report", "report", "--samples", "1"])
        == 0
    )
    note = "note: there are pictures and no numbers; for numbers: pip install 'erasers[clip]' (CLIP); or name a judge"
    assert note in capsys.readouterr().out
    summary = json.loads(Path("report/summary.json").read_text())
    assert (summary["splits"], summary["concepts"]) == ({}, {})
    assert summary["model"] == "tiny"
    with Image.open("report/grid.png") as grid:
        assert grid.height > 100


def test_a_warning_of_the_library_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["circle", "square", "triangle", "star", "cross", "heart", "crescent", "ring", "hexagon", "arrow", "red"]
    concepts = [argument for word in words for argument in ("--concept", word)]
    options = ("--anchor", "blue", "--model", "shapes", "--method", "uce", "--out", "all.safetensors")
    assert cli.run([*concepts, *options]) == 0
    assert capsys.readouterr().err.startswith("warning: erasing 11 concepts")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "verify", "nowhere.json"], "nowhere.json: No such file or directory"),
        (["bench", "compare", "nowhere.json", "nor-here.json"], "nowhere.json: No such file or directory"),
        (["generate", "a star", "--model", "shapes", "--size", "9"], "expected a multiple of 8, got 9"),
        (["--concept", "star", "--model", "shapes", "--size", "33"], "expected a multiple of 8, got 33"),
        (
            ["--concept", "star", "--model", "shapes", "--config", "nope"],
            "expected a checkpoint in one .safetensors file for --config",
        ),
    ],
)
def test_refusals_are_in_the_words_of_the_command(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    line = capsys.readouterr().err.replace("\n", " ")
    assert words in line
    assert "Errno" not in line


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried", "DefaultCPUAllocator: can't allocate memory: you"])
def test_too_little_memory_is_one_line(
    message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(ModelOptions, "load", full)
    assert cli.run(["generate", "a star", "--model", "shapes"]) == 2
    assert "out of memory; take a smaller --size" in capsys.readouterr().err.replace("\n", " ")
