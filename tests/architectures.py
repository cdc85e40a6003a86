"""docs/architectures.md, made of what tiny models show: `python tests/architectures.py`."""

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers as tf

import families
from families import SITES, VOCABULARY, tiny_model, tiny_tokenizer
from sordino.concepts.concept import Concept
from sordino.edits import bake
from sordino.errors import UserError
from sordino.expertise.find import find_experts
from sordino.expertise.passes import layers_run_alone
from sordino.interventions import Dampening
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef
from sordino.models.sites import find_sites
from sordino.models.tokenise import Batch

DOCUMENT = Path(__file__).parents[1] / "docs" / "architectures.md"

_PARTS = (
    ("Decoders", families.FAMILIES | families.MORE),
    ("Decoders of encoder-decoders, by themselves", families.DECODERS),
    ("Hybrids", families.HYBRIDS),
    ("Nothing but what mixes tokens (with `--sites all`)", families.PURE),
    ("Mixtures of experts", families.MIXTURES),
    ("Text parts of models that take pictures", families.VISION),
)


def document() -> str:
    """The whole text."""
    supported = "\n".join(
        f"## {title}\n\n| family | class | sites | swept |\n|---|---|---|---|\n{_rows(names)}\n"
        for title, names in _PARTS
    )
    reasons = {name: _reason(name) for name in families.UNCOVERED}
    reasons |= {name: f"Found, not baked: {_not_baked(name)}" for name in families.NOT_BAKED}
    reasons |= {name: _not_found(name) for name in families.NOT_FOUND}
    reasons |= {name: f"(Transformers:) {_broken(name)}" for name in families.BROKEN}
    refused = "\n".join(f"| {name} | {reason} |" for name, reason in reasons.items())
    return (
        f"{_HEAD.format(count=len(families.SUPPORTED), version=tf.__version__)}\n{supported}\n"
        f"## Not supported\n\n| family | what Sordino says |\n|---|---|\n{refused}\n{_TAIL}"
    )


def _rows(names: Iterable[str]) -> str:
    return "\n".join(_row(name) for name in names)


def _row(name: str) -> str:
    model = tiny_model(name)
    opened = OpenModel(
        ModelRef(name, "folder", Path(name)), model, tiny_tokenizer(), SITES.get(name)
    )
    kinds: dict[str, str] = {}
    for site in opened.sites:
        kinds[site.kind] = f"`{site.kind}`" + (" of all experts" if site.experts else "")
    draw = torch.Generator().manual_seed(0)
    batches = [
        Batch(tuple(range(rows)), torch.randint(3, VOCABULARY, (rows, length), generator=draw))
        for rows, length in ((2, 20), (1, 7))
    ]
    with torch.inference_mode():
        alone = layers_run_alone(opened, batches)
    way = "layer by layer" if alone else "whole forward"
    return f"| {name} | {type(model).__name__} | {', '.join(kinds.values())} | {way} |"


def _reason(name: str) -> str:
    try:
        _row(name)
    except UserError as error:
        return str(error)
    raise AssertionError(f"{name} is supported")


def _not_baked(name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source = families.tiny_folder(name, Path(folder))
        sites = {site.path: site.neurons for site in find_sites(tiny_model(name))}
        try:
            bake(source, Dampening(families.random_factors(sites), "aura"), f"{folder}/baked")
        except UserError as error:
            return str(error)
    raise AssertionError(f"{name} is supported")


def _not_found(name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source = families.tiny_folder(name, Path(folder))
        texts = [tuple(f"{kind} {number}" for number in range(20)) for kind in ("a", "b")]
        try:
            find_experts(source, Concept("x", *texts, "made"))
        except UserError as error:
            return str(error)
    raise AssertionError(f"{name} is supported")


def _broken(name: str) -> str:
    model = tiny_model(name)
    try:
        model(torch.full((2, 20), 3), use_cache=True)
    except ValueError as error:
        return f"its forward with a cache, which writing takes, fails with {error}."
    raise AssertionError(f"{name} runs")


_HEAD = """# Architectures

Any decoder in transformers works whose linear layers Sordino can find, whatever it is called. These
{count} families are tested with transformers {version}, each as a tiny random model: the sites are
found; the sweep gives the responses that the ordinary forward has; the baked folder, loaded by
transformers, computes what the hooked model does.

`python tests/architectures.py` writes this page from what it finds, and a test compares.

"Swept" says how sentences pass: layer by layer, where a layer's outputs are the ordinary forward's
to the last bit when it is run by itself; else by whole forwards, which cannot be streamed.
"""

_TAIL = """
## Which layers are sites

| `--sites` | sites |
|---|---|
| (nothing) | the feed-forward part: neither attention nor what mixes tokens in its place |
| `attention` | these, and attention's (linear attention's, too) |
| `all` | every linear layer in the decoder's layers |
| a regular expression | the linear layers whose path it matches anywhere |

What mixes tokens in attention's place are state spaces (Mamba), recurrences and short convolutions.

A router is never a site: turning one of its outputs down would re-route and not dampen. Mamba's
`dt_proj` is none either: its weight is used without the layer being called, so that it has no
outputs.

## Models that take pictures

They are opened whole, as transformers' image-text-to-text class, whatever else there is for them.
Sites are found in the text decoder alone; the vision tower and what joins the two are copied as
they are. Responses, attribution and evaluation are of text without pictures, and layers that such
text passes by (Mllama's cross-attention layers) have no sites.

## Mixtures of experts

The experts of a layer are one site for each of their matrices, whose neurons are one expert's after
the other's: neuron 5 of expert 2 of `experts.down_proj` with 64 outputs is the number 2 · 64 + 5.
(Checkpoints that have the experts apart, such as Mixtral's, are edited as they are: transformers'
own tables say which tensor is which expert's.) Shared experts are ordinary sites.

An expert's neuron responds only to the tokens that were routed to it. A sentence that never reached
the expert says nothing about it and is left out of its AUROC. Where fewer than 30 sentences of
either class reached it, it has no AUROC, and its factor is 1: with 30 and 30, the AUROC of a neuron
that knows nothing has a standard error of 0.075.

While the sweep watches, and with hooks, experts are computed by an implementation registered with
transformers' experts interface, which does what the model's own code does; Llama 4, which is not
behind that interface, is computed again by a hook. Attribution sums over the tokens that were
routed to an expert; where fewer than 30 of either class's texts reached it, it says nothing of its
neurons, and `contrast` leaves them at 1. PEFT's (IA)³ multiplies what modules put out, and experts
whose matrices are parameters are no modules: `--format ia3` refuses them (bake the weights, or
`--format hooks`). Shifts need biases to be baked, which of these only GPT-OSS's experts have.
"""


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    DOCUMENT.write_text(document(), encoding="utf-8")
