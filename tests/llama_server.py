"""llama.cpp's own server, where llama-cpp-python is at hand."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def serving(model: Path, alias: str, log: Path) -> Iterator[str]:
    """Serve a GGUF file and give the address; the test is skipped where there is no llama.cpp.

    It needs `pip install llama-cpp-python[server]`, here or where the Python interpreter named by
    SORDINO_LLAMA_PYTHON finds it.
    """
    python = os.environ.get("SORDINO_LLAMA_PYTHON")
    if python is None and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed, and SORDINO_LLAMA_PYTHON is not set")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"model": model, "host": "127.0.0.1", "port": port}
    options |= {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1, "model_alias": alias}
    command = [python or sys.executable, "-m", "llama_cpp.server"]
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
