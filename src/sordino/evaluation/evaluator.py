"""Measure a model, or one before and after a change on the same prompts and random numbers."""

import gc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from sordino.errors import UserError
from sordino.evaluation.journal import Journal
from sordino.evaluation.measure import Measure, Record, Task, measure
from sordino.evaluation.result import (
    Evaluation,
    MeasureResult,
    ModelRecord,
    samples_path,
)
from sordino.files import fingerprint, only_one, refuse_existing, stage_path, to_json, today
from sordino.models.open import OpenModel, choose_device, open_model
from sordino.models.reference import ModelRef, resolve
from sordino.progress import track
from sordino.version import __version__

BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Arm:
    """A model to evaluate that is opened when its turn comes, and let go afterwards.

    Args:
        name: What it is called in the result.
        revision: The hub commit, or "".
        fingerprint: Tells its weights, and whatever edits them in memory, from others; "" where
            nothing can, and then an interrupted evaluation starts over.
        open: Opens it for the length of a `with` block.
    """

    name: str
    revision: str
    fingerprint: str
    open: Callable[[], AbstractContextManager[OpenModel]]


Subject = str | Path | ModelRef | OpenModel | Arm


def evaluate(
    model: Subject,
    against: Subject | None = None,
    *,
    measures: Sequence[str | Measure] = ("toxicity", "perplexity"),
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    output: Path | None = None,
    force: bool = False,
) -> Evaluation:
    """Measure a model and, if given, the one that it is compared with.

    Models given by name are in memory one at a time. With `output` the work is journalled beside
    it, so that an evaluation that was killed goes on from there and ends in the same bytes.

    Args:
        model: The model ("after" in the result): a name as for `open_model`, an open model, or an
            `Arm` (which is how a model edited in memory is evaluated with a journal).
        against: The model before, if there is one to compare with.
        measures: Names of measures, or measures with other settings than their defaults, such as
            `Toxicity(continuations=25)`.
        device: Where models given by name, and text classifiers, run; as for `open_model`.
        dtype: In which models given by name run; as for `open_model`.
        seed: Of the choice of prompts and texts, of sampling and of the intervals.
        batch_tokens: About how many tokens are in memory at once. On another value the batches
            round differently, which can change single tokens.
        output: Where to write the result (JSON) and, beside it, the samples.
        force: Replace an existing output.

    Returns:
        The figures, with the single items as `samples`.

    Raises:
        UserError: A model, measure, prompt file, device or output cannot be had.
    """
    if seed < 0:
        raise UserError(f"--seed {seed} is negative: give a whole number from 0.")
    if batch_tokens < 1:
        raise UserError(f"--batch-tokens {batch_tokens} is out of range: it must be at least 1.")
    chosen = [measure(one) for one in measures]
    if not chosen:
        raise UserError("There is no measure to take: give at least one --measure.")
    if len({one.name for one in chosen}) < len(chosen):
        raise UserError("A measure is given twice: give each --measure once.")
    if output is None:
        return _evaluate(model, against, chosen, device, dtype, seed, batch_tokens, None)[0]
    journal_file = stage_path(output).with_suffix(".journal")
    refuse_existing(output, force=force)
    if not journal_file.exists():
        # With a journal there, the samples are those of a kill between the two files.
        refuse_existing(samples_path(output), force=force)
    with only_one(output):
        result, journal = _evaluate(
            model, against, chosen, device, dtype, seed, batch_tokens, journal_file
        )
        result.save(output, force=True)
        journal.close(remove=True)
    return result


def _evaluate(
    model: Subject,
    against: Subject | None,
    measures: Sequence[Measure],
    device: str,
    dtype: str,
    seed: int,
    batch_tokens: int,
    journal_file: Path | None,
) -> tuple[Evaluation, Journal]:
    target = choose_device(device)
    tasks = {one.name: one.prepare(seed, target) for one in measures}
    named = {"after": model} if against is None else {"before": against, "after": model}
    arms = {label: _arm(subject, device, dtype) for label, subject in named.items()}
    identities = [[label, a.name, a.revision, a.fingerprint] for label, a in arms.items()]
    protocols = [[m.name, m.version, tasks[m.name].protocol] for m in measures]
    settings = [str(target), dtype, seed, batch_tokens]
    key = fingerprint(__version__, to_json([identities, protocols, settings]))
    if not all(arm.fingerprint for arm in arms.values()):
        journal_file = None  # nothing would tell the edited model from another in the journal
    journal = Journal(journal_file, key)
    try:
        for label, arm in arms.items():
            _collect(label, arm, tasks, journal, batch_tokens)
            gc.collect()  # this model goes before the next one comes: two may not fit
    except BaseException:
        journal.close(remove=False)
        raise
    results, samples = {}, {}
    for one in measures:
        task = tasks[one.name]
        before = _records(journal, f"before/{one.name}") if against is not None else None
        summary = task.summarise(before, _records(journal, f"after/{one.name}"))
        results[one.name] = MeasureResult(
            version=one.version, protocol=dict(task.protocol), figures=summary.figures
        )
        if summary.samples:
            samples[one.name] = summary.samples
    evaluation = Evaluation(
        sordino_version=__version__,
        created=today(),
        seed=seed,
        before=_model_record("before", arms["before"], journal) if against is not None else None,
        after=_model_record("after", arms["after"], journal),
        measures=results,
        samples=samples,
    )
    return evaluation, journal


def _collect(
    label: str, arm: Arm, tasks: dict[str, Task], journal: Journal, batch_tokens: int
) -> None:
    """Bring an arm's records to their full number; the model is opened only if any are missing."""
    missing = [
        name
        for name, task in tasks.items()
        if len(_records(journal, f"{label}/{name}")) < task.records
    ]
    if not missing:
        return
    with arm.open() as opened:
        if not journal.batches(f"{label}/model"):
            journal.add(f"{label}/model", [opened.dtype_name, opened.device.type])
        for name in missing:
            task, step = tasks[name], f"{label}/{name}"
            done, title = len(_records(journal, step)), f"{name}, {label}"
            start = len(journal.batches(step))
            with track(title, task.records, task.unit, done) as advance:
                for batch in task.collect(opened, batch_tokens=batch_tokens, start=start):
                    journal.add(step, batch)
                    advance(len(batch))


def _records(journal: Journal, step: str) -> list[Record]:
    return list(chain.from_iterable(journal.batches(step)))


def _model_record(label: str, arm: Arm, journal: Journal) -> ModelRecord:
    [[dtype, device]] = journal.batches(f"{label}/model")
    return ModelRecord(
        name=arm.name,
        revision=arm.revision,
        fingerprint=arm.fingerprint,
        dtype=dtype,
        device=device,
    )


def _arm(subject: Subject, device: str, dtype: str) -> Arm:
    if isinstance(subject, Arm):
        return subject
    if isinstance(subject, OpenModel):
        ref = subject.ref
        return Arm(ref.name, ref.revision, _in_memory(subject), lambda: nullcontext(subject))
    ref = resolve(subject)

    @contextmanager
    def load() -> Iterator[OpenModel]:
        yield open_model(ref, device=device, dtype=dtype)

    return Arm(ref.name, ref.revision, ref.weights_fingerprint(), load)


def _in_memory(opened: OpenModel) -> str:
    """SHA-256 over a model's parameters as they are now; "" if hooks may change what they do."""
    if any(module._forward_hooks for module in opened.model.modules()):
        return ""
    digest = hashlib.sha256()
    for name, tensor in opened.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"memory:{digest.hexdigest()}"
