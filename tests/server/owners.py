"""A key file of several owners, and the headers that each of them sends."""

from pathlib import Path

ALICE, BOB, SCRIPT, BACKEND = "alice", "bob", "script", "backend"


def key_of(name: str) -> str:
    return f"canary-key-of-{name}"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key_of(name)}"}


def write_keys(folder: Path) -> Path:
    """Write the file: two named owners, a key without a user, and a backend that may name users of its tenant."""
    entries = {
        ALICE: 'user = "alice"',
        BOB: 'user = "bob"',
        SCRIPT: "",
        BACKEND: 'tenant = "acme"\nscopes = ["chat", "sessions", "delegate"]',
    }
    file = folder / "keys.toml"
    file.write_text("\n".join(f'[[key]]\nkey = "{key_of(name)}"\n{more}' for name, more in entries.items()))
    file.chmod(0o600)
    return file
