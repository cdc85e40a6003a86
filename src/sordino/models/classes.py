"""Which of transformers' classes a configuration is opened as."""

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

    Models that take pictures beside text are opened whole: of some the class for causal language
    models is the text part alone, of most there is none.
    """
    has_text_part = config.get_text_config(decoder=True) is not config
    is_text_alone = not has_text_part and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not is_text_alone and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM
