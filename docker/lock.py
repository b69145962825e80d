"""Write docker/requirements.lock: requirements.lock without what only developers' tools bring.

An image carries no linters and no test runners, least of all hadolint, whose licence is not permissive. Which packages
those are is read from the installed packages' own metadata, so this needs no network and changes no version. A package
that is not installed here, such as one for another platform, is kept.

Run by `make lock`, in the environment that the lock made.
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "docker" / "requirements.lock"
EXTRAS = ("cpu", "local", "torch", "aws", "encryption")
# What indexes of millions of passages are built with, on machines of their own, and patterns of personal data: 550 MB.
LEFT_OUT = ("datasets", "ray", "presidio")


def main() -> int:
    """Write the lock and return the exit status."""
    LOCK.write_text(image_lock(), encoding="utf-8")
    return 0


def image_lock() -> str:
    """Return the requirement blocks of requirements.lock that the image needs, unchanged and in order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = project["project"]["dependencies"] + project["build-system"]["requires"]
    for extra in EXTRAS:
        wanted += project["project"]["optional-dependencies"][extra]
    unwanted = list(project["dependency-groups"]["dev"])
    for extra in LEFT_OUT:
        unwanted += project["project"]["optional-dependencies"][extra]
    only_tools = closure(unwanted) - closure(wanted)
    blocks = re.findall(r"^[a-z0-9].*\n(?:[ ].*\n)*", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M)
    return "".join(block for block in blocks if name_of(block) not in only_tools)


def name_of(block: str) -> str:
    """Return the canonical name of the package that a requirement block pins."""
    return canonicalize_name(block.split("==")[0])


def closure(requirements: Iterable[str]) -> set[str]:
    """Return the canonical names of these packages and all they need, as far as they are installed here."""
    found: set[tuple[str, str]] = set()
    open_ = [(Requirement(text), "") for text in requirements]
    while open_:
        requirement, extra = open_.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) in found:
                continue
            found.add((name, wanted))
            try:
                open_ += [(Requirement(text), wanted) for text in requires(name) or ()]
            except PackageNotFoundError:
                continue
    return {name for name, _ in found}


if __name__ == "__main__":
    sys.exit(main())
