"""The transformers class with which a configuration is opened."""

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)

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
