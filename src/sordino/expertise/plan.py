"""The resources that a sweep needs: tokens, bytes to read, memory, disk and time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch

from sordino.expertise.attribution import Passage
from sordino.expertise.auroc import auroc, strongest
from sordino.expertise.passes import (
    LayerByLayer,
    NotAloneError,
    layers_that_run,
    sites_by_layer,
)
from sordino.expertise.statistic import Statistic
from sordino.files import counted, size
from sordino.models.generation import streamed_cache
from sordino.models.memory import available
from sordino.models.open import OpenModel
from sordino.models.sites import decoder_layers
from sordino.models.streaming import INPUT, OUTPUT
from sordino.models.tokenise import Batch

# Memory of compiled kernels and libraries that are loaded late, and a factor for fragmentation.
_LIBRARIES = 192 << 20
_LOST = 1.05
# The size of oneDNN's cached kernel for a matrix product in 16 bits, and the size of its cache.
_KERNEL, _KERNELS = 900_000, 1024
_SAMPLE_NEURONS = 512


@dataclass(frozen=True)
class SweepPlan:
    """The resources that a sweep needs.

    Args:
        streamed: Whether weights are read layer by layer from their files.
        sentences: How many sentences there are.
        tokens: How many tokens they have together.
        batches: How many batches they form.
        attributed_tokens: How many tokens attribution uses, own samples apart: of some of the
            sentences, of protected texts and of refusals; 0 without it.
        written_tokens: How many tokens own samples have at most, prompts included; 0 for none.
        weights: Bytes of all weights, in the dtype they are used in.
        to_read: Bytes that are read from the model's files.
        peak: The most bytes of memory in use, on the model's devices; on the CPU including what the
            process uses already.
        available: Bytes of memory available on those devices, on the CPU including what the process
            uses already.
        on_disk: The most bytes of hidden states in files; 0 if they stay in memory.
        seconds: The estimated time; None if it was not measured.
    """

    streamed: bool
    sentences: int
    tokens: int
    batches: int
    attributed_tokens: int
    written_tokens: int
    weights: int
    to_read: int
    peak: int
    available: int
    on_disk: int
    seconds: float | None = None

    def lines(self) -> list[str]:
        """The plan as text."""
        how = "read layer by layer" if self.streamed else "in memory as a whole"
        lines = [
            f"tokens       {self.tokens:,} in {counted(self.sentences, 'sentence')} and "
            f"{counted(self.batches, 'batch', 'batches')}",
            f"weights      {size(self.weights)}, {how}",
            f"to read      {size(self.to_read)}",
            f"peak memory  {size(self.peak)} of {size(self.available)}",
            f"on disk      {size(self.on_disk)} of hidden states",
        ]
        if self.attributed_tokens:
            lines[0] += f"; attribution takes {self.attributed_tokens:,}"
        if self.written_tokens:
            own = f"at most {self.written_tokens:,} tokens, prompts included"
            lines.insert(1, f"own samples  {own}")
        if self.seconds is not None:
            lines.append(f"time         about {duration(self.seconds)}, from a short measurement")
        return lines


def make_plan(
    opened: OpenModel,
    batches: Sequence[Batch],
    attributed: Sequence[Passage],
    *,
    streamed: bool,
    in_files: bool,
    writes: bool,
) -> SweepPlan:
    """The resources for the sweep of these batches.

    Args:
        opened: The model, streamed or not.
        batches: The sweep's batches.
        attributed: Attribution's batches, empty without it; with those of own samples.
        streamed: Whether the sweep reads the weights layer by layer.
        in_files: Whether hidden states are kept in files.
        writes: Whether the model also writes texts of its own.
    """
    attributed_batches = [passage.batch for passage in attributed]
    count = len(decoder_layers(opened.model)[1])
    tokens, attributed_tokens = (
        sum(batch.tokens for batch in group) for group in (batches, attributed_batches)
    )
    written = sum(one.batch.tokens for one in attributed if one.of is Statistic.OWN)
    state = opened.width * opened.model.dtype.itemsize
    # A layer's inputs and outputs; for gradients all layers' inputs, and two pairs of gradients.
    waiting = max(2 * tokens, (count + 5) * attributed_tokens if streamed else 0) * state
    processor = opened.device.type == "cpu"
    now = psutil.Process().memory_info().rss if processor else 0
    taken = now if opened.streamed else min(opened.taken or now, now)
    working = max(
        _sweeping(opened, batches, in_files), _going_back(opened, attributed_batches, streamed)
    )
    working += _statistics(opened) + _kernels(opened, batches, attributed_batches)
    working = max(working, streamed_cache(opened) if writes and streamed else 0)
    weights, files = _weights(opened), _files(opened)
    # A model in another dtype than its files' is in memory twice while it is loaded.
    loading = 0 if streamed or abs(files - weights) < weights // 50 else files
    resident = _count_streamed(opened, attributed_batches, writes) if streamed else weights
    return SweepPlan(
        streamed=streamed,
        sentences=sum(len(batch.indices) for batch in batches),
        tokens=tokens,
        batches=len(batches),
        attributed_tokens=attributed_tokens - written,
        written_tokens=written,
        weights=weights,
        to_read=_to_read(opened, streamed, bool(attributed)),
        peak=int(taken + _LIBRARIES + _LOST * (resident + max(working, loading))),
        available=sum(map(available, opened.devices)) + now,
        on_disk=waiting if in_files else 0,
    )


def measure_time(
    plan: SweepPlan,
    opened: OpenModel,
    batches: Sequence[Batch],
    attributed: Sequence[Passage],
) -> SweepPlan:
    """The plan with a time, extrapolated from one layer's run of one batch and some AUROCs."""
    middle = sorted(batches, key=lambda batch: batch.tokens)[len(batches) // 2]
    reading = 0.0
    with torch.inference_mode():
        if opened.streamed:
            started = time.monotonic()
            opened.streamed.hold(0)
            reading = (time.monotonic() - started) / max(opened.streamed.stored(0), 1)
        with layers_that_run(opened):
            try:
                layer = LayerByLayer(opened, [middle])
                seconds = _shortest(lambda: layer.try_out(0, 0, layer.states.read("0", 0), 0))
            except NotAloneError:
                return plan
    _, stack = decoder_layers(opened.model)
    a_token = seconds / middle.tokens * len(stack)
    # Forward and backward, once or (clean text) twice; layer by layer, forward once more.
    again = 1 if plan.streamed else 0
    passes = sum(
        passage.batch.tokens * (again + 1 + len(passage.vectors)) for passage in attributed
    )
    # To write a token takes a forward pass in a smaller batch, as long as two in a large one.
    passes += 2 * plan.written_tokens
    # The LM head's share, by its size relative to a layer.
    head = opened.vocabulary * opened.width
    share = head / max(sum(p.numel() for p in stack[0].parameters()), 1) / len(stack)
    responses = np.random.default_rng(0).standard_normal(
        (plan.sentences, _SAMPLE_NEURONS), np.float32
    )
    labels = np.arange(plan.sentences) % 2 == 0

    def statistics() -> None:
        auroc(responses, labels)
        strongest(responses)

    statistics()  # compiles
    neurons = sum(site.neurons for site in opened.sites)
    computing = a_token * (plan.tokens + passes + share * sum(p.batch.tokens for p in attributed))
    computing += _shortest(statistics) * neurons / _SAMPLE_NEURONS
    # Layers are read while others compute; a whole model is read before.
    files = reading * plan.to_read
    total = max(computing, files) if plan.streamed else computing + files
    return replace(plan, seconds=total)


def _shortest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        started = time.monotonic()
        work()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        times.append(time.monotonic() - started)
    return min(times)


def _weights(opened: OpenModel) -> int:
    return sum(parameter.nbytes for parameter in opened.model.parameters())


def _files(opened: OpenModel) -> int:
    return sum(path.stat().st_size for path in opened.ref.weight_files)


def _widest(opened: OpenModel) -> int:
    """The most neurons of any layer."""
    return max(sum(site.neurons for site in sites) for sites in sites_by_layer(opened))


def _largest(opened: OpenModel) -> int:
    """Bytes of the layers' largest weight."""
    _, stack = decoder_layers(opened.model)
    return max(parameter.nbytes for parameter in stack.parameters())


def _activations(opened: OpenModel, batches: Sequence[Batch]) -> int:
    """The most bytes of a layer's activations: in the model's dtype, and some in float32."""
    config = opened.decoder_config
    heads = getattr(config, "num_attention_heads", 0)  # 0 for layers without attention
    width, itemsize = opened.width, opened.model.dtype.itemsize
    # A token is routed to some of the MoE experts, whose weights are one tensor of 3 dimensions.
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    _, stack = decoder_layers(opened.model)
    outputs = max(
        sum(
            p.shape[0] if p.dim() == 2 else chosen * p.shape[1]
            for p in layer.parameters()
            if p.dim() > 1
        )
        for layer in stack
    )
    a_token = (2 * outputs + 8 * width) * itemsize + (_widest(opened) + 4 * width) * 4
    return max(
        (
            batch.tokens * (a_token + 8 * heads * batch.input_ids.shape[1])  # attention
            for batch in batches
        ),
        default=0,
    )


def _sweeping(opened: OpenModel, batches: Sequence[Batch], in_files: bool) -> int:
    """Bytes besides the weights while a layer is swept: responses, activations, hidden states."""
    sentences = sum(len(batch.indices) for batch in batches)
    tokens = [batch.tokens for batch in batches]
    responses = 4 * sentences * _widest(opened)
    sorting = 16 * sentences * 128 * torch.get_num_threads()
    states = (max(tokens) if in_files else sum(tokens)) * opened.width
    # Kernels may copy a matrix into their own layout.
    return (
        responses
        + max(sorting, _activations(opened, batches) + _largest(opened))
        + states * opened.model.dtype.itemsize
    )


def _going_back(opened: OpenModel, batches: Sequence[Batch], streamed: bool) -> int:
    """Bytes besides the weights while gradients are computed."""
    if not batches:
        return 0
    # The graph keeps each step's activations, and the backward pass the gradients of some.
    layers = 1 if streamed else len(decoder_layers(opened.model)[1])
    graph = (2 + layers) * _activations(opened, batches)
    logits = 5 * 4 * max(batch.tokens for batch in batches) * opened.vocabulary
    return int(max(graph, logits) if streamed else graph + logits)


def _kernels(opened: OpenModel, batches: Sequence[Batch], attributed: Sequence[Batch]) -> int:
    """Bytes of cached kernels, one for each shape of a matrix product."""
    if opened.device.type != "cpu" or opened.model.dtype.itemsize != 2:
        return 0
    _, stack = decoder_layers(opened.model)
    matrices = len({p.shape for p in stack.parameters() if p.dim() > 1})
    there, back = (len({batch.tokens for batch in group}) for group in (batches, attributed))
    return _KERNEL * min(_KERNELS, matrices * (there + 2 * back))


def _statistics(opened: OpenModel) -> int:
    """Bytes of the results: up to eleven numbers per neuron, three of them float64.

    Of experts' neurons there are two more.
    """
    return sum((64 if site.experts else 56) * site.neurons for site in opened.sites)


def _count_streamed(opened: OpenModel, attributed: Sequence[Batch], writes: bool) -> int:
    """The most bytes of weights in memory while they are streamed."""
    weights = opened.streamed
    assert weights is not None
    last = weights.layers - 1
    pairs = [weights.resident(layer, min(layer + 1, last)) for layer in range(last + 1)]
    head = weights.resident(OUTPUT) if attributed else 0
    # Made-up layers take the memory of their largest weight.
    beside = weights.resident(INPUT) + _largest(opened)
    if writes:  # the first and the last layer are there with what is outside of the layers
        beside = max(beside, *(weights.resident(INPUT, layer) for layer in (0, last)))
        head = weights.resident(OUTPUT)
    return weights.scratch + max(*pairs, head, beside)


def _to_read(opened: OpenModel, streamed: bool, attributed: bool) -> int:
    """Bytes that are read from the model's files."""
    weights = opened.streamed
    if not streamed or weights is None:
        return _files(opened)
    layers = sum(weights.stored(layer) for layer in range(weights.layers))
    once = weights.stored(INPUT) + layers
    return once + (once + layers + weights.stored(OUTPUT) if attributed else 0)


def duration(seconds: float) -> str:
    """A time with a unit, such as "12 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes / 60:.1f} h"
