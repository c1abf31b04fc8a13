"""Files that the library wrote before its modules moved: they load, fit, draw and verify as they did.

`data/before/write.py` wrote them, with the commit that it names.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from support import REPOSITORY, TESTS

from erasers import Concept, ErasedPipeline, Patch, PatchError, load_lora, load_pipeline
from erasers.cli.app import run
from erasers.methods.esd import ESD
from erasers.patch import applied_patches
from erasers.patch.publish import read_report

BEFORE = TESTS / "data/before"
DIGESTS: dict[str, str] = json.loads((BEFORE / "digests.json").read_text())
TINY = sorted({*DIGESTS} - {"itd"})
DRAWN = load_file(BEFORE / "drawn.safetensors")
BENCH = BEFORE / "bench"


def load_tiny() -> Any:
    pipe = load_pipeline(BEFORE / "model")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_patch(name: str) -> Patch:
    return Patch.load(BEFORE / f"patches/{name}.safetensors")


def draw(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    with torch.no_grad():
        return pipe("a picture of star", generator=generator, **options).images


def is_drawn(pipe: Any, name: str) -> bool:
    """Whether it draws what it drew then; other processors round otherwise, by less than any erasure changes."""
    return torch.allclose(draw(pipe), DRAWN[name], rtol=0, atol=1e-4)


def close(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor], atol: float) -> bool:
    return left.keys() == right.keys() and all(torch.allclose(left[key], right[key], atol=atol) for key in left)


def test_the_pictures_tell_patches_apart() -> None:
    assert sorted(DRAWN) == sorted({"plain", *TINY})
    assert is_drawn(load_tiny(), "plain")
    # What the hook does is what the edit of the weights does.
    different = [name for name in DRAWN if name != "hooks-prompt"]
    for index, name in enumerate(different):
        assert not any(torch.allclose(DRAWN[name], DRAWN[other], rtol=0, atol=1e-4) for other in different[:index])


@pytest.mark.parametrize("name", DIGESTS)
def test_a_patch_is_the_same_file_when_saved_again(name: str, tmp_path: Path) -> None:
    patch = load_patch(name)
    assert patch.digest == DIGESTS[name]
    patch.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (BEFORE / f"patches/{name}.safetensors").read_bytes()


@pytest.mark.parametrize("name", TINY)
def test_a_patch_fits_and_draws(name: str) -> None:
    pipe, patch = load_tiny(), load_patch(name)
    with patch.applied(pipe):
        assert is_drawn(pipe, name)
    assert is_drawn(pipe, "plain")


def test_a_patch_for_the_embedded_model_fits_it_and_no_other() -> None:
    pipe, patch = load_pipeline("shapes"), load_patch("itd")
    assert patch.apply(pipe) is pipe
    assert patch.is_applied(pipe)
    with pytest.raises(PatchError):
        patch.apply(load_tiny())


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_a_lora_loads_and_is_written_as_it_was(form: str, tmp_path: Path) -> None:
    file = load_patch("uce").to_lora(load_tiny(), tmp_path / "lora", form=form)
    assert close(load_file(file), load_file(BEFORE / f"lora-{form}" / file.name), 1e-6)
    assert is_drawn(load_lora(load_tiny(), BEFORE / f"lora-{form}"), "uce")
    pipe = load_tiny()
    pipe.load_lora_weights(str(BEFORE / f"lora-{form}"))
    assert is_drawn(pipe, "uce")


def test_a_delta_loads_and_is_written_as_it_was(tmp_path: Path) -> None:
    file, pipe = load_patch("uce").to_delta(load_tiny(), tmp_path / "delta"), load_tiny()
    weights = load_file(BEFORE / "delta" / file.name)
    assert close(load_file(file), weights, 1e-6)
    pipe.unet.load_state_dict({name.removeprefix("unet."): value for name, value in weights.items()}, strict=False)
    assert is_drawn(pipe, "uce")


@pytest.fixture
def _modules_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where diffusers copies the code that it runs."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.usefixtures("_modules_of_its_own")
def test_a_folder_with_hooks_loads_erased_by_stock_diffusers_and_here() -> None:
    folder, patch = BEFORE / "folder-hooks-prompt", load_patch("hooks-prompt")
    with pytest.raises((ValueError, OSError)):
        DiffusionPipeline.from_pretrained(str(folder))
    stock = DiffusionPipeline.from_pretrained(str(folder), variant="unerased", trust_remote_code=True)
    assert type(stock).__name__ == "ErasedStableDiffusionPipeline"
    for pipe in (stock, load_pipeline(folder), ErasedPipeline.from_pretrained(folder)):
        assert is_drawn(pipe, "uce")
        assert [carried.digest for carried, _ in applied_patches(pipe)] == [patch.digest]
        assert is_drawn(patch.remove(pipe), "plain")


def test_a_folder_of_baked_weights_loads_erased_by_stock_diffusers_and_here() -> None:
    folder = BEFORE / "folder-uce"
    for pipe in (
        DiffusionPipeline.from_pretrained(str(folder)),
        load_pipeline(folder),
        ErasedPipeline.from_pretrained(folder),
    ):
        assert is_drawn(pipe, "uce")


class Counted(ESD):
    """ESD that keeps the numbers of its steps, those of any copy of it."""

    numbers: ClassVar[list[int]] = []

    def prepare(self, *args: Any) -> Any:
        made = super().prepare(*args)
        self.numbers.clear()

        def step(number: int) -> Any:
            self.numbers.append(number)
            return made.step(number)

        return replace(made, step=step)


def test_a_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    shutil.copy(BEFORE / "training/checkpoint", tmp_path)
    unbroken = Patch.load(BEFORE / "training/unbroken.safetensors")
    asked = unbroken.meta["concepts"][0]
    star = Concept(**{key: asked[key] for key in ("name", "aliases", "anchor", "preserve", "neighbours")})
    eraser = Counted(**unbroken.meta["config"])
    patch = eraser.fit(load_tiny(), star, progress=False, checkpoint=tmp_path / "checkpoint")
    assert eraser.numbers == [2, 3]
    assert patch.meta["base"] == unbroken.meta["base"]
    # Factors are rounded to float16: the last digit may fall to the other side on another processor.
    assert close(patch.tensors, unbroken.tensors, 2e-3)


def results(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted((folder / "tiny@1").iterdir())}


def test_results_verify(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(map(str, (BENCH / "store/tiny@1").iterdir()))
    assert run(["bench", "verify", "--task", str(BENCH / "task.yaml"), *files]) == 0
    assert capsys.readouterr().out.count("it is of its task, and all scores follow") == len(files) == 2


def test_a_run_is_known_for_finished(tmp_path: Path) -> None:
    store = Path(shutil.copytree(BENCH / "store", tmp_path / "store"))
    shutil.rmtree(store / "tiny@1")
    files = {path for path in store.rglob("*") if path.is_file()}
    assert run(["bench", "run", str(BENCH / "task.yaml"), "--method", "uce", "--out", str(store)]) == 0
    assert {path for path in store.rglob("*") if path.is_file() and path.parent.name != "tiny@1"} == files
    assert results(store) == results(BENCH / "store")


def test_a_report_is_of_its_patch() -> None:
    patch = Patch.load(BENCH / "patch.safetensors")
    assert read_report(patch.meta, patch.digest, BENCH / "report")["splits"]["explicit"]["after"]["n"] == 2
    other = load_patch("rece")
    with pytest.raises(ValueError, match="this very patch"):
        read_report(other.meta, other.digest, BENCH / "report")


def test_the_committed_patches_fit_the_embedded_model() -> None:
    pipe = load_pipeline("shapes")
    files = sorted((REPOSITORY / "benchmarks/patches").glob("*.safetensors"))
    assert len(files) == 16
    for file in files:
        patch = Patch.load(file)
        with patch.applied(pipe):
            assert patch.is_applied(pipe)


@pytest.mark.full
def test_committed_results_verify(capsys: pytest.CaptureFixture[str]) -> None:
    folder = REPOSITORY / "benchmarks/results/shapes-standard@2"
    rows = [str(folder / f"{name}.json") for name in ("uce", "unedited", "robust_ablation+speed")]
    assert run(["bench", "verify", *rows]) == 0
    assert capsys.readouterr().out.count("it is of its task, and all scores follow") == 3
