"""Files of a user's own: texts to preserve, tables of concepts, folders of example pictures; read within limits."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from erasers.concept import KINDS, Concept
from erasers.files.reading import MAX_YAML, PICTURES, open_picture, parse_yaml

COLUMNS = ("concept", "anchor", "aliases", "preserve", "neighbours", "kind")
_LISTS = ("aliases", "preserve", "neighbours")
_MOST_TEXTS, _MOST_CONCEPTS, _MOST_PICTURES = 20_000, 1000, 200
_LEAST_SIDE, _MOST_PIXELS = 16, 100_000_000


def read_lines(path: Path, option: str) -> tuple[str, ...]:
    """The distinct lines of a text file, without empty ones.

    Raises:
        ValueError: No texts, too many, or no text file.
        OSError: It cannot be read.
    """
    texts = tuple(dict.fromkeys(line.strip() for line in _text(path, option).splitlines() if line.strip()))
    if not texts:
        raise ValueError(f"{option} {path}: expected texts, one a line, got none")
    if len(texts) > _MOST_TEXTS:
        raise ValueError(f"{option} {path}: expected at most {_MOST_TEXTS} texts, got {len(texts)}")
    return texts


def read_concepts(path: Path, option: str = "--concepts-file") -> list[dict[str, Any]]:
    """The concepts of a table, each with the columns that it gives; `concept` is always one.

    CSV has a header line, and `;` between the texts of a list. YAML is a list of tables, or a table by concept.

    Raises:
        ValueError: Names the entry and what is wrong with it.
        OSError: It cannot be read.
    """
    text = _text(path, option)
    entries = (
        _csv_entries(text) if path.suffix.lower() == ".csv" else _yaml_entries(parse_yaml(text, f"{option} {path}"))
    )
    if not entries or len(entries) > _MOST_CONCEPTS:
        raise ValueError(f"{option} {path}: expected 1 to {_MOST_CONCEPTS} concepts, got {len(entries)}")
    return [_entry(entry, f"{option} {path}, concept {number}") for number, entry in enumerate(entries, start=1)]


def concept_of(entry: Mapping[str, Any], base: Concept) -> Concept:
    """The concept of an entry: what it gives, over what a preset or an embedded world has."""
    given = {key: value for key, value in entry.items() if key != "concept"}
    if "kind" in given and "anchor" not in given and base == Concept(base.name):
        # The anchor that was chosen for the usual kind does not suit another.
        return Concept(base.name, **given)
    return replace(base, **given)


def read_images(folder: Path, option: str = "--images") -> tuple[Path, ...]:
    """The pictures of a folder, in the order of their names; every one was decoded.

    Raises:
        ValueError: No folder, no pictures or too many, a file that is no picture, or one of an odd size.
    """
    if not folder.is_dir():
        raise ValueError(f"{option} {folder}: expected a folder of pictures, got none")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not 1 <= len(paths) <= _MOST_PICTURES:
        raise ValueError(f"{option} {folder}: expected 1 to {_MOST_PICTURES} pictures, got {len(paths)} files")
    for path in paths:
        _check_picture(path, option)
    return tuple(paths)


def _check_picture(path: Path, option: str) -> None:
    try:
        with open_picture(path, PICTURES) as picture:
            width, height = picture.size
            if min(width, height) < _LEAST_SIDE or width * height > _MOST_PIXELS:
                raise ValueError(f"expected {_LEAST_SIDE} to {_MOST_PIXELS} pixels, got {width} x {height}")
            picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{option} {path}: {error}") from None


def _text(path: Path, option: str) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{option} {path}: expected a file, got none")
    with path.open("rb") as file:
        content = file.read(MAX_YAML + 1)
    if len(content) > MAX_YAML:
        raise ValueError(f"{option} {path}: expected a file of at most {MAX_YAML >> 20} MB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{option} {path}: expected text in UTF-8, got other bytes") from None


def _csv_entries(text: str) -> list[Any]:
    reader = csv.DictReader(io.StringIO(text), strict=True, skipinitialspace=True)
    try:
        rows = [dict(row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"expected CSV, got {error}") from None
    split = [
        {key: value.split(";") if key in _LISTS and value else value for key, value in row.items()} for row in rows
    ]
    # An empty cell says nothing; "" as an anchor is written as two quotes in YAML.
    return [{key: value for key, value in row.items() if value != ""} for row in split]


def _yaml_entries(value: Any) -> list[Any]:
    if isinstance(value, dict) and not all(isinstance(fields, (dict, type(None))) for fields in value.values()):
        raise ValueError(f"expected a list of concepts, or a table by concept, got a table of {', '.join(value)}")
    if isinstance(value, dict):
        return [{"concept": name, **(fields or {})} for name, fields in value.items()]
    if not isinstance(value, list):
        raise ValueError(f"expected a list of concepts, or a table by concept, got {type(value).__name__}")
    return [{"concept": entry} if isinstance(entry, str) else entry for entry in value]


def _entry(entry: Any, what: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or not str(entry.get("concept") or "").strip():
        raise ValueError(f"{what}: expected a name under 'concept', got {str(entry)[:80]!r}")
    if unknown := [key for key in entry if key not in COLUMNS]:
        raise ValueError(f"{what}: expected columns among {', '.join(COLUMNS)}, got {str(unknown[0])[:80]!r}")
    read: dict[str, Any] = {}
    for key, value in entry.items():
        texts = value if isinstance(value, list) and key in _LISTS else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{what}: expected text under {key!r}, got {str(value)[:80]!r}")
        kept: Sequence[str] = [text.strip() for text in texts]
        read[key] = tuple(text for text in kept if text) if key in _LISTS else kept[0]
    if read.get("kind", "object") not in KINDS:
        raise ValueError(f"{what}: expected a kind among {', '.join(KINDS)}, got {read['kind']!r}")
    return read
