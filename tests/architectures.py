"""docs/architectures.md, made from tiny models: `python tests/architectures.py`."""

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

import families
from families import SITES, VOCABULARY, tiny_model, tiny_tokenizer
from sordino.concepts.concept import Concept
from sordino.edits import bake
from sordino.errors import UserError
from sordino.expertise.find import find_experts
from sordino.expertise.passes import why_not_alone
from sordino.interventions import Dampening
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef
from sordino.models.sites import find_sites
from sordino.models.tokenise import Batch
from sordino.version import TESTED_TRANSFORMERS

DOCUMENT = Path(__file__).parents[1] / "docs" / "architectures.md"

_PARTS = (
    ("Decoders", families.FAMILIES | families.MORE),
    ("Decoders of encoder-decoders, alone", families.DECODERS),
    ("Hybrids", families.HYBRIDS),
    ("Only token mixers (with `--sites all`)", families.PURE),
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
        f"{_HEAD.format(count=len(families.SUPPORTED), version=TESTED_TRANSFORMERS)}\n{supported}\n"
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
        alone = not why_not_alone(opened, batches)
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

Any decoder in transformers works if Sordino can find its linear layers, called *sites* here, whatever
its name. These {count} families are tested with the oldest and the newest transformers that Sordino
takes ({version}), each as a tiny random model. The tests check that the sites are found, that the sweep
gives the responses of the ordinary forward pass, and that the baked folder, loaded by transformers,
computes the same as the model with forward hooks.

`python tests/architectures.py` writes this page from what it finds, and a test compares.

"Swept" says how sentences pass through the model: layer by layer, if a layer run by itself gives
exactly the outputs of the ordinary forward pass; otherwise by whole forward passes, which cannot be
streamed.
"""  # noqa: E501

_TAIL = """
## Which layers are sites

| `--sites` | sites |
|---|---|
| (nothing) | the feed-forward part: neither attention nor a token mixer that replaces it |
| `attention` | the same and attention's linear layers (also those of linear attention) |
| `all` | every linear layer in the decoder's layers |
| a regular expression | the linear layers whose path it matches anywhere |

Token mixers that replace attention are state spaces (Mamba), recurrences and short convolutions.

A router is never a site, because dampening one of its outputs would re-route tokens and not dampen a
neuron. Mamba's `dt_proj` is not a site either: its weight is used without calling the layer, so it
has no outputs.

## Models that take pictures

Sordino opens them as a whole, with transformers' image-text-to-text class, even if the family has
another class. It finds sites only in the text decoder and copies the vision tower and the connector
unchanged. Responses, attribution and evaluation use text without pictures. Layers that such text
does not pass (Mllama's cross-attention layers) have no sites.

## Mixtures of experts

The MoE experts of a layer form one site per matrix. Its neurons are numbered expert by expert:
neuron 5 of expert 2 of `experts.down_proj` with 64 outputs has the number 2 · 64 + 5. (Some
checkpoints, such as Mixtral's, store the experts separately. Sordino edits them as they are, because
transformers' own tables say which tensor belongs to which expert.) Shared experts are ordinary sites.

An MoE expert's neuron responds only to the tokens that were routed to it. A sentence that never
reached the MoE expert says nothing about it and is left out of its AUROC. If fewer than 30 sentences
of either class reached it, it has no AUROC, and its factor is 1. (With 30 and 30 sentences, the AUROC
of a neuron that knows nothing has a standard error of 0.075.)

During a sweep, and with forward hooks, MoE experts are computed by an implementation registered with
transformers' experts interface, which computes the same as the model's own code. Llama 4 does not use
that interface, so a hook computes its experts again. Attribution sums over the tokens that were
routed to an MoE expert. If fewer than 30 texts of either class reached it, its neurons have no
attribution, and `contrast` leaves them at 1. PEFT's (IA)³ multiplies the outputs of modules, and
experts whose matrices are parameters are not modules, so `--format ia3` and `--format lora` refuse
them (bake the weights, or use `--format hooks`). Baking a shift needs a bias, and of these only
GPT-OSS's experts have biases.
"""  # noqa: E501


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    DOCUMENT.write_text(document(), encoding="utf-8")
