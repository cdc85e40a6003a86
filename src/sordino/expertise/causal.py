"""Moments measured layer by layer, each on the responses of the model edited so far.

A map that is applied to one layer changes the inputs of every later layer. Measured on the original
model, the maps of later layers would correct again what the earlier ones correct. So each layer's
moments are measured while the maps of all sites before it are applied (causal estimation: Rodriguez
et al., 2024, arXiv:2410.23054, section 3.2). The sites of one layer are in the order in which they
are called.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import nn

from sordino import progress as show
from sordino.errors import UserError
from sordino.expertise.moments import Map, affine
from sordino.expertise.passes import LayerByLayer, why_not_alone
from sordino.expertise.pooling import Capture
from sordino.expertise.snapshot import Progress, Snapshots
from sordino.expertise.statistic import Statistic, Tensors
from sordino.expertise.sweep import Sentences, SweepSettings, statistics_of
from sordino.models.hooks import forward_hooks
from sordino.models.open import OpenModel
from sordino.models.ranks import Ranks
from sordino.models.sites import Site


def causal_sweep(
    opened: OpenModel,
    sentences: Sentences,
    settings: SweepSettings,
    *,
    snapshots: Snapshots,
    restored: Progress,
) -> Tensors:
    """The statistics of all sites, each measured with the maps of those before it applied.

    Args:
        opened: The model, in memory as a whole.
        sentences: The sentences.
        settings: With moments, and `causal` for the kind of the maps.
        snapshots: Stores progress, after each layer.
        restored: The progress of an interrupted call.

    Returns:
        By site and statistic, float32 or int32 [neurons], like an ordinary sweep.

    Raises:
        UserError: The model is streamed, has MoE experts among its sites, or has layers that do not
            run alone; or there are several processes.
    """
    _refuse(opened, sentences)
    way = LayerByLayer(opened, sentences.batches)
    for index, state in enumerate(restored.hidden):
        way.states.write("0", index, state.to(opened.device))
    statistics = dict(restored.statistics)
    tokens = sum(batch.tokens for batch in sentences.batches)
    runs = [len(sites) + 1 for sites in way.stages]
    done = sum(runs[: restored.stage]) * tokens
    with show.track("find, causally", sum(runs) * tokens, "tokens·layers", done) as advance:
        for stage in range(restored.stage, len(way.stages)):
            with ExitStack() as edits:
                for site in _in_order(opened, way, stage):
                    found = _measure(opened, way, stage, site, sentences, settings, advance)
                    statistics[site.path] = found
                    edits.enter_context(_apply_map(opened, site, _map(found, settings.causal)))
                for index, batch in enumerate(sentences.batches):
                    way.run(stage, index)
                    advance(batch.tokens)
            if snapshots.due():
                hidden = way.states.secure()
                snapshots.save(Progress(stage + 1, 0, hidden, statistics=statistics))
    return statistics


def _refuse(opened: OpenModel, sentences: Sentences) -> None:
    if opened.streamed is not None:
        raise UserError(
            f"`causal` needs a model in memory, and {opened.ref.name} is read layer by layer: "
            "leave it out, or use a machine whose memory holds it, with `stream=False`."
        )
    if Ranks().size > 1:
        raise UserError("`causal` is for one process: start it without torchrun.")
    if experts := [site.path for site in opened.sites if site.experts]:
        raise UserError(
            f"`causal` is for linear layers and norms, and {experts[0]} is a matrix of MoE "
            "experts: leave it out with `sites`."
        )
    if reason := why_not_alone(opened, sentences.batches):
        raise UserError(
            f"{type(opened.model).__name__}: its layers cannot be run one by one ({reason}), which "
            "`causal` needs: leave it out."
        )


def _in_order(opened: OpenModel, way: LayerByLayer, stage: int) -> list[Site]:
    """A layer's sites in the order in which they are called; first those that are not."""
    called: list[Site] = []

    def noting(site: Site) -> Callable[..., None]:
        return lambda *_: called.append(site)

    sites = way.stages[stage]
    with forward_hooks((opened.model.get_submodule(s.path), noting(s)) for s in sites):
        way.layer(stage, 0, way.states.read(str(stage), 0).clone(), stage)
    # What is not called is refused as soon as it is measured.
    return [*(site for site in sites if site not in called), *called]


def _measure(
    opened: OpenModel,
    way: LayerByLayer,
    stage: int,
    site: Site,
    sentences: Sentences,
    settings: SweepSettings,
    advance: Callable[[int], None],
) -> dict[Statistic, torch.Tensor]:
    """One site's statistics, with the maps that are applied so far."""
    count = len(sentences.labels)
    responses = torch.empty(count, site.neurons, device=opened.device_of(site.path))
    capture, start = Capture(settings.pooling), 0
    with capture.hooked(opened.model, {site: responses}):
        for index, batch in enumerate(sentences.batches):
            capture.rows(start, batch)
            # Some layers add to their input in place.
            way.layer(stage, index, way.states.read(str(stage), index).clone(), stage)
            capture.check()
            start += len(batch.indices)
            advance(batch.tokens)
    return statistics_of(responses, sentences.labels, sentences.strata, sentences.order, settings)


def _map(found: dict[Statistic, torch.Tensor], kind: str) -> Map:
    return affine({name: values.cpu().numpy() for name, values in found.items()}, kind)


def _apply_map(opened: OpenModel, site: Site, given: Map) -> AbstractContextManager[None]:
    """Inside the block a site's outputs z become factor · z + shift."""
    device = opened.device_of(site.path)
    factor, shift = (torch.from_numpy(v).to(device, opened.model.dtype) for v in given)

    def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(shift, output, factor)

    return forward_hooks([(opened.model.get_submodule(site.path), hook)])
