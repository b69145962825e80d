"""Starting a module of chatkit in a Python of its own, which sees no module of the folder that it is started in."""

import os
from pathlib import Path

# Modules come from where this process has them: `-m` would look into the working directory first, and a user's own
# `random.py` or `numpy.py` there would end the child or act in its place.
_ROOT = str(Path(__file__).resolve().parents[1])
_PROGRAM = f"""import sys
sys.path[:0] = [] if {_ROOT!r} in sys.path else [{_ROOT!r}]
import runpy
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run_module(module: str) -> tuple[str, ...]:
    """Return what Python is told in place of `-m module`; what the module is told comes after it.

    The child needs `environment` besides.
    """
    return ("-P", "-c", _PROGRAM, module)


def environment() -> dict[str, str]:
    """Return the environment of this process without what would name the working directory as a place of modules.

    That is an empty or relative entry of PYTHONPATH, often left by a profile's `PYTHONPATH=$PYTHONPATH:…`.
    """
    given = dict(os.environ)
    paths = [path for path in given.pop("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(path)]
    return given | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
