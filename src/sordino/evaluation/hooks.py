"""Measuring a model under a dampening by forward hooks, without baking it first."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from sordino.evaluation.evaluator import Arm, streams
from sordino.files import fingerprint
from sordino.interventions import Dampening, Edit
from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef, resolve


def hooked(
    model: str | Path | ModelRef | OpenModel,
    dampening: Dampening,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    stream: bool | None = None,
) -> Arm:
    """The model under the dampening, for `sordino.evaluate`.

    Args:
        model: What `sordino.open_model` takes, or an open model, which is measured as it is in
            memory.
        dampening: Factors for its sites.
        device: Where a model given by name runs; as for `open_model`, as for the next two.
        dtype: In which it runs.
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
    ref = model.ref if isinstance(model, OpenModel) else resolve(model, revision)
    dampening.refuse_other_weights(ref)
    name = f"{ref.name}, dampened"
    if isinstance(model, OpenModel):
        return _under(dampening, Arm.of_open(model), name)
    streamed = streams(ref, device, dtype, stream)
    return hooked_on(
        ref,
        dampening,
        lambda: nullcontext(open_model(ref, device=device, dtype=dtype, stream=streamed)),
        name=name,
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
    return _under(edit, Arm.of(ref, lend, streamed=streamed), name)


def _under(edit: Edit, arm: Arm, name: str) -> Arm:
    """An arm under an edit."""

    @contextmanager
    def edited() -> Iterator[OpenModel]:
        with arm.open() as opened, edit.applied(opened.model):
            yield opened

    known = fingerprint(arm.fingerprint, edit.fingerprint) if arm.fingerprint else ""
    return replace(arm, name=name, fingerprint=known, open=edited, unedited=None)
