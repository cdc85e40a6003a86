"""Find a concept's neurons: the sweep from sentences to expertise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sordino import progress as show
from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings, attribute
from sordino.expertise.auroc import STRONGEST, auroc, strongest
from sordino.expertise.moments import moments
from sordino.expertise.passes import LayerByLayer, Pass, WholeForward, layers_run_alone
from sordino.expertise.pooling import Capture, pooling_named
from sordino.expertise.snapshot import Progress, Snapshots
from sordino.expertise.strata import LENGTH, length_classes, stratified_auroc
from sordino.files import fingerprint, only_one, refuse_existing, stage_path, today
from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef
from sordino.models.sites import Site
from sordino.models.tokenise import Batch, encode, equal_length_batches
from sordino.version import __version__


@dataclass(frozen=True)
class SweepSettings:
    """What the responses depend on beside the model and the sentences.

    Args:
        max_tokens: Sentences are cut at so many tokens.
        pooling: "max" (the paper's), "mean" or "last".
        batch_tokens: A batch holds sentences of one length, at most so many tokens together.
        stratify: Also take the AUROC within strata: "length" (in tokens) or "column" (the concept's
            own strata); "" for no strata.
        moments: Also take the classes' means and the affine map between them.
    """

    max_tokens: int = 128
    pooling: str = "max"
    batch_tokens: int = 2048
    stratify: str = ""
    moments: bool = False

    def __post_init__(self) -> None:
        pooling_named(self.pooling)
        if self.stratify not in ("", LENGTH, "column"):
            raise ValueError(f"stratify is '', 'length' or 'column', not '{self.stratify}'")
        if self.moments and self.pooling != "mean":
            # A map between the classes' largest outputs lies far off at most tokens.
            raise UserError(
                "Shifts are made from mean responses, not from the largest: give --pooling mean."
            )
        if self.max_tokens < 1:
            raise UserError(f"--max-tokens {self.max_tokens} leaves nothing: give at least 1.")
        if self.batch_tokens < 1:
            raise UserError(f"--batch-tokens {self.batch_tokens} is too small: give at least 1.")


def find_experts(
    model: str | Path | ModelRef | OpenModel,
    concept: Concept,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    sites: str | None = None,
    settings: SweepSettings | None = None,
    attribution: AttributionSettings | None = None,
    output: str | Path | None = None,
    force: bool = False,
) -> Expertise:
    """Measure every neuron's expertise about a concept.

    Args:
        model: What `sordino.open_model` takes, or an open model.
        concept: The labelled sentences.
        device: See `open_model`.
        dtype: See `open_model`.
        revision: See `open_model`.
        sites: See `open_model`.
        settings: Truncation, pooling, batch size, and further statistics of the responses.
        attribution: Also measure attribution and cost (which takes gradients), like this.
        output: Where to save the artefact. With it, an interrupted call loses at most half a
            minute of work: the same call goes on from there.
        force: Replace `output` if it exists.

    Raises:
        UserError: An input cannot be used; nothing was written.
    """
    if output is None:
        opened = open_model(model, device=device, dtype=dtype, revision=revision, sites=sites)
        return sweep(opened, concept, settings or SweepSettings(), attribution)
    target = Path(output)
    refuse_existing(target, force=force)
    with only_one(target):
        opened = open_model(model, device=device, dtype=dtype, revision=revision, sites=sites)
        snapshot = stage_path(target).with_suffix(".snapshot")
        chosen = settings or SweepSettings()
        expertise = sweep(opened, concept, chosen, attribution, snapshot)
        expertise.save(target, force=force)
        snapshot.unlink(missing_ok=True)
    return expertise


def sweep(
    opened: OpenModel,
    concept: Concept,
    settings: SweepSettings,
    attribution: AttributionSettings | None = None,
    snapshot: Path | None = None,
) -> Expertise:
    """Run all sentences past all sites and keep what their responses say of each neuron.

    Args:
        opened: The model.
        concept: The labelled sentences.
        settings: Truncation, pooling, batch size, and further statistics of the responses.
        attribution: Also measure attribution and cost, like this.
        snapshot: Where progress is kept, so that an interrupted sweep goes on; the caller removes
            it when the result is safe.
    """
    encoded = encode(opened.tokenizer, concept.sentences, settings.max_tokens)
    batches = equal_length_batches(encoded, settings.batch_tokens)
    strata = _strata(concept, settings, encoded)
    metadata = _metadata(opened, concept, settings, attribution)
    key = fingerprint(
        *(f"{k}={v}" for k, v in metadata.items() if k != "created"),
        *(site.path for site in opened.sites),
        str(settings),
        str(attribution),
        str(opened.device),
        torch.__version__,
    )
    snapshots = Snapshots(snapshot, key)
    restored = snapshots.restore() or Progress()
    if not restored.attributing:
        with torch.inference_mode():
            statistics = _measure(
                opened, concept.labels, strata, batches, settings, snapshots, restored
            )
        restored = Progress(statistics=statistics, attributing=True)
    statistics = dict(restored.statistics)
    if attribution is not None:
        statistics |= attribute(
            opened,
            concept,
            attribution,
            max_tokens=settings.max_tokens,
            batch_tokens=settings.batch_tokens,
            snapshots=snapshots,
            restored=restored,
        )
    return Expertise(_by_site(opened.sites, statistics), metadata)


def _strata(
    concept: Concept, settings: SweepSettings, encoded: Sequence[Sequence[int]]
) -> NDArray[np.int64] | None:
    if not settings.stratify:
        return None
    if settings.stratify == LENGTH:
        return length_classes([len(ids) for ids in encoded])
    if not concept.strata:
        raise UserError(
            f"The concept '{concept.name}' has no strata: give --stratify length, or a column of "
            "its data."
        )
    return np.unique(concept.strata, return_inverse=True)[1]


def _measure(
    opened: OpenModel,
    labels: NDArray[np.bool_],
    strata: NDArray[np.int64] | None,
    batches: Sequence[Batch],
    settings: SweepSettings,
    snapshots: Snapshots,
    restored: Progress,
) -> dict[str, torch.Tensor]:
    """The sweep itself; statistics by "site.statistic"."""
    way = _choose_pass(opened, batches, len(labels))
    # Responses lie in the batches' order, so that a batch fills consecutive rows.
    order = np.array([index for batch in batches for index in batch.indices])
    starts = np.cumsum([0, *(len(batch.indices) for batch in batches)])
    if restored.hidden:
        way.hidden[:] = [state.to(opened.device) for state in restored.hidden]
    statistics = dict(restored.statistics)
    capture = Capture(pooling_named(settings.pooling))
    per_stage = sum(batch.tokens for batch in batches)
    before = restored.stage * per_stage + sum(b.tokens for b in batches[: restored.batch])
    total = len(way.stages) * per_stage
    with show.track(_label(way), total, "tokens·layers", before) as advance:
        for stage in range(restored.stage, len(way.stages)):
            buffers = _buffers(way.stages[stage], len(labels), opened.device)
            first = 0
            if stage == restored.stage and restored.responses:
                first = restored.batch
                for site, buffer in buffers.items():
                    buffer.copy_(restored.responses[site.path])
            with capture.hooked(opened.model, buffers):
                for index in range(first, len(batches)):
                    batch = batches[index]
                    capture.rows(int(starts[index]), *batch.input_ids.shape)
                    way.run(stage, index)
                    capture.check()
                    advance(batch.tokens)
                    if snapshots.due():
                        responses = {site.path: buffer for site, buffer in buffers.items()}
                        snapshots.save(
                            Progress(stage, index + 1, way.hidden, responses, statistics)
                        )
            for site, buffer in buffers.items():
                _report_non_finite(site.path, buffer)
                found = _statistics(buffer, labels, strata, order, settings)
                statistics |= {f"{site.path}.{name}": value for name, value in found.items()}
    return statistics


def _choose_pass(opened: OpenModel, batches: Sequence[Batch], sentences: int) -> Pass:
    if layers_run_alone(opened, batches):
        return LayerByLayer(opened, batches)
    show.note(
        f"{type(opened.model).__name__}: its layers cannot be run one by one, so the whole "
        "forward is used."
    )
    return WholeForward(opened, batches, sentences)


def _label(way: Pass) -> str:
    return "find, layer by layer" if isinstance(way, LayerByLayer) else "find"


def _buffers(
    sites: Sequence[Site], sentences: int, device: torch.device
) -> dict[Site, torch.Tensor]:
    """Responses are kept in float32 whatever the model's dtype: coarser ones make false ties."""
    return {
        site: torch.empty(sentences, site.neurons, dtype=torch.float32, device=device)
        for site in sites
    }


def _statistics(
    responses: torch.Tensor,
    labels: NDArray[np.bool_],
    strata: NDArray[np.int64] | None,
    order: NDArray[np.int64],
    settings: SweepSettings,
) -> dict[str, torch.Tensor]:
    """What one site's responses say of each of its neurons, by statistic.

    Args:
        responses: float32 [sentences, neurons], in the batches' order, on the model's device.
        labels: bool [sentences], in the concept's order, as the strata are.
        strata: int64 [sentences], or None.
        order: Which sentence of the concept each row is.
        settings: Which statistics are wanted.
    """
    ranked = labels[order]
    found: dict[str, NDArray[np.generic]] = {"auroc": auroc(responses, ranked).astype(np.float32)}
    if strata is not None:
        within = stratified_auroc(responses, ranked, strata[order])
        found["stratified_auroc"] = within.astype(np.float32)
    if settings.moments:
        found |= moments(responses, ranked)
    best = strongest(responses)
    sentences = np.where(best >= 0, order[best], -1).astype(np.int32)
    found |= {f"strongest_{rank + 1}": sentences[rank].copy() for rank in range(STRONGEST)}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def _by_site(
    sites: Sequence[Site], statistics: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, NDArray[np.generic]]]:
    found: dict[str, dict[str, NDArray[np.generic]]] = {site.path: {} for site in sites}
    for name, values in statistics.items():
        site, _, statistic = name.rpartition(".")
        found[site][statistic] = values.numpy()
    return found


def _report_non_finite(site: str, responses: torch.Tensor) -> None:
    """Say which site gave responses that are infinite or no numbers, and what becomes of them."""
    if bool(torch.stack(responses.aminmax()).isfinite().all()):
        return
    bad = ~responses.isfinite()
    nan = int(responses.isnan().any(dim=0).sum())
    fate = f", {nan} of which get no AUROC and stay as they are" if nan else ""
    show.note(
        f"warning: {site}: {int(bad.sum())} responses of {int(bad.any(dim=0).sum())} neurons "
        f"are not finite{fate}."
    )


def _metadata(
    opened: OpenModel,
    concept: Concept,
    settings: SweepSettings,
    attribution: AttributionSettings | None,
) -> dict[str, str]:
    more = {"stratify": settings.stratify} if settings.stratify else {}
    if attribution is not None:
        more |= {
            "attribution_per_class": str(attribution.per_class),
            "attribution_seed": str(attribution.seed),
        }
    return {
        "sordino_version": __version__,
        "model": opened.ref.name,
        "revision": opened.ref.revision,
        "architecture": type(opened.model).__name__,
        "weights_fingerprint": opened.ref.weights_fingerprint(),
        "concept": concept.name,
        "concept_source": concept.source,
        "concept_fingerprint": concept.fingerprint,
        "n_positive": str(len(concept.positive)),
        "n_negative": str(len(concept.negative)),
        "pooling": settings.pooling,
        "max_tokens": str(settings.max_tokens),
        "dtype": opened.dtype_name,
        "created": today(),
        **more,
    }
