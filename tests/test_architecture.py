"""The import table of the design, the sizes, and what importing the command line costs."""

import ast
import json
import re
import resource
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import chatkit
from chatkit import errors

ROOT = Path(chatkit.__file__).resolve().parent
MODULES = sorted(ROOT.rglob("*.py"))
LAYERS = {
    "chatkit.types": 0,
    "chatkit.verdicts": 0,
    "chatkit.errors": 0,
    "chatkit.child_python": 0,
    "chatkit.protocols": 1,
    "chatkit.retrievers": 1,
    "chatkit.citations": 1,
    "chatkit.excerpts": 1,
    "chatkit.sentences": 1,
    "chatkit.encoders": 1,
    "chatkit.observers": 1,
    "chatkit.judging": 1,
    "chatkit.conversation": 1,
    "chatkit.markers": 1,
    "chatkit.prompt_formats": 1,
    "chatkit.prompts": 1,
    "chatkit.squeeze": 1,
    "chatkit.stopping": 1,
    "chatkit.release": 1,
    "chatkit.windows": 1,
    "chatkit.session_lines": 1,
    "chatkit.turns": 1,
    "chatkit.unstored": 1,
    "chatkit.checking": 2,
    "chatkit.feedback": 1,
    "chatkit.planning": 2,
    "chatkit.service": 2,
    "chatkit.models": 3,
    "chatkit.moderation": 3,
    "chatkit.retrieval": 3,
    "chatkit.sessions": 3,
    "chatkit.settings": 4,
    "chatkit.moderation_settings": 4,
    "chatkit.moderators": 4,
    "chatkit.setting_checks": 4,
    "chatkit.setting_values": 4,
    "chatkit.engines": 4,
    "chatkit.indexing": 4,
    "chatkit.recipes": 4,
    "chatkit.openchatkit_index": 4,
    "chatkit.web_sources": 4,
    "chatkit.wiring": 4,
    "chatkit.retrieving": 4,
    "chatkit.blocking": 4,
    "chatkit.testing": 4,
    "chatkit.evaluation": 4,
    "chatkit.server": 5,
    "chatkit.client": 5,
    "chatkit.deploy": 5,
    "chatkit.cli": 5,
}
HEAVY = (
    "torch",
    "transformers",
    "faiss",
    "openvino",
    "openvino_genai",
    "openvino_tokenizers",
    "pyarrow",
    "numpy",
    "starlette",
    "uvicorn",
    "httpx",
    "prometheus_client",
)
MAX_LINES = 400
MAX_FUNCTION = 60
MAX_IMPORT_S = 0.25
# The only places that may catch everything. Whatever an adapter raises, the text was not checked; a defect must not
# leave consumers waiting; a library's failure must reach every caller of its thread, and one raises nothing narrower;
# an index is made by others, and whatever reading one raises, the thread that follows all of them goes on; a file too,
# and a data set that is streamed from anywhere; a model's chat template is a program of others; the library of
# tokenizers raises nothing narrower for a broken file.
CATCH_ALL = {
    ("chatkit.prompt_formats", "_named"),
    ("chatkit.release", "_verdict"),
    ("chatkit.release", "judged"),
    ("chatkit.turns", "drive"),
    ("chatkit.models.decoding", "load_tokenizer"),
    ("chatkit.models.judge_worker", "_written"),
    ("chatkit.models.upstream_format", "read_tokenizer"),
    ("chatkit.retrieval.apart", "_answer"),
    ("chatkit.retrieval.encoder", "_encode"),
    ("chatkit.retrieval.tokens", "load_tokenizer"),
    ("chatkit.retrieval.live", "_open_named"),
    ("chatkit.retrieval.live", "_watch"),
    ("chatkit.retrieval.streamed", "documents"),
}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def unit_of(module: str) -> str:
    """Return the module or package that has a layer."""
    return ".".join(module.split(".")[:2])


def imports_of(file: Path) -> list[tuple[str, bool]]:
    """Return what a module imports and whether that happens when it is itself imported; type hints do not count."""
    hints = {
        id(node)
        for block in ast.walk(tree_of(file))
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    inner = {
        id(node)
        for function in ast.walk(tree_of(file))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree_of(file)):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "chatkit" else [node.module]
            )
            found += [(name, id(node) not in inner) for name in names]
    return found


def allowed(module: str, target: str) -> bool:
    own, other = LAYERS.get(unit_of(module)), LAYERS.get(unit_of(target))
    if module in ("chatkit", "chatkit.__main__"):
        return own is None
    assert own is not None, f"{module} has no layer"
    assert other is not None, f"{module} imports {target}, which has no layer"
    if unit_of(module) == unit_of(target):
        return True
    if own == 5:
        return other in (0, 1, 2, 4, 5)
    if own == 3:
        return other <= 1
    if own <= 2:
        return other <= own
    return other <= 4


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_a_module_imports_only_what_the_design_allows(file) -> None:
    module = name_of(file)
    for target, at_import in imports_of(file):
        if target.split(".")[0] == "chatkit":
            if target in ("chatkit", "chatkit.__version__"):
                continue
            assert allowed(module, target), f"{module} imports {target}"
        elif LAYERS.get(unit_of(module)) == 0:
            assert target.split(".")[0] in sys.stdlib_module_names, f"{module} imports {target}"
        elif at_import and LAYERS.get(unit_of(module), 0) in (1, 2, 4):
            assert target.split(".")[0] not in HEAVY or unit_of(module) == "chatkit.evaluation", f"{module}: {target}"


def test_assembly_opens_adapters_inside_functions_only() -> None:
    for target, at_import in imports_of(ROOT / "wiring.py") + imports_of(ROOT / "engines.py"):
        if LAYERS.get(unit_of(target)) == 3:
            assert not at_import, target


def test_the_fakes_use_the_pure_part_of_the_stores_only() -> None:
    adapters = {target for target, _ in imports_of(ROOT / "testing.py") if LAYERS.get(unit_of(target)) == 3}
    assert adapters == {"chatkit.sessions"}
    assert "from chatkit.sessions import items" in (ROOT / "testing.py").read_text()


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_modules_and_functions_stay_small(file) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= MAX_FUNCTION, node.name


def test_everything_is_caught_in_named_places_only() -> None:
    found = set()
    for file in MODULES:
        for function in ast.walk(tree_of(file)):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if not isinstance(node, ast.ExceptHandler):
                    continue
                assert node.type is not None, f"{file}:{node.lineno} catches everything without saying so"
                raises = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
                if "Exception" in re.findall(r"\w+", ast.unparse(node.type)) and not raises:
                    found.add((name_of(file), function.name))
                assert "BaseException" not in ast.unparse(node.type) or raises, f"{file}:{node.lineno}"
    assert found == CATCH_ALL


def test_importing_the_command_line_is_quick_and_loads_nothing_heavy() -> None:
    script = "import sys, json, chatkit, chatkit.cli; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    bare = [sys.executable, "-c", "pass"]

    def seconds(command: list[str]) -> float:
        """Of computing: others on the machine are no fault of the import."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    loaded = json.loads(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout)
    assert not set(HEAVY) & set(loaded)
    spent = min(seconds([sys.executable, "-c", script]) for _ in range(5)) - min(seconds(bare) for _ in range(3))
    assert spent < MAX_IMPORT_S


def test_numpy_is_not_loaded_before_assembly_has_set_its_threads() -> None:
    """Loaded earlier it spins on the engine's cores: a first token then waits some 50 ms for nothing."""
    script = (
        "import sys, chatkit.cli.serve, chatkit.cli.ask, chatkit.cli.chat, chatkit.server.run, chatkit.wiring;"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert "chatkit.wiring" in loaded
    assert not {"numpy", "torch", "openvino", "faiss"} & set(loaded)


def test_every_command_has_its_file() -> None:
    from chatkit.cli import COMMANDS

    files = {file.stem.replace("_", "-") for file in (ROOT / "cli").glob("*.py")} - {"--init--"}
    assert set(COMMANDS) <= files


def test_the_package_takes_all_its_files_along() -> None:
    table = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    patterns = table["tool"]["setuptools"]["package-data"]["chatkit"]
    taken = {file for pattern in patterns for file in ROOT.glob(pattern)}
    other = {
        f for f in ROOT.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc") and "__pycache__" not in f.parts
    }
    assert other <= taken
    for pattern in patterns:
        assert "*" in pattern or (ROOT / pattern).is_file(), pattern
    assert (ROOT / "py.typed").is_file()
    assert (ROOT / "models/defaults.toml").is_file()
    assert any((ROOT / "moderation/weights").glob("*.safetensors"))


def test_the_error_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__)
    made = [n for n, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.ChatkitError)]
    assert ["ChatkitError", *drawn] == made
    codes = [getattr(errors, name).code for name in made]
    assert len(codes) == len(set(codes))
