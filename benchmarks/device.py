"""Finding, attribution, generation, AUROC and baking on a GPU, on random weights of real shapes.

Every part is saved as it ends, and a call with the same settings on the same device takes only the
parts that are missing: ten minutes of a GPU at a time are enough.

    python -m benchmarks.device                                 all shapes
    python -m benchmarks.device --shape Llama-2-7B --rounds 3   one of them
"""

import argparse
import gc
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import auroc as auroc_benchmark
from benchmarks.bake import some_factors
from benchmarks.find import bare_decoder
from benchmarks.generation import Sampled, by_transformers, ours, products_alone
from benchmarks.measure import Figure, Options, Result, command, in_turns, ratio
from benchmarks.models import SHAPES, random_concept, random_model, sentences
from benchmarks.parts import forward_and_backward
from sordino.concepts.concept import Concept
from sordino.edits import bake
from sordino.evaluation.evaluator import BATCH_TOKENS
from sordino.expertise.attribution import AttributionSettings, passages
from sordino.expertise.auroc import auroc, strongest
from sordino.expertise.find import find_experts
from sordino.expertise.sweep import BATCH_TOKENS as SWEEP_TOKENS
from sordino.expertise.sweep import SweepSettings
from sordino.files import write_json
from sordino.models.generation import encode_prompts, plan
from sordino.models.memory import for_device
from sordino.models.open import OpenModel
from sordino.models.tokenise import encode

ON_GPU = ("Llama-2-7B", "Qwen3-8B", "OLMoE-1B-7B")
_MATMUL = 8192
_CONTINUATIONS = 25
_NEW_TOKENS = 20
_WITHIN_S = 110  # seconds for the rounds of a shape, all its parts together
_SECONDS, _FIGURES = "seconds", "figures"

Ways = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Bench:
    """What the parts of this benchmark share.

    Args:
        device: "cuda", or "cpu" to see that this file works.
        rounds: How often each way is timed at most.
        quick: Everything small.
        within_s: No further round begins that would probably end later than this.
        work: A folder for files.
    """

    device: str
    rounds: int
    quick: bool
    within_s: float
    work: Path

    def timed(self, ways: Ways) -> tuple[dict[str, list[float]], dict[str, Any]]:
        """Time the ways in turns, with what the device was asked to do, and say what each took."""

        def whole(name: str, work: Callable[[], Any]) -> Any:
            begun = time.perf_counter()
            given = work()
            if self.device == "cuda":
                torch.cuda.synchronize()
            print(f"  {name}: {time.perf_counter() - begun:.3g} s", flush=True)
            return given

        called = {name: partial(whole, name, work) for name, work in ways.items()}
        return in_turns(called, self.rounds, warm=not self.quick, within_s=self.within_s)

    def peak(self, work: Callable[[], Any]) -> float:
        """GB of the device's memory that this takes at its peak, the model included."""
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 1e9


@dataclass(frozen=True)
class Part:
    """Seconds of each way and figures, of a part that is done."""

    seconds: dict[str, list[float]]
    figures: list[Figure]


def flop(opened: OpenModel, concept: Concept) -> float:
    """Floating-point operations of the decoder over all sentences, the head not included.

    Two for every weight of a matrix and token, of MoE experts only those that a token is routed to;
    in attention two each for the scores and the sum of values, for every pair of tokens that one
    may see the other.
    """
    lengths = [len(ids) for ids in encode(opened.tokenizer, concept.sentences, 128)]
    decoder = opened.model.get_decoder()
    config = opened.model.config
    weights = sum(p.numel() for p in decoder.layers.parameters() if p.dim() == 2)
    stacked = sum(p.numel() for p in decoder.layers.parameters() if p.dim() == 3)
    if stacked:
        weights += stacked * config.num_experts_per_tok / config.num_experts
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    return 2.0 * weights * sum(lengths) + 4.0 * width * config.num_hidden_layers * pairs


def product(bench: Bench) -> Part:
    """One large matrix product, and a copy: what the device can do at best."""
    size = 64 if bench.quick else _MATMUL
    square = torch.randn(size, size, dtype=torch.bfloat16, device=bench.device)
    large = torch.empty(2**16 if bench.quick else 2**31, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(large)
    matmul, copy = f"matrix product, {size:,} squared", f"copy of {large.numel():,} bytes"
    seconds, _ = bench.timed({matmul: lambda: square @ square, copy: lambda: target.copy_(large)})
    flops = 2 * size**3 / statistics.median(seconds[matmul])
    moved = 2 * large.numel() / statistics.median(seconds[copy])
    return Part(
        seconds,
        [
            Figure("matrix product alone", flops / 1e12, "TFLOP/s"),
            Figure("memory, read and written", moved / 1e9, "GB/s"),
        ],
    )


def find(bench: Bench, name: str, opened: OpenModel, best: Part) -> Part:
    """The sweep against the decoder alone, and in the processor's batches."""
    count = 40 if bench.quick else 2000
    concept = random_concept(count, opened.model.config.vocab_size)
    settings = SweepSettings()
    bare, sweep = f"bare decoder, {name} (floor)", f"sordino find, {name}"
    usual = f"{sweep}, the processor's batches"
    seconds, _ = bench.timed(
        {
            bare: bare_decoder(opened, concept, settings),
            sweep: partial(find_experts, opened, concept, settings=settings),
            usual: partial(
                find_experts, opened, concept, settings=SweepSettings(batch_tokens=SWEEP_TOKENS)
            ),
        }
    )
    done, [speed, _] = flop(opened, concept), best.figures
    figures = [
        Figure(
            f"{way}: share of the matrix product",
            done / statistics.median(seconds[way]) / speed.value / 1e12,
            "",
            at_least=0.5 if way == bare else None,
        )
        for way in (bare, sweep, usual)
    ]
    figures += [
        Figure(f"{name}: find / bare decoder", ratio(seconds, sweep, bare), at_most=1.1),
        Figure(f"{usual} / bare decoder", ratio(seconds, usual, bare)),
    ]
    if bench.device == "cuda":
        peak = bench.peak(partial(find_experts, opened, concept, settings=settings))
        figures.append(Figure(f"{name}: memory of the device at its peak in find", peak, "GB"))
    return Part(seconds, figures)


def attribution(bench: Bench, name: str, opened: OpenModel, best: Part) -> Part:
    """Attribution, as what it adds to the sweep, against the passes that it needs."""
    del best
    count = 40 if bench.quick else 800
    concept = random_concept(count, opened.model.config.vocab_size)
    sweep = SweepSettings()
    settings = AttributionSettings(per_class=count // 2)
    work = passages(opened, concept, settings, sweep.max_tokens, SWEEP_TOKENS)

    floor, alone = f"forward and backward, {name} (floor)", f"find without attribution, {name}"
    whole = f"find with attribution, {name}"
    seconds, _ = bench.timed(
        {
            floor: partial(forward_and_backward, opened, work),
            alone: partial(find_experts, opened, concept, settings=sweep),
            whole: partial(find_experts, opened, concept, settings=sweep, attribution=settings),
        }
    )
    added = statistics.median(seconds[whole]) - statistics.median(seconds[alone])
    over = added / statistics.median(seconds[floor])
    return Part(seconds, [Figure(f"{name}: attribution / forward and backward", over, at_most=1.3)])


def generation(bench: Bench, name: str, opened: OpenModel, best: Part) -> Part:
    """Continuations, against `generate` and against reading all weights once a step."""
    texts = list(sentences(2 if bench.quick else 16, opened.model.config.vocab_size, longest=16))
    prompts = encode_prompts(opened, texts, max_tokens=128, new_tokens=_NEW_TOKENS)
    batches = plan(
        opened,
        prompts,
        continuations=_CONTINUATIONS,
        new_tokens=_NEW_TOKENS,
        batch_tokens=for_device(BATCH_TOKENS, opened.device),
    )
    floor, sordino = f"matrix products alone, {name}", f"sordino generation, {name}"
    padded, single = f"generate, 8 prompts padded, {name}", f"generate, one prompt, {name}"
    seconds, given = bench.timed(
        {
            floor: partial(products_alone, opened, batches),
            sordino: partial(ours, opened, batches),
            padded: partial(by_transformers, opened, prompts, {1}, 8),
            single: partial(by_transformers, opened, prompts, {1}, 1),
        }
    )

    def rate(way: str) -> float:
        written: Sampled = given[way]
        return written.tokens / statistics.median(seconds[way])

    size = sum(p.numel() * p.element_size() for p in opened.model.parameters())
    _, moved = best.figures
    # A copy reads and writes; a step only reads.
    steps_s = len(batches) * _NEW_TOKENS * size / (moved.value * 1e9)
    return Part(
        seconds,
        [
            Figure(f"{name}: sordino generation", rate(sordino), "tokens/s"),
            Figure(
                f"{name}: sordino / generate(num_return_sequences=25), tokens per second",
                rate(sordino) / rate(single),
                at_least=3,
            ),
            Figure(f"{name}: sordino / generate on padded batches", rate(sordino) / rate(padded)),
            Figure(
                f"{name}: reading the weights once a step / sordino",
                steps_s / statistics.median(seconds[sordino]),
                at_least=0.5,
            ),
        ],
    )


def baking(bench: Bench, name: str, opened: OpenModel, best: Part) -> Part:
    """Factors into the weights on the device, and into their files, against a copy of those."""
    del best
    dampening = some_factors(opened)
    source, target, copy = (bench.work / part for part in ("model", "baked", "copy"))
    opened.model.save_pretrained(source)
    opened.tokenizer.save_pretrained(source)
    floor, files = f"copy of the files, {name} (floor)", f"sordino bake, {name}"
    ways: Ways = {
        f"into the device's memory, {name}": lambda: dampening.bake_into(opened.model),
        floor: lambda: shutil.copytree(source, copy, dirs_exist_ok=True),
        files: lambda: bake(source, dampening, target, force=target.exists()),
    }
    seconds, _ = bench.timed(ways)
    for folder in (source, target, copy):
        shutil.rmtree(folder)
    return Part(
        seconds,
        [Figure(f"{name}: sordino bake / copying the files", ratio(seconds, files, floor))],
    )


def ranking(bench: Bench) -> Part:
    """AUROC and the strongest sentences on the device, against sorting alone."""
    values, labels = auroc_benchmark.data(*((100, 64) if bench.quick else (2000, 11008)))
    there = torch.from_numpy(values).to(bench.device)
    half = there.bfloat16()

    def both(responses: torch.Tensor) -> None:
        auroc(responses, labels)
        strongest(responses)

    ways: dict[str, Callable[[], Any]] = {
        "AUROC and strongest, 2,000 × 11,008, on the device": lambda: both(there),
        "the same, bfloat16": lambda: both(half),
        "the same, copied to the processor": lambda: both(there.cpu()),
        "sorting alone, on the device (floor)": lambda: there.T.contiguous().sort(dim=1),
    }
    seconds, _ = bench.timed(ways)
    here, _, copied, floor = ways
    return Part(
        seconds,
        [
            Figure(
                "AUROC and strongest: copied to the processor / on the device",
                ratio(seconds, copied, here),
            ),
            Figure("AUROC and strongest / sorting alone", ratio(seconds, here, floor), at_most=1.5),
        ],
    )


OF_SHAPE: Mapping[str, Callable[[Bench, str, OpenModel, Part], Part]] = {
    "find": find,
    "generation": generation,
    "attribution": attribution,
    "bake": baking,
}


class Kept:
    """The parts that are done, one file each.

    Args:
        folder: Where they are.
        deciding: What they depend on; parts of something else are not taken.
    """

    def __init__(self, folder: Path, deciding: Mapping[str, Any]) -> None:
        self._folder, self._deciding = folder, dict(deciding)
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> Part | None:
        """A part that is done, or None."""
        file = self._folder / f"{name}.json"
        record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if record.get("deciding") != self._deciding:
            return None
        return Part(record[_SECONDS], [Figure(**one) for one in record[_FIGURES]])

    def has(self, shape: str) -> bool:
        """Whether all parts of a shape are done."""
        return all(self.read(f"{shape}-{part}") for part in OF_SHAPE)

    def part(self, name: str, measure: Callable[[], Part]) -> Part:
        """The part of that name, measured now if it is not there."""
        if done := self.read(name):
            print(f"{name}: taken from before", flush=True)
            return done
        print(name, flush=True)
        part = measure()
        for figure in part.figures:
            print(f"  {figure.what}: {figure.value:.3g} {figure.unit}", flush=True)
        write_json(self._folder / f"{name}.json", {"deciding": self._deciding, **asdict(part)})
        return part


def parts_of(bench: Bench, kept: Kept, name: str, best: Part) -> Iterator[Part]:
    """All parts of one shape; its weights are made only if one is missing."""
    its = replace(bench, within_s=bench.within_s / len(OF_SHAPE))

    @cache
    def opened() -> OpenModel:
        print(f"{name}: random weights", flush=True)
        return random_model(name, SHAPES[name], dtype=torch.bfloat16, device=bench.device)

    for part, measure in OF_SHAPE.items():
        yield kept.part(
            f"{name}-{part}", lambda measure=measure: measure(its, name, opened(), best)
        )
    opened.cache_clear()
    gc.collect()
    if bench.device == "cuda":
        torch.cuda.empty_cache()


def run(options: Options, shapes: Sequence[str] = ()) -> Result | None:
    """Everything on a GPU, if there is one; quick: a tiny model on the processor."""
    device = "cuda" if torch.cuda.is_available() and not options.quick else "cpu"
    if device == "cpu" and not options.quick:
        print("There is no GPU here: benchmarks.device measures nothing.")
        return None
    names = ["tiny"] if options.quick else shapes or ON_GPU
    work = options.work / "device"
    bench = Bench(device, options.rounds(3), options.quick, _WITHIN_S, work)
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    kept = Kept(work / "parts", {"gpu": gpu, "rounds": bench.rounds, "torch": torch.__version__})
    best = kept.part("product", partial(product, bench))
    parts = [best, kept.part("ranking", partial(ranking, bench))]
    # Shapes that an earlier call measured are joined.
    names = [name for name in SHAPES if name in names or kept.has(name)]
    for name in names:
        parts += parts_of(bench, kept, name, best)
    if options.quick:
        shutil.rmtree(work)
    seconds = {way: times for part in parts for way, times in part.seconds.items()}
    figures = [figure for part in parts for figure in part.figures]
    about = {"dtype": "bfloat16", "weights": "random", "shapes": ", ".join(names), "seed": 0}
    return Result("device", about, seconds, figures)


def main() -> None:
    """The command line: that of every benchmark, and which shapes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--shape", action="append", default=[], choices=ON_GPU, help="only these")
    given, rest = parser.parse_known_args()
    command(partial(run, shapes=given.shape), rest, [parser])


if __name__ == "__main__":
    main()
