"""Technical prose that tells people what to do and gives no orders to a model: the docstrings of Python's library."""

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

# Parts of the library that are no modules of its documentation.
_NOT_READ = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "__pycache__", "ensurepip"}
# A docstring of fewer characters says little.
_SHORTEST = 60
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_PARAGRAPH = re.compile(r"\n\s*\n")


def paragraphs(root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield (module, paragraph) of every docstring, in the order of their files.

    Args:
        root: the folder of the library; None takes that of this Python.
    """
    folder = root or Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder)
        if _NOT_READ.isdisjoint(inside.parts):
            for text in _docstrings(file):
                for paragraph in _PARAGRAPH.split(text):
                    if len(paragraph.strip()) >= _SHORTEST:
                        yield inside.parts[0].removesuffix(".py"), paragraph


def _docstrings(file: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in the library's own strings
        tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text
