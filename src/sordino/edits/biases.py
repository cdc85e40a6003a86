"""Biases that a model does not have yet and that a setting of its configuration adds.

No table says which setting adds biases to which layers. So each setting with "bias" in its name is
switched, and the module tree that transformers then builds (without weights) shows what appears.
"""

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.calls import quiet_transformers
from sordino.models.classes import auto_class
from sordino.models.experts import expert_matrix


@dataclass(frozen=True)
class NewBiases:
    """Settings under which a model has biases that it lacks.

    Args:
        settings: What to set in the configuration, such as {"mlp_bias": True}.
        section: The part of the configuration that they are in, such as "text_config"; "" for the
            configuration itself.
        names: The parameters that they add.
        model: The module tree with them, without weights.
    """

    settings: Mapping[str, bool]
    section: str
    names: tuple[str, ...]
    model: PreTrainedModel


def without_bias(model: nn.Module, dampening: Dampening) -> tuple[str, ...]:
    """The sites that are shifted and have no bias to hold it."""
    modules = dampening.modules(model)
    return tuple(site for site in dampening.shifted if modules[site].bias is None)


def can_shift(model: PreTrainedModel, sites: Collection[str]) -> bool:
    """Whether biases can hold shifts of these sites, existing ones or those that a setting adds."""
    matrices = {site: expert_matrix(model, site) for site in sites}
    lacking = [
        site
        for site, matrix in matrices.items()
        if getattr(matrix or model.get_submodule(site), "bias", None) is None
    ]
    try:
        if lacking:
            new_biases(model.config, model.config.to_dict(), lacking)
    except UserError:
        return False
    return True


def new_biases(
    config: PretrainedConfig, raw: Mapping[str, Any], sites: Collection[str]
) -> NewBiases:
    """Find the settings that add biases to these sites, and to no other kind of module.

    Args:
        config: The model's configuration.
        raw: The same as it is on disk.
        sites: The sites that need a bias.

    Raises:
        UserError: There are no such settings.
    """
    text = config.get_text_config(decoder=True)
    sections = (key for key in config.sub_configs if getattr(config, key, None) is text)
    section = next(sections, "")
    switches = {
        name: not value
        for name, value in text.to_dict().items()
        if isinstance(value, bool) and "bias" in name
    }
    before = _parameters(_model(config, raw, section, {}))
    wanted = {f"{site}.bias" for site in sites}
    places = {_place(name) for name in wanted}
    chosen = {}
    for name, value in switches.items():
        try:
            found = _parameters(_model(config, raw, section, {name: value}))
        except (StrictDataclassError, ValueError):
            continue  # the configuration refuses it
        new = found - before
        # Attention, say, must not get biases because the feed-forward part needs them.
        if before <= found and new & wanted and {_place(parameter) for parameter in new} <= places:
            chosen[name] = value
    model = _model(config, raw, section, chosen)
    names = tuple(name for name, _ in model.named_parameters() if name not in before)
    missing = wanted - set(names)
    if missing:
        raise UserError(
            f"{type(model).__name__} has no setting that gives a bias to {len(missing)} of the "
            f"shifted sites (such as {min(missing).removesuffix('.bias')}), so the shifts cannot "
            "be baked: write them with `format=hooks`."
        )
    return NewBiases(chosen, section, names, model)


def with_settings(
    raw: Mapping[str, Any], section: str, settings: Mapping[str, bool]
) -> dict[str, Any]:
    """A configuration as it is on disk, with some settings changed."""
    changed = copy.deepcopy(dict(raw))
    (changed.setdefault(section, {}) if section else changed).update(settings)
    return changed


def _model(
    config: PretrainedConfig, raw: Mapping[str, Any], section: str, settings: Mapping[str, bool]
) -> PreTrainedModel:
    changed = type(config).from_dict(with_settings(raw, section, settings))
    with quiet_transformers(), torch.device("meta"):
        return auto_class(changed).from_config(changed, trust_remote_code=False)


def _parameters(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def _place(bias: str) -> str:
    """The module that holds the bias's linear layer, for all decoder layers alike."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", bias.rpartition(".")[0].rpartition(".")[0])
