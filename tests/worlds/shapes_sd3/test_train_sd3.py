"""The training of `shapes-sd3`: by flow matching, on what the pipeline itself makes of prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from support.short import shorten

from erasers.diffusion.adaptors.table import adaptor_of
from erasers.worlds.shapes_sd3.train import __main__ as command
from erasers.worlds.shapes_sd3.train import assembly, text, transformer
from erasers.worlds.shapes_sd3.train.repeated import LastRowRepeated

CPU = torch.device("cpu")
WITHOUT_T5: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
"""What diffusers asks for where this pipeline has two encoders."""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two encoders of random weights, for trainings of two steps."""
    shorten(monkeypatch, (text, "RECIPE"), (transformer, "RECIPE"), (transformer, "REFERENCE_RECIPE"))
    monkeypatch.setattr(transformer, "BATCH", 4)
    torch.manual_seed(0)
    for name in text.ENCODERS:
        text.build_encoder(name, text.load_tokenizer()).save_pretrained(tmp_path / name)
    return tmp_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_the_denoiser_starts_as_the_velocity_of_nothing() -> None:
    torch.manual_seed(0)
    model = transformer.build()
    states, pooled = torch.randn(2, 48, 256), torch.randn(2, 256)
    velocity = model(torch.randn(2, 4, 8, 8), states, pooled, torch.tensor([10.0, 900.0])).sample
    assert velocity.shape == (2, 4, 8, 8)
    assert torch.equal(velocity, torch.zeros_like(velocity))


def test_a_killed_training_of_the_denoiser_goes_on_to_the_same_weights(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer.run(out, CPU, 0)
    whole = weights(out / "transformer")
    (out / "checkpoints" / "transformer.safetensors").unlink()
    batch = transformer.Views.batch

    def killed(self: Any, step: int, size: int) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return batch(self, step, size)

    with monkeypatch.context() as patched:
        patched.setattr(transformer.Views, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            transformer.run(out, CPU, 0)
    transformer.run(out, CPU, 0)
    resumed = weights(out / "transformer")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (out / "logs" / "transformer.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


def test_the_denoiser_is_trained_on_what_the_pipeline_makes_of_prompts(out: Path) -> None:
    transformer.build().save_pretrained(out / "transformer")
    assembly.run(out)
    pipe = StableDiffusion3Pipeline.from_pretrained(out / "model", **WITHOUT_T5)
    prompts = ["", "a red star on a white background"]
    condition = adaptor_of(pipe).encode(pipe, prompts)
    assert condition.pooled is not None
    states, pooled = transformer.Prompts(out, CPU)(prompts)
    # The last row stands for all of the zeros; the pipeline was saved in half precision.
    more = condition.states.shape[1] - states.shape[1]
    assert 0 < more < transformer.MOST_ZEROS
    expected = torch.cat([states, states[:, -1:].expand(-1, more, -1)], dim=1)
    torch.testing.assert_close(expected, condition.states, atol=2e-2, rtol=0)
    torch.testing.assert_close(pooled, condition.pooled, atol=2e-2, rtol=0)


def test_one_row_stands_for_many_equal_ones() -> None:
    torch.manual_seed(0)
    model = transformer.build()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    picture, states, pooled, times = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 256), torch.randn(2, 256), torch.ones(2)
    many = torch.cat([states, states[:, -1:].expand(-1, 9, -1)], dim=1)
    expected = model(picture, many, pooled, times).sample
    one = model(picture, states, pooled, times).sample
    model.set_attn_processor(LastRowRepeated(10))
    torch.testing.assert_close(model(picture, states, pooled, times).sample, expected, atol=1e-4, rtol=1e-4)
    assert (one - expected).abs().max() > 1e-2


@pytest.mark.full
def test_every_stage_runs_and_the_result_is_a_plain_pipeline(out: Path) -> None:
    command.main(["--out", str(out)])
    command.main(["--out", str(out), "--stage", "transformer", "--without", "star"])
    command.main(["--out", str(out), "--stage", "assemble"])
    assert weights(out / "reference" / "transformer-without-star").keys() == weights(out / "transformer").keys()
    pipe = StableDiffusion3Pipeline.from_pretrained(out / "model", **WITHOUT_T5)
    pipe.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)} == {
        torch.float32
    }
    assert pipe("a red star", num_inference_steps=1, output_type="np").images.shape == (1, 32, 32, 3)


def test_without_belongs_to_the_denoiser_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--without", "star", "--stage", "assemble"])
    assert "--stage transformer" in capsys.readouterr().err
