"""Autoencoders of others: every known layout gives the same autoencoder, and what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from erasers import get_eraser, load_pipeline
from erasers.cli import app as cli
from erasers.sae.autoencoder import SAE, load_sae
from erasers.sae.presets import PRESETS
from erasers.sae.published import LAYOUTS, import_sae
from erasers.sae.training import SAETraining
from erasers.worlds.shapes.prompts import concept_for

OWN = Path(str(files("erasers") / "worlds" / "shapes" / "sae" / "text_encoder.safetensors"))
LAYOUT = {layout.code: layout for layout in LAYOUTS}


def made(d: int = 6, n: int = 20, k: int = 3) -> SAE:
    generator = torch.Generator().manual_seed(3)
    sae = SAE(d, n, k, activation="topk", generator=generator)
    for name in ("encoder", "decoder", "b_pre", "b_lat"):
        value = getattr(sae, name)
        # Values that float16 has.
        value.data = torch.randn(value.shape, generator=generator).half().float()
    return sae


def laid_out(sae: SAE, code: str) -> dict[str, torch.Tensor]:
    """The tensors as that code has them."""
    layout = LAYOUT[code]
    own = {layout.encoder: sae.encoder, layout.decoder: sae.decoder, layout.b_pre: sae.b_pre, layout.b_lat: sae.b_lat}
    return {name: (v.T if name in layout.turned else v).detach().contiguous() for name, v in own.items()}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(tensors: dict[str, torch.Tensor], **config: Any) -> Path:
        save_file(tensors, tmp_path / "sae.safetensors")
        if config:
            (tmp_path / "cfg.json").write_text(json.dumps(config))
        return tmp_path / "sae.safetensors"

    return write


@pytest.mark.parametrize("code", LAYOUT)
def test_every_layout_gives_the_same_autoencoder(code: str, write: Any) -> None:
    sae, rows = made(), torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    extra = {"stats_last_nonzero": torch.zeros(20, dtype=torch.long)}
    found = import_sae(write(laid_out(sae, code) | extra, k=3), width=6)
    assert found.code == code
    assert (found.sae.k, found.sae.activation) == (3, "topk")
    assert torch.equal(found.sae.encode(rows).dense(20), sae.encode(rows).dense(20))
    assert torch.equal(found.sae(rows), sae(rows))


def test_k_and_threshold_come_from_the_file_from_its_config_or_from_the_user(write: Any) -> None:
    plain = laid_out(made(), "dictionary_learning")
    path = write(plain | {"k": torch.tensor(4), "threshold": torch.tensor(0.5)})
    found = import_sae(path, width=6).sae
    assert (found.k, found.activation, found.threshold.tolist()) == (4, "batchtopk", [0.5])
    assert import_sae(path, width=6, k=2, activation="topk").sae.k == 2
    path = write(plain, activation_fn_kwargs={"k": 5})
    assert import_sae(path, width=6).sae.k == 5
    relu = import_sae(path, width=6, activation="batchtopk").sae
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(relu.encode(rows).dense(20), relu.activations(rows))


def test_rows_that_saelens_does_not_centre_are_read_alike(write: Any) -> None:
    sae, rows = made(), torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    path = write(laid_out(sae, "SAELens"), k=3, apply_b_dec_to_input=False)
    found = import_sae(path, width=6).sae
    wanted = torch.relu(rows @ sae.encoder.T + sae.b_lat)
    torch.testing.assert_close(found.activations(rows), wanted)


OPENAI = "sparse_autoencoder, ItD and Concept Steerers"


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"pre_bias": None}, {"k": 3}, "it lacks pre_bias"),
        ({"decoder.weight": None, "pre_bias": None}, {"k": 3}, "it lacks decoder.weight, pre_bias"),
        ({"decoder.weight": torch.zeros(20, 6)}, {"k": 3}, r"decoder.weight .* as \[6, 20\].* got \[20, 6\]"),
        ({"encoder.weight": torch.zeros(20, 7)}, {"k": 3}, r"encoder.weight .* for rows of the width 6"),
        ({"encoder.weight": torch.zeros(120)}, {"k": 3}, r"encoder.weight .* as \[features, 6\]"),
        ({"latent_bias": torch.zeros(20, dtype=torch.int8)}, {"k": 3}, "latent_bias .* got I8"),
        ({"latent_bias": torch.full((20,), torch.nan)}, {"k": 3}, "finite values .* latent_bias"),
        ({"encoder.weight": torch.full((20, 6), 1e6)}, {"k": 3}, "float16 reaches"),
        ({"threshold": torch.arange(20.0)}, {"k": 3}, "one threshold for all features"),
        ({"threshold": torch.zeros(3)}, {"k": 3}, "threshold .* as one number"),
        ({}, {}, "pass --k"),
        ({}, {"k": 21}, "from 1 to 20"),
        ({}, {"k": 3, "normalize_activations": "layer_norm"}, "reads rows as they are"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], config: dict[str, Any], message: str, write: Any) -> None:
    tensors = laid_out(made(), OPENAI) | change
    path = write({name: value for name, value in tensors.items() if value is not None}, **config)
    with pytest.raises(ValueError, match=message):
        import_sae(path, width=6)


def test_other_files_are_refused(write: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the tensors of an autoencoder .* got weight"):
        import_sae(write({"weight": torch.zeros(2)}), width=6)
    torch.save(made().state_dict(), tmp_path / "sae.pt")
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        import_sae(tmp_path / "sae.pt", width=6)
    with pytest.raises(FileNotFoundError, match="is no file"):
        import_sae(tmp_path / "none.safetensors", width=6)


def test_the_command_brings_an_autoencoder_to_itd(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    own, meta = load_sae(OWN)
    path = write(laid_out(own, OPENAI) | {"threshold": own.threshold})
    (tmp_path / "prompts.txt").write_text("a red star\na blue circle on a white background\n")
    out, block = tmp_path / "own.safetensors", meta["target"].rpartition(".")[2]
    command = ["sae", "import", str(path), "--model", "shapes", "--block", block, "--out", str(out)]
    assert cli.run([*command, "--k", "16", "--prompts", str(tmp_path / "prompts.txt")]) == 0
    printed = capsys.readouterr().out
    assert "1024 features, 16 active, batchtopk" in printed
    assert "explained variance 0.9" in printed
    assert load_sae(out)[1]["base"] == meta["base"]
    pipe, star = load_pipeline("shapes"), concept_for("star")
    patches = [get_eraser("itd-shapes", sae=sae).fit(pipe, star, progress=False) for sae in ("auto", (str(out),))]
    assert patches[0].tensors.keys() == patches[1].tensors.keys()
    assert all(torch.equal(value, patches[1].tensors[name]) for name, value in patches[0].tensors.items())
    for more, message in (
        ([], "pass --k"),
        (["--k", "16", "--component", "unet"], "a block of the UNet"),
        (["--k", "0"], "--k"),
    ):
        assert cli.run([*command, "--overwrite", *more]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
    assert cli.run([*command[:2], str(tmp_path / "prompts.txt"), *command[3:], "--overwrite"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.full
def test_published_settings_are_taken_and_other_options_win(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for preset in PRESETS.values():
        SAETraining(**preset.options)
    monkeypatch.chdir(tmp_path)
    command = ["sae", "train", "--overwrite", "--model", "shapes", "--out", "x.safetensors"]
    command += ["--preset", "itd", "--block", "1"]
    quick = ["--steps", "8", "--features", "32", "--k", "4", "--dead-after", "300"]
    assert cli.run([*command, *quick]) == 0
    sae, meta = load_sae("x.safetensors")
    training = meta["about"]["training"]
    assert (sae.n, sae.k, sae.activation) == (32, 4, "topk")
    assert (training["lr"], training["warmup"], training["prompts"]) == (1e-4, 1000, 50)
    assert (training["steps"], training["dead_after"]) == (8, 300)
    capsys.readouterr()
    assert cli.run([*command[:-3], "other"]) == 2
    assert "a preset among itd, itd-nudity" in capsys.readouterr().err
    # The block of the preset is the ninth, which the embedded model has not.
    assert cli.run([*command[:-2], *quick]) == 2
    assert "from 0 to 2" in capsys.readouterr().err
