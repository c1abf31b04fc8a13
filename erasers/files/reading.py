"""Reading what comes from outside: JSON, YAML, TOML and pictures, within limits, as plain values.

Every parser has to see the same in a file, and no file may cost more than its size: keys are unique, numbers finite and
of at most `MAX_DIGITS` digits, texts valid Unicode, levels and the aliases of YAML bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import chain
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from PIL import Image

MAX_JSON, MAX_YAML = 1 << 27, 1 << 20
"""Bytes; YAML is read a hundred times as slowly."""
MAX_DEPTH, MAX_DIGITS, MAX_VALUES = 64, 40, 200_000
PICTURES = ("PNG", "JPEG", "WEBP", "BMP")
"""Formats of pictures that users give."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_PLAIN = (str, int, float, bool, type(None))


def read_json(path: Path, *, most: int = MAX_JSON) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: No JSON within the limits; names the file.
        OSError: It cannot be read.
    """
    return parse_json(_text(path, most), str(path))


def parse_json(text: str | bytes, what: str) -> Any:
    """The value of a JSON text.

    Args:
        text: At most `MAX_JSON` long.
        what: Where it comes from, for the message.

    Raises:
        ValueError: No JSON within the limits.
    """
    try:
        text = _decoded(text, MAX_JSON)
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        _check(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: expected JSON, got {_reason(error)}") from None
    return value


def read_yaml(path: Path) -> Any:
    """The value of a YAML file; see `read_json`."""
    return parse_yaml(_text(path, MAX_YAML), str(path))


def parse_yaml(text: str | bytes, what: str) -> Any:
    """The value of a YAML text; see `parse_json`."""
    import yaml

    try:
        value = yaml.load(_decoded(text, MAX_YAML), Loader=_yaml_loader())
        _check(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{what}: expected YAML, got {_reason(error)}") from None
    return value


def read_toml(path: Path) -> Any:
    """The value of a TOML file; see `read_json`."""
    import tomllib

    text = _text(path, MAX_YAML)
    try:
        value = tomllib.loads(_decoded(text, MAX_YAML))
        _check(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected TOML, got {_reason(error)}") from None
    return value


def value_of(table: Any, key: str, kinds: type | tuple[type, ...]) -> Any:
    """The value of a key of a table, if it is of one of some types; true and false are no numbers.

    Raises:
        ValueError: No table, no such key, or a value of another type.
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(table, dict) or key not in table:
        raise ValueError(f"expected a table with {key!r}, got {str(table)[:80]!r}")
    value = table[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and not {bool, object} & set(kinds)):
        expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"expected {expected} as {key!r}, got {str(value)[:80]!r}")
    return value


def open_picture(source: Any, formats: Iterable[str] = ("PNG",)) -> Image.Image:
    """A picture of one of some formats; Pillow would else try dozens, some of which start other programs.

    Raises:
        ValueError: Another format, a damaged file, or more pixels than Pillow takes.
        FileNotFoundError: No such file.
    """
    from PIL import Image

    try:
        return Image.open(source, formats=list(formats))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a picture ({', '.join(formats)}), got {_reason(error)}") from error


def at_home(path: str | Path) -> Path:
    """A path with a `~` or `~user` at its beginning written out.

    Raises:
        ValueError: Nobody of that name, or a user without a home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"no home folder for {Path(path).parts[0]!r}, with which a path begins") from None


def _text(path: Path, most: int) -> bytes:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected a file, got something else")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path}: expected a file of at most {most >> 20} MB")
    return content


def _decoded(text: str | bytes, most: int) -> str:
    if len(text) > most:
        raise ValueError(f"more than {most >> 20} MB")
    return text if isinstance(text, str) else text.decode("utf-8-sig")


def _check(value: Any) -> None:
    """Refuse values that are not plain, too large or too deep."""
    level = [value]
    for depth in range(MAX_DEPTH + 1):
        tables = [item for item in level if isinstance(item, dict)]
        lists = [item for item in level if isinstance(item, list)]
        scalars = (item for item in level if not isinstance(item, (dict, list)))
        for item in chain(scalars, chain.from_iterable(tables)):
            _check_scalar(item)
        if depth == MAX_DEPTH and (tables or lists):
            raise ValueError(f"more than {MAX_DEPTH} levels")
        level = list(chain(chain.from_iterable(table.values() for table in tables), chain.from_iterable(lists)))


def _check_scalar(value: Any) -> None:
    if not isinstance(value, _PLAIN):
        raise ValueError(f"a {type(value).__name__}")
    if isinstance(value, float) and not isfinite(value):
        _no_number(str(value))
    if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:80]!r} twice")
    return table


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant}, which is no finite number")


def _yaml_loader() -> Any:
    """PyYAML's safe loader without repeated keys, endless aliases and numbers that take long to read."""
    import yaml

    class Loader(yaml.SafeLoader):
        def get_single_node(self) -> Any:
            node = super().get_single_node()
            _check_aliases(node, {})
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            _unique([(key.value, None) for key, _ in node.value if isinstance(key.value, str)])
            return node

        def construct_scalar(self, node: Any) -> Any:
            if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and len(node.value) > 2 * MAX_DIGITS:
                raise ValueError(f"a number of more than {2 * MAX_DIGITS} characters")
            return super().construct_scalar(node)

    return Loader


def _check_aliases(node: Any, sizes: dict[int, float]) -> float:
    """The number of values in a YAML node with its aliases written out, which has to be at most `MAX_VALUES`."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) not in sizes:
        # A node inside itself has no end.
        sizes[id(node)] = inf
        children = (child for item in node.value for child in (item if isinstance(item, tuple) else (item,)))
        sizes[id(node)] = 1 + sum(_check_aliases(child, sizes) for child in children)
    if sizes[id(node)] > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values once its aliases are written out")
    return sizes[id(node)]


def _reason(error: BaseException) -> str:
    """One line on what was there instead."""
    if isinstance(error, RecursionError):
        return f"more than {MAX_DEPTH} levels"
    if isinstance(error, UnicodeError):
        return "text that is not valid Unicode"
    return " ".join(str(error).split())[:300] or type(error).__name__
