"""Measure a model, or one before and after a change on the same prompts and random numbers."""

import gc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from sordino.concepts.text_files import one_line
from sordino.errors import UserError, refuse_text, require_at_least
from sordino.evaluation.endpoint import Endpoint
from sordino.evaluation.kept import Shelf
from sordino.evaluation.measure import (
    AnyTask,
    JointTask,
    Measure,
    NotRun,
    PairedTask,
    R,
    Ready,
    Task,
    measure,
)
from sordino.evaluation.result import (
    Evaluation,
    MeasureResult,
    ModelRecord,
    Reused,
    samples_path,
)
from sordino.evaluation.scoring import ScoredTask
from sordino.evaluation.writing import Writing
from sordino.files import drop_link, fingerprint, only_one, staging_path, to_json, today
from sordino.journal import Journal
from sordino.models.chat import Chat
from sordino.models.chat_template import fingerprint_of, template_of
from sordino.models.hooks import is_hooked
from sordino.models.memory import for_device
from sordino.models.open import OpenModel, choose_device, has_to_stream, open_model
from sordino.models.ranks import Ranks
from sordino.models.reference import ModelRef, place_of, resolve
from sordino.outputs import EVALUATION, SAMPLES, claim_output
from sordino.progress import note, track
from sordino.version import __version__

BATCH_TOKENS = 8192
"""About how many tokens are in memory at once on a CPU."""

_RECORDS = 2
"""Raised whenever a record has other fields, so that an older journal is not continued."""


_IN_MEMORY = "it needs the whole model in memory, and one is read layer by layer"


@dataclass(frozen=True)
class Arm:
    """A model to evaluate, opened when its turn comes and released afterwards.

    Args:
        name: Its name in the result.
        revision: The hub commit, or "".
        fingerprint: Identifies its weights and whatever edits them in memory; "" if that is
            impossible, and then an interrupted evaluation starts over.
        open: Opens it for the length of a `with` block: an `OpenModel`, or an `Endpoint`.
        unedited: The model, if it is opened from its files and nothing edits it.
        streamed: Whether it is read layer by layer, as often as its ordinary forward runs.
    """

    name: str
    revision: str
    fingerprint: str
    open: Callable[[], AbstractContextManager[Any]]
    unedited: ModelRef | None = None
    streamed: bool = False

    @classmethod
    def of(
        cls,
        ref: ModelRef,
        open: Callable[[], AbstractContextManager[Any]],
        *changes: str,
        name: str = "",
        streamed: bool = False,
    ) -> "Arm":
        """The arm of a model with these changes.

        Args:
            ref: The model.
            open: Opens it, changed, for the length of a `with` block.
            changes: Fingerprints of the changes to its weights.
            name: Its name in the result; the model's name if "".
            streamed: Whether it is read layer by layer.
        """
        weights = ref.weights_fingerprint()
        known = fingerprint(weights, *changes) if changes else weights
        unedited = None if changes else ref
        return cls(name or ref.name, ref.revision, known, open, unedited, streamed)

    @classmethod
    def of_open(cls, opened: OpenModel) -> "Arm":
        """The arm of an open model, as it is in memory."""
        ref, known, streamed = opened.ref, "", opened.streamed is not None
        if not is_hooked(opened.model):
            known = ref.weights_fingerprint() if streamed else _in_memory(opened)
        return cls(ref.name, ref.revision, known, lambda: nullcontext(opened), streamed=streamed)


@dataclass(frozen=True)
class Prepared:
    """Measures that are ready: scorers are open and texts have been read.

    Args:
        measures: The measures.
        tasks: The tasks of those that can be taken, by the measure's key.
        reasons: Why the others cannot.
        seed: Of everything that is random.
        device: Where text classifiers run.
        compared: Whether there are two models to compare.
    """

    measures: tuple[Measure, ...]
    tasks: dict[str, AnyTask]
    reasons: dict[str, str]
    seed: int
    device: torch.device
    compared: bool

    @property
    def names(self) -> list[str]:
        """The names of what is measured, each once."""
        return [*dict.fromkeys(one.name for one in self.measures)]

    @property
    def texts(self) -> set[str]:
        """All prompts and texts that are measured, each in one line."""
        return {one_line(text.text) for task in self.tasks.values() for text in task.texts}

    def joined(self, more: "Prepared") -> "Prepared":
        """The measures of both, which have different keys."""
        return replace(
            self,
            measures=(*self.measures, *more.measures),
            tasks=self.tasks | more.tasks,
            reasons=self.reasons | more.reasons,
        )

    def layer_by_layer(self) -> "Prepared":
        """Those that can be taken of a model that is read layer by layer."""
        whole = [one.key for one in self.measures if one.key in self.tasks and not one.streamable]
        for key in whole:
            note(f"{key} is not run: {_IN_MEMORY}.")
        tasks = {key: task for key, task in self.tasks.items() if key not in whole}
        return replace(self, tasks=tasks, reasons=self.reasons | dict.fromkeys(whole, _IN_MEMORY))

    def note_shared_sentences(self, source: str) -> None:
        """Note which scorers were trained on the sentences that neurons are found with.

        Args:
            source: A concept's `source`.
        """
        scorers = {
            scorer.name: scorer
            for task in self.tasks.values()
            if isinstance(task, ScoredTask)
            for scorer in task.scorers.values()
        }
        for name, scorer in scorers.items():
            # After a semicolon a source names what its sentences stand in for.
            if scorer.trained_on and scorer.trained_on in source.partition(";")[0].casefold():
                note(
                    f"{name} was trained on the comments that neurons are found with, so it is not "
                    "an independent judge of the edit: use another scorer for that."
                )


def prepare(
    measures: Sequence[str | Measure],
    *,
    compared: bool,
    served: bool = False,
    device: str = "auto",
    seed: int = 0,
) -> Prepared:
    """Open what measures need, before any long work: scorers, prompts, texts, tasks, packages.

    `evaluate` and `evaluate_each` take the result in place of the measures.

    Args:
        measures: As for `evaluate`.
        compared: Whether a model will be compared with another.
        served: Whether one of the models is an endpoint.
        device: As for `evaluate`.
        seed: Of the choice of prompts and texts, of sampling and of the intervals.

    Raises:
        UserError: Something that a measure names is not available.
    """
    require_at_least(0, seed=seed)
    refuse_text(measures=measures)
    chosen = tuple(measure(one) for one in measures)
    if not chosen:
        raise UserError("There is no measure to take: give at least one of `measures`.")
    if len({one.key for one in chosen}) < len(chosen):
        raise UserError("A measure is given twice: give each measure and `pre_prompt` once.")
    target = choose_device(device)
    tasks, reasons = _prepare(chosen, seed, target, compared=compared, served=served)
    return Prepared(chosen, tasks, reasons, seed, target, compared)


def with_chat(ready: Prepared, chat: Chat, subject: ModelRef | OpenModel | Endpoint) -> Prepared:
    """The measures for a model that may have a chat template, with notes on idle settings.

    With `chat` "on", measures that prompt the model use its template, or a server's chat. With
    "auto", if the model has a template, measures whose prompts ask for replies (`Measure.asks`) are
    taken both ways, or in the template alone.

    Args:
        ready: The measures, all without a template.
        chat: How the template is used.
        subject: The model, or the server.

    Raises:
        UserError: The template is required, and there is none.
    """
    ready = _in_forms(ready, chat, subject)
    _note_idle(ready, chat)
    return ready


def _in_forms(ready: Prepared, chat: Chat, subject: ModelRef | OpenModel | Endpoint) -> Prepared:
    if chat.use == "off":
        return ready
    fingerprinted = ""
    if isinstance(subject, Endpoint):
        if chat.use == "auto":
            return ready
    else:
        ref = subject.ref if isinstance(subject, OpenModel) else subject
        template = template_of(ref)
        if template is None and chat.use == "on":
            raise UserError(f"{ref.name} has no chat template: leave out `chat=on`.")
        if template is None:
            return ready
        fingerprinted = fingerprint_of(template)
    kept, twins = forms(ready.measures, chat, fingerprinted)
    tasks, reasons = _prepare(
        twins,
        ready.seed,
        ready.device,
        compared=ready.compared,
        served=isinstance(subject, Endpoint),
    )
    keys = {one.key for one in kept}
    return replace(
        ready,
        measures=(*kept, *twins),
        tasks={key: task for key, task in ready.tasks.items() if key in keys} | tasks,
        reasons={key: why for key, why in ready.reasons.items() if key in keys} | reasons,
    )


def _note_idle(ready: Prepared, chat: Chat) -> None:
    """Note which settings of conversations no measure uses."""
    in_chat = [one for one in ready.measures if getattr(one, "chat", None) is not None]
    for name in chat.given if not in_chat else ():
        if name != "role":  # of the concept's sentences
            note(f"warning: `{name}` decides nothing about measures outside a chat template.")
    turned = [one for one in ready.measures if getattr(one, "turns", None) is not None]
    talks = (
        text.before
        for one in turned
        if one in in_chat and one.key in ready.tasks
        for text in ready.tasks[one.key].texts
    )
    if turned and not any(talks):
        note("warning: `turns` decides nothing: no prompt is a conversation in a chat template.")


def forms(
    measures: Sequence[Measure], chat: Chat, template: str
) -> tuple[tuple[Measure, ...], tuple[Measure, ...]]:
    """The measures that are taken without a chat template, and those that are taken in it.

    Args:
        measures: All of them, without a template.
        chat: How the template is used; it is not "off".
        template: Its fingerprint; "" if unknown.
    """
    asking = (one for one in measures if chat.use == "on" or one.asks)
    twins = {one.key: twin for one in asking if (twin := one.in_chat(chat, template))}
    alone = {one.key for one in measures if chat.use == "on" or one.asks == "only"}
    kept = tuple(one for one in measures if one.key not in twins.keys() & alone)
    return kept, tuple(twins.values())


Steps = dict[tuple[str, str], str]
"""The journal's step for an arm ("before", "after" or "both") and a measure."""

Subject = str | Path | ModelRef | OpenModel | Endpoint | Arm


def evaluate(
    model: Subject,
    against: Subject | None = None,
    *,
    measures: Sequence[str | Measure] | Prepared = ("toxicity", "perplexity"),
    device: str = "auto",
    dtype: str = "auto",
    stream: bool | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    output: Path | None = None,
    force: bool = False,
    records: Path | None = None,
    cache: bool = False,
) -> Evaluation:
    """Measure a model and, if given, the one that it is compared with.

    `sordino.evaluate` adds a dampening to this function, and explains the parameters. A model can
    also be an `Arm` here, so that a model edited in memory can be journalled.

    Raises:
        UserError: A model, measure, prompt file, device or output is not available.
    """
    measured = partial(
        evaluate_each,
        [model],
        against,
        measures=measures,
        device=device,
        dtype=dtype,
        stream=stream,
        seed=seed,
        batch_tokens=batch_tokens,
        cache=cache,
    )
    if output is None:
        return measured(records=records)[0]
    ranks = Ranks()
    read = [place_of(model), place_of(against)]
    output = claim_output(output, EVALUATION, force=force, inputs=read)
    journal_file = records or drop_link(staging_path(output).with_suffix(".journal"))
    if records is not None or not journal_file.exists():
        # With its own journal there, the samples were left by a kill between the two files.
        claim_output(samples_path(output), SAMPLES, force=force, inputs=read)
    with only_one(output) if ranks.first else nullcontext(), ranks.together():
        [result] = measured(records=journal_file)
        if ranks.first:
            result.save(output, force=True)
            if records is None:
                journal_file.unlink(missing_ok=True)
        ranks.wait()  # until the result is safe
    return result


def evaluate_each(
    models: Sequence[Subject],
    against: Subject | None,
    *,
    measures: Sequence[str | Measure] | Prepared,
    device: str,
    dtype: str,
    stream: bool | None = None,
    seed: int,
    batch_tokens: int | None = None,
    records: Path | None = None,
    cache: bool = False,
) -> list[Evaluation]:
    """Measure several models, each compared with the same one before, which is measured once.

    Args:
        models: The models after, in the result's order.
        against: The model before; None for no comparison.
        measures: See `evaluate`.
        device: Where models given by name, and text classifiers, run.
        dtype: In which models given by name run.
        stream: Whether these are read layer by layer; None for those that do not fit into memory.
        seed: Of everything that is random.
        batch_tokens: About how many tokens are in memory at once; None: 8,192, on a GPU more.
        records: A file for each arm's records; with it, a call that was killed continues.
        cache: Whether what is measured of the model before is kept for other calls, and taken from
            earlier ones; see `sordino.evaluation.kept`.

    Raises:
        UserError: As `evaluate`.
    """
    require_at_least(1, batch_tokens=batch_tokens)
    compared = against is not None
    if isinstance(measures, Prepared):
        ready = measures
        if (ready.seed, ready.device, ready.compared) != (seed, choose_device(device), compared):
            raise ValueError("the measures were prepared for another seed, device or comparison")
    else:
        served = any(isinstance(one, Endpoint) for one in (*models, against))
        ready = prepare(measures, compared=compared, served=served, device=device, seed=seed)
    before = {} if against is None else {"before": _arm(against, device, dtype, stream)}
    after = [_arm(one, device, dtype, stream) for one in models]
    streamed = any(arm.streamed for arm in (*before.values(), *after))
    if streamed:
        ready = ready.layer_by_layer()
    chosen, tasks, target = ready.measures, ready.tasks, ready.device
    if not all(arm.fingerprint for arm in (*before.values(), *after)):
        records = None  # they could not tell the edited model from another
    ranks = Ranks()
    journal = Journal(records if ranks.first else None, f"{__version__} {_RECORDS}")
    journal.take(ranks.from_first(journal.steps))
    at_once = batch_tokens or for_device(BATCH_TOKENS, target)
    # Streamed, the batches are other ones.
    settings = [str(target), dtype, seed, at_once, *(["streamed"] if streamed else [])]
    kept = None
    if cache and before and target.type == "cpu" and ranks.size == 1:
        kept = _Kept.of(before["before"], ready, settings)
    results = []
    try:
        for arm in after:
            arms = before | {"after": arm}
            steps = _steps(arms, chosen, tasks, settings)
            for label, one in arms.items():
                with kept.filling(steps, journal) if kept and label == "before" else nullcontext():
                    _collect(label, one, tasks, steps, journal, at_once, ranks)
                gc.collect()  # two models may not fit into memory
            _collect_jointly(arms, tasks, steps, journal, ranks)
            results.append(_result(ready, arms, steps, journal))
    finally:
        journal.close()
    return results


def _result(ready: Prepared, arms: dict[str, Arm], steps: Steps, journal: Journal) -> Evaluation:
    """The figures from an evaluation's records."""
    results, samples = {}, {}
    for one in ready.measures:
        if one.key in ready.reasons:
            results[one.key] = MeasureResult(version=one.version, not_run=ready.reasons[one.key])
            continue
        task = ready.tasks[one.key]
        if isinstance(task, JointTask):
            records = _records(journal, steps["both", one.key], task.record)
            summary = task.summarise_both(records)
        elif isinstance(task, PairedTask):
            before = _records(journal, steps["before", one.key], task.record)
            after = _records(journal, steps["after", one.key], task.record_after)
            summary = task.summarise(before, after)
        else:
            summary = task.summarise(
                _records(journal, steps["before", one.key], task.record)
                if "before" in arms
                else None,
                _records(journal, steps["after", one.key], task.record),
            )
        results[one.key] = MeasureResult(
            version=one.version,
            protocol=dict(task.protocol),
            figures=summary.figures,
            before=_reused(journal, steps, one.key),
        )
        if summary.samples:
            samples[one.key] = summary.samples
    return Evaluation(
        sordino_version=__version__,
        created=today(),
        seed=ready.seed,
        before=_model_record("before", arms, steps, journal) if "before" in arms else None,
        after=_model_record("after", arms, steps, journal),
        measures=results,
        samples=samples,
    )


def _prepare(
    measures: Sequence[Measure],
    seed: int,
    device: torch.device,
    *,
    compared: bool,
    served: bool,
) -> tuple[dict[str, AnyTask], dict[str, str]]:
    """The tasks, and for measures that cannot be taken the reasons, by the measure's key."""
    tasks: dict[str, AnyTask] = {}
    reasons: dict[str, str] = {}
    for one in measures:
        try:
            if served and not isinstance(one, Writing):
                raise NotRun("it looks inside the model, and an endpoint gives text only")
            task = one.prepare(seed, device)
            if isinstance(task, PairedTask | JointTask) and not compared:
                raise NotRun("it compares two models: give the original as `against`")
            tasks[one.key] = task
        except NotRun as reason:
            reasons[one.key] = str(reason)
            note(f"{one.key} is not run: {reason}.")
    return tasks, reasons


def _steps(
    arms: dict[str, Arm],
    measures: Sequence[Measure],
    tasks: dict[str, AnyTask],
    settings: list[Any],
) -> Steps:
    """Names that contain everything that decides the records, so that evaluations can share them.

    They are those of an arm's model, under (arm, "model"), and of its records for each measure.
    """

    def named(labels: Sequence[str], measure: str, *more: Any) -> str:
        who = [[a.name, a.revision, a.fingerprint] for a in (arms[label] for label in labels)]
        return f"{labels[-1]}/{measure}/{fingerprint(to_json([who, settings, *more]))[:16]}"

    steps = {(label, "model"): named([label], "model") for label in arms}
    for one in measures:
        if one.key not in tasks:
            continue
        task = tasks[one.key]
        more = [one.version, dict(task.protocol)]
        if isinstance(task, JointTask):
            steps["both", one.key] = named(list(arms), one.key, *more)
            continue
        for label in arms:
            # A paired task's records of the arm after depend on the arm before.
            pair = label == "after" and isinstance(task, PairedTask)
            steps[label, one.key] = named([*arms] if pair else [label], one.key, *more)
    return steps


@dataclass(frozen=True)
class _Kept:
    """The measurements of the model before that are kept for other evaluations.

    Args:
        shelf: Where they are.
        keys: Their keys there, by the measure's key.
    """

    shelf: Shelf
    keys: dict[str, str]

    @classmethod
    def of(cls, arm: Arm, ready: Prepared, settings: list[Any]) -> "_Kept | None":
        """Those of an arm; None if nothing of it can be kept."""
        tasks = {
            one.key: (one.version, task)
            for one in ready.measures
            if isinstance(task := ready.tasks.get(one.key), Task | PairedTask) and task.reusable
        }
        shelf = Shelf.of(arm.unedited, settings) if arm.unedited is not None and tasks else None
        if shelf is None:
            return None
        keys = {
            name: shelf.key(name, version, dict(task.protocol))
            for name, (version, task) in tasks.items()
        }
        return cls(shelf, keys)

    @contextmanager
    def filling(self, steps: Steps, journal: Journal) -> Iterator[None]:
        """Take what is kept before the block, and keep what was measured from nothing inside it."""
        model = steps["before", "model"]
        missing = {n: k for n, k in self.keys.items() if not journal.batches(steps["before", n])}
        for name, key in missing.copy().items():
            found = self.shelf.find(key)
            if found is None:
                continue
            del missing[name]
            if not journal.batches(model):
                journal.add(model, found.ran)
            # First: without it, a call that continues this one would take them for new.
            reused = found.reused
            journal.add(_reused_step(steps, name), [reused.measured, reused.sordino_version])
            for batch in found.batches:
                journal.add(steps["before", name], batch)
            note(
                f"{name}: the model before was measured on {reused.measured} already, with "
                "nothing different: its records are taken from the cache (`cache=False` measures "
                "again)"
            )
        yield
        [ran] = journal.batches(model)
        for name, key in missing.items():
            self.shelf.put(key, ran, journal.batches(steps["before", name]))


def _reused_step(steps: Steps, name: str) -> str:
    """The journal's step that says where the records of the model before are from."""
    return f"{steps['before', name]}/reused"


def _reused(journal: Journal, steps: Steps, name: str) -> Reused | None:
    """Where the records of the model before are from; None where they were taken now."""
    said = journal.batches(_reused_step(steps, name)) if ("before", name) in steps else []
    if not said:
        return None
    measured, version = said[-1]
    return Reused(measured=measured, sordino_version=version)


def _collect(
    label: str,
    arm: Arm,
    tasks: dict[str, AnyTask],
    steps: Steps,
    journal: Journal,
    batch_tokens: int,
    ranks: Ranks,
) -> None:
    """Complete an arm's records; the model is opened only if any are missing."""
    missing = {
        name: task
        for name, task in tasks.items()
        if not isinstance(task, JointTask) and _count(journal, steps[label, name]) < task.records
    }
    model = steps[label, "model"]
    if not missing and journal.batches(model):
        return
    with arm.open() as opened:
        if not journal.batches(model):
            journal.add(model, _kind(opened))
        for name, task in missing.items():
            step = steps[label, name]
            which = slice(len(journal.batches(step)) + ranks.rank, None, ranks.size)
            if label == "after" and isinstance(task, PairedTask):
                before = _records(journal, steps["before", name], task.record)
                batches = task.collect_after(opened, before, batch_tokens=batch_tokens, which=which)
            else:
                batches = task.collect(opened, batch_tokens=batch_tokens, which=which)
            _note_down(ranks.in_turn(batches), f"{name}, {label}", task, journal, step)


def _collect_jointly(
    arms: dict[str, Arm],
    tasks: dict[str, AnyTask],
    steps: Steps,
    journal: Journal,
    ranks: Ranks,
) -> None:
    """Collect the records for which both models have to be in memory, if any are missing.

    Only the first rank collects them, because they describe a single process.
    """
    missing = {
        name: task
        for name, task in tasks.items()
        if isinstance(task, JointTask) and _count(journal, steps["both", name]) < task.records
    }
    if not missing:
        return
    with ExitStack() as stack:
        before, after = (stack.enter_context(arms[label].open()) for label in ("before", "after"))
        for name, task in missing.items():
            step = steps["both", name]
            batches: Iterator[list[Any]] = iter(())
            if ranks.first:
                batches = task.collect_both(before, after, start=len(journal.batches(step)))
            _note_down(ranks.in_turn(batches), name, task, journal, step)


def _note_down(
    batches: Iterator[list[Any]],
    title: str,
    task: Ready,
    journal: Journal,
    step: str,
) -> None:
    done = _count(journal, step)
    with track(title, task.records, task.unit, done) as advance:
        for batch in batches:
            journal.add(step, batch)
            advance(len(batch))


def _records(journal: Journal, step: str, kind: Callable[..., R]) -> list[R]:
    return [kind(*values) for values in chain.from_iterable(journal.batches(step))]


def _count(journal: Journal, step: str) -> int:
    return sum(map(len, journal.batches(step)))


def _model_record(label: str, arms: dict[str, Arm], steps: Steps, journal: Journal) -> ModelRecord:
    arm = arms[label]
    [[dtype, device]] = journal.batches(steps[label, "model"])
    return ModelRecord(
        name=arm.name,
        revision=arm.revision,
        fingerprint=arm.fingerprint,
        dtype=dtype,
        device=device,
    )


def _kind(opened: Any) -> list[str]:
    if isinstance(opened, Endpoint):
        return ["unknown", "endpoint"]
    return [opened.dtype_name, opened.device.type]


def _arm(subject: Subject, device: str, dtype: str, stream: bool | None) -> Arm:
    if isinstance(subject, Arm):
        return subject
    if isinstance(subject, Endpoint):
        return Arm(subject.name, "", subject.fingerprint, lambda: nullcontext(subject))
    if isinstance(subject, OpenModel):
        return Arm.of_open(subject)
    ref = resolve(subject)
    streamed = streams(ref, device, dtype, stream)

    @contextmanager
    def load() -> Iterator[OpenModel]:
        yield open_model(ref, device=device, dtype=dtype, stream=streamed)

    return Arm.of(ref, load, streamed=streamed)


def streams(ref: ModelRef, device: str, dtype: str, stream: bool | None) -> bool:
    """Whether a model is read layer by layer; None decides by whether it fits, and says so."""
    if stream is not None:
        return stream
    found = has_to_stream(ref, device, dtype)
    if found:
        note(f"{ref.name} does not fit into memory: its layers are read again for every batch")
    return found


def _in_memory(opened: OpenModel) -> str:
    """SHA-256 over a model's parameters as they are now."""
    digest = hashlib.sha256()
    for name, tensor in opened.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"memory:{digest.hexdigest()}"
