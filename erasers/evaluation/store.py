"""What the benchmark keeps on disk: pictures, verdicts and patches, each under what it was made from; append-only.

    images/<2 hex>/<key>.png                 a picture; there is one or there is none
    pictures/<process>.jsonl                 the sha256 of a picture's file under its key a line
    verdicts/<judge>/<process>.jsonl         a verdict a line; each process appends to a file of its own
    <journal>/<process>.jsonl                likewise, a value under a key a line
    patches/<key>.safetensors, <key>.json    a fitted patch and what fitting it took; whoever is first writes it

Several processes may share a folder, and any of them may be killed at any time: nothing is ever half there. Every entry
carries a hash of its content and of what it is kept under. One that does not match is treated as absent and counted:
damage and mixed-up files come to light. Whoever can write to the folder can make an entry that matches.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

from PIL import Image

from erasers.files.atomic import flush, temporary_beside, write_atomically
from erasers.files.hashing import file_sha256
from erasers.files.reading import open_picture, parse_json, read_json
from erasers.judges import Verdict
from erasers.patch import Patch

_SEAL = "sha256"


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

    Attributes:
        damaged: Keys of pictures and patches that were there and not as they had been kept.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: set[str] = set()
        self._whole: set[str] = set()

    @cached_property
    def _hashes(self) -> _Hashes:
        return _Hashes(self.root / "pictures")

    @property
    def damage(self) -> int:
        """How many entries did not match their hashes."""
        return len(self.damaged) + self._hashes.damaged

    def image_path(self, key: str) -> Path:
        """Where a picture is or will be."""
        return self.root / "images" / key[:2] / f"{key}.png"

    def has_image(self, key: str) -> bool:
        """Whether there is such a picture, as it was kept; it is looked at once."""
        if key not in self._whole and self.image_path(key).is_file():
            (self._whole if self._matches(key) else self.damaged).add(key)
        return key in self._whole

    def _matches(self, key: str) -> bool:
        digest = file_sha256(self.image_path(key))
        if digest not in self._hashes.of(key):
            # Another process may have drawn it since.
            self._hashes.refresh()
        return digest in self._hashes.of(key)

    def read_image(self, key: str) -> Image.Image:
        """A picture in RGB.

        Raises:
            ValueError: The file is damaged, or it is not the picture that was kept.
            FileNotFoundError: There is none.
        """
        path = self.image_path(key)
        if not self._matches(key):
            raise ValueError(f"{path} is damaged: not the picture that was kept; run again to draw it anew")
        try:
            with open_picture(path) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run again") from error

    def add_image(self, key: str, image: Image.Image) -> None:
        """Keep a picture unless there is one that is as it was kept."""
        if self.has_image(key):
            return
        path, content = self.image_path(key), BytesIO()
        image.convert("RGB").save(content, format="PNG")
        path.parent.mkdir(parents=True, exist_ok=True)
        # The hash first: a picture without one would count as damaged.
        self._hashes.add(key, hashlib.sha256(content.getvalue()).hexdigest())
        write_atomically(path, lambda temporary: temporary.write_bytes(content.getvalue()))
        self._whole.add(key)

    def read_patch(self, key: str) -> tuple[Patch, dict[str, Any]] | None:
        """A patch and what is known about it; None when it has to be fitted, which includes one that does not match."""
        path = self._patch_path(key)
        if not (path.is_file() and path.with_suffix(".json").is_file()):
            return None
        try:
            facts = _opened(read_json(path.with_suffix(".json")))
            if (facts.pop("key"), facts.pop("patch")) == (key, file_sha256(path)):
                return Patch.load(path), facts
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        self.damaged.add(key)
        return None

    def add_patch(self, key: str, patch: Patch, edit_seconds: float | None) -> None:
        """Keep a patch unless there is one; None stands for seconds that nobody measured."""
        path = self._patch_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.read_patch(key) is None:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        _first(path, patch.save)
        facts: dict[str, Any] = {"bytes": path.stat().st_size, "edit_seconds": edit_seconds}
        text = canonical(_sealed(facts | {"key": key, "patch": file_sha256(path)}))
        _first(path.with_suffix(".json"), lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def _patch_path(self, key: str) -> Path:
        return self.root / "patches" / f"{key}.safetensors"


class _Lines:
    """A folder of entries, a line of JSON each; every process appends to a file of its own and reads all.

    Attributes:
        damaged: Whole lines that were no entries, or did not match their hashes; they do not count.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged = 0
        self._read: dict[str, int] = {}
        self._mine = f"{os.getpid()}-{socket.gethostname()}-{secrets.token_hex(4)}.jsonl"
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have written since; the torn last line of a killed one does not count."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as shard:
                shard.seek(self._read.get(path.name, 0))
                whole, newline, _ = shard.read().rpartition(b"\n")
            self._read[path.name] = self._read.get(path.name, 0) + len(whole) + len(newline)
            for line in whole.split(b"\n") if whole else ():
                try:
                    self._take(_opened(parse_json(line, "a line")))
                except (ValueError, KeyError, TypeError, AttributeError):
                    self.damaged += 1

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Take entries, all or none of which are on disk when this returns."""
        text = "".join(canonical(_sealed(entry)) + "\n" for entry in entries)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / self._mine).open("ab", buffering=0) as shard:
            _write_all(shard, text.encode())
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
        self._known: dict[str, Any] = {}
        super().__init__(folder)

    def get(self, key: str) -> Any:
        """The JSON value under a key; None when there is none yet."""
        return self._known.get(key)

    def add(self, items: Iterable[tuple[str, Any]]) -> None:
        """Keep values, all or none of which are on disk when this returns.

        Raises:
            ValueError: A number that is not finite.
            TypeError: What JSON does not have.
        """
        self._append([{"key": key, "value": value} for key, value in items])

    def _take(self, entry: Any) -> None:
        self._known.setdefault(entry["key"], entry["value"])


class Verdicts(_Lines):
    """The verdicts of one judge, by picture and by what the prompt wants.

    Args:
        root: As for `Store`.
        judge: The digest of the judge's fingerprint.
    """

    def __init__(self, root: Path, judge: str) -> None:
        self._known: dict[tuple[str, str], tuple[Verdict, str]] = {}
        super().__init__(root / "verdicts" / judge[:16])

    def get(self, image: str, wants: Mapping[str, str]) -> Verdict | None:
        """The verdict on a picture; None when there is none yet."""
        return self._entry(image, wants)[0]

    def pixels(self, image: str, wants: Mapping[str, str]) -> str:
        """The hash of the pixels that a verdict is on; empty when there is none."""
        return self._entry(image, wants)[1]

    def _entry(self, image: str, wants: Mapping[str, str]) -> tuple[Verdict | None, str]:
        return self._known.get((image, canonical(dict(wants))), (None, ""))

    def add(self, verdicts: Iterable[tuple[str, Mapping[str, str], Verdict, str]]) -> None:
        """Keep verdicts on pictures with these hashes of pixels, all or none of which are on disk when this returns."""
        entries = []
        for image, wants, verdict, pixels in verdicts:
            facts = {"value": verdict.value, "probability": verdict.probability, "reason": verdict.reason}
            entries.append({"image": image, "wants": dict(wants), "pixels": pixels, **facts})
        self._append(entries)

    def _take(self, entry: Any) -> None:
        key = (entry["image"], canonical(entry["wants"]))
        verdict = Verdict(entry["value"], entry["probability"], entry["reason"])
        self._known.setdefault(key, (verdict, entry["pixels"]))


class _Hashes(_Lines):
    """Every sha256 that the file of a picture has had; processes that draw one at a time may draw it differently."""

    def __init__(self, folder: Path) -> None:
        self._known: dict[str, set[str]] = {}
        super().__init__(folder)

    def of(self, key: str) -> set[str]:
        return self._known.get(key, set())

    def add(self, key: str, digest: str) -> None:
        self._append([{"key": key, "file": digest}])

    def _take(self, entry: Any) -> None:
        self._known.setdefault(entry["key"], set()).add(entry["file"])


def _write_all(file: FileIO, content: bytes) -> None:
    """Append all of it or, on a full disk, nothing."""
    start = file.seek(0, os.SEEK_END)
    try:
        while content:
            content = content[file.write(content) :]
    except OSError:
        file.truncate(start)
        raise


def _sealed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with the hash of its content."""
    return {**entry, _SEAL: key_of(entry)}


def _opened(entry: Any) -> dict[str, Any]:
    """The content of a sealed entry.

    Raises:
        ValueError: It does not match its hash.
        KeyError, TypeError, AttributeError: No sealed entry.
    """
    content = {key: value for key, value in entry.items() if key != _SEAL}
    if entry[_SEAL] != key_of(content):
        raise ValueError("an entry that does not match its hash")
    return content


def _first(path: Path, write: Any) -> None:
    """Let `write` fill `path` unless it is there already; of several processes the first one wins."""
    temporary = temporary_beside(path)
    try:
        write(temporary)
        flush(temporary)
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)
