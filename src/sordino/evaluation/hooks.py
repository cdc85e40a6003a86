"""Measuring a model under a dampening by forward hooks, without baking it first."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from sordino.evaluation.evaluator import Arm
from sordino.interventions import Dampening, Edit
from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef, resolve


def hooked(
    model: str | Path | ModelRef,
    dampening: Dampening,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> Arm:
    """The model under the dampening, for `sordino.evaluate`.

    Args:
        model: What `sordino.open_model` takes.
        dampening: Factors for its sites.
        device: Where it runs; as for `open_model`.
        dtype: In which it runs; as for `open_model`.
        revision: A branch, tag or commit of the hub.

    Raises:
        UserError: The dampening was found on other weights.

    Example:
        >>> quiet = sordino.hooked("tiny", sordino.aura(expertise))
        >>> perplexity = sordino.Perplexity("prose.txt", max_texts=8)
        >>> found = sordino.evaluate(quiet, "tiny", measures=[perplexity])
        >>> found.after.name
        'tiny, dampened'
    """
    ref = resolve(model, revision)
    dampening.refuse_other_weights(ref)
    return hooked_on(
        ref,
        dampening,
        lambda: nullcontext(open_model(ref, device=device, dtype=dtype)),
        name=f"{ref.name}, dampened",
    )


def hooked_on(
    ref: ModelRef,
    edit: Edit,
    lend: Callable[[], AbstractContextManager[OpenModel]],
    *,
    name: str,
) -> Arm:
    """The same for a model that the caller opens, without a check of its weights.

    Args:
        ref: The model.
        edit: What is done to it.
        lend: Gives the open model for the length of a `with` block.
        name: The arm's name in the result.
    """

    @contextmanager
    def dampened() -> Iterator[OpenModel]:
        with lend() as opened, edit.applied(opened.model):
            yield opened

    return Arm.of(ref, dampened, edit.fingerprint, name=name)
