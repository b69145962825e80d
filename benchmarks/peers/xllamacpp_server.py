"""llama.cpp's own HTTP server out of its Python wheel; runs in the peers' environment.

python xllamacpp_server.py GGUF --port 8001 --slots 8 --context 512 --threads 2
"""

import argparse
import signal

import xllamacpp


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    for name in ("--port", "--slots", "--context", "--threads"):
        parser.add_argument(name, type=int, required=True)
    arguments = parser.parse_args()
    options = xllamacpp.CommonParams()
    options.model.path = arguments.gguf
    options.port = arguments.port
    options.n_parallel = arguments.slots
    options.n_ctx = arguments.slots * arguments.context
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = arguments.threads
    # No prompt is answered twice, and none may be answered from what is kept of another.
    options.cache_prompt = False
    options.cache_ram_mib = 0
    options.ui = False
    server = xllamacpp.Server(options)
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
