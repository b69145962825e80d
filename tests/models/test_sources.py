"""Sources, the manifest of defaults, and where models and their derived forms lie."""

import shutil
import subprocess
import sys

import pytest

from chatkit.errors import ModelError
from chatkit.models import cache, manifest, sources
from chatkit.settings import describe


@pytest.mark.parametrize(
    ("source", "canonical"),
    [
        ("hf:org/name", "hf:org/name@main"),
        ("hf:org/name@refs/pr/1", "hf:org/name@refs/pr/1"),
        ("hf:org/na.me#sub/m.gguf", "hf:org/na.me@main#sub/m.gguf"),
        ("modelscope:org/na.me", "modelscope:org/na.me@master"),
        ("modelscope:org/name@v1.0#m.gguf", "modelscope:org/name@v1.0#m.gguf"),
        ("pypi:A_b.c==1.0+cpu#d/e f.gguf", "pypi:a-b-c==1.0+cpu#d/e f.gguf"),
        ("/models/./m.gguf", "/models/m.gguf"),
    ],
)
def test_a_source_is_read_and_written_the_same(source, canonical):
    assert str(sources.parse(source)) == canonical
    assert str(sources.parse(canonical)) == canonical


@pytest.mark.parametrize(
    "source",
    [
        "",
        "gpt2",
        "org/name",
        "hf:name",
        "hf:org/name/more",
        "modelscope:name",
        "pypi:name#file",
        "pypi:-r==1#x",
        "pypi:a==1",
        "http://x/m",
    ],
)
def test_an_unknown_form_lists_the_forms(source, tmp_path):
    with pytest.raises(ModelError, match=r"unknown form; expected one of 'default', 'hf:ORG/NAME@REV'.*a path"):
        sources.resolve(source, models_dir=tmp_path)


@pytest.mark.parametrize(
    "source",
    ["hf:org/name#../m.gguf", "modelscope:org/name#/m.gguf", "pypi:a==1#/etc/m.gguf", "pypi:a==1#b/../../m.gguf"],
)
def test_a_file_outside_its_archive_is_refused(source):
    with pytest.raises(ModelError, match="leaves its folder"):
        sources.parse(source)


def test_different_sources_lie_in_different_folders():
    given = [
        "hf:a/b",
        "hf:a/b@v1",
        "hf:a/b#c.gguf",
        "modelscope:a/b@main",
        "pypi:a==1#b",
        "pypi:a==1#c",
        "pypi:a==1#b/c",
    ]

    assert len({sources._folder(sources.parse(source)) for source in given}) == len(given)


@pytest.mark.parametrize(
    ("source", "role", "command"),
    [
        ("default", "chat", "run: chatkit models pull$"),
        ("default", "encoder", "run: chatkit models pull$"),
        ("hf:org/name", None, "run: chatkit models pull hf:org/name@main$"),
        ("pypi:a==1#b/c.gguf", None, "run: chatkit models pull 'pypi:a==1#b/c.gguf'$"),
    ],
)
def test_a_model_that_was_not_pulled_names_the_command(source, role, command, tmp_path):
    with pytest.raises(ModelError, match=command):
        sources.resolve(source, models_dir=tmp_path / "none", role=role)


@pytest.mark.parametrize(
    ("role", "profile", "flags"),
    [("chat", "local", ""), ("chat", "larger", " --profile larger"), ("encoder", "larger", " --profile larger")],
)
def test_a_default_that_was_not_pulled_names_its_profile(role, profile, flags, tmp_path):
    with pytest.raises(ModelError, match=f"run: chatkit models pull{flags}$"):
        sources.resolve("default", models_dir=tmp_path, role=role, profile=profile)


def test_the_larger_profile_has_a_chat_model_of_the_hub_and_the_local_encoder():
    local, larger = manifest.profiles()["local"], manifest.profiles()["larger"]

    assert str(sources.parse("default", "chat", "larger")) == larger["chat"].source
    assert larger["chat"].source.startswith("hf:")
    assert larger["chat"].source.endswith(".gguf")
    assert larger["chat"].licence == "Apache-2.0"
    assert larger["chat"].expected is None
    assert larger["encoder"] == local["encoder"]


def test_an_unknown_profile_is_named():
    with pytest.raises(ModelError, match=r"no profile 'huge'; expected one of 'local', 'larger'"):
        sources.parse("default", "chat", "huge")


def test_the_settings_know_every_profile():
    (kind,) = [kind for name, kind, _, _ in describe() if name == "profile"]

    assert kind == " | ".join(manifest.profiles())


def test_what_the_settings_use_is_marked(tmp_path):
    configured = {"chat": "default", "encoder": "default"}

    rows = sources.list_models(tmp_path, configured=configured, profile="larger")

    assert [(row.role, row.used) for row in rows] == [("chat", False), ("encoder", True), ("chat", True)]


def test_default_among_the_sources_is_both_models_of_the_profile(models_dir):
    pulled = sources.pull_models(models_dir, ["default"], configured={"chat": "hf:org/name", "encoder": "default"})

    assert [(row.role, row.downloaded) for row in pulled] == [("chat", False), ("encoder", False)]


def test_default_needs_a_role(tmp_path):
    with pytest.raises(ModelError, match="say which"):
        sources.resolve("default", models_dir=tmp_path)


def test_the_defaults_are_here_and_what_the_manifest_says(models_dir):
    rows = {row.role: row for row in sources.list_models(models_dir) if "local" in row.profiles}

    assert {row.licence for row in rows.values()} == {"Apache-2.0"}
    for role, default in manifest.profiles()["local"].items():
        path = sources.resolve("default", models_dir=models_dir, role=role)
        receipt = cache.read_receipt(models_dir / sources._folder(sources.parse(default.source)))
        assert {file.sha256 for file in receipt.files} == set(default.expected.hashes.values())
        assert rows[role].path == path
        assert rows[role].verified
        assert rows[role].bytes == default.expected.unpacked_bytes == receipt.bytes


def test_defaults_that_are_not_here_are_listed(tmp_path):
    rows = sources.list_models(tmp_path / "none")

    assert [(row.role, row.profiles, row.present, row.verified) for row in rows] == [
        ("chat", ("local",), False, False),
        ("encoder", ("local", "larger"), False, False),
        ("chat", ("larger",), False, False),
    ]
    assert all("run: chatkit models pull" in row.problem for row in rows)
    assert not (tmp_path / "none").exists()


def test_a_path_is_used_in_place(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)

    pulled = sources.pull("./m.gguf", models_dir=tmp_path / "cache")

    assert pulled == tmp_path / "m.gguf"
    assert not (tmp_path / "cache").exists()
    rows = sources.list_models(tmp_path / "cache", configured={"chat": "./m.gguf"})
    assert [(row.name, row.present, row.bytes) for row in rows if row.role == "chat"][-1] == ("m.gguf", True, 4)


def test_a_path_without_a_model_is_named(tmp_path):
    (tmp_path / "m.bin").touch()

    with pytest.raises(ModelError, match=r"no model at '.*/none'"):
        sources.resolve(f"{tmp_path}/none", models_dir=tmp_path)
    with pytest.raises(ModelError, match=r"m\.bin' is not of a kind that is read safely; expected \.gguf"):
        sources.resolve(f"{tmp_path}/m.bin", models_dir=tmp_path)


def test_derived_forms_of_a_path_lie_in_the_cache_and_follow_its_content(tmp_path):
    model, models = tmp_path / "m.gguf", tmp_path / "cache"
    model.write_bytes(b"one")

    first = sources.derived_dir(model, models_dir=models)
    again = sources.derived_dir(model, models_dir=models)
    model.write_bytes(b"longer")
    changed = sources.derived_dir(model, models_dir=models)

    assert first == again != changed
    assert models in first.parents
    assert first.is_dir()


def test_derived_forms_of_a_pulled_model_lie_beside_it(models_dir, tmp_path):
    pulled = sources.resolve("default", models_dir=models_dir, role="encoder")
    copied = tmp_path / "cache" / pulled.parent.relative_to(models_dir) / pulled.name
    copied.mkdir(parents=True)
    shutil.copy(pulled.parent / "receipt.json", copied.parent)

    assert sources.derived_dir(copied, models_dir=tmp_path / "cache") == copied.parent / "derived"
    assert sources.derived_dir(copied / "config.json", models_dir=tmp_path / "cache") == copied.parent / "derived"


def test_a_cache_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(ModelError, match=r"file/cache' cannot be made a folder"):
        sources.pull("pypi:a==1#b.gguf", models_dir=tmp_path / "file" / "cache")


def test_importing_sources_is_light():
    heavy = "{'httpx', 'filelock', 'tqdm', 'numpy', 'torch', 'transformers', 'huggingface_hub'}"
    script = f"import sys, chatkit.models.sources; print(sorted({heavy} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert loaded == "[]\n"
