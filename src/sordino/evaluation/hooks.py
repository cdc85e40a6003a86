"""Measuring a model under a dampening by forward hooks, without baking it first."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from sordino.evaluation.evaluator import Arm, streams
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
    stream: bool | None = None,
) -> Arm:
    """The model under the dampening, for `sordino.evaluate`.

    Args:
        model: What `sordino.open_model` takes.
        dampening: Factors for its sites.
        device: Where it runs; as for `open_model`.
        dtype: In which it runs; as for `open_model`.
        revision: A branch, tag or commit of the hub.
        stream: Whether it is read layer by layer; by default if it does not fit into memory.

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
    streamed = streams(ref, device, dtype, stream)
    return hooked_on(
        ref,
        dampening,
        lambda: nullcontext(open_model(ref, device=device, dtype=dtype, stream=streamed)),
        name=f"{ref.name}, dampened",
        streamed=streamed,
    )


def hooked_on(
    ref: ModelRef,
    edit: Edit,
    lend: Callable[[], AbstractContextManager[OpenModel]],
    *,
    name: str,
    streamed: bool = False,
) -> Arm:
    """The same for a model that the caller opens, without a check of its weights.

    Args:
        ref: The model.
        edit: What is done to it.
        lend: Gives the open model for the length of a `with` block.
        name: The arm's name in the result.
        streamed: Whether it is read layer by layer.
    """

    @contextmanager
    def dampened() -> Iterator[OpenModel]:
        with lend() as opened, edit.applied(opened.model):
            yield opened

    return Arm.of(ref, dampened, edit.fingerprint, name=name, streamed=streamed)
