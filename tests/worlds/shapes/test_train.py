from pathlib import Path

import pytest
from support.short import shorten

from erasers.worlds.shapes.train import __main__ as command
from erasers.worlds.shapes.train import judge, text, unet, vae


@pytest.mark.full
def test_every_stage_runs_and_the_result_is_a_plain_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    stages = [(judge, "RECIPE"), (vae, "JOINT"), (vae, "DECODER"), (text, "RECIPE"), (unet, "RECIPE")]
    shorten(monkeypatch, *stages, (unet, "REFERENCE_RECIPE"))
    command.main(["--out", str(tmp_path)])
    command.main(["--out", str(tmp_path), "--stage", "unet", "--without", "star"])
    assert (tmp_path / "unet-without-star" / "diffusion_pytorch_model.safetensors").exists()
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert pipe("a red star", num_inference_steps=1, output_type="np").images.shape == (1, 32, 32, 3)


def test_without_belongs_to_the_denoiser_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--without", "star"])
    assert "--stage unet" in capsys.readouterr().err
