"""Open a text classifier, from safetensors only and only if all its weights are there."""

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sordino import hub
from sordino.hub_table import TABLE
from sordino.models.calls import (
    library_errors,
    open_config,
    open_tokenizer,
    quiet_transformers,
    read_settings,
)
from sordino.models.checkpoint import (
    quantisation_of,
    refuse_counts,
    refuse_not_finite,
    refuse_unfit,
)
from sordino.models.reference import HUB_FILES, ModelRef, refuse_adapter, resolve
from sordino.models.streaming import StoredTensors

_CLASS = "AutoModelForSequenceClassification"


def classifier_files(spec: str) -> ModelRef:
    """A text classifier's files, fetched from the hub if they are there.

    Args:
        spec: "hf:org/name", "hf:org/name@revision", or a folder.

    Raises:
        UserError: They are not available, or the weights are a pickle.
    """
    if not hub.is_shared(spec):
        ref = resolve(spec)
        hub.refuse_pickles(spec, [file.name for file in ref.path.iterdir()], _CLASS)
        return ModelRef(spec, "folder", ref.path)
    name, _, revision = spec.removeprefix("hf:").partition("@")
    if not revision and name in TABLE:
        revision = TABLE[name].revision
    asked = hub.Wanted(name, revision or None, name=spec, instead="take another scorer")
    folder = hub.fetch_files(
        asked,
        HUB_FILES,
        lambda files: hub.refuse_pickles(name, files, _CLASS, revision or None),
    )
    return ModelRef(spec, "folder", folder, folder.name)


def open_classifier(
    ref: ModelRef, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a text classifier in float32, and its tokenizer.

    Raises:
        UserError: Its files are damaged, or lack a weight, such as the head of a model that is not
            a classifier.
    """
    refuse_adapter(ref.path)
    quantisation_of(ref.path)  # refuses settings in a file of their own
    stored = StoredTensors(ref).empty
    refuse_counts(ref.name, read_settings(ref.path), stored)
    config = open_config(ref.path, ref.name)
    with quiet_transformers(), library_errors(ref.name), torch.device("meta"):
        tree = AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    refuse_unfit(ref.name, tree, stored)
    tokenizer = open_tokenizer(ref.path, ref.name)
    with quiet_transformers(), library_errors(ref.name):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            ref.path,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
        )
    refuse_not_finite(ref.name, model.named_parameters(), "its files are damaged, get them again")
    return model.to(device).eval(), tokenizer
