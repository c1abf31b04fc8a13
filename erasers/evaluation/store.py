"""What the benchmark keeps on disk: pictures, verdicts and patches, each under what it was made from; append-only.

    images/<2 hex>/<key>.png                 a picture; there is one or there is none
    verdicts/<judge>/<process>.jsonl         a verdict a line; each process appends to a file of its own
    <journal>/<process>.jsonl                likewise, a value under a key a line
    patches/<key>.safetensors, <key>.json    a fitted patch and what fitting it took; whoever is first writes it

Several processes may share a folder, and any of them may be killed at any time: nothing is ever half there.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from erasers.atomic import flush, temporary_beside, write_atomically
from erasers.judges import Verdict
from erasers.patch import Patch
from erasers.reading import open_picture, parse_json, read_json


def canonical(value: Any, *, indent: int | None = None) -> str:
    """JSON of which there is one for each value: sorted keys, no blanks unless indented, numbers as `repr`.

    Raises:
        ValueError: A number that is not finite.
        TypeError: What JSON does not have.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(value, sort_keys=True, separators=separators, indent=indent, allow_nan=False)


def key_of(value: Any) -> str:
    """sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


class Store:
    """The pictures and patches of a folder.

    Args:
        root: The folder; created with the first file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def image_path(self, key: str) -> Path:
        """Where a picture is or will be."""
        return self.root / "images" / key[:2] / f"{key}.png"

    def has_image(self, key: str) -> bool:
        """Whether there is such a picture."""
        return self.image_path(key).is_file()

    def read_image(self, key: str) -> Image.Image:
        """A picture in RGB.

        Raises:
            ValueError: The file is damaged.
            FileNotFoundError: There is none.
        """
        path = self.image_path(key)
        content = path.open("rb")
        try:
            with content, open_picture(content) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run again") from error

    def add_image(self, key: str, image: Image.Image) -> None:
        """Keep a picture unless there is one."""
        path = self.image_path(key)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda part: image.convert("RGB").save(part, format="PNG"))

    def read_patch(self, key: str) -> tuple[Patch, dict[str, Any]] | None:
        """A patch and what is known about it; None when it has to be fitted.

        Raises:
            PatchError: The file is damaged.
        """
        path = self._patch_path(key)
        facts = path.with_suffix(".json")
        if not (path.is_file() and facts.is_file()):
            return None
        return Patch.load(path), read_json(facts)

    def add_patch(self, key: str, patch: Patch, edit_seconds: float | None) -> None:
        """Keep a patch unless there is one; None stands for seconds that nobody measured."""
        path = self._patch_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        _first(path, patch.save)
        facts = canonical({"bytes": path.stat().st_size, "edit_seconds": edit_seconds})
        _first(path.with_suffix(".json"), lambda part: part.write_text(facts, encoding="utf-8"))

    def _patch_path(self, key: str) -> Path:
        return self.root / "patches" / f"{key}.safetensors"


class _Lines:
    """A folder of entries, a line of JSON each; every process appends to a file of its own and reads all."""

    kind = "entry"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, int] = {}
        self._mine = f"{os.getpid()}-{socket.gethostname()}-{secrets.token_hex(4)}.jsonl"
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have written since; the torn last line of a killed one does not count.

        Raises:
            ValueError: A whole line that is no entry.
        """
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as shard:
                shard.seek(self._read.get(path.name, 0))
                whole, newline, _ = shard.read().rpartition(b"\n")
            self._read[path.name] = self._read.get(path.name, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                try:
                    self._take(parse_json(line, "a line"))
                except (ValueError, KeyError, TypeError) as error:
                    problem = f"a line that is no {self.kind} ({error}); delete it and run again"
                    raise ValueError(f"{path} has {problem}") from error

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Take entries, all or none of which are on disk when this returns."""
        text = "".join(canonical(entry) + "\n" for entry in entries)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / self._mine).open("a", encoding="utf-8") as shard:
            shard.write(text)
        for entry in entries:
            self._take(entry)

    def _take(self, entry: Any) -> None:
        """Hold an entry unless there is one under its key."""
        raise NotImplementedError


class Journal(_Lines):
    """Values under keys, e.g. numbers measured in a picture under the picture's key; the first value of a key stays.

    Args:
        folder: Of this journal alone; created with the first value.
    """

    def __init__(self, folder: Path) -> None:
        self._found: dict[str, Any] = {}
        super().__init__(folder)

    def get(self, key: str) -> Any:
        """The JSON value under a key; None when there is none yet."""
        return self._found.get(key)

    def add(self, items: Iterable[tuple[str, Any]]) -> None:
        """Keep values, all or none of which are on disk when this returns.

        Raises:
            ValueError: A number that is not finite.
            TypeError: What JSON does not have.
        """
        self._append([{"key": key, "value": value} for key, value in items])

    def _take(self, entry: Any) -> None:
        self._found.setdefault(entry["key"], entry["value"])


class Verdicts(_Lines):
    """The verdicts of one judge, by picture and by what the prompt wants.

    Args:
        root: As for `Store`.
        judge: The digest of the judge's fingerprint.
    """

    kind = "verdict"

    def __init__(self, root: Path, judge: str) -> None:
        self._found: dict[tuple[str, str], Verdict] = {}
        super().__init__(root / "verdicts" / judge[:16])

    def get(self, image: str, wants: Mapping[str, str]) -> Verdict | None:
        """The verdict on a picture; None when there is none yet."""
        return self._found.get((image, canonical(dict(wants))))

    def add(self, some: Iterable[tuple[str, Mapping[str, str], Verdict]]) -> None:
        """Keep verdicts, all or none of which are on disk when this returns."""
        entries = []
        for image, wants, verdict in some:
            facts = {"value": verdict.value, "probability": verdict.probability, "reason": verdict.reason}
            entries.append({"image": image, "wants": dict(wants), **facts})
        self._append(entries)

    def _take(self, entry: Any) -> None:
        key = (entry["image"], canonical(entry["wants"]))
        self._found.setdefault(key, Verdict(entry["value"], entry["probability"], entry["reason"]))


def _first(path: Path, write: Any) -> None:
    """Let `write` fill `path` unless it is there already; of several processes the first one wins."""
    part = temporary_beside(path)
    try:
        write(part)
        flush(part)
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        part.unlink(missing_ok=True)
