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
from sordino.expertise.auroc import STRONGEST, auroc, strongest
from sordino.expertise.passes import LayerByLayer, Pass, WholeForward, layers_run_alone
from sordino.expertise.pooling import Capture, pooling_named
from sordino.expertise.snapshot import Progress, Snapshots
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
    """

    max_tokens: int = 128
    pooling: str = "max"
    batch_tokens: int = 2048

    def __post_init__(self) -> None:
        pooling_named(self.pooling)
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
        settings: Truncation, pooling and batch size.
        output: Where to save the artefact. With it, an interrupted call loses at most half a
            minute of work: the same call goes on from there.
        force: Replace `output` if it exists.

    Raises:
        UserError: An input cannot be used; nothing was written.
    """
    if output is None:
        opened = open_model(model, device=device, dtype=dtype, revision=revision, sites=sites)
        return sweep(opened, concept, settings or SweepSettings())
    target = Path(output)
    refuse_existing(target, force=force)
    with only_one(target):
        opened = open_model(model, device=device, dtype=dtype, revision=revision, sites=sites)
        snapshot = stage_path(target).with_suffix(".snapshot")
        expertise = sweep(opened, concept, settings or SweepSettings(), snapshot)
        expertise.save(target, force=force)
        snapshot.unlink(missing_ok=True)
    return expertise


def sweep(
    opened: OpenModel,
    concept: Concept,
    settings: SweepSettings,
    snapshot: Path | None = None,
) -> Expertise:
    """Run all sentences past all sites and keep what their responses say of each neuron.

    Args:
        opened: The model.
        concept: The labelled sentences.
        settings: Truncation, pooling and batch size.
        snapshot: Where progress is kept, so that an interrupted sweep goes on; the caller removes
            it when the result is safe.
    """
    encoded = encode(opened.tokenizer, concept.sentences, settings.max_tokens)
    batches = equal_length_batches(encoded, settings.batch_tokens)
    metadata = _metadata(opened, concept, settings)
    key = fingerprint(
        *(f"{k}={v}" for k, v in metadata.items() if k != "created"),
        *(site.path for site in opened.sites),
        str(settings),
        str(opened.device),
        torch.__version__,
    )
    with torch.inference_mode():
        statistics = _measure(opened, concept.labels, batches, settings, Snapshots(snapshot, key))
    _report_non_finite(statistics)
    return Expertise(statistics, metadata)


def _measure(
    opened: OpenModel,
    labels: NDArray[np.bool_],
    batches: Sequence[Batch],
    settings: SweepSettings,
    snapshots: Snapshots,
) -> dict[str, dict[str, NDArray[np.float32 | np.int32]]]:
    """The sweep itself; statistics by site path and name."""
    way = _choose_pass(opened, batches, len(labels))
    # Responses lie in the batches' order, so that a batch fills consecutive rows.
    order = np.array([index for batch in batches for index in batch.indices])
    starts = np.cumsum([0, *(len(batch.indices) for batch in batches)])
    ordered = labels[order]
    statistics: dict[str, torch.Tensor] = {}
    first_stage = first_batch = 0
    restored = snapshots.restore()
    if restored is not None:
        first_stage, first_batch = restored.stage, restored.batch
        way.hidden[:] = [state.to(opened.device) for state in restored.hidden]
        statistics = restored.statistics
    capture = Capture(pooling_named(settings.pooling))
    per_stage = sum(batch.tokens for batch in batches)
    before = first_stage * per_stage + sum(batch.tokens for batch in batches[:first_batch])
    total = len(way.stages) * per_stage
    with show.track(_label(way), total, "tokens·layers", before) as advance:
        for stage in range(first_stage, len(way.stages)):
            buffers = _buffers(way.stages[stage], len(labels), opened.device)
            if restored is not None and stage == first_stage:
                for site, buffer in buffers.items():
                    buffer.copy_(restored.responses[site.path])
            with capture.hooked(opened.model, buffers):
                for index in range(first_batch if stage == first_stage else 0, len(batches)):
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
                statistics |= _statistics(site.path, buffer.cpu().numpy(), ordered, order)
    return _by_site(opened.sites, statistics)


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
    site: str,
    responses: NDArray[np.float32],
    labels: NDArray[np.bool_],
    order: NDArray[np.int64],
) -> dict[str, torch.Tensor]:
    best = strongest(responses)
    sentences = np.where(best >= 0, order[best], -1).astype(np.int32)
    found = {f"{site}.auroc": torch.from_numpy(auroc(responses, labels).astype(np.float32))}
    for rank in range(STRONGEST):
        found[f"{site}.strongest_{rank + 1}"] = torch.from_numpy(sentences[rank].copy())
    return found


def _by_site(
    sites: Sequence[Site], statistics: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, NDArray[np.float32 | np.int32]]]:
    names = ["auroc", *(f"strongest_{rank + 1}" for rank in range(STRONGEST))]
    return {
        site.path: {name: statistics[f"{site.path}.{name}"].numpy() for name in names}
        for site in sites
    }


def _report_non_finite(
    statistics: Mapping[str, Mapping[str, NDArray[np.float32 | np.int32]]],
) -> None:
    for site, by_name in statistics.items():
        count = int(np.isnan(by_name["auroc"]).sum())
        if count:
            show.note(
                f"warning: {site}: {count} neurons had responses that are not numbers; they get no "
                "AUROC and stay as they are."
            )


def _metadata(opened: OpenModel, concept: Concept, settings: SweepSettings) -> dict[str, str]:
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
    }
