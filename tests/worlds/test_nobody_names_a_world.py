"""Code outside of `erasers/worlds` names no world: it asks for the one of a model.

Four things may: docstrings, help texts and examples of the command, the presets `<method>-<world>` that a method
declares, and the YAML of tasks. Everything else that says "shapes" means tensors, and is listed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import erasers

PACKAGE = Path(erasers.__file__).parent
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "worlds" not in path.parents]

TENSORS = {
    "diffusion/adaptors/qwen_image.py",
    "evaluation/probes/hand_off.py",
    "judges/q16.py",
    "sae/autoencoder.py",
    "sae/published.py",
    "training/foretelling.py",
}
"""Files whose errors and names speak of the shapes of tensors, beside those of `patch/`, which check files."""


def _of_tensors(name: str) -> bool:
    return name in TENSORS or name.startswith("patch/")


WORLD = re.compile(r"imports|says '([\w/]*[-/])?shapes([-@].*)?'")
"""What is of no tensor there, either."""

EXAMPLES = "EXAMPLES"
"""Name of the text that the command prints as examples."""


def uses(tree: ast.Module) -> Iterator[str]:
    """Where code names the world: imports, texts, and names of functions, arguments and attributes."""
    allowed = {id(node) for node in _documentation(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            yield from (f"{node.lineno}: imports {name}" for name in modules if "shapes" in re.split(r"\W", name))
        text = node.value if isinstance(node, ast.Constant) and id(node) not in allowed else ""
        if re.search(r"\bshapes\b", str(text)):
            yield f"{node.lineno}: says {text!r}"
        names = [getattr(node, key, None) for key in ("name", "id", "arg", "attr")]
        if isinstance(node, ast.Name | ast.arg | ast.Attribute | ast.FunctionDef | ast.ClassDef | ast.keyword):
            yield from (f"{node.lineno}: is {name}" for name in names if re.search("(?i)shapes", str(name)))


def _documentation(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            yield node.value  # a docstring
        if isinstance(node, ast.keyword) and node.arg == "help":
            yield from ast.walk(node.value)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            if EXAMPLES in names:
                yield from ast.walk(node)
            if names == {"presets"} and isinstance(node.value, ast.Dict):
                yield from (key for key in node.value.keys if key is not None)


def test_nothing_outside_of_the_worlds_names_one() -> None:
    named: dict[str, list[str]] = {}
    for path in FILES:
        name = str(path.relative_to(PACKAGE))
        lines = list(uses(ast.parse(path.read_text(encoding="utf-8"))))
        named[name] = [line for line in lines if not _of_tensors(name) or WORLD.search(line)]
    assert {name: lines for name, lines in named.items() if lines} == {}


def test_the_list_of_files_on_tensors_is_not_too_long() -> None:
    silent = [name for name in sorted(TENSORS) if not list(uses(ast.parse((PACKAGE / name).read_text())))]
    assert silent == []


@pytest.mark.parametrize(
    "line",
    [
        "from erasers.worlds.shapes.prompts import concept_for",
        "from erasers.worlds import shapes",
        "import erasers.worlds.shapes",
        "load_pipeline('shapes')",
        "judge = 'oracle/shapes'",
        "preset = f'{name}-shapes'",
        "folder = 'worlds/shapes/sae'",
        "build(shapes=True)",
        "def is_shapes(model): pass",
        "class ShapesFeatures: pass",
        "print(f'shapes does not know {word}')",
    ],
)
def test_a_name_of_a_world_is_seen(line: str) -> None:
    assert list(uses(ast.parse(line)))
