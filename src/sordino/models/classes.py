"""The transformers class with which a configuration is opened."""

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)

from sordino.errors import UserError
from sordino.files import printable

AutoClass = type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]


def auto_class(config: PretrainedConfig) -> AutoClass:
    """The auto class for models of this configuration.

    Models that also take pictures are opened whole. For some of them the class for causal language
    models is only the text part, and for most there is none.
    """
    has_text_part = config.get_text_config(decoder=True) is not config
    is_text_alone = not has_text_part and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not is_text_alone and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def refuse_other_kinds(name: str, config: PretrainedConfig) -> None:
    """Raise `UserError` if transformers has no language model of this configuration."""
    if auto_class(config) is AutoModelForImageTextToText or (
        type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        return
    kind = printable(str(config.model_type), 60)
    if config.is_encoder_decoder:
        raise UserError(
            f"{name} is an encoder-decoder ({kind}), and Sordino dampens only decoders: choose a "
            "causal language model."
        )
    raise UserError(
        f"{name} is not a model that continues text ({kind}): choose a causal language model."
    )
