"""Scripts of the repository as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from support import REPOSITORY


def benchmark(name: str) -> ModuleType:
    """A script of `benchmarks/`, see `script`."""
    return script("benchmarks", name)


def script(folder: str, name: str) -> ModuleType:
    """A script, which finds the modules beside it as it does when it is run."""
    home = REPOSITORY / folder
    if str(home) not in sys.path:
        sys.path.append(str(home))
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", home / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
