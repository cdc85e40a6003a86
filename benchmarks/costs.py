"""What 70 and 400 billion parameters cost on 1, 8 and 64 GPUs, on paper.

Nothing is run here. Every number that is no shape and no count is in `ASSUMED`, with where it comes
from; `python -m benchmarks.costs` writes the tables into docs/scaling.md.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sordino.evaluation.evaluator import BATCH_TOKENS
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.plan import size
from sordino.models.generation import MAX_LOGITS

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
_MARKED = re.compile(r"(<!-- costs -->\n).*?(<!-- end of costs -->)", re.DOTALL)
GPUS = (1, 8, 64)
SENTENCES = (2098, 10_000)
_ITEM = 2  # bytes of a number in bfloat16


@dataclass(frozen=True)
class Assumed:
    """A number that the tables rest on.

    Args:
        value: In bytes, seconds, and so on.
        shown: As it is written.
        source: Where it comes from.
    """

    value: float
    shown: str
    source: str


ASSUMED = {
    "products of matrices, bfloat16": Assumed(
        989e12, "989 TFLOP/s per GPU", "data sheet of the H100 SXM, dense"
    ),
    "share of that reached in the decoder": Assumed(
        0.5, "0.5", "assumed; to be measured: [performance](performance.md#on-a-gpu)"
    ),
    "sweep compared with the bare decoder": Assumed(
        1.1, "1.1 ×", "the bar in `make bench`, on a processor"
    ),
    "memory of a GPU": Assumed(80e9, "80 GB", "data sheet"),
    "bandwidth of that memory": Assumed(3.35e12, "3.35 TB/s", "data sheet"),
    "GPUs of a machine": Assumed(8, "8", "as such machines are sold"),
    "to a GPU from the processor's memory": Assumed(
        50e9, "50 GB/s", "PCIe 5 × 16, less its overhead"
    ),
    "between GPUs, of one machine or of several": Assumed(
        50e9, "50 GB/s per GPU", "a 400 Gbit/s adapter each; more inside a machine"
    ),
    "reading from a machine's disk": Assumed(6e9, "6 GB/s", "one NVMe disk on PCIe 4 × 4"),
    "writing to it": Assumed(3e9, "3 GB/s", "the same, sustained"),
    "AUROC": Assumed(
        1e9, "10⁹ responses/s per GPU", "assumed; two cores reach about 10⁸ (see performance.md)"
    ),
    "baking compared with copying": Assumed(1.3, "1.3 ×", "the bar in `make bench`"),
    "snapshots": Assumed(1.05, "1.05 ×", "writing them takes at most a twentieth of the time"),
    "tokens per sentence": Assumed(
        38,
        "38",
        "1,000 of the kit's comments have 38,133, cut at 128 (see performance.md)",
    ),
    "prompts of an evaluation": Assumed(1000, "1,000", "× 25 continuations of 20 tokens, two arms"),
    "tokens per prompt": Assumed(16, "16", "like the kit's prompts"),
}
_CONTINUATIONS, _NEW_TOKENS, _ARMS = 25, 20, 2


def assumed(name: str) -> float:
    """The value of an assumption."""
    return ASSUMED[name].value


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions.

    Args:
        name: What it is called.
        layers: How many.
        width: Of the hidden state.
        inner: Neurons of a gate, and as many of an up projection, in a layer without experts.
        heads: Of queries, with 128 dimensions each.
        key_heads: Of keys, and as many of values.
        vocabulary: Tokens.
        experts: In every other layer; 0 for none. Each has `expert_inner` gates, and beside them
            there is one that all tokens pass.
        expert_inner: See `experts`.
    """

    name: str
    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    experts: int = 0
    expert_inner: int = 0

    @property
    def _with_experts(self) -> int:
        return self.layers // 2 if self.experts else 0

    @property
    def _attention(self) -> int:
        """Weights of a layer's attention."""
        return 2 * self.width * 128 * (self.heads + self.key_heads)

    @property
    def _expert(self) -> int:
        return 3 * self.width * self.expert_inner

    @property
    def head(self) -> int:
        """Weights of the head; the embeddings are as many."""
        return self.vocabulary * self.width

    @property
    def body(self) -> int:
        """Weights of all layers."""
        dense = (self.layers - self._with_experts) * 3 * self.width * self.inner
        routed = self._with_experts * (self.experts + 1) * self._expert
        return self.layers * self._attention + dense + routed

    @property
    def weights(self) -> int:
        """All weights."""
        return self.body + 2 * self.head

    @property
    def multiplied(self) -> int:
        """Weights of the layers that a token is multiplied by, in a forward without hooks.

        Transformers gives every expert of Llama 4 every token, most of them as zeros.
        """
        return self.body

    @property
    def multiplied_watched(self) -> int:
        """The same with hooks, which compute Llama 4's experts a second time."""
        return self.body + self._with_experts * self.experts * self._expert

    @property
    def layer(self) -> int:
        """Weights of two neighbouring layers, or of two of the same kind: what is resident."""
        dense = self._attention + 3 * self.width * self.inner
        if not self.experts:
            return 2 * dense
        return dense + self._attention + (self.experts + 1) * self._expert

    @property
    def widest(self) -> int:
        """Neurons of the layer that has most."""
        if not self.experts:
            return 2 * self.inner + self.width
        return (self.experts + 1) * (2 * self.expert_inner + self.width)

    @property
    def neurons(self) -> int:
        """Neurons of all sites."""
        dense = (self.layers - self._with_experts) * (2 * self.inner + self.width)
        return dense + self._with_experts * self.widest


SHAPES = (
    Shape("Llama-3-70B", 80, 8192, 28_672, 64, 8, 128_256),
    Shape("Llama-3.1-405B", 126, 16_384, 53_248, 128, 8, 128_256),
    Shape("Llama-4-Maverick", 48, 5120, 16_384, 40, 8, 202_048, 128, 8192),
)


def speed(gpus: int) -> float:
    """Floating-point operations a second of all GPUs together."""
    reached = assumed("share of that reached in the decoder")
    return gpus * assumed("products of matrices, bfloat16") * reached


def machines(gpus: int) -> float:
    """How many machines these are in."""
    return max(1, gpus / assumed("GPUs of a machine"))


def find_s(shape: Shape, gpus: int, sentences: int) -> dict[str, float]:
    """The seconds of each part of a streamed sweep, a rank a GPU, each of which reads all weights.

    Ranks of a machine read the same layer at the same time, so that it comes from the disk once.
    """
    tokens = sentences * assumed("tokens per sentence")
    flop = 2 * shape.multiplied_watched * tokens * assumed("sweep compared with the bare decoder")
    read = _ITEM * (shape.body + shape.head)
    responses = sentences * shape.neurons
    exchanged = 4 * responses / gpus * (gpus - 1) / gpus
    return {
        "compute": flop / speed(gpus),
        "disk": read / assumed("reading from a machine's disk"),
        "to the GPU": read / assumed("to a GPU from the processor's memory"),
        "states": _through_disk_s(shape.layers, tokens, shape, gpus),
        "exchange": exchanged / assumed("between GPUs, of one machine or of several"),
        "AUROC": responses / assumed("AUROC") / gpus,
    }


def attribution_s(shape: Shape, gpus: int, sentences: int) -> dict[str, float]:
    """The seconds of each part of attribution, layer by layer there and back.

    Forward, forward again with a graph, and back through activations alone: once for the sentences
    that have the concept, twice for the others. Weights have no gradients.
    """
    each = min(sentences // 2, AttributionSettings().per_class)
    tokens = 2 * each * assumed("tokens per sentence")
    there, again, back = 2, 2, (2 + 4) / 2
    flop = (there + again + back) * shape.multiplied * tokens + 5 * shape.head * tokens
    read = _ITEM * (3 * (shape.body + shape.head))
    # Each layer's input on the way there; on the way back one gradient, or two.
    states = (1 + (1 + 2) / 2) * shape.layers
    return {
        "compute": flop / speed(gpus),
        "disk": read / assumed("reading from a machine's disk"),
        "to the GPU": read / assumed("to a GPU from the processor's memory"),
        "states": _through_disk_s(states, tokens, shape, gpus),
    }


def _through_disk_s(times: float, tokens: float, shape: Shape, gpus: int) -> float:
    """Seconds for hidden states that are written and read so often, each machine its own."""
    there = times * tokens * shape.width * _ITEM / machines(gpus)
    return there / assumed("writing to it") + there / assumed("reading from a machine's disk")


def longest(parts: dict[str, float]) -> float:
    """The seconds of what cannot overlap: reading overlaps computing, and the rest does not."""
    overlapping = ("compute", "disk", "to the GPU")
    rest = sum(seconds for name, seconds in parts.items() if name not in overlapping)
    return (max(parts[name] for name in overlapping) + rest) * assumed("snapshots")


def resident(shape: Shape, gpus: int, sentences: int) -> float:
    """Bytes on each GPU in a streamed sweep: two layers, responses, and their exchange."""
    responses = 4 * sentences / gpus * shape.widest
    # What is sent, what is received and what is put in order, of the largest site.
    exchanged = 3 * responses * 2 / 3 if gpus > 1 else 0
    return _ITEM * shape.layer + responses + exchanged


def on_disk(shape: Shape, gpus: int, sentences: int) -> tuple[float, float]:
    """Bytes of hidden states on each machine's disk: of the sweep, and of attribution."""
    per = assumed("tokens per sentence") * shape.width * _ITEM / machines(gpus)
    attributed = 2 * min(sentences // 2, AttributionSettings().per_class)
    return 2 * sentences * per, (shape.layers + 5) * attributed * per


def bake_s(shape: Shape) -> float:
    """Seconds to write the edited folder: what is changed and what is copied."""
    return (
        _ITEM * shape.weights / assumed("writing to it") * assumed("baking compared with copying")
    )


def evaluation_s(shape: Shape, gpus: int) -> float | None:
    """Seconds to generate what toxicity asks for; None where the weights do not fit.

    The layers are spread over the GPUs of one machine (`--device all`) and work one after another,
    so that every step reads all weights at the bandwidth of one GPU. Ranks have a GPU each and
    cannot share a model, so that more machines are no help.
    """
    here = min(gpus, assumed("GPUs of a machine"))
    if _ITEM * shape.weights * 1.05 > here * assumed("memory of a GPU"):
        return None
    rows = assumed("prompts of an evaluation") * _CONTINUATIONS
    at_once = min(
        BATCH_TOKENS // (assumed("tokens per prompt") + _NEW_TOKENS),
        MAX_LOGITS // shape.vocabulary,
    )
    steps = -(-rows // at_once) * _NEW_TOKENS
    read = _ITEM * (shape.body + shape.head) / assumed("bandwidth of that memory")
    flop = 2 * (shape.multiplied + shape.head) * at_once / speed(1)
    return _ARMS * steps * max(read, flop)


def lasting(seconds: float | None) -> str:
    """A time, to two digits or so."""
    if seconds is None:
        return "does not fit"
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    if seconds < 5970:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.2g} h"


def text() -> str:
    """All tables, as Markdown."""
    lines = ["| assumed | | from |", "|---|---|---|"]
    lines += [f"| {name} | {one.shown} | {one.source} |" for name, one in ASSUMED.items()]
    lines += [
        "",
        "| model | weights | in bfloat16 | neurons | two layers | FLOP per token, find |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.name} | {one.weights / 1e9:.1f} billion | {size(_ITEM * one.weights)} | "
        f"{one.neurons / 1e6:.1f} million | {size(_ITEM * one.layer)} | "
        f"{2 * one.multiplied_watched / 1e9:,.0f} · 10⁹ |"
        for one in SHAPES
    ]
    lines += [
        "",
        "| model | sentences | GPUs | find: computing, reading | in all | attribution: computing, "
        "reading | in all | memory per GPU | disk per machine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in SHAPES:
        for sentences in SENTENCES:
            for gpus in GPUS:
                found = find_s(one, gpus, sentences)
                given = attribution_s(one, gpus, sentences)
                needed = resident(one, gpus, sentences)
                fits = needed <= assumed("memory of a GPU")
                taken = size(needed) if fits else f"{size(needed)}: too much"
                disk = max(on_disk(one, gpus, sentences))
                cells = [one.name, f"{sentences:,}", gpus]
                for parts in (found, given):
                    cells += [f"{lasting(parts['compute'])}, {lasting(parts['disk'])}"]
                    cells += [lasting(longest(parts)) if fits else "–"]
                lines.append("| " + " | ".join(map(str, [*cells, taken, size(disk)])) + " |")
    lines += [
        "",
        "| model | baking | generating on 1 GPU | on 8 of one machine | on 64 |",
        "|---|---|---|---|---|",
    ]
    for one in SHAPES:
        times = " | ".join(lasting(evaluation_s(one, gpus)) for gpus in GPUS)
        lines.append(f"| {one.name} | {lasting(bake_s(one))} | {times} |")
    return "\n".join(lines)


def filled(page: str) -> str:
    """The page with the tables between their marks."""
    return _MARKED.sub(lambda match: f"{match[1]}\n{text()}\n\n{match[2]}", page)


def main() -> None:
    """Print the tables and write them into the page."""
    print(text())
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
