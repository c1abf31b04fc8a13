"""The scripts of `benchmarks/` as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from support import REPOSITORY

_FOLDER = REPOSITORY / "benchmarks"


def benchmark(name: str) -> ModuleType:
    """A script, which finds the modules beside it as it does when it is run."""
    if str(_FOLDER) not in sys.path:
        sys.path.append(str(_FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", _FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
