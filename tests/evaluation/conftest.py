import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def benchmark_script():
    """Return what imports a script of benchmarks/ by its path without the ending."""

    def load(name):
        known = f"benchmarks_{name.replace('/', '_')}"
        spec = importlib.util.spec_from_file_location(known, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[known] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load
