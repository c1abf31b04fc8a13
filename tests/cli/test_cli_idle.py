"""Options that would do nothing are refused in one line that says what to add."""

from __future__ import annotations

from pathlib import Path

import pytest

from erasers.cli import app as cli

STAR = ("--concept", "star", "--model", "shapes")
DRAW = ("generate", "a star", "--model", "shapes")
TRAIN = ("sae", "train", "--model", "shapes", "--out", "x.safetensors")
EXPLAIN = ("explain", "--concept", "star", "--model", "shapes")
REPORT = "is for the pictures of a report; add --report FOLDER, or leave it out"
PATCHES = "is for patches; add --patch PATCH, or leave it out"
AGAIN = "is for pictures that are drawn again; add --redraw N, or leave it out"
DRAWN = "is for pictures that a denoiser is read from; add --component unet or transformer, or leave it out"


@pytest.mark.parametrize(
    ("command", "option", "words"),
    [
        (STAR, ("--samples", "5"), REPORT),
        (STAR, ("--size", "64"), REPORT),
        (STAR, ("--unsafe",), REPORT),
        (STAR, ("--judge", "none"), REPORT),
        (STAR, ("--control-image", "x.png"), REPORT),
        (DRAW, ("--strength", "0.5"), PATCHES),
        (DRAW, ("--strength", "1"), PATCHES),
        (DRAW, ("--force",), PATCHES),
        (("bench", "verify", "x.json"), ("--device", "cpu"), AGAIN),
        (("bench", "verify", "x.json"), ("--dtype", "float32"), AGAIN),
        (("bench", "verify", "x.json"), ("--allow-adult",), AGAIN),
        (TRAIN, ("--guidance", "4"), DRAWN),
        (TRAIN, ("--sampling-steps", "4"), DRAWN),
        ((*TRAIN, "--preset", "itd"), ("--guidance", "4"), DRAWN),
        ((*TRAIN, "--component", "unet"), ("--padding",), "is for a text encoder; take one as --component"),
        ((*TRAIN, "--component", "transformer"), ("--padding",), "is for a text encoder; take one as --component"),
        ((*TRAIN, "--preset", "saeuron-style"), ("--no-padding",), "is for a text encoder; take one as --component"),
        (EXPLAIN, ("--overwrite",), "is for a picture; add --out FILE, or leave it out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_that_would_do_nothing_is_refused(
    command: tuple[str, ...],
    option: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run([*command, *option]) == 2
    printed = capsys.readouterr()
    assert f"{option[0].replace('--no-', '--')} {words}" in printed.err
    assert (printed.out, len(printed.err.strip().splitlines())) == ("", 1)
    assert not list(tmp_path.iterdir())


def test_autoencoders_are_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*EXPLAIN, "--sae", "x.safetensors", "--set", "sae=y.safetensors"]) == 2
    assert "--sae and --set sae=... say the same" in capsys.readouterr().err


def test_an_option_before_a_subcommand_is_called_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--preserve-file", "x.txt", "methods"]) == 2
    assert capsys.readouterr().err.startswith("error: --preserve-file stands before 'methods'")
