"""docs/architectures.md, made from tiny models: `python tests/architectures.py`."""

import logging
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
import transformers as tf
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import families
from families import SITES, VOCABULARY, tiny_model, tiny_tokenizer
from sordino.concepts.concept import Concept
from sordino.edits import bake
from sordino.errors import UserError
from sordino.expertise.find import find_experts
from sordino.expertise.passes import why_not_alone
from sordino.interventions import Dampening
from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef
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
    verdicts = "\n".join(
        f"| {kind} | {' / '.join(classes)} | {verdict(kind)} |" for kind, classes in types().items()
    )
    return (
        f"{_HEAD.format(count=len(families.SUPPORTED), version=TESTED_TRANSFORMERS)}\n{supported}\n"
        f"{_TYPES.format(count=len(types()), version=tf.__version__)}{verdicts}\n{_TAIL}"
    )


def types() -> dict[str, list[str]]:
    """The model types that transformers opens as causal or image-text-to-text models.

    Returns:
        By type, the names of its classes.
    """
    found: dict[str, list[str]] = {}
    for mapping in (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for kind, name in mapping.items():
            classes = found.setdefault(kind, [])
            if name not in classes:
                classes.append(name)
    return dict(sorted(found.items()))


def verdict(kind: str) -> str:
    """Whether a model type works, and why not."""
    if kind in _works():
        return "works"
    if kind in families.REFUSED:
        return f"refused: {_refusal(kind)}"
    if kind in families.BROKEN:
        return f"refused, for transformers itself fails: {_broken(kind)}"
    reason = families.NOT_TRIED.get(kind, f"new in transformers {tf.__version__}")
    return f"not tried: {reason}."


@cache
def _works() -> frozenset[str]:
    """The types of the supported families."""
    return frozenset(families.SUPPORTED) | {
        make().model_type for make in families.SUPPORTED.values()
    }


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


def _refusal(name: str) -> str:
    """What Sordino says on the way from a folder to a baked one."""
    texts = [tuple(f"{kind} {number}" for number in range(20)) for kind in ("a", "b")]
    with tempfile.TemporaryDirectory() as folder:
        source = families.tiny_folder(name, Path(folder))
        try:
            sites = {site.path: site.neurons for site in open_model(source).sites}
            find_experts(source, Concept("x", *texts, "made"))
            bake(source, Dampening(families.random_factors(sites), "aura"), f"{folder}/baked")
        except UserError as error:
            return str(error).replace(str(source), name)
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

_TYPES = """## Every type

These are the {count} model types that transformers {version} opens as causal language models or as
models that write about pictures. A type *works* where a tiny random model of it passes the tests above;
BERT and its kin do as decoders (`is_decoder` in config.json). A model that reads texts in both directions
is refused, whatever its type.

| type | class | verdict |
|---|---|---|
"""  # noqa: E501

_TAIL = """
## Which layers are sites

| `--sites` | sites |
|---|---|
| (nothing) | the feed-forward part: neither attention nor a token mixer that replaces it |
| `attention` | the same and attention's linear layers (also those of linear attention) |
| `all` | every linear layer in the decoder's layers |
| `norms` | no linear layers, but the norms through which a block's output goes before it joins the residual stream |
| a regular expression | the linear layers whose path it matches anywhere |

Token mixers that replace attention are state spaces (Mamba), recurrences and short convolutions.

A router is never a site, because dampening one of its outputs would re-route tokens and not dampen a
neuron. Nor is what carries the residual stream: AltUp's coefficients and LAuReL (Gemma 3n),
hyper-connections (DeepSeek V4, Hunyuan 4, GLM 5), attention residuals (Inkling 2). Mamba's `dt_proj` is not a site either: its weight is used without calling the layer, so it
has no outputs.

With `--sites norms` a neuron is one output of a norm after attention or after the feed-forward part, that is
one coordinate of what the block adds to the residual stream. Gemma 2, 3 and 4, OLMo 2 and 3, GLM-4 and EXAONE 4
have such norms. Its response is the norm's output, and dampening scales its gain. Where the gain is the weight
plus 1 (Gemma 2 and 3), the weight w becomes (1 + w) · α − 1; GGUF files hold the gain whole.

## Models that take pictures

Sordino opens them as a whole, with transformers' image-text-to-text class, even if the family has
another class. It finds sites only in the text decoder and copies the vision tower and the connector
unchanged. Responses, attribution and evaluation use text without pictures. Layers and experts that
such text does not pass (Mllama's cross-attention layers, Ernie's experts for pictures) have no sites.

Llama 4 as a whole is refused with transformers 5.24.0, whose own forward pass of it fails. Other tested
versions run it.

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
transformers' experts interface, which computes the same as the model's own code. Llama 4, LongCat
Flash, Step 3.7 and Inkling's shared experts do not use that interface, so a hook computes their experts
again. Attribution sums over the tokens that were
routed to an MoE expert. If fewer than 30 texts of either class reached it, its neurons have no
attribution, and `contrast` leaves them at 1. `--format lora` [holds experts](adapters.md#lora), except
where their biases change. `--format ia3` refuses them: PEFT's (IA)³ multiplies the outputs of modules, and
experts whose matrices are parameters are no modules. Baking a shift needs a bias, and of these only
GPT-OSS's experts have biases.
"""  # noqa: E501


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    DOCUMENT.write_text(document(), encoding="utf-8")
