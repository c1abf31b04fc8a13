"""The reader of all JSON, YAML and pictures from outside: what is within the limits, and one line on what is not."""

from __future__ import annotations

import json
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from erasers.files.reading import (
    MAX_DEPTH,
    open_picture,
    parse_json,
    parse_yaml,
    read_json,
    read_yaml,
    value_of,
)

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x1: 1, x2: 2}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 20)}]}}\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    "text",
    ['{"a": [1, 2.5, null, true, "\\u00e9"]}', "[" * MAX_DEPTH + "]" * MAX_DEPTH, '{"n": 123456789012345678901}'],
)
def test_json_within_the_limits(text: str) -> None:
    assert parse_json(text, "x") == json.loads(text)
    assert parse_json(b"\xef\xbb\xbf" + text.encode(), "x") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        ('[{"c": {"a": 1, "a": 1}}]', "the key 'a' twice"),
        ("[NaN]", "NaN, which is no finite number"),
        ("[-Infinity]", "no finite number"),
        ("[1e400]", "inf, which is no finite number"),
        (f"[{10**40}]", "a number of more than 40 digits"),
        (f"[-{10**301}]", "a number of more than 40 digits"),
        ("[" + "9" * 5000 + "]", "digits"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "more than 64 levels"),
        ("[" * 200_000, "more than 64 levels"),
        ('{"a":' * 100_000, "more than 64 levels"),
        ('["\\ud800"]', "text that is not valid Unicode"),
        (b'["\xff"]', "text that is not valid Unicode"),
        ("", "expected JSON"),
        ("[1", "expected JSON"),
    ],
)
def test_json_out_of_the_limits_is_one_line(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text, "the file")
    assert str(caught.value).startswith("the file: expected JSON, got ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_yaml_keeps_its_aliases() -> None:
    assert parse_yaml("a: &a {x: 1, y: [2]}\nb: *a\nc: {<<: *a, x: 3}", "x") == {
        "a": {"x": 1, "y": [2]},
        "b": {"x": 1, "y": [2]},
        "c": {"x": 3, "y": [2]},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' twice"),
        ("x: {a: 1, a: 1}", "the key 'a' twice"),
        (BOMB, "values once its aliases are written out"),
        (MERGES, "values once its aliases are written out"),
        ("a: &a [*a]", "values once its aliases are written out"),
        ("a: &a {b: *a}", "values once its aliases are written out"),
        ("a: .nan", "nan, which is no finite number"),
        ("a: -.inf", "inf, which is no finite number"),
        ("a: 1.0e+999", "no finite number"),
        ("a: " + "9" * 50, "a number of more than 40 digits"),
        ("a: 0x" + "f" * 100_000, "a number of more than 80 characters"),
        ("a: 1" + ":59" * 100_000, "a number of more than 80 characters"),
        ("[" * 50_000, "more than 64 levels"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "more than 64 levels"),
        ("a: 2020-01-01", "a date"),
        ("a: !!binary aGVsbG8=", "a bytes"),
        ("a: !!set {x, y}", "a set"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("? [1, 2]\n: 3", "unhashable key"),
        ("a: \x00", "special characters"),
        ("--- 1\n--- 2", "but found another document"),
    ],
)
def test_yaml_out_of_the_limits_is_one_line(text: str, message: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text, "the file")
    assert time.process_time() - started < 20
    assert str(caught.value).startswith("the file: expected YAML, got ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_files_are_named_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("[1, 2]")
    assert read_json(path) == read_yaml(path) == [1, 2]
    with pytest.raises(ValueError, match="x: expected a file of at most 0 MB"):
        read_json(path, most=3)
    path.write_bytes(b"a: " + b"x" * (1 << 20))
    with pytest.raises(ValueError, match="x: expected a file of at most 1 MB"):
        read_yaml(path)
    with pytest.raises(ValueError, match="expected a file, got something else"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


@pytest.mark.parametrize("table", [[], None, "x", {"b": 1}, {"a": True}, {"a": "1"}, {"a": [1]}])
def test_a_value_of_a_table_is_named(table: object) -> None:
    assert value_of({"a": 1}, "a", int) == 1
    with pytest.raises(ValueError, match="'a'"):
        value_of(table, "a", int)


def encoded(kind: str) -> BytesIO:
    content = BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, format=kind)
    content.seek(0)
    return content


def test_pictures_are_of_the_formats_that_are_named() -> None:
    assert open_picture(encoded("PNG")).size == (8, 8)
    assert open_picture(encoded("JPEG"), ("PNG", "JPEG")).size == (8, 8)
    for kind in ("JPEG", "EPS", "GIF", "TIFF"):
        with pytest.raises(ValueError, match=r"expected a picture \(PNG\)"):
            open_picture(encoded(kind))
    with pytest.raises(ValueError, match="expected a picture"):
        open_picture(BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"))
    with pytest.raises(FileNotFoundError):
        open_picture("none.png")
