"""Pages name files, modules and names that are there, and modules that run."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pkgutil import resolve_name

import pytest
from support import REPOSITORY

PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.md", "benchmarks/*.md", "docs/*.md", "erasers/**/*.md")
    for path in REPOSITORY.glob(pattern)
    # The list of changes speaks of what was.
    if path.name != "CHANGELOG.md"
)
FOLDERS = ("benchmarks", "docs", "erasers", "pipelines", "tests")
MODULES = [
    path.relative_to(REPOSITORY).as_posix() for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")
]


def test_there_are_pages() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/patches.md", "benchmarks/README.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_there(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert [*missing_paths(text), *missing_names(text), *modules_that_do_not_run(text)] == []


def test_what_is_not_there_is_told() -> None:
    text = "`erasers/nowhere.py` and erasers.eraser.Eraser, erasers.eraser.Erazer; `python -m erasers.cli.app`"
    assert missing_paths(text) == ["erasers/nowhere.py"]
    assert missing_names(text) == ["erasers.eraser.Erazer"]
    assert modules_that_do_not_run(text) == ["erasers.cli.app"]
    text = "`tests/support/*.py`, `tests/no*.py`, patch/find.py, patch/lost.py, `python -m erasers.cli --concept star`"
    assert missing_paths(text) == ["tests/no*.py", "patch/lost.py"]
    assert missing_names(text) == modules_that_do_not_run(text) == []


def missing_paths(text: str) -> list[str]:
    """Paths that lead nowhere: from the root, with `*` for any name, or ends of paths of modules, as `patch/find.py`.

    What a command is to write need not be there yet.
    """
    paths = re.findall(rf"(?<!--out )(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./*-]+)", text)
    ends = re.findall(r"(?<![\w/.-])(\w+/[\w/]+\.py)\b", text)
    return [path for path in paths if not any(REPOSITORY.glob(path.rstrip("/.")))] + [
        end for end in ends if end not in paths and not any(f"/{path}".endswith(f"/{end}") for path in MODULES)
    ]


def missing_names(text: str) -> list[str]:
    """Dotted names of the package that cannot be imported."""
    return [name for name in re.findall(r"\berasers(?:\.[A-Za-z_]\w*)+", text) if not importable(name)]


def importable(name: str) -> bool:
    try:
        resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


def modules_that_do_not_run(text: str) -> list[str]:
    """Modules behind `-m` without a `__main__`."""
    modules = re.findall(r"-m (erasers[\w.]*\w)", text)
    return [module for module in modules if not runs(module)]


def runs(module: str) -> bool:
    try:
        return find_spec(f"{module}.__main__") is not None
    except ModuleNotFoundError:
        return False
