"""Names on the Hub, and its errors as one."""

from __future__ import annotations

import pytest
from huggingface_hub import errors

from erasers.files.hub import MODEL_NAME, REPOSITORY, hub_errors, reason


def test_names_that_are_asked_for() -> None:
    for name in ("me/star", "_me/_star", "a-b.c/d.e-f", "1/2"):
        assert REPOSITORY.fullmatch(name), name
    for name in (
        "star",
        "me/star/more",
        "./star",
        "me/.star",
        "me/",
        "-me/star",
        "mé/star",
        "me/star@1",
        "C:\\me/star",
    ):
        assert not REPOSITORY.fullmatch(name), name


def test_names_that_a_card_tells() -> None:
    for name in ("me/star", "a-b.c/d.e-f", "me/.star", "1/-"):
        assert MODEL_NAME.fullmatch(name), name
    for name in ("shapes", "_me/star", "./star", "/home/me", "../star", "~/star", "me/star/more"):
        assert not MODEL_NAME.fullmatch(name), name


def test_a_reason_is_one_line() -> None:
    assert reason(OSError(), unknown="", offline="") == "OSError (OSError)"
    assert reason(OSError("first\nsecond"), unknown="", offline="") == "first (OSError)"


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (errors.OfflineModeIsEnabled("off"), "away"),
        (errors.HFValidationError("x"), "none"),
        (KeyError("x"), "'x' (Key"),
    ],
)
def test_errors_of_the_hub_become_one(raised: Exception, why: str) -> None:
    with pytest.raises(FileNotFoundError) as told, hub_errors("cannot load x", unknown="none", offline="away"):
        raise raised
    assert str(told.value).startswith(f"cannot load x: {why}")
    assert not str(told.value).endswith("; ")
    assert told.value.__cause__ is raised
    more = {"unknown": "none", "offline": "away", "advice": "try y", "kind": OSError}
    with pytest.raises(OSError, match=r"^cannot load x: .*; try y$") as told, hub_errors("cannot load x", **more):
        raise raised
    assert type(told.value) is OSError
    with pytest.raises(type(raised)), hub_errors("", unknown="", offline="", passing=(type(raised),)):
        raise raised
