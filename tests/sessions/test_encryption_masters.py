"""What encrypts the keys of sessions, a file or a key of AWS KMS: missing, wrong, changed, refused, out of reach."""

import logging
import sys
from collections import Counter

import pytest

from chatkit import wiring
from chatkit.errors import ConfigError, MissingExtra, NotFound, StoreFailed
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions.encryption import EncryptedStore
from chatkit.sessions.key_shelves import SQLiteKeys
from chatkit.sessions.master_keys import KmsKey
from chatkit.sessions.session_keys import CannotUnwrap, KeyRing
from chatkit.settings import load_settings
from chatkit.testing import MemoryStore
from chatkit.types import Owner
from tests import ministack
from tests.encrypted import key_file
from tests.faults.proxy import Proxy, refusal

pytestmark = pytest.mark.anyio
OWNER = Owner()


def opened(home, session_keys="", **more):
    return wiring.open_store(load_settings({"home": str(home), "session_keys": session_keys, **more}))


async def talk(store, number=1, session_id="my-session") -> None:
    turn = NewTurn(OWNER, session_id, f"request-{session_id}-{number}", "Hello", 5)
    await store.finish((await store.accept(turn)).ticket, Outcome("complete", "stop", "Hi."))


async def answers(store, session_id="my-session") -> list[str]:
    return [turn.assistant for turn in await store.load(OWNER, session_id, limit=99)]


@pytest.fixture
def proxy(dynamodb, monkeypatch):
    made = Proxy(dynamodb)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", made.address)
    yield made
    made.close()


@pytest.fixture
def kms_key(dynamodb) -> str:
    import boto3

    client = boto3.client("kms", endpoint_url=dynamodb)
    key = client.create_key()["KeyMetadata"]["Arn"]
    client.close()
    return key


def test_a_key_file_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path) -> None:
    file = tmp_path / "my key"
    command = f"(umask 077 && head -c 32 /dev/urandom | base64 > '{file}')"
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path / "home", f"file:{file}")
    assert str(caught.value) == f"session_keys names {str(file)!r}, which does not exist; make a key with {command}"
    assert not (tmp_path / "home" / "sessions.sqlite3").exists()


def test_the_command_makes_a_key_that_is_taken(tmp_path) -> None:
    import subprocess

    file = tmp_path / "my key"
    subprocess.run(f"(umask 077 && head -c 32 /dev/urandom | base64 > '{file}')", shell=True, check=True)
    opened(tmp_path / "home", f"file:{file}").close()


def test_a_key_file_that_others_may_read_is_refused(tmp_path) -> None:
    file = key_file(tmp_path)
    for mode in (0o644, 0o640, 0o602):
        file.chmod(mode)
        with pytest.raises(
            ConfigError, match=rf"others than its owner may read or write \(mode {mode:04o}\); run: chmod"
        ):
            opened(tmp_path / "home", f"file:{file}")
    file.chmod(0o400)
    opened(tmp_path / "home", f"file:{file}").close()


@pytest.mark.parametrize("content", [b"", b"zq91\xff", b"enE5MQ==", b"zq91" * 100, b"!" * 44])
def test_a_file_that_holds_no_key_is_refused_without_showing_it(tmp_path, content) -> None:
    file = key_file(tmp_path)
    file.write_bytes(content)
    with pytest.raises(
        ConfigError, match="which holds no key, expected 32 bytes as base64; make a key, once"
    ) as caught:
        opened(tmp_path / "home", f"file:{file}")
    assert "zq91" not in str(caught.value)


def test_a_folder_in_the_place_of_a_key_file_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(ConfigError, match="which cannot be read: Is a directory"):
        opened(tmp_path / "home", f"file:{tmp_path}")


async def test_another_key_than_before_is_refused_and_the_same_is_taken(tmp_path) -> None:
    home, setting = tmp_path / "home", f"file:{key_file(tmp_path)}"
    store = opened(home, setting)
    await talk(store)
    store.close()
    other = f"file:{key_file(tmp_path, 'other.key')}"
    with pytest.raises(ConfigError) as caught:
        opened(home, other)
    assert str(caught.value) == (
        f"session_keys is {other!r}, which is not the key that the sessions here were encrypted under; set that one "
        "again, or move these sessions and their keys away"
    )
    store = opened(home, setting)
    assert await answers(store) == ["Hi."]
    store.close()


async def test_encryption_that_was_switched_off_is_refused_where_keys_are(tmp_path) -> None:
    home = tmp_path / "home"
    opened(home, f"file:{key_file(tmp_path)}").close()
    with pytest.raises(
        ConfigError, match=r"session_keys is not set, and sessions here are encrypted: '.*\.sqlite3' has"
    ):
        opened(home)
    opened(home, store="memory").close()
    (home / "session-keys.sqlite3").unlink()
    opened(home).close()


@pytest.mark.parametrize(
    "value", ["kms:", "file:", "my.key", "kms:two words", "KMS:alias/x", "file", f"kms:{'x' * 2049}"]
)
def test_what_names_no_key_is_refused_with_the_forms_there_are(value) -> None:
    with pytest.raises(ConfigError, match="expected file:PATH, kms: with the id, alias or ARN of a key, or nothing"):
        load_settings({"session_keys": value})


def test_what_names_a_key_is_taken() -> None:
    for value in (
        "",
        "file:~/my keys/a.key",
        "kms:alias/chatkit",
        "kms:arn:aws:kms:eu-central-1:111122223333:key/mrk-1a",
    ):
        assert load_settings({"session_keys": value}).session_keys == value
    with pytest.raises(ConfigError, match="at most 250 characters, for the table of its keys ends in -keys"):
        load_settings({"session_keys": "file:x", "dynamodb_table": "t" * 251})


def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch) -> None:
    setting = f"file:{key_file(tmp_path)}"
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(
        MissingExtra, match=r"'cryptography' is not installed; run: pip install 'chatkit\[encryption\]'"
    ):
        opened(tmp_path / "home", setting)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtra, match=r"'boto3' is not installed; run: pip install 'chatkit\[aws\]'"):
        opened(tmp_path / "home", "kms:alias/chatkit")


def test_a_table_of_keys_that_is_missing_is_named_with_the_command_that_makes_it(tmp_path, dynamodb) -> None:
    table = ministack.new_table(dynamodb)
    flags = {"store": "dynamodb", "dynamodb_table": table, "dynamodb_endpoint": dynamodb}
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, f"file:{key_file(tmp_path)}", **flags)
    assert str(caught.value) == (
        f"the DynamoDB table '{table}-keys', which keeps the keys of sessions, does not exist; run chatkit sessions "
        "create-table with session_keys set as it is here"
    )


async def test_kms_wraps_a_key_for_each_session_and_is_asked_seldom(tmp_path, proxy, kms_key) -> None:
    asked: Counter = Counter()

    def count(operation, forward):
        asked[operation] += 1
        return forward()

    proxy.meddle = count
    home, setting = tmp_path / "home", f"kms:{kms_key}"
    store = opened(home, setting)
    assert asked == {"GenerateDataKey": 1, "Decrypt": 1}
    for number in range(1, 6):
        await talk(store, number)
        assert len(await answers(store)) == number
    assert asked == {"GenerateDataKey": 2, "Decrypt": 2}
    store.close()
    store = opened(home, setting)
    assert await answers(store) == ["Hi."] * 5
    assert asked == {"GenerateDataKey": 2, "Decrypt": 4}
    await store.delete(OWNER, "my-session")
    assert await answers(store) == []
    store.close()


def test_kms_binds_a_key_to_its_session_and_learns_no_name(proxy, kms_key) -> None:
    master = KmsKey(kms_key)
    key, wrapped = master.new("a digest")
    assert (len(key), master.unwrap(wrapped, "a digest")) == (64, key)
    assert b'"EncryptionContext": {"chatkit:session": "a digest"}' in proxy.faults.seen[-1][1]
    for wrong, session in ((wrapped, "another"), (b"f1" + wrapped[2:], "a digest"), (b"k1x", "a digest")):
        with pytest.raises(CannotUnwrap):
            master.unwrap(wrong, session)
    master.close()


def test_another_kms_key_than_before_is_refused(tmp_path, proxy, kms_key) -> None:
    opened(tmp_path / "home", f"kms:{kms_key}").close()
    # Amazon's answer to a blob of another key; the server of the tests gives none.
    proxy.meddle = lambda operation, forward: refusal("IncorrectKeyException")
    with pytest.raises(ConfigError, match="is not the key that the sessions here were encrypted under"):
        opened(tmp_path / "home", f"kms:{kms_key}")
    with pytest.raises(ConfigError, match="is not the key that the sessions here were encrypted under"):
        opened(tmp_path / "home", f"file:{key_file(tmp_path)}")


@pytest.mark.parametrize(
    "code", ["AccessDeniedException", "NotFoundException", "DisabledException", "KMSInvalidStateException"]
)
async def test_a_kms_key_that_is_refused_is_named_at_the_start_and_logged_later(
    tmp_path, proxy, kms_key, code, caplog
) -> None:
    store = opened(tmp_path / "home", f"kms:{kms_key}")
    proxy.meddle = lambda operation, forward: refusal(code)
    told = rf"AWS refused to use the KMS key '{kms_key}' of session_keys \({code}\); it has to be there, enabled"
    with pytest.raises(ConfigError, match=told):
        opened(tmp_path / "other", f"kms:{kms_key}")
    with pytest.raises(StoreFailed, match="the keys of sessions are not set up; the operator's log says why"):
        await talk(store)
    (record,) = caplog.records
    assert f"({code})" in record.getMessage()
    assert (await store.sessions(OWNER, limit=9)).sessions == ()
    store.close()


@pytest.mark.parametrize("silence", ["cuts", "throttles", "fails"])
async def test_kms_out_of_reach_is_store_failed_and_nothing_is_written(tmp_path, proxy, kms_key, silence) -> None:
    store = opened(tmp_path / "home", f"kms:{kms_key}")
    await talk(store, session_id="open-session")
    answer = {"cuts": None, "throttles": refusal("ThrottlingException"), "fails": refusal("KMSInternalException", 500)}
    proxy.meddle = lambda operation, forward: answer[silence]
    with pytest.raises(StoreFailed, match=r"the keys of sessions did not answer .*; send the request again later"):
        await talk(store)
    await talk(store, 2, "open-session")  # its key is at hand
    assert await answers(store, "open-session") == ["Hi.", "Hi."]
    assert [head.session_id for head in (await store.sessions(OWNER, limit=9)).sessions] == ["open-session"]
    with pytest.raises(StoreFailed, match="send the request again later"):
        opened(tmp_path / "other", f"kms:{kms_key}")
    proxy.meddle = lambda operation, forward: forward()
    await talk(store)
    assert await answers(store) == ["Hi."]
    store.close()


async def test_a_damaged_wrapped_key_is_a_session_that_is_gone(proxy, kms_key, caplog) -> None:
    shelf = SQLiteKeys(None)
    store = EncryptedStore(MemoryStore(), KeyRing(shelf, KmsKey(kms_key), lifetime_s=0.0))
    await talk(store)
    shelf._connection.execute("UPDATE keys SET wrapped = substr(wrapped, 1, 30)")
    assert await answers(store) == []
    assert "the key of a session is damaged or another session's: what it encrypts is left out" in caplog.messages
    with pytest.raises(NotFound, match="have it removed again"):
        await talk(store, 2)
    store.close()


def test_no_key_is_logged_at_any_level(tmp_path, proxy, kms_key, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("botocore").setLevel(logging.NOTSET)
    opened(tmp_path / "home", f"kms:{kms_key}").close()
    assert logging.getLogger("botocore").level == logging.WARNING
    assert "Plaintext" not in caplog.text


def test_without_credentials_or_region_the_step_is_named(monkeypatch, proxy) -> None:
    for name in ministack.CREDENTIALS:
        if "ACCESS" in name or "REGION" in name:
            monkeypatch.delenv(name)
    with pytest.raises(
        ConfigError, match="no AWS region is set for the KMS key 'alias/x'; name its ARN or set AWS_REGION"
    ):
        KmsKey("alias/x")
    master = KmsKey("arn:aws:kms:eu-west-1:111122223333:key/1")
    with pytest.raises(ConfigError, match="no AWS credentials were found for the KMS key 'arn:aws"):
        master.new("a digest")
    master.close()
