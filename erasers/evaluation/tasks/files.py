"""Files of prompts: where they are, what they hash to, and their rows; CSV, JSON, JSONL and the captions of COCO."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from erasers.evaluation.checks import checked, count, mapping
from erasers.files.atomic import write_atomically
from erasers.files.cache import cache_dir
from erasers.files.hub import REPOSITORY, hub_errors
from erasers.files.reading import at_home, parse_json

MAX_BYTES, MAX_ROWS = 1 << 27, 1_000_000
_FORMATS = (".csv", ".json", ".jsonl")
_TIMEOUT = 60
_HEX = frozenset("0123456789abcdef")

Cells = Mapping[str, str]
"""Column -> text of a row."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public file of prompts, or one that only its user has.

    Args:
        file: Its path in the repository; its ending says the format.
        text: The column of the prompts.
        seed: The column of the seeds; without one they are counted up.
        github: `user/repo` on GitHub.
        hub: `user/dataset` on the Hugging Face Hub.
        revision: The commit; a GitHub file needs one.
        sha256: Of the file. A task that leaves it out takes any file, and its results say which.
        rows: At most the first rows.
        licence: Of the prompts.
        at: Where the file is on this machine.
    """

    file: str
    text: str = "prompt"
    seed: str | None = None
    github: str | None = None
    hub: str | None = None
    revision: str | None = None
    sha256: str | None = None
    rows: int | None = None
    licence: str = ""
    at: Path | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """What was given, without the place on this machine."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "at"}
        return {key: value for key, value in values.items() if value not in (None, "")}


def parse_source(name: str, value: Any) -> Source:
    """A source from a task file.

    Raises:
        ValueError: Names the key, what it takes and what it got.
    """
    given = mapping(name, value, [one.name for one in fields(Source) if one.name != "at"])
    for key in (key for key in given if key != "rows"):
        checked(f"{name}.{key}", given[key], str, "a text", bool)
    if "rows" in given:
        count(f"{name}.rows", given["rows"], MAX_ROWS)
    if Path(given.get("file", "")).suffix.lower() not in _FORMATS:
        raise ValueError(f"{name}.file: expected a name ending in {', '.join(_FORMATS)}, got {given.get('file')!r}")
    for key, length in (("revision", 40), ("sha256", 64)):
        if key in given and not (len(given[key]) == length and set(given[key]) <= _HEX):
            raise ValueError(f"{name}.{key}: expected {length} hex digits in small letters, got {given[key]!r}")
    for key in (key for key in ("github", "hub") if key in given and not REPOSITORY.fullmatch(given[key])):
        raise ValueError(f"{name}.{key}: expected user/repository, got {given[key]!r}")
    if "github" in given and ("hub" in given or "revision" not in given):
        raise ValueError(f"{name}: expected github with a revision and without hub, got {', '.join(given)}")
    return Source(**given)


def locate(name: str, source: Source, given: Path | None = None) -> Source:
    """The source with the place of its file and its sha256; fetched when nobody gives it and it is not in the cache.

    Raises:
        FileNotFoundError: It is neither given nor to be had.
        ValueError: Another file than the task names, or one that is too large.
    """
    path = at_home(given) if given else _fetch(name, source)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}, given as the prompts {name}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"expected a file of prompts of at most {MAX_BYTES >> 20} MB, got {path}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if source.sha256 not in (None, digest):
        raise ValueError(f"expected the prompts {name} with sha256 {source.sha256}, got {digest} in {path}")
    return replace(source, sha256=digest, at=path)


def read_rows(name: str, source: Source) -> tuple[Cells, ...]:
    """The rows of a file that was located, read once.

    Raises:
        ValueError: Not located, not of its format, or without the columns that are named.
        OSError: It cannot be read.
    """
    if source.at is None:
        raise ValueError(f"expected the file of the prompts {name}, got none; locate it first")
    # The digest is part of the key: a file that was changed is read again.
    return _read(name, source, str(source.at), source.sha256)


@lru_cache(maxsize=16)
def _read(name: str, source: Source, path: str, digest: str | None) -> tuple[Cells, ...]:
    try:
        content = Path(path).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("a file that was changed since its sha256 was taken")
        text = content.decode("utf-8-sig")
        rows = list(_rows(text, Path(source.file).suffix.lower()))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"expected the prompts {name} as {source.file}, got {path}: {error}") from None
    needs = [column for column in (source.text, source.seed) if column is not None]
    for number, row in enumerate(rows, start=1):
        if lacking := [column for column in needs if column not in row]:
            has = ", ".join(row) or "none"
            raise ValueError(f"expected the column {lacking[0]} in row {number} of {path}, got the columns {has}")
    if not rows:
        raise ValueError(f"expected the prompts {name}, got no rows in {path}")
    return tuple(rows[: source.rows])


def _rows(text: str, ending: str) -> Iterator[Cells]:
    """Rows of a file as texts, at most `MAX_ROWS`."""
    if ending == ".csv":
        found = _csv(text)
    elif ending == ".jsonl":
        # Not splitlines: JSON may have U+2028 and its like inside a text.
        found = (parse_json(line, f"line {n}") for n, line in enumerate(text.split("\n"), start=1) if line.strip())
    else:
        found = iter(_json(parse_json(text, "the file")))
    for number, row in enumerate(found, start=1):
        if number > MAX_ROWS:
            raise ValueError(f"expected at most {MAX_ROWS} rows")
        if not isinstance(row, dict):
            raise ValueError(f"expected a table of columns as row {number}, got {str(row)[:60]!r}")
        yield {str(key): _cell(value) for key, value in row.items() if not isinstance(value, (dict, list))}


def _csv(text: str) -> Iterator[dict[str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(reader, [])
    if len(set(header)) < len(header):
        raise ValueError(f"expected columns with names of their own, got {', '.join(header)}")
    for number, row in enumerate((row for row in reader if row), start=1):
        if len(row) != len(header):
            raise ValueError(f"expected {len(header)} columns in row {number}, got {len(row)}")
        yield dict(zip(header, row, strict=True))


def _json(data: Any) -> list[Any]:
    """A list of rows, or the annotations of COCO: of its five captions of a picture the first one counts."""
    if isinstance(data, list):
        return data
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise ValueError("expected a list of rows, or annotations with captions as COCO has them")
    firsts: dict[Any, Any] = {}
    for row in data["annotations"]:
        if not isinstance(row, dict) or not isinstance(row.get("image_id"), (int, str)):
            raise ValueError(f"expected annotations with an image_id, got {str(row)[:60]!r}")
        firsts.setdefault(row["image_id"], row)
    return list(firsts.values())


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _fetch(name: str, source: Source) -> Path:
    remedy = f"connect, or download {source.file} and pass --prompts {name}=FILE"
    if source.github:
        return _from_github(source, remedy)
    if source.hub:
        return _from_hub(source.hub, source, remedy)
    raise FileNotFoundError(f"the prompts {name} are a file of your own; pass --prompts {name}=FILE")


def _from_github(source: Source, remedy: str) -> Path:
    """A file of a commit, kept in the cache."""
    from http.client import HTTPException
    from urllib.parse import quote
    from urllib.request import urlopen

    url = f"https://raw.githubusercontent.com/{source.github}/{source.revision}/{quote(source.file)}"
    path = cache_dir() / "prompts" / f"{hashlib.sha256(url.encode()).hexdigest()[:40]}{Path(source.file).suffix}"
    if path.is_file():
        return path
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise FileNotFoundError(f"cannot fetch {url}: HF_HUB_OFFLINE is set; {remedy}")
    try:
        with urlopen(url, timeout=_TIMEOUT) as answer:
            content = answer.read(MAX_BYTES + 1)
            whole = answer.headers.get("Content-Length")
        if whole is not None and len(content) <= MAX_BYTES and len(content) != int(whole):
            raise OSError(f"got {len(content)} of {whole} bytes")
    except (OSError, HTTPException) as error:
        why = " ".join(str(getattr(error, "reason", error)).split())
        raise FileNotFoundError(f"cannot fetch {url}: {why}; {remedy}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_bytes(content))
    return path


def _from_hub(data_set: str, source: Source, remedy: str) -> Path:
    from huggingface_hub import hf_hub_download

    with hub_errors(
        f"cannot fetch {source.file} of the data set {data_set}",
        unknown="no such file, or one whose terms you have to accept on its page before you log in (hf auth login)",
        offline="the Hub cannot be reached",
        advice=remedy,
    ):
        return Path(hf_hub_download(data_set, source.file, repo_type="dataset", revision=source.revision))
