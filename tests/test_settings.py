"""Settings: one precedence, every mistake named, secrets never shown."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from chatkit.errors import ConfigError
from chatkit.settings import Secret, Settings, describe, load_settings


@pytest.fixture
def toml(tmp_path):
    def write(text: str):
        file = tmp_path / "chatkit.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(toml) -> None:
    file = toml("port = 1\nk = 4\nhost = '::1'")
    environ = {"CHATKIT_PORT": "2", "CHATKIT_K": "5"}
    made = load_settings({"port": "3", "k": None}, environ=environ, file=file)
    assert (made.port, made.k, made.host, made.threads) == (3, 5, "::1", 0)


def test_an_empty_variable_counts_as_not_set(toml) -> None:
    assert load_settings(environ={"CHATKIT_PORT": ""}, file=toml("port = 9")).port == 9


def test_where_empty_is_a_value_an_empty_variable_is_it() -> None:
    made = load_settings(environ={"CHATKIT_INDEX": "", "CHATKIT_REQUEST_INDEXES": ""})
    assert (made.index, made.request_indexes) == ("", "")


def test_the_file_is_named_by_a_flag_by_a_variable_or_lies_here(toml, tmp_path, monkeypatch) -> None:
    file = toml("port = 7")
    assert load_settings(environ={"CHATKIT_CONFIG": str(file)}).port == 7
    other = tmp_path / "other.toml"
    other.write_text("port = 8")
    assert load_settings(environ={"CHATKIT_CONFIG": str(file)}, file=other).port == 8
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).port == 7


def test_a_named_file_that_is_not_there_is_an_error(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml' does not exist; name another with --config"):
        load_settings(environ={}, file=tmp_path / "none.toml")


def test_an_unknown_key_is_named_with_the_nearest_known_one(toml) -> None:
    near = r"sets 'max_new_token', which is no setting; did you mean 'max_new_tokens'\?$"
    with pytest.raises(ConfigError, match=near):
        load_settings(environ={}, file=toml("max_new_token = 5"))
    with pytest.raises(ConfigError, match=r"sets 'zzzz', which is no setting; docs/configuration\.md"):
        load_settings(environ={}, file=toml("zzzz = 5"))


@pytest.mark.parametrize("text", ["port = ", "port = 1\nport = 2", "\x00"])
def test_a_file_that_is_no_toml_is_named_in_one_line(toml, text) -> None:
    with pytest.raises(ConfigError, match="is not valid TOML") as caught:
        load_settings(environ={}, file=toml(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("port", "x", "CHATKIT_PORT is 'x', expected a value of type int"),
        ("port", "70000", "port is 70000, expected a number from 0 to 65535"),
        ("port", "80.5", "expected a value of type int"),
        ("threads", "-1", "threads is -1, expected a number from 0 to 1024"),
        ("max_new_tokens", "0", "max_new_tokens is 0"),
        ("deadline_s", "0", "deadline_s is 0.0"),
        ("deadline_s", "nan", "deadline_s is nan"),
        ("deadline_s", "inf", "deadline_s is inf"),
        ("drain_s", "-1", "drain_s is -1.0, expected a number from 0 to 3600"),
        ("drain_s", "inf", "drain_s is inf"),
        ("drain_s", "nan", "drain_s is nan"),
        ("k", "51", "k is 51, expected a number from 1 to 50"),
        ("source_sentences", "-2", "source_sentences is -2, expected a number from -1 to 64"),
        ("min_score", "nan", "min_score is nan"),
        ("max_running", "0", "max_running is 0"),
        ("max_queue", "0", "max_queue is 0"),
        ("max_body_kb", "0", "max_body_kb is 0"),
        ("kv_cache_gb", "0", "kv_cache_gb is 0"),
        ("history_turns", "0", "history_turns is 0"),
        ("prefix_cache", "maybe", "CHATKIT_PREFIX_CACHE is 'maybe', expected a value of type bool"),
        ("gate", "late", "expected one of 'check_first', 'stream_first', 'final_only'"),
        ("input_unavailable", "maybe", "expected one of 'refuse', 'allow'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_was_expected(name, value, expected) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ={f"CHATKIT_{name.upper()}": value})
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["host = 5", "index = ['a']", "port = true", "port = 1.5", "refusal = false", "home = 1"]
)
def test_a_file_value_of_another_type_is_refused_not_bent(toml, line) -> None:
    with pytest.raises(ConfigError, match="expected a value of type"):
        load_settings(environ={}, file=toml(line))


@pytest.mark.parametrize(("word", "value"), [("1", True), ("Yes", True), ("on", True), ("0", False), (" off ", False)])
def test_booleans_are_read_from_words(word, value) -> None:
    assert load_settings(environ={"CHATKIT_PREFIX_CACHE": word}).prefix_cache is value


def test_a_secret_never_prints_itself() -> None:
    made = load_settings(environ={"CHATKIT_API_KEY": "canary-key"})
    assert made.api_key == "canary-key"
    assert isinstance(made.api_key, Secret)
    assert "canary" not in repr(made)
    assert "canary" not in str(made)


@pytest.mark.parametrize("key", ["", " ", " canary-key", "canary-key\n"])
def test_a_key_that_is_empty_or_padded_is_refused_without_being_shown(key) -> None:
    with pytest.raises(ConfigError, match="api_key is") as caught:
        load_settings({"api_key": key}, environ={})
    assert "canary" not in str(caught.value)


def test_a_key_of_the_wrong_type_is_refused_without_being_shown(toml) -> None:
    with pytest.raises(ConfigError, match="is the value given, expected a value of type str") as caught:
        load_settings(environ={}, file=toml("api_key = 12345678"))
    assert "12345678" not in str(caught.value)


def test_a_key_is_read_from_its_file_without_the_line_end(tmp_path, toml) -> None:
    for number, written in enumerate((b"canary-key", b"canary-key\n", b" canary-key \r\n\n")):
        file = tmp_path / f"key-{number}"
        file.write_bytes(written)
        assert load_settings(environ={"CHATKIT_API_KEY_FILE": str(file)}).api_key == "canary-key"
    made = load_settings(environ={}, file=toml(f"api_key_file = '{file}'"))
    assert (made.api_key, made.api_key_file) == ("canary-key", file)
    assert isinstance(made.api_key, Secret)
    assert "canary" not in repr(made)


def test_a_key_file_in_the_users_home_is_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key").write_text("canary-key\n")
    assert load_settings({"api_key_file": "~/key"}, environ={}).api_key == "canary-key"


def test_a_key_goes_before_a_key_file_which_is_not_even_read(tmp_path) -> None:
    environ = {"CHATKIT_API_KEY": "first", "CHATKIT_API_KEY_FILE": str(tmp_path / "none")}
    assert load_settings(environ=environ).api_key == "first"


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"canary\xff", "is not UTF-8 text"),
        (b"canary-1\ncanary-2\n", "holds more than one line, or a character that does not print"),
        ("\ufeffcanary".encode(), "holds more than one line, or a character that does not print"),
        (b"canary\x00", "holds more than one line, or a character that does not print"),
    ],
)
def test_a_key_file_without_a_key_is_named_with_the_next_step_and_never_shown(tmp_path, written, problem) -> None:
    file = tmp_path / "key"
    if written is not None:
        file.write_bytes(written)
    with pytest.raises(ConfigError) as caught:
        load_settings(environ={"CHATKIT_API_KEY_FILE": str(file)})
    next_step = "write the key into it, on one line, or set CHATKIT_API_KEY"
    assert str(caught.value) == f"api_key_file is {str(file)!r}, which {problem}; {next_step}"


def test_a_key_file_that_may_not_be_read_says_so(tmp_path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(ConfigError, match=r"which cannot be read \(Is a directory\); write the key into it"):
        load_settings(environ={"CHATKIT_API_KEY_FILE": str(tmp_path)})
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match=r"which cannot be read \(Permission denied\); write the key into it"):
        load_settings(environ={"CHATKIT_API_KEY_FILE": str(tmp_path / "key")})


def test_serve_ends_with_the_key_files_name_and_the_next_step_in_one_line(tmp_path) -> None:
    file = tmp_path / "none"
    done = subprocess.run(
        [sys.executable, "-m", "chatkit", "serve", "--host", "0.0.0.0", "--api-key-file", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: api_key_file is {str(file)!r}, which cannot be read (No such file or directory); "
        "write the key into it, on one line, or set CHATKIT_API_KEY\n"
    )


def test_paths_are_expanded_and_the_model_cache_follows_the_home(tmp_path) -> None:
    made = load_settings(environ={"CHATKIT_HOME": str(tmp_path)})
    assert (made.models, made.indexes) == (tmp_path / "models", tmp_path / "indexes")
    assert made.database.parent == tmp_path
    assert "~" not in str(load_settings(environ={}).home)
    elsewhere = load_settings(environ={"CHATKIT_HOME": str(tmp_path), "CHATKIT_MODELS_DIR": "~/cache"})
    assert elsewhere.models.name == "cache"
    assert "~" not in str(elsewhere.models)


def test_settings_are_frozen_and_the_index_can_be_left_out() -> None:
    made = Settings()
    with pytest.raises(FrozenInstanceError):
        made.port = 1
    assert made.without_index().index == ""
    assert made.index != ""


def test_every_setting_is_described_with_its_type_and_help() -> None:
    rows = describe()
    assert sorted(row[0] for row in rows) == sorted(spec.name for spec in fields(Settings))
    assert all(text.endswith(".") for *_, text in rows)
    assert dict((row[0], row[1]) for row in rows)["gate"] == "check_first | stream_first | final_only"


@pytest.mark.parametrize(
    "endpoint", ["http://u:canary@h:8000", "http://h/?key=x", "h:8000", "http://", "http://a b", "ftp://h"]
)
def test_an_endpoint_is_an_address_without_a_name_or_key(endpoint):
    with pytest.raises(
        ConfigError, match=r"dynamodb_endpoint is .*, expected an address that starts http://"
    ) as caught:
        Settings(dynamodb_endpoint=endpoint)
    assert "canary" not in str(caught.value)
    assert Settings(dynamodb_endpoint="https://dynamodb.eu-central-1.amazonaws.com/").dynamodb_endpoint != ""


def test_sagemaker_mode_refuses_a_store_that_dies_with_its_container_unless_forced() -> None:
    for store in ("sqlite", "memory"):
        with pytest.raises(ConfigError, match=f"store is '{store}', expected dynamodb in SageMaker mode"):
            load_settings({"sagemaker": True, "store": store}, environ={})
        forced = load_settings({"sagemaker": True, "store": store, "allow_local_store": True}, environ={})
        assert (forced.store, forced.sagemaker) == (store, True)
    with pytest.raises(ConfigError, match=r"allow_local_store with it; set CHATKIT_STORE or chatkit\.toml"):
        load_settings(environ={"CHATKIT_SAGEMAKER": "true"})
    assert load_settings({"store": "dynamodb"}, environ={"CHATKIT_SAGEMAKER": "1"}).store == "dynamodb"
    assert load_settings(environ={"CHATKIT_ALLOW_LOCAL_STORE": "1"}).sagemaker is False


def test_a_retention_in_days_is_seconds_for_the_store_and_none_without_one() -> None:
    assert load_settings(environ={}).retention_s is None
    assert load_settings({"retention_days": "1.5"}, environ={}).retention_s == 129_600
    for wrong in ("-1", "36501", "nan"):
        with pytest.raises(ConfigError, match="retention_days"):
            load_settings({"retention_days": wrong}, environ={})
