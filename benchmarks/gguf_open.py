"""How long opening a GGUF file takes, here and with transformers alone: `docs/formats.md`.

    python benchmarks/gguf_open.py [MODEL]

MODEL is a .gguf file, or kit:smollm2 (the default) or kit:gemma3. Both give the same weights, the
same vocabulary and the same configuration, or it says so.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sordino.models.open import empty_model, open_model, quiet_transformers
from sordino.models.reference import resolve


def main() -> None:
    """Print the times."""
    ref = resolve(sys.argv[1] if len(sys.argv) > 1 else "kit:smollm2")
    times: dict[str, float] = {}
    with taken("module tree alone", times):
        empty_model(ref)
    with taken("sordino", times):
        opened = open_model(ref, device="cpu")
    with taken("transformers", times), quiet_transformers():
        place = {"pretrained_model_name_or_path": ref.path.absolute().parent}
        place["gguf_file"] = str(ref.path.absolute())
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    for what, seconds in times.items():
        print(f"{what}: {seconds:.1f} s")
    ours, theirs = opened.model.state_dict(), model.state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    settings = model.config.to_dict()
    settings.pop("quantization_config")
    same &= opened.model.config.to_dict() == settings
    same &= opened.tokenizer.get_vocab() == tokenizer.get_vocab()
    print("the same model" if same else "NOT the same model")


@contextmanager
def taken(what: str, times: dict[str, float]) -> Iterator[None]:
    """Note how long a block takes."""
    start = time.perf_counter()
    yield
    times[what] = time.perf_counter() - start


main()
