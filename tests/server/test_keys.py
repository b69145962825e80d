"""The key file: every entry gives a key its owner and scopes, every mistake is named, and no error shows a key."""

import hashlib
import logging
import os
import re
import subprocess
import sys

import pytest

from chatkit.errors import ConfigError
from chatkit.server.callers import Caller
from chatkit.server.keys import digest_of, read_keys
from chatkit.types import Owner
from tests.serving import ROOT

KEY = "canary-key-0123456789"
HASH = hashlib.sha256(KEY.encode()).hexdigest()


@pytest.fixture
def keys(tmp_path):
    def write(text: str | bytes, mode: int = 0o600):
        file = tmp_path / "keys.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        file.chmod(mode)
        return file

    return write


def test_each_key_has_its_owner_and_scopes(keys) -> None:
    file = keys(
        f"""
        [[key]]
        key = "{KEY}"
        user = "alice"
        [[key]]
        sha256 = "{hashlib.sha256(b"second").hexdigest().upper()}"
        user = "bob b. åß 漢"
        tenant = "acme"
        scopes = ["delegate", "chat"]
        [[key]]
        key = "third-key-0123456789"
        [[key]]
        key = "fourth-key-0123456789"
        user = "alice"
        scopes = ["sessions"]
        [[key]]
        key = "fifth-key-0123456789"
        tenant = "acme"
        """
    )
    third, fifth = (hashlib.sha256(f"{n}-key-0123456789".encode()).hexdigest()[:32] for n in ("third", "fifth"))
    usual = frozenset({"chat", "sessions"})
    assert dict(read_keys(file)) == {
        digest_of(KEY): Caller(Owner("default", "alice"), usual, True),
        digest_of("second"): Caller(Owner("acme", "bob b. åß 漢"), frozenset({"chat", "delegate"}), True),
        digest_of("third-key-0123456789"): Caller(Owner("default", f"key-{third}"), usual, False),
        digest_of("fourth-key-0123456789"): Caller(Owner("default", "alice"), frozenset({"sessions"}), True),
        digest_of("fifth-key-0123456789"): Caller(Owner("acme", f"key-{fifth}"), usual, False),
    }


BAD = [
    ("", "holds no key; expected [[key]] entries such as"),
    ("# nothing\n", "holds no key"),
    ("key = []", "holds no key"),
    (f'key = "{KEY}"', "has a 'key' that is no [[key]]"),
    (f'key = ["{KEY}"]', "has a 'key' that is no [[key]]"),
    (f'[[keys]]\nkey = "{KEY}"', "has the unknown field 'keys'; expected [[key]]"),
    (f"{KEY} = 1", "has a field of an unknown name; expected [[key]]"),
    (f'[[key]]\nkey = "{KEY}"\n"{KEY}" = 1', "key 1 of", "has a field of an unknown name, expected fields of key, sha"),
    (f'[[key]]\nkey = "{KEY}"\nowner = "a"', "has the unknown field 'owner', expected fields of key, sha256, user"),
    ('[[key]]\nuser = "alice"', "has none of 'key' and 'sha256', expected one"),
    (f'[[key]]\nkey = "{KEY}"\nsha256 = "{HASH}"', "has both of 'key' and 'sha256', expected one"),
    ("[[key]]\nkey = 1234567890123456", "has a 'key' that is no text"),
    (f'[[key]]\nkey = "{KEY[:15]}"', "is too short, expected at least 16 characters"),
    (f'[[key]]\nkey = "{KEY} x"', "has a character that no header takes"),
    (f'[[key]]\nkey = "{KEY}ß"', "has a character that no header takes"),
    (f'[[key]]\nsha256 = "{HASH[:-1]}"', "has a 'sha256' that is none, expected 64 hexadecimal digits"),
    (f'[[key]]\nsha256 = "{KEY}"', "has a 'sha256' that is none"),
    (f'[[key]]\nkey = "{KEY}"\n[[key]]\nkey = "{KEY}"', "key 2 of", "is the same key as key 1"),
    (f'[[key]]\nkey = "{KEY}"\nuser = "a"\n[[key]]\nsha256 = "{HASH}"', "is the same key as key 1; leave one of them"),
    (f'[[key]]\nkey = "{KEY}"\nuser = ""', "has the user '', expected 1 to 64 characters that print"),
    (f'[[key]]\nkey = "{KEY}"\nuser = "{"x" * 65}"', "expected 1 to 64 characters"),
    (f'[[key]]\nkey = "{KEY}"\nuser = "a\\nb"', "expected 1 to 64 characters that print"),
    (f'[[key]]\nkey = "{KEY}"\nuser = " a"', "has the user ' a', expected no space around it"),
    (f'[[key]]\nkey = "{KEY}"\nuser = "anonymous"', "has the user 'anonymous', which the service calls owners without"),
    (f'[[key]]\nkey = "{KEY}"\nuser = "key"', "which the service calls owners without a name; choose another"),
    (f'[[key]]\nkey = "{KEY}"\nuser = "key-{HASH[:32]}"', "which the service calls owners without a name"),
    (f'[[key]]\nkey = "{KEY}"\nuser = ["a"]', "has a 'user' that is no text"),
    (f'[[key]]\nkey = "{KEY}"\ntenant = ""', "has the tenant '', expected 1 to 64"),
    (f'[[key]]\nkey = "{KEY}"\nscopes = "chat"', "has scopes that are no list, or an empty one"),
    (f'[[key]]\nkey = "{KEY}"\nscopes = []', "or an empty one, expected a list of some of chat, sessions, delegate"),
    (f'[[key]]\nkey = "{KEY}"\nscopes = ["chat", "admin"]', "has the scope 'admin', expected a list of some of"),
    (f'[[key]]\nkey = "{KEY}"\nscopes = ["chat", 1]', "has the scope 1"),
    (f'[[key]]\nkey = "{KEY}', "which is not valid TOML at end of document"),
    (f'[[key]]\nkey = "{KEY}"\nkey = "{KEY}"', "which is not valid TOML at end of document"),
    (f'[[key]]\nkey = {{"{KEY}" = 1, "{KEY}" = 2}}', "which is not valid TOML at line 2"),
    (f"[[key]]\nkey = {KEY}", "which is not valid TOML at line 2"),
    (f"[[key]]\nkey = '{KEY}\xff'".encode("latin-1"), "which is not UTF-8 text"),
    (b"\x00", "which is not valid TOML"),
]


@pytest.mark.parametrize(("text", "words"), [(text, words) for text, *words in BAD])
def test_a_wrong_file_is_named_in_one_line_with_the_entry_and_never_the_key(keys, text, words) -> None:
    file = keys(text)
    with pytest.raises(ConfigError) as caught:
        read_keys(file)
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert str(file) in said
    assert "\n" not in said
    assert "canary" not in said
    assert caught.value.__cause__ is None
    assert HASH[:8] not in said or "user" in said  # a name that was given may be shown


def test_a_file_that_cannot_be_read_says_why(tmp_path) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file or directory")):
        with pytest.raises(
            ConfigError, match=rf"^keys_file is '{re.escape(str(path))}', which cannot be read \({why}\)"
        ):
            read_keys(path)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_file_that_others_may_read_is_reported_once_with_the_way_out(keys, caplog, mode, warned) -> None:
    caplog.set_level(logging.DEBUG)
    file = keys(f'[[key]]\nkey = "{KEY}"', mode)
    read_keys(file)
    said = [f"keys_file {file} has mode {mode:04o}, so others may use it; run: chmod 600 {file}"] if warned else []
    assert [record.getMessage() for record in caplog.records] == said


def test_names_near_the_reserved_ones_are_free(keys) -> None:
    for name in ("Anonymous", "keys", "key-", "key-account", f"key-{HASH[:31]}", f"key-{HASH[:33]}"):
        ((_, caller),) = read_keys(keys(f'[[key]]\nkey = "{KEY}"\nuser = "{name}"'))
        assert (caller.owner.user, caller.named) == (name, True)


def test_the_file_in_the_docs_is_one(keys) -> None:
    page = (ROOT / "docs" / "owners.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)
    owners = [caller.owner for _, caller in read_keys(keys(example))]
    assert [(owner.tenant, owner.user) for owner in owners][:2] == [("default", "alice"), ("acme", "bob")]
    assert len(owners) == 4


def chatkit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chatkit", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_serve_with_a_wrong_file_ends_with_one_line_that_names_the_entry(keys) -> None:
    file = keys(f'[[key]]\nkey = "{KEY}"\nscope = ["chat"]')
    done = chatkit("serve", "--host", "0.0.0.0", "--port", "0", "--keys-file", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"error: key 1 of {str(file)!r} has the unknown field 'scope', "
        "expected fields of key, sha256, user, tenant, scopes"
    )
    assert "Traceback" not in done.stderr
    assert KEY not in done.stderr


def test_the_commands_ask_which_of_the_owners_is_meant(keys, tmp_path) -> None:
    file = keys(f'[[key]]\nkey = "{KEY}"\nuser = "alice"')
    done = chatkit("sessions", "list", CHATKIT_KEYS_FILE=str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: keys_file {str(file)!r} has several owners; say whose with --user, and --tenant\n"
    named = chatkit("sessions", "list", "--user", "alice", "--json", CHATKIT_KEYS_FILE=str(file))
    assert (named.returncode, named.stdout) == (0, '{"sessions": [], "cursor": null}\n')
