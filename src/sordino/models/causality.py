"""Refuse models that read in both directions, or the same text differently each time."""

import torch
from transformers import PreTrainedModel

from sordino.errors import UserError
from sordino.models.calls import library_errors
from sordino.models.sites import decoder_of

_TOKENS = 4  # few, so that each has a large effect in a model that reads in both directions
# A later token's effect on earlier ones, relative to its own: rounding gives less.
_EFFECT = 0.02


def refuse_both_directions(
    name: str, model: PreTrainedModel, *, without_head: bool = False
) -> None:
    """Raise `UserError` if a token changes the model's outputs for the tokens before it.

    Such a model (BERT, XLNet) fills gaps: it gives no likelihood of a text and cannot continue one.
    Not every architecture's configuration says so, so two texts are run that differ in their last
    token.

    Args:
        name: What the user called the model.
        model: The model.
        without_head: Whether to run the decoder alone.

    Raises:
        UserError: It reads in both directions, or not at all without more than text.
    """
    embeddings = model.get_input_embeddings().weight
    ids = torch.arange(_TOKENS, device=embeddings.device).repeat(2, 1)
    ids += len(embeddings) // 2  # far from special tokens
    ids[1, -1] += 1
    run = decoder_of(model) if without_head else model
    with torch.inference_mode(), library_errors(name, done="run on text alone"):
        outputs = run(input_ids=ids, use_cache=False)[0].float()
    effects = (outputs[0] - outputs[1]).abs().amax(-1)
    if effects[:-1].max() > _EFFECT * effects[-1]:
        raise UserError(
            f"{name} reads texts in both directions ({type(model).__name__}: a text's last token "
            "changes the outputs for those before it), so it is not a causal language model: "
            "choose one, or set is_decoder in config.json if it is a decoder of BERT's kind."
        )


def refuse_random(name: str, model: PreTrainedModel) -> None:
    """Raise `UserError` if the model reads the same text differently each time.

    Raises:
        UserError: Its attention draws random numbers (Reformer's hashes).
    """
    if any(type(module).__name__.startswith("LSH") for module in model.modules()):
        raise UserError(
            f"{name} hashes texts with random numbers in its attention ({type(model).__name__}), "
            "so the same text gives different responses each time: choose another model."
        )
