"""Whether a model still answers questions: any task of lm-evaluation-harness, scored by it.

The harness is an optional extra and imported late: it takes seconds, and few evaluations need it.
"""

import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from sordino import hub, kit
from sordino.errors import UserError, refuse_text, require_at_least
from sordino.evaluation.measure import Column, Measure, Summary, Task, register
from sordino.evaluation.result import Figure
from sordino.evaluation.statistics import (
    Comparison,
    Floats,
    compare_mean_shares,
    compare_shares,
)
from sordino.evaluation.tasks.kit_data import FILES
from sordino.evaluation.texts import choose
from sordino.extras import require
from sordino.files import fingerprint
from sordino.models.calls import quiet_transformers
from sordino.models.chat import Chat
from sordino.models.chat_template import render
from sordino.models.generation import MAX_LOGITS
from sordino.models.open import OpenModel
from sordino.registry import did_you_mean

KIT_TASKS = tuple(FILES)
"""The tasks that need no hub."""

METRICS = {
    "acc": "accuracy",
    "acc_norm": "accuracy by likelihood per character",
    "exact_match": "exact match",
}
"""The harness's metrics that are right or wrong for each question, and their names."""

CONFIGS = Path(__file__).parents[1] / "tasks"
"""The kit's tasks, as configurations of the harness."""

# Questions between two entries of the journal.
_CHUNK = 32
# Seeds of numpy's global generator are below this.
_SEEDS = 2**32


@register
@dataclass(frozen=True)
class ZeroShot(Measure):
    """Share of questions that the model answers correctly.

    Args:
        tasks: Names of lm-evaluation-harness tasks or groups of tasks. The kit's need no hub.
        limit: How many questions at most for each name, chosen by seed; None for all.
        shots: How many questions with their answers precede each question.
        batch_size: Requests in one forward pass; None for as many as memory allows.
        chat: How the model's chat template is applied to questions, by the harness's own switch;
            None for plain questions.
        template: The fingerprint of the template.

    Raises:
        UserError: A setting is outside its range.
    """

    name: ClassVar[str] = "zero-shot"
    version: ClassVar[int] = 1
    streamable: ClassVar[bool] = False
    title: ClassVar[str] = "Zero-shot tasks"
    sentence: ClassVar[str] = "How many questions the model answers correctly."
    options: ClassVar[Mapping[str, str]] = {
        "tasks": "tasks",
        "limit": "questions",
        "shots": "shots",
    }
    budget: ClassVar[Literal["<=", ">=", ""]] = ">="
    columns: ClassVar[tuple[Column, ...]] = (Column("zero-shot, mean", "share", place=40),)

    tasks: tuple[str, ...] = KIT_TASKS
    limit: int | None = 200
    shots: int = 0
    batch_size: int | None = None
    chat: Chat | None = None
    template: str = ""

    @property
    def key(self) -> str:
        """Its name, followed by "chat" in a chat template."""
        return self.name if self.chat is None else f"{self.name}:chat"

    def in_chat(self, chat: Chat, template: str) -> Measure:
        """The same, asked in the model's chat template."""
        return replace(self, chat=replace(chat, use="on"), template=template)

    def __post_init__(self) -> None:
        refuse_text(tasks=self.tasks)
        if not self.tasks:
            raise UserError("There is no zero-shot task: give at least one, such as kit_piqa.")
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError("A zero-shot task is given twice: give each once.")
        require_at_least(1, limit=self.limit, batch_size=self.batch_size)
        require_at_least(0, shots=self.shots)

    def prepare(self, seed: int, device: torch.device) -> "_ZeroShotTask":  # noqa: ARG002
        """Load the tasks and choose their questions."""
        require("zero-shot", "The measure zero-shot")
        return _ZeroShotTask(self, seed, _load(self.tasks, seed))


class Asked(NamedTuple):
    """A question and its scores.

    Args:
        task: The task that was asked for.
        part: The harness's task in it.
        question: The question's number in that.
        scores: By metric.
    """

    task: str
    part: str
    question: int
    scores: dict[str, float]


class _ZeroShotTask(Task[Asked]):
    record = Asked
    unit = "questions"

    def __init__(self, settings: ZeroShot, seed: int, loaded: dict[str, dict[str, Any]]) -> None:
        """`loaded` holds the harness's tasks by name, under each name that was asked for."""
        self._settings, self._seed, self._loaded = settings, seed, loaded
        for part in (part for parts in loaded.values() for part in parts.values()):
            # The harness's own rule: a task whose configuration says 0 never has examples.
            if part.get_config("num_fewshot") != 0:
                part.set_config("num_fewshot", settings.shots)
        self._chunks: list[tuple[str, dict[str, list[int]]]] = []
        digests, n_questions = [], {}
        for name, parts in loaded.items():
            numbered = [(part, i) for part, of in parts.items() for i in range(len(of.eval_docs))]
            questions = choose(numbered, settings.limit, seed)
            n_questions[name] = len(questions)
            documents = {part: task.eval_docs for part, task in parts.items()}
            for part, index in questions:
                document = json.dumps(documents[part][index], sort_keys=True, default=str)
                digests.append(fingerprint(part, document))
            for start in range(0, len(questions), _CHUNK):
                chunk: dict[str, list[int]] = {}
                for part, index in questions[start : start + _CHUNK]:
                    chunk.setdefault(part, []).append(index)
                self._chunks.append((name, chunk))
        self.records = len(digests)
        given = asdict(settings)
        if settings.chat is None:
            del given["chat"], given["template"]
        self.protocol = {
            **given,
            "tasks": list(settings.tasks),
            "n_questions": n_questions,
            "questions_fingerprint": fingerprint(*digests),
            "lm_eval": version("lm_eval"),
        }

    def collect(
        self, opened: OpenModel, *, batch_tokens: int, which: slice
    ) -> Iterator[list[Asked]]:
        """The scores of each question."""
        with _quiet():
            model = _harness_model(
                opened, self._settings.batch_size, batch_tokens, self._settings.chat
            )
        for number, (name, chunk) in list(enumerate(self._chunks))[which]:
            parts = {part: self._loaded[name][part] for part in chunk}
            scored = _scores(model, parts, chunk, self._seed + number, self._settings.chat)
            yield [Asked(name, *question, scores) for question, scores in scored.items()]

    def summarise(self, before: Sequence[Asked] | None, after: Sequence[Asked]) -> Summary:
        """Shares of correct answers: the mean over the tasks, and each task's own."""
        arms = [after] if before is None else [before, after]
        tables = {
            name: _tables([[one for one in arm if one.task == name] for arm in arms])
            for name in self._loaded
        }
        metrics = dict.fromkeys(metric for each in tables.values() for metric in each)
        figures = []
        for metric in metrics:
            having = [each[metric] for each in tables.values() if metric in each]
            if len(having) > 1:
                n = {"tasks": len(having), "questions": sum(map(len, having))}
                compared = compare_mean_shares(having, self._seed)
                figures.append(_figure(compared, "mean", f"mean of {len(having)} tasks", metric, n))
        for name, each in tables.items():
            for metric, table in each.items():
                compared = compare_shares(
                    None if before is None else table[:, 0], table[:, -1], self._seed
                )
                figures.append(_figure(compared, name, name, metric, {"questions": len(table)}))
        return Summary(tuple(figures), _samples(before, after))


def _load(names: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """The harness's tasks by name, under each name that was asked for."""
    for name in names:
        if name in FILES:
            kit.data_file(FILES[name])  # fetched here, where progress is shown
    with _quiet():
        manager = _manager(CONFIGS, alone=True)
        if not set(names) <= set(manager.all_tasks):
            manager = _manager(CONFIGS, alone=False)
        return {name: _load_one(manager, name, seed) for name in names}


@cache
def _manager(folder: Path, *, alone: bool) -> Any:
    """The harness's index of a folder's tasks, alone or beside its own, which take seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=not alone)


def _load_one(manager: Any, name: str, seed: int) -> dict[str, Any]:
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants
    from transformers import set_seed

    if name not in manager.all_tasks:
        close = did_you_mean(name, manager.all_tasks, most=3)
        hint = close.rstrip() or f"try {', '.join(KIT_TASKS)}."
        raise UserError(f"lm-evaluation-harness has no task '{name}': {hint}")
    # In offline mode the data may be in the hub's cache, and no request is made.
    if name not in FILES and not constants.HF_HUB_OFFLINE and not hub.reachable():
        raise UserError(
            f"The task {name} needs a hub, and none answers: without one, choose among "
            f"{', '.join(KIT_TASKS)}."
        )
    # Some tasks shuffle their choices with the global generators.
    set_seed(seed % _SEEDS)
    try:
        parts: dict[str, Any] = manager.load([name])["tasks"]
    # A task runs its own code and needs its own packages and data, so it may raise anything.
    except (
        *(OSError, ImportError, ValueError, TypeError, LookupError),
        *(AttributeError, AssertionError, RuntimeError, DatasetsError),
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"The task {name} could not be loaded ({type(error).__name__}: {reason}): check the "
            f"network and what the task needs, or choose among {', '.join(KIT_TASKS)}."
        ) from error
    for part, task in parts.items():
        _refuse_unusable(part, task)
    return parts


def _refuse_unusable(name: str, task: Any) -> None:
    from lm_eval.api.metrics import mean

    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"The task {name} runs code that the model writes: choose another task.")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"The task {name} is not text alone: choose another task.")
    given = task.aggregation()
    if not any(given.get(metric) is mean for metric in METRICS):
        raise UserError(
            f"The task {name} does not score each question as right or wrong (its metrics are "
            f"{', '.join(given)}): choose one that has {' or '.join(METRICS)}."
        )


def _harness_model(
    opened: OpenModel, batch_size: int | None, batch_tokens: int, chat: Chat | None
) -> Any:
    """The model in memory, wrapped for the harness."""
    from lm_eval.models.huggingface import HFLM

    room = min(batch_tokens, opened.positions(MAX_LOGITS))

    class Fitted(HFLM):
        """Computes a batch size that fits; the harness would try until memory runs out."""

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            if batch_size is None:
                longest = max(len(context) + len(rest) for _, context, rest in requests)
                self.batch_size_per_gpu = max(1, room // min(longest, self.max_length))
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            """In a process that can be stopped, as everywhere."""
            return render(
                opened,
                chat_history,
                add_generation_prompt=add_generation_prompt,
                variables=None if chat is None else chat.variables(),
            )

    return Fitted(
        pretrained=opened.model,
        # A copy, because the harness adds a padding token where there is none.
        tokenizer=copy.deepcopy(opened.tokenizer),
        batch_size=batch_size or 1,
        # Coarser likelihoods would tie, and the first choice wins a tie.
        softmax_dtype="float32",
    )


def _scores(
    model: Any,
    parts: dict[str, Any],
    questions: dict[str, list[int]],
    seed: int,
    chat: Chat | None,
) -> dict[tuple[str, int], dict[str, float]]:
    """Have the harness ask: scores by metric, by its task and the question's number."""
    import lm_eval
    from lm_eval.api.metrics import mean
    from transformers import set_seed

    set_seed(seed % _SEEDS)  # a task may sample text
    for task in parts.values():
        task.set_fewshot_seed(seed)
    with _quiet():
        # Not `simple_evaluate`, which also writes a report on the machine: seconds for each call.
        result = lm_eval.evaluate(
            lm=model,
            task_dict={"tasks": parts},
            samples=questions,
            bootstrap_iters=0,
            apply_chat_template=chat is not None,
            system_instruction=(chat.system or None) if chat is not None else None,
        )
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for part, samples in result["samples"].items():
        averaged = {key for key, how in parts[part].aggregation().items() if how is mean}
        for sample in samples:
            # A task with several filters of an answer gives a sample for each.
            suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
            noted = scores.setdefault((part, sample["doc_id"]), {})
            for metric in METRICS:
                if metric in averaged and metric in sample:
                    noted[metric + suffix] = float(sample[metric])
    asked = ((part, index) for part in questions for index in questions[part])
    return {one: scores[one] for one in asked}


def _tables(arms: list[list[Asked]]) -> dict[str, Floats]:
    """The scores by metric, float64 [questions, arms], of each metric that all questions have."""
    first = arms[0]
    metrics = [name for name in first[0].scores if all(name in one.scores for one in first)]
    return {
        metric: np.array([[one.scores[metric] for one in arm] for arm in arms]).T
        for metric in metrics
    }


def _figure(compared: Comparison, name: str, label: str, metric: str, n: dict[str, int]) -> Figure:
    kind, _, reading = metric.partition(",")
    what = METRICS[kind] + (f" ({reading})" if reading else "")
    return Figure.of(
        compared,
        name=f"{name}.{metric}",
        label=f"Zero-shot {what}, {label}",
        unit="share",
        better="higher",
        ratio_of="before/after",
        n=n,
    )


def _samples(before: Sequence[Asked] | None, after: Sequence[Asked]) -> list[dict[str, Any]]:
    rows = []
    for i, one in enumerate(after):
        arms = {} if before is None else {"before": before[i].scores}
        about = {"task": one.task, "part": one.part, "question": one.question}
        rows.append({**about, **arms, "after": one.scores})
    return rows


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the harness's messages and progress bars, unless logging is verbose."""
    if logging.getLogger().isEnabledFor(logging.INFO):
        yield
        return
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet_transformers(), redirect_stderr(StringIO()):  # its bars know no other way
            yield
    finally:
        logger.setLevel(level)
