"""Logits of llama.cpp under control vectors, for the tests: a process of its own.

`python llama_control.py FOLDER` takes llama.cpp's libraries from a folder, such as `bins/linux-x64`
of the npm package `@node-llama-cpp/linux-x64`, and reads {"model", "ids", "runs"} as JSON from
standard input. A run is [a control vector's file, its scale], or null for none. Prints the logits
after each token, one run's after the other's.

The file is read by the function that llama-server reads it with, `common_control_vector_load`. It
is C++, so that its argument and its result are laid out here by hand, as libstdc++ has them.
"""

import ctypes
import json
import os
import sys
from ctypes import POINTER, byref, c_char, c_char_p, c_float, c_int32, c_size_t, c_uint64, c_void_p
from pathlib import Path


class Settings(ctypes.Structure):
    """Any of llama.cpp's settings, passed by value as they came: at least as large as they are."""

    _fields_ = (("bytes", c_char * 1024),)


class Text(ctypes.Structure):
    """`std::string`; "here" is for short ones, which are kept elsewhere all the same."""

    _fields_ = (("data", c_char_p), ("size", c_uint64), ("here", c_char * 16))


class Wanted(ctypes.Structure):
    """`common_control_vector_load_info`."""

    _fields_ = (("scale", c_float), ("file", Text))


class Several(ctypes.Structure):
    """`std::vector`."""

    _fields_ = (("first", c_void_p), ("end", c_void_p), ("room", c_void_p))


class Loaded(ctypes.Structure):
    """`common_control_vector_data`."""

    _fields_ = (("width", c_int32), ("values", Several))


def libraries(folder):
    """libllama and libllama-common, ready for use."""
    os.environ["LD_LIBRARY_PATH"] = str(folder)
    [ggml] = [path for path in folder.glob("libggml*.so") if path.name[7] == "."]
    loader = ctypes.CDLL(str(ggml), mode=ctypes.RTLD_GLOBAL)
    loader.ggml_backend_load_all_from_path(str(folder).encode())
    [llama] = [path for path in folder.glob("libllama*.so") if path.name[8] == "."]
    lib = ctypes.CDLL(str(llama), mode=ctypes.RTLD_GLOBAL)
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(lib, name).restype = Settings
    lib.llama_batch_get_one.restype = Settings
    lib.llama_model_load_from_file.argtypes = (c_char_p, Settings)
    lib.llama_init_from_model.argtypes = (c_void_p, Settings)
    lib.llama_decode.argtypes = (c_void_p, Settings)
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab"):
        getattr(lib, name).restype = c_void_p
    for name in ("llama_model_get_vocab", "llama_model_n_layer", "llama_vocab_n_tokens"):
        getattr(lib, name).argtypes = (c_void_p,)
    lib.llama_free.argtypes = (c_void_p,)
    lib.llama_set_n_threads.argtypes = (c_void_p, c_int32, c_int32)
    lib.llama_get_logits_ith.argtypes = (c_void_p, c_int32)
    lib.llama_get_logits_ith.restype = POINTER(c_float)
    lib.llama_set_adapter_cvec.argtypes = (
        *(c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_int32),
    )
    return lib, ctypes.CDLL(str(folder / "libllama-common.so"))


def load(common, file, scale):
    """What llama.cpp makes of a file at a scale."""
    name = str(file).encode()
    wanted = Wanted(scale, Text(name, len(name)))
    start = ctypes.addressof(wanted)
    end = start + ctypes.sizeof(wanted)
    loaded = Loaded()
    read = (
        common._Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE
    )
    read(byref(loaded), byref(Several(start, end, end)))
    assert loaded.width > 0, "llama.cpp refuses the file"
    return loaded


def logits(lib, model, context, ids):
    """The logits after each token, which are given one by one."""
    found = []
    width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    for token in ids:
        batch = lib.llama_batch_get_one((c_int32 * 1)(token), 1)
        assert lib.llama_decode(context, batch) == 0
        found.append(lib.llama_get_logits_ith(context, -1)[:width])
    return found


def main():
    task = json.load(sys.stdin)
    # llama.cpp itself writes to the standard output that the answer goes to.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lib, common = libraries(Path(sys.argv[1]).resolve())
    model = lib.llama_model_load_from_file(task["model"].encode(), lib.llama_model_default_params())
    assert model, "llama.cpp does not load the model"
    runs = []
    for run in task["runs"]:
        context = lib.llama_init_from_model(model, lib.llama_context_default_params())
        assert context
        lib.llama_set_n_threads(context, 1, 1)
        if run:
            loaded = load(common, *run)
            first, end = loaded.values.first, loaded.values.end
            size, layers = (end - first) // 4, lib.llama_model_n_layer(model)
            failed = lib.llama_set_adapter_cvec(context, first, size, loaded.width, 1, layers)
            assert not failed
        runs.append(logits(lib, model, context, task["ids"]))
        lib.llama_free(context)
    print(json.dumps(runs), file=answer, flush=True)


main()
