"""`find`, AUROC and generation on a GPU, on random weights of real shapes in bfloat16."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import auroc as auroc_benchmark
from benchmarks.find import bare_decoder
from benchmarks.generation import by_transformers, ours, products_alone
from benchmarks.measure import Figure, Options, Result, command, in_turns, ratio
from benchmarks.models import SHAPES, random_concept, random_model, sentences
from sordino.concepts.concept import Concept
from sordino.expertise.auroc import auroc, strongest
from sordino.expertise.find import SweepSettings, find_experts
from sordino.models.generation import encode_prompts, plan
from sordino.models.open import OpenModel
from sordino.models.tokenise import encode

_MATMUL = 8192
_BATCH_TOKENS = 16384  # a GPU is idle on the processor's 2,048
_CONTINUATIONS = 25


def flop(opened: OpenModel, concept: Concept) -> float:
    """Floating-point operations of the decoder over all sentences, the head not included.

    Two for every weight of a matrix and token; in attention two each for the scores and the sum of
    values, for every pair of tokens that one may see the other.
    """
    lengths = [len(ids) for ids in encode(opened.tokenizer, concept.sentences, 128)]
    decoder = opened.model.get_decoder()
    weights = sum(p.numel() for p in decoder.layers.parameters() if p.dim() == 2)
    config = opened.model.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    return 2.0 * weights * sum(lengths) + 4.0 * width * config.num_hidden_layers * pairs


def finished(work: Callable[[], Any], device: str) -> Callable[[], Any]:
    """Work whose time includes what the device has been asked to do."""

    def both() -> Any:
        given = work()
        if device == "cuda":
            torch.cuda.synchronize()
        return given

    return both


def measure(options: Options, device: str) -> Result:
    """All parts on that device."""
    seconds: dict[str, list[float]] = {}
    figures: list[Figure] = []

    def timed(ways: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        rounds = options.rounds(5)
        new, given = in_turns({k: finished(w, device) for k, w in ways.items()}, rounds)
        seconds.update(new)
        return given

    size = 64 if options.quick else _MATMUL
    square = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    matmul = f"matrix product, {size:,} squared"
    timed({matmul: lambda: square @ square})
    speed = 2 * size**3 / statistics.median(seconds[matmul])
    figures.append(Figure("matrix product alone", speed / 1e12, "TFLOP/s"))

    count = 40 if options.quick else 2000
    # Small settings, for "tiny" on the processor, show that this file works.
    for name in ("tiny",) if options.quick else ("Llama-2-7B", "Mistral-7B"):
        config = SHAPES[name]
        opened = random_model(name, config, dtype=torch.bfloat16, device=device)
        concept = random_concept(count, config.vocab_size)
        settings = SweepSettings(batch_tokens=_BATCH_TOKENS)
        bare, find = f"bare decoder, {name} (floor)", f"sordino find, {name}"
        usual = f"{find}, batches of {SweepSettings.batch_tokens:,} tokens"
        timed(
            {
                bare: bare_decoder(opened, concept, settings),
                find: partial(find_experts, opened, concept, settings=settings),
                usual: partial(find_experts, opened, concept, settings=SweepSettings()),
            }
        )
        done = flop(opened, concept)
        for way in (bare, find, usual):
            reached = done / statistics.median(seconds[way])
            figures.append(Figure(f"{way}: share of the matrix product", reached / speed, ""))
        figures.append(Figure(f"{name}: find / bare decoder", ratio(seconds, find, bare)))
        figures.append(Figure(f"{usual} / bare decoder", ratio(seconds, usual, bare)))

        texts = list(sentences(2 if options.quick else 16, config.vocab_size, longest=16))
        prompts = encode_prompts(opened, texts, max_tokens=128, new_tokens=20)
        batches = plan(
            opened, prompts, continuations=_CONTINUATIONS, new_tokens=20, batch_tokens=_BATCH_TOKENS
        )
        floor, sordino, theirs = (
            f"{way}, {name}"
            for way in ("matrix products alone", "sordino generation", "generate, 8 prompts padded")
        )
        given = timed(
            {
                floor: partial(products_alone, opened, batches),
                sordino: partial(ours, opened, batches),
                theirs: partial(by_transformers, opened, prompts, {1}, 8),
            }
        )
        rates = {
            way: given[way].tokens / statistics.median(seconds[way]) for way in (sordino, theirs)
        }
        figures += [
            Figure(f"{name}: sordino generation", rates[sordino], "tokens/s"),
            Figure(f"{name}: generation, sordino / generate", rates[sordino] / rates[theirs]),
        ]
        del opened
        if device == "cuda":
            torch.cuda.empty_cache()

    values, labels = auroc_benchmark.data(*((100, 64) if options.quick else (2000, 11008)))
    there = torch.from_numpy(values).to(device)
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
    timed(ways)
    here, _, copied, floor = ways
    figures += [
        Figure(
            "AUROC and strongest: copied to the processor / on the device",
            ratio(seconds, copied, here),
        ),
        Figure("AUROC and strongest / sorting alone", ratio(seconds, here, floor)),
    ]
    about = {"dtype": "bfloat16", "sentences": f"{count:,}", "weights": "random", "seed": 0}
    return Result("device", about, seconds, figures)


def run(options: Options) -> Result | None:
    """Everything on a GPU, if there is one."""
    if options.quick:
        return measure(options, "cpu")
    if not torch.cuda.is_available():
        print("There is no GPU here: benchmarks.device measures nothing.")
        return None
    return measure(options, "cuda")


if __name__ == "__main__":
    command(run)
