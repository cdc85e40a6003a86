"""llama.cpp's own server out of xllamacpp.

`python xllama_server.py MODEL PORT ALIAS CONTEXT [ADAPTER …]`: adapters are loaded at scale 0.
"""

import signal
import sys

import xllamacpp


def start(model: str, port: int, alias: str, context: int, *adapters: str) -> xllamacpp.Server:
    """A server of one thread and one request at a time; it ends with the process."""
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.model_alias = model, {alias}
    settings.hostnames, settings.port = ["127.0.0.1"], port
    settings.n_ctx, settings.n_parallel = context, 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in adapters]
    return xllamacpp.Server(settings)


if __name__ == "__main__":
    _, path, number, name, length, *others = sys.argv
    server = start(path, int(number), name, int(length), *others)
    signal.pause()
