"""The ordinary way to a model's expertise, written out plainly: what `find` is measured against.

Padded batches of 128 through the whole model with its head; a hook on every linear layer of the
feed-forward part that takes the largest output over the tokens that are no padding; one file a
sentence on disk; all files read again; scikit-learn's AUROC ten columns at a time on two processes.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.chunked import by_scikit_learn
from sordino.concepts.concept import Concept
from sordino.models.open import OpenModel

_ROWS = 128
_TOKENS = 128


@dataclass(frozen=True)
class Found:
    """What the ordinary way gives.

    Args:
        responses: By site, float32 [sentences, neurons].
        auroc: By site, float64 [neurons].
        after_forward_s: The seconds that were no forward: files, reading, AUROC.
    """

    responses: Mapping[str, NDArray[np.float32]]
    auroc: Mapping[str, NDArray[np.float64]]
    after_forward_s: float


def find(opened: OpenModel, concept: Concept, folder: Path, pool: Pool) -> Found:
    """Responses and AUROC of all sites, by way of files in an empty folder."""
    folder.mkdir(parents=True)
    writing = _write_responses(opened, concept.sentences, folder)
    started = time.perf_counter()
    files = [folder / f"{index}.pt" for index in range(len(concept.sentences))]
    rows = [torch.load(file, weights_only=True) for file in files]
    responses = {
        site.path: torch.stack([row[site.path] for row in rows]).float().numpy()
        for site in opened.sites
    }
    auroc = {
        site: by_scikit_learn(values, concept.labels, pool) for site, values in responses.items()
    }
    return Found(responses, auroc, writing + time.perf_counter() - started)


@torch.no_grad()
def _write_responses(opened: OpenModel, texts: tuple[str, ...], folder: Path) -> float:
    """Write a file a sentence, and give the seconds that took."""
    tokenizer = opened.tokenizer
    largest: dict[str, torch.Tensor] = {}
    mask = torch.empty(0)

    def hook(name: str):
        def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            largest[name] = output.masked_fill(~mask, -torch.inf).amax(dim=1)

        return keep

    seconds = 0.0
    with ExitStack() as stack:
        for site in opened.sites:
            module = opened.model.get_submodule(site.path)
            stack.callback(module.register_forward_hook(hook(site.path)).remove)
        for start in range(0, len(texts), _ROWS):
            batch = tokenizer(
                list(texts[start : start + _ROWS]),
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=_TOKENS,
                return_tensors="pt",
            ).to(opened.device)
            mask = batch["attention_mask"].bool().unsqueeze(-1)
            opened.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            began = time.perf_counter()
            for row in range(len(mask)):
                sample = {name: values[row].clone() for name, values in largest.items()}
                torch.save(sample, folder / f"{start + row}.pt")
            seconds += time.perf_counter() - began
    return seconds
