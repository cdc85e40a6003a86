"""llama.cpp's own server, where llama-cpp-python or xllamacpp is at hand."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

# Of the two, xllamacpp comes compiled.
_FIND = (
    "from importlib.util import find_spec as f; "
    "print(next((m for m in ('llama_cpp', 'xllamacpp') if f(m)), ''))"
)


@cache
def llama_cpp() -> tuple[str, str] | None:
    """A Python interpreter that has llama.cpp, and by which package; None if there is none.

    It needs `pip install xllamacpp` or `pip install llama-cpp-python[server]`, here or where the
    Python interpreter named by SORDINO_LLAMA_PYTHON finds it.
    """
    python = os.environ.get("SORDINO_LLAMA_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", _FIND], capture_output=True, text=True, check=True)
    package = found.stdout.strip()
    return (python, package) if package else None


@contextmanager
def serving(
    model: Path, alias: str, log: Path, context: int = 1024, adapters: Sequence[Path] = ()
) -> Iterator[str]:
    """Serve a GGUF file by one thread and give the address; a test without llama.cpp is skipped.

    Args:
        model: The file.
        alias: What it is called.
        log: Where the server's output goes.
        context: Tokens that a request can have.
        adapters: LoRA adapters, at scale 0 unless a request says otherwise; xllamacpp alone takes
            them, and a test is skipped without it.
    """
    found = llama_cpp()
    if found is None:
        pytest.skip("there is no llama.cpp here, nor does SORDINO_LLAMA_PYTHON name one")
    python, package = found
    if adapters and package == "llama_cpp":
        pytest.skip("llama-cpp-python's server knows no adapters: install xllamacpp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if package == "llama_cpp":
        options = {"model": model, "host": "127.0.0.1", "port": port}
        options |= {"n_ctx": context, "n_threads": 1, "n_threads_batch": 1, "model_alias": alias}
        command = [python, "-m", "llama_cpp.server"]
        command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    else:
        script = Path(__file__).with_name("xllama_server.py")
        command = [python, str(script), str(model), str(port), alias, str(context)]
        command += map(str, adapters)
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        for _ in range(300):
            if _answers(f"http://127.0.0.1:{port}/health"):
                break
            assert server.poll() is None, log.read_text(errors="replace")[-2000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _answers(address: str) -> bool:
    """Whether the server listens and has loaded its model: until then it says 503."""
    try:
        with urllib.request.urlopen(address):
            return True
    except urllib.error.HTTPError as error:
        return error.code != 503  # llama-cpp-python's has no such page, and loads first
    except OSError:
        return False
