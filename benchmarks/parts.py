"""Each part of a run, against the least work that it needs.

On one thread, in seconds of processor time, so that other programs hardly touch the ratios. Of
sentences, texts and prompts there are as few as give a steady time per token; from these times and
the numbers of tokens follows how long the parts of `make demo` take together.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import gguf
import torch
from safetensors.torch import load_file

from benchmarks import auroc as auroc_benchmark
from benchmarks.bake import some_factors
from benchmarks.find import bare_decoder
from benchmarks.generation import products_alone
from benchmarks.measure import Figure, Options, Result, command, in_turns, limited_to
from benchmarks.models import SHAPES, random_concept, random_model, sentences
from sordino.concepts.concept import Concept
from sordino.concepts.load import load_concept
from sordino.edits.baking import bake
from sordino.evaluation import Measure, Perplexity, Toxicity, prepare
from sordino.evaluation.evaluator import BATCH_TOKENS as EVALUATION_TOKENS
from sordino.evaluation.measure import ALL, Task
from sordino.evaluation.measures.toxicity import KIT_PROMPTS
from sordino.evaluation.reading import text_logits
from sordino.evaluation.texts import choose, read_texts
from sordino.expertise.attribution import AttributionSettings, Passage, attribute, passages
from sordino.expertise.auroc import auroc
from sordino.expertise.find import find_experts
from sordino.expertise.snapshot import Progress, Snapshots
from sordino.expertise.statistic import Tensors
from sordino.expertise.sweep import BATCH_TOKENS, SweepSettings
from sordino.interventions import Dampening
from sordino.models.generation import encode_prompts, plan
from sordino.models.gguf_header import read_header
from sordino.models.open import OpenModel, open_model
from sordino.models.ranks import Ranks
from sordino.models.reference import resolve
from sordino.models.tokenise import encode
from sordino.pipeline import RECOMMENDED_DIVERGENCE
from sordino.tuning.calibration import TOKENS, Yardstick, calibrate, clean_texts

_WITHIN_S = 540
_BARS = {"find": 1.1, "attribution": 1.25, "toxicity": 1.25}
# What `make demo` asks for; a test compares.
PER_CLASS, PROMPTS, CONTINUATIONS, NEW_TOKENS, ARMS = 400, 300, 5, 20, 3


def forward_and_backward(opened: OpenModel, work: Sequence[Passage]) -> None:
    """The floor of attribution: a forward for each batch, a backward for each likelihood.

    Only activations have gradients; nobody looks at those of the sites.
    """
    opened.model.requires_grad_(False)
    embed = opened.model.get_input_embeddings()
    for passage in work:
        ids = passage.batch.input_ids.to(opened.device)
        embedded = embed(ids).detach().requires_grad_()
        logits = opened.model(inputs_embeds=embedded, use_cache=False).logits
        chosen = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None]).sum()
        vectors = len(passage.vectors)
        for again in range(1, vectors + 1):
            torch.autograd.grad(chosen, embedded, retain_graph=again < vectors)


def attributing(opened: OpenModel, work: Sequence[Passage]) -> Tensors:
    """What Sordino does of these passages, the sums and the means included."""
    return attribute(
        opened,
        work,
        0,
        folder=Path(),  # nothing waits in files of a model that is in memory
        snapshots=Snapshots(None, ""),
        restored=Progress(),
        ranks=Ranks(),
    )


@torch.inference_mode()
def forward(opened: OpenModel, texts: Sequence[str]) -> None:
    """The floor of reading: the whole model over the texts, nobody looking at the logits."""
    for _ in text_logits(opened, texts, TOKENS, batch_tokens=EVALUATION_TOKENS):
        pass


class Counting(Yardstick):
    """A yardstick that counts how many times it has read all texts."""

    passes = 1.0  # for the original

    def _mean(self, dampening: Dampening, chosen: Sequence[int]) -> float:
        self.passes += len(chosen) / len(self._measured)
        return super()._mean(dampening, chosen)


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Args:
        name: What it is called.
        floor: What its floor is called.
        ours: What Sordino does.
        least: The floor.
        times: How many times as much of it the demo has; 0 for what it has once whatever it does.
    """

    name: str
    floor: str
    ours: Callable[[], Any]
    least: Callable[[], Any]
    times: float


@dataclass(frozen=True)
class Given:
    """What a run works on, and the little of it that is taken here.

    Args:
        model: The model's name or folder.
        concept: All its sentences.
        per_class: How many of each class are taken for finding.
        attributed: And for attribution.
        sizing: The texts that set a size.
        prose: The texts of perplexity.
        perplexity: The measure of a few of these.
        toxicity: The measure of a few prompts.
    """

    model: str | Path
    concept: Concept
    per_class: int
    attributed: int
    sizing: Sequence[str]
    prose: Sequence[str]
    perplexity: Perplexity
    toxicity: Toxicity

    @property
    def few_texts(self) -> list[str]:
        """The texts that are taken."""
        return chosen(self.perplexity.texts, self.perplexity.max_texts)

    @property
    def few_prompts(self) -> list[str]:
        """The prompts that are taken."""
        return chosen(self.toxicity.prompts, self.toxicity.max_prompts)


def chosen(spec: str, most: int | None) -> list[str]:
    """The texts that a measure chooses."""
    return [text.text for text in choose(read_texts(spec), most, 0)]


def given(options: Options) -> Given:
    """The kit's model, comments, prose and prompts; quick: random ones."""
    writing = Toxicity(
        prompts=KIT_PROMPTS,
        max_prompts=4,
        continuations=CONTINUATIONS,
        new_tokens=NEW_TOKENS,
        scorer="alt-profanity-check",
    )
    if not options.quick:
        reading = Perplexity(max_texts=4)
        prose = chosen(reading.texts, Perplexity().max_texts)
        insults = load_concept("insults")
        return Given("kit:smollm2", insults, 60, 20, clean_texts(), prose, reading, writing)
    model, lines = options.work / "parts" / "tiny", options.work / "parts" / "lines.txt"
    opened = random_model("tiny", SHAPES["tiny"])
    opened.model.save_pretrained(model)
    opened.tokenizer.save_pretrained(model)
    texts = sentences(6, 1000, longest=12)
    lines.write_text("\n".join(texts) + "\n", encoding="utf-8")
    reading, writing = Perplexity(str(lines)), replace(writing, prompts=str(lines))
    return Given(model, random_concept(60, 1000), 20, 20, texts, texts, reading, writing)


def tokens(opened: OpenModel, texts: Sequence[str]) -> int:
    """How many tokens the texts have, each cut where all parts of a run cut them."""
    return sum(map(len, encode(opened.tokenizer, list(texts), TOKENS)))


def passes(work: Sequence[Passage]) -> int:
    """How many tokens go forward and backward in attribution."""
    return sum(passage.batch.tokens * (1 + len(passage.vectors)) for passage in work)


def collecting(opened: OpenModel, measure: Measure) -> Callable[[], Any]:
    """What one arm of an evaluation does before its intervals."""
    [task] = prepare([measure], compared=False, device="cpu").tasks.values()
    assert isinstance(task, Task)
    return lambda: list(task.collect(opened, batch_tokens=EVALUATION_TOKENS, which=ALL))


def finding_parts(opened: OpenModel, of: Given) -> list[Part]:
    """Finding, and attribution."""
    few, sweep = of.concept.sampled(max_per_class=of.per_class, seed=0), SweepSettings()
    limits = sweep.max_tokens, BATCH_TOKENS
    work = passages(opened, of.concept, AttributionSettings(of.attributed), *limits)
    whole = passages(opened, of.concept, AttributionSettings(PER_CLASS), *limits)
    return [
        Part(
            "find",
            "bare decoder",
            partial(find_experts, opened, few, settings=sweep),
            bare_decoder(opened, few, sweep),
            tokens(opened, of.concept.sentences) / tokens(opened, few.sentences),
        ),
        Part(
            "attribution",
            "forward and backward",
            partial(attributing, opened, work),
            partial(forward_and_backward, opened, work),
            passes(whole) / passes(work),
        ),
    ]


def measuring_parts(opened: OpenModel, of: Given, dampening: Dampening) -> list[Part]:
    """Sizing, and one arm of each measure."""
    yardstick = Counting(opened, of.few_texts)
    calibrate(yardstick, dampening.scaled, RECOMMENDED_DIVERGENCE)
    few = tokens(opened, of.few_texts)
    prompts = encode_prompts(opened, of.few_prompts, max_tokens=TOKENS, new_tokens=NEW_TOKENS)
    batches = plan(
        opened,
        prompts,
        continuations=CONTINUATIONS,
        new_tokens=NEW_TOKENS,
        batch_tokens=EVALUATION_TOKENS,
    )
    read = partial(forward, opened, of.few_texts)
    return [
        Part(
            "a measurement of sizing",
            "forward with head",
            partial(yardstick.divergence, dampening),
            read,
            yardstick.passes * tokens(opened, of.sizing) / few,
        ),
        Part(
            "perplexity",
            "forward with head",
            collecting(opened, of.perplexity),
            read,
            ARMS * tokens(opened, of.prose) / few,
        ),
        Part(
            "toxicity",
            "matrix products",
            collecting(opened, of.toxicity),
            partial(products_alone, opened, batches),
            ARMS * PROMPTS / len(prompts),
        ),
    ]


def file_parts(opened: OpenModel, of: Given, dampening: Dampening, work: Path) -> list[Part]:
    """Opening the model, and baking it."""
    ref, baked, copy = resolve(of.model), work / "baked", work / "copied"
    bake(ref, dampening, baked, opened=opened, allow_other_weights=True, force=True)
    return [
        Part(
            "opening",
            "reading the weights",
            partial(open_model, ref, device="cpu"),
            partial(weights, ref.weight_files),
            1,
        ),
        Part(
            "baking",
            "copying what it writes",
            partial(
                *(bake, ref, dampening, baked),
                opened=opened,
                allow_other_weights=True,
                force=True,
            ),
            partial(shutil.copytree, baked, copy, dirs_exist_ok=True),
            1,
        ),
    ]


def weights(files: Sequence[Path]) -> None:
    """All weights of GGUF files de-quantised, or of safetensors files read, and let go."""
    for file in files:
        if file.suffix == ".safetensors":
            load_file(file)
            continue
        header = read_header(file)
        for tensor in header.tensors.values():
            gguf.dequantize(header.rows(tensor), gguf.GGMLQuantizationType[tensor.kind])


def run(options: Options) -> Result:
    """The parts of a run, on one thread, in seconds of processor time."""
    (options.work / "parts").mkdir(exist_ok=True)
    with limited_to(1):
        of = given(options)
        opened = open_model(of.model, device="cpu")
        dampening = some_factors(opened)
        parts = [
            *finding_parts(opened, of),
            *measuring_parts(opened, of, dampening),
            *file_parts(opened, of, dampening, options.work / "parts"),
        ]
        auroc(*auroc_benchmark.data(100, 64))  # which loads what is compiled
        ways = {f"{part.name}: {part.floor} (floor)": part.least for part in parts}
        ways |= {f"{part.name}: sordino": part.ours for part in parts}
        seconds, _ = in_turns(
            ways, options.rounds(3), warm=False, within_s=_WITHIN_S, clock=time.process_time
        )
    took = {way: median(times) for way, times in seconds.items()}
    floors = {part: took[f"{part.name}: {part.floor} (floor)"] for part in parts}
    ours = {part: took[f"{part.name}: sordino"] for part in parts}
    figures = [
        Figure(
            f"{part.name} / {part.floor}",
            ours[part] / floors[part],
            at_most=_BARS.get(part.name),
        )
        for part in parts
    ]
    once = parts[0].times * floors[parts[0]]
    for name, of_each in (("their floors", floors), ("sordino", ours)):
        whole = sum(part.times * of_each[part] for part in parts)
        figures.append(Figure(f"all parts of the demo, {name} / bare decoder", whole / once))
    shares = [f"{part.name} {part.times * ours[part] / once:.2g}" for part in parts]
    notes = [
        "In the demo, each part takes this many times as long as the bare decoder over the "
        f"concept's sentences: {', '.join(shares)}."
    ]
    about = {
        "model": "random" if options.quick else "SmolLM2-135M-Instruct",
        "sentences": f"{2 * of.per_class}, for attribution {2 * of.attributed}",
        "texts": len(of.few_texts),
        "prompts": len(of.few_prompts),
        "dtype": "float32",
        "times": "processor time on one thread",
        "seed": 0,
    }
    shutil.rmtree(options.work / "parts")
    return Result("parts", about, seconds, figures, notes)


if __name__ == "__main__":
    command(run)
