"""Measure a model, also with a dampening that has not been baked."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino import evaluation
from sordino.errors import UserError
from sordino.evaluation import Endpoint, Evaluation, Measure, Prepared
from sordino.evaluation.evaluator import Subject
from sordino.evaluation.texts import KIT_PROSE
from sordino.files import is_private, private_files
from sordino.models.chat import RAW, Chat
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef, place_of, resolve
from sordino.outputs import EVALUATION, claim_output, named_files
from sordino.progress import note
from sordino.tuning.baking import make_dampening
from sordino.tuning.calibration import Source


def evaluate(
    model: Subject,
    against: Subject | None = None,
    *,
    measures: Sequence[str | Measure] | Prepared = ("toxicity", "perplexity"),
    dampening: Source | Sequence[Source] = (),
    intervention: str = "aura",
    strength: float = 1.0,
    settings: Mapping[str, Any] | None = None,
    divergence: float | None = None,
    texts: str = KIT_PROSE,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    stream: bool | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    output: str | Path | None = None,
    force: bool = False,
    records: Path | None = None,
    cache: bool = False,
    inputs: Iterable[object] = (),
    chat: Chat = RAW,
) -> Evaluation:
    """Measure a model, alone or against another.

    Both get the same prompts and the same random numbers. Models given by name are in memory one at
    a time, except for measures that need both (`speed`). Processes started by torchrun share the
    batches and get the same result; the first one writes it. The result says of a measure that is
    not available here why it was not run. With `output`, a killed evaluation continues where it
    stopped and ends in the same bytes.

    Args:
        model: The model ("after" in the result): what `sordino.open_model` takes, an open model, a
            server (`Endpoint`), or what `sordino.hooked` gives.
        against: The model before, for a comparison.
        measures: Names of measures, or measures with other settings than their defaults, such as
            `Toxicity(continuations=25)`; or what `sordino.evaluation.prepare` made of them with
            the same device and seed.
        dampening: Measure the model with this dampening, applied by forward hooks: what
            `sordino.make_dampening` takes, such as an expertise.
        intervention: See `sordino.make_dampening`, as for the next four.
        strength: Of each dampening.
        settings: The rule's own settings.
        divergence: The budget that the change may reach, nats per token.
        texts: Ordinary texts on which the divergence is measured.
        device: Where models given by name, and text classifiers, run; see `sordino.open_model`.
        dtype: The dtype of models given by name; see `sordino.open_model`.
        revision: The model's revision; see `sordino.open_model`.
        stream: Read models given by name layer by layer, again for every batch of texts and every
            token that they write; by default only those that do not fit into memory.
        seed: Seed of the choice of prompts and texts, of sampling and of the intervals.
        batch_tokens: About how many tokens are in memory at once; None for 8,192, or more on a GPU.
            Other batches round differently, which can change single tokens.
        output: The JSON file to write; the samples are written beside it.
        force: Replace an existing output.
        records: A file that keeps each model's records, so that further evaluations need not
            measure it again.
        cache: Keep what is measured of the model before in the cache folder, and take it from there
            if nothing that decides it has changed since; see `sordino.evaluation.kept`.
        inputs: Files that the output must not replace. If one of them is readable by its owner
            only, so is the output.
        chat: How the model's chat template is used for generated text; by default it is not. "auto"
            measures both ways if the model has a template.

    Returns:
        The figures, with the single items as `samples`.

    Raises:
        UserError: An input cannot be used, or the output exists.

    Example:
        >>> perplexity = sordino.Perplexity("prose.txt", max_texts=8)
        >>> found = sordino.evaluate("tiny", measures=[perplexity])
        >>> found.figure("perplexity", "corpus").after.value > 1
        True
    """
    dampened = isinstance(dampening, Source) or bool(dampening)
    if dampened and not isinstance(model, str | Path | ModelRef | OpenModel):
        raise UserError(
            "A dampening needs a model in this process that is not dampened already: pass the "
            "model itself."
        )
    rule = (intervention, strength, dict(settings or {}), divergence)
    if not dampened and rule != ("aura", 1, {}, None):
        raise UserError(
            "`intervention`, `strength`, `divergence` and `settings` need an expertise: pass its "
            "file as `dampening`."
        )
    if isinstance(model, Endpoint) and (against is None or isinstance(against, Endpoint)):
        _refuse_unused(
            dtype=dtype != "auto",
            revision=revision is not None,
            stream=stream is not None,
            batch_tokens=batch_tokens is not None,
        )
    files = tuple(named_files(*inputs))
    with private_files(any(map(is_private, files))):
        if output is not None:
            read = [place_of(model), place_of(against), *named_files(dampening), *files]
            output = claim_output(output, EVALUATION, force=force, inputs=read)
        ready = measures
        if not isinstance(ready, Prepared):
            ready = evaluation.prepare(
                ready,
                compared=against is not None,
                served=any(isinstance(one, Endpoint) for one in (model, against)),
                device=device,
                seed=seed,
            )
        if isinstance(model, str | Path):
            model = resolve(model, revision)
        if "role" in chat.given:
            note("warning: `role` decides nothing here: it is the turn of a concept's sentences.")
        if isinstance(model, ModelRef | OpenModel | Endpoint):
            ready = evaluation.with_chat(ready, chat, model)
        elif chat.use == "on":
            raise UserError(
                "`chat=on` needs a model that is opened here: pass the model itself, or measures "
                "with a chat."
            )
        if dampened:
            assert isinstance(model, ModelRef | OpenModel)
            made = make_dampening(
                model,
                dampening,
                intervention,
                strength=strength,
                settings=settings,
                divergence=divergence,
                texts=texts,
                seed=seed,
                device=device,
                dtype=dtype,
            )
            model = evaluation.hooked(model, made, device=device, dtype=dtype, stream=stream)
        return evaluation.evaluate(
            model,
            against,
            measures=ready,
            device=device,
            dtype=dtype,
            stream=stream,
            seed=seed,
            batch_tokens=batch_tokens,
            output=output,
            force=force,
            records=records,
            cache=cache,
        )


def _refuse_unused(**given: bool) -> None:
    """Refuse arguments about models in this process where all are on servers."""
    unused = [f"`{name}`" for name, is_given in given.items() if is_given]
    if unused:
        raise UserError(
            f"The server decides how its model is opened, so leave out {' and '.join(unused)}."
        )
