"""The contract of every engine, for the `openai` engine in front of llama.cpp's server; `make test-upstream` runs it.

    python benchmarks/peers/contract.py [ARGUMENT OF PYTEST …]

The server is the peer `xllamacpp`, so `make.py xllamacpp` comes first.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from chatkit.errors import ChatkitError
from chatkit.evaluation.peers import HOME, PeerServer, read_peer
from chatkit.models import sources
from chatkit.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
SUITE = "tests/contracts/test_language_model.py"
# The suite asks three things at once at the most, and for a window of 2,048 tokens at least.
PLACES = {"slots": 4, "context": 4096, "threads": os.cpu_count() or 1}


def main() -> int:
    """Start the server, run the suite against it and return its exit code."""
    settings = load_settings()
    gguf = sources.resolve(settings.chat_model, models_dir=settings.models, role="chat", profile=settings.profile)
    peer = read_peer("xllamacpp", HOME.expanduser(), gguf)
    with tempfile.TemporaryDirectory(prefix="chatkit-contract-") as folder:
        server = PeerServer(peer, PLACES, Path(folder) / "server.log")
        try:
            host, port = server.address
            environ = os.environ | {"CHATKIT_TEST_LLAMA_CPP_URL": f"http://{host}:{port}/v1"}
            command = [sys.executable, "-m", "pytest", SUITE, "-k", "llama", *sys.argv[1:]]
            return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
        finally:
            server.close()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ChatkitError as error:
        sys.exit(f"error: {error}")
