"""Measure how well each neuron recognises a concept, which a judge may label."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from sordino import expertise
from sordino.concepts.concept import Concept, refuse_unloaded
from sordino.errors import UserError
from sordino.evaluation.judged import Judged, JudgedSamples
from sordino.evaluation.opening import AUTO
from sordino.evaluation.own_samples import OwnPlan
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.own import OwnSettings
from sordino.expertise.sweep import SweepSettings
from sordino.files import new_file, real_path, user_path
from sordino.models.open import OpenModel, open_model
from sordino.models.ranks import Ranks
from sordino.models.reference import ModelRef, place_of
from sordino.outputs import EXPERTISE, JUDGED, claim_output
from sordino.progress import note


def find_experts(
    model: str | Path | ModelRef | OpenModel,
    concept: Concept | Judged | Callable[[], Concept],
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    sites: str | None = None,
    stream: bool | None = None,
    settings: SweepSettings | None = None,
    attribution: AttributionSettings | None = None,
    own: OwnPlan | OwnSettings | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    force: bool = False,
    inputs: Iterable[object] = (),
) -> Expertise:
    """Measure every neuron's expertise about a concept.

    Args:
        model: What `sordino.open_model` takes, or an open model.
        concept: The labelled sentences; a function that loads them once the output is known to be
            free; or a judge of what the model itself writes, for which `output` is needed: the
            sentences with their labels are written beside it (`judged_file`).
        device: See `open_model`.
        dtype: See `open_model`.
        revision: See `open_model`.
        sites: See `open_model`.
        stream: Read the weights layer by layer from their files, so that only two layers are in
            memory; None: if the model does not fit into memory.
        settings: Truncation, pooling, batch size, and further statistics of the responses.
        attribution: Also measure attribution and cost, with these settings; this takes gradients.
        own: Also measure attribution to the model's own text, which is sampled by this plan or with
            these settings; it needs `attribution`.
        seed: Of the samples of a plan, and of what a judge labels.
        output: The file for the artefact. With it, an interrupted call loses at most half a minute
            of work: the same call continues from there.
        force: Replace `output` if it exists.
        inputs: Files that the output must not replace.

    Raises:
        UserError: An input cannot be used; nothing was written.

    Example:
        >>> found = sordino.find_experts("tiny", concept, output="x.expertise.safetensors")
        >>> site, neuron, auroc = found.top(1)[0]
        >>> auroc > 0.5
        True
    """
    refuse_unloaded(concept)
    chosen, judged = settings or SweepSettings(), None
    read = [place_of(model), *inputs]
    if output is not None:
        output = claim_output(output, EXPERTISE, force=force, inputs=read)
    opened, named = model, model.name if isinstance(model, ModelRef) else model
    if isinstance(concept, Judged):
        if output is None:
            raise UserError(
                "What a judge labels is written beside the expertise: give `output`, or a concept "
                "with labels."
            )
        claim_output(judged_file(output), JUDGED, force=force, inputs=read)
        if not isinstance(opened, OpenModel):
            note(f"opening {named}")
            opened = open_model(
                opened, device=device, dtype=dtype, revision=revision, sites=sites, stream=stream
            )
        judged = concept.samples(opened, output, seed=seed, device=device, chat=chosen.chat)
        concept = judged.concept
    elif callable(concept):
        concept = concept()
    if isinstance(own, OwnPlan):
        if judged is not None and own.judge == AUTO:
            own = judged.own
        else:
            own = own.settings(concept, seed=seed, device=device, chat=chosen.chat)
    if not isinstance(opened, OpenModel):
        note(f"opening {named}")
    found = expertise.find_experts(
        opened,
        concept,
        device=device,
        dtype=dtype,
        revision=revision,
        sites=sites,
        stream=stream,
        settings=chosen,
        attribution=attribution,
        own=own,
        output=output,
        force=force,
    )
    if judged is not None and output is not None and Ranks().first:
        _keep(judged, judged_file(output), force=force)
    return found


def judged_file(output: str | Path) -> Path:
    """Where the sentences that a judge labelled lie: beside the expertise."""
    path = real_path(user_path(output))
    name = path.name.removesuffix(".safetensors").removesuffix(".expertise")
    return path.with_name(f"{name}.judged.jsonl")


def _keep(judged: JudgedSamples, file: Path, *, force: bool) -> None:
    with new_file(file, force=force) as stage:
        shutil.copyfile(judged.file, stage)
    judged.drop()
