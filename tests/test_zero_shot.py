"""Zero-shot questions: the kit's gold answers, the harness's scores, and what is made of them."""

import json
import logging
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from sordino import hub, kit
from sordino.errors import UserError
from sordino.evaluation import statistics
from sordino.evaluation.evaluator import evaluate
from sordino.evaluation.measure import ALL, MEASURES
from sordino.evaluation.measures import zero_shot
from sordino.evaluation.measures.zero_shot import KIT_TASKS, ZeroShot
from sordino.evaluation.statistics import compare_mean_shares, compare_shares
from sordino.evaluation.tasks import kit_data
from sordino.evaluation.texts import choose

pytest.importorskip("lm_eval")
from lm_eval.api.model import LM
from lm_eval.models import huggingface

CPU = torch.device("cpu")


def rows(task: str) -> list[dict]:
    lines = kit.data_file(kit_data.FILES[task]).read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "answer" in row or "label" in row]


def choices(row: dict) -> list[str]:
    """The choices of a row, cut out of the text without a pattern."""
    text = "\n" + row["options"]
    starts = [text.index(f"\n{letter}. ") for letter in "ABCDE" if f"\n{letter}. " in text]
    return [text[a + 4 : b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


@pytest.fixture
def tiny(open_tiny):
    """Tiny models with room for the longest passages."""
    return lambda seed=0: open_tiny("llama", seed=seed, max_position_embeddings=4096)


class Oracle(LM):
    """Knows from the kit's raw files what is right, and nothing of how a task was read."""

    sign = 1.0

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.known: dict[str, list[dict]] = {}
        for task in KIT_TASKS:
            for row in rows(task):
                self.known.setdefault(self.key(row), []).append(row)

    @staticmethod
    def key(row: dict) -> str:
        return row["question"].split("\nA. ")[0].strip(" ?.")

    def right(self, context: str, offered: list[str]) -> str:
        """The right one of the answers that are offered to a question."""
        question = context
        for end in ("\nAnswer:", "\nA:"):
            question = question.removesuffix(end)
        question = question.partition("\nA. ")[0].strip(" ?.")
        found = []
        while not found:  # what the question ends with, after its passage and label
            found = self.known.get(question, [])
            cut = re.search(r"\s+", question)
            assert found or cut, context
            question = question[cut.end() :] if cut else ""
        shown = "\n".join([context, *offered])
        for row in found:
            if "label" in row:
                return "yes" if row["label"] else "no"
            parts = [row.get("passage", ""), *choices(row)]
            if all(part.strip().removesuffix("?") in shown for part in parts):
                letter, text = row["answer"][0], row["answer"][3:].strip()
                return letter if letter in offered else text
        raise KeyError(context)

    def loglikelihood(self, requests):
        offered: dict[tuple, list[str]] = {}
        for r in requests:
            offered.setdefault((r.task_name, r.doc_id), []).append(r.args[1].strip())
        hits = [
            r.args[1].strip() == self.right(r.args[0], offered[r.task_name, r.doc_id])
            for r in requests
        ]
        return [(0.0 if hit else -1e3 * self.sign, hit) for hit in hits]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError


def test_a_model_that_knows_the_answers_has_them_all_right(tiny, monkeypatch) -> None:
    monkeypatch.setattr(huggingface, "HFLM", Oracle)
    figures = evaluate(tiny(), measures=[ZeroShot(limit=60)]).measures["zero-shot"].figures
    assert [f.after.value for f in figures] == [1.0] * len(figures)
    # The mean and six tasks, two of them with a second metric.
    assert len(figures) == 2 + 6 + 2
    assert figures[0].n == {"tasks": 6, "questions": 360}
    # However many tasks there are, as little is known of each as of one.
    assert figures[0].after.low == pytest.approx(figures[1].after.low)
    assert 0.93 < figures[0].after.low < figures[0].after.high == 1.0
    monkeypatch.setattr(huggingface, "HFLM", type("Opposite", (Oracle,), {"sign": -1.0}))
    figures = evaluate(tiny(), measures=[ZeroShot(limit=60)]).measures["zero-shot"].figures
    # Only a choice that occurs twice in its question lets the opposite model be right.
    assert all(f.after.value < 0.05 for f in figures)


@pytest.mark.parametrize("task", KIT_TASKS)
def test_every_row_is_read_with_its_own_answer(task: str) -> None:
    documents, raw = list(kit_data.load(task)["test"]), rows(task)
    assert len(documents) == len(raw) >= 500
    for document, row in zip(documents, raw, strict=True):
        if task == "kit_boolq":
            assert document["label"] == (1 if row["label"] is True else 0)
            continue
        read, gold = {
            "kit_piqa": lambda d: ([d["sol1"], d["sol2"]], d["label"]),
            "kit_siqa": lambda d: ([d[f"answer{x}"] for x in "ABC"], int(d["label"]) - 1),
            "kit_commonsense_qa": lambda d: (d["choices"]["text"], ord(d["answerKey"]) - 65),
            "kit_openbookqa": lambda d: (d["choices"]["text"], ord(d["answerKey"]) - 65),
            "kit_mmlu": lambda d: (d["choices"], d["answer"]),
        }[task](document)
        assert row["answer"] == f"{'ABCDE'[gold]}. {read[gold]}"
        if not row["question"].endswith("loss of innocence"):  # has choices A and B within
            assert [c.removesuffix("?") for c in choices(row)] == [
                c.removesuffix("?") for c in read
            ]


@pytest.mark.parametrize(
    ("task", "own"),
    [
        ("kit_piqa", "piqa/piqa.yaml"),
        ("kit_siqa", "siqa/siqa.yaml"),
        ("kit_commonsense_qa", "commonsense_qa/default.yaml"),
        ("kit_openbookqa", "openbookqa/openbookqa.yaml"),
        ("kit_mmlu", "mmlu/default/_default_template_yaml"),
        ("kit_boolq", "super_glue/boolq/default.yaml"),
    ],
)
def test_the_prompts_are_those_of_the_harness(task: str, own: str) -> None:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    ours = load_yaml(zero_shot.CONFIGS / f"{task}.yaml", resolve_func=False)
    theirs = load_yaml(Path(lm_eval.tasks.__file__).parent / own, resolve_func=False)
    shared = ("doc_to_text", "doc_to_target", "doc_to_choice", "output_type")
    for key in (*shared, "description", "gen_prefix", "process_docs"):
        assert ours.get(key) == theirs.get(key), key
    assert "target_delimiter" not in ours
    assert theirs.get("target_delimiter", " ") == " "
    assert [m["metric"] for m in ours["metric_list"]] == [
        m["metric"] for m in theirs["metric_list"]
    ]


def log_likelihood(opened, prompt: str, answer: str) -> float:
    before = opened.tokenizer(prompt).input_ids
    ids = opened.tokenizer(prompt + answer).input_ids
    assert ids[: len(before)] == before
    with torch.inference_mode():
        logits = opened.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[i - 1, ids[i]]) for i in range(len(before), len(ids)))


@pytest.mark.parametrize(
    ("family", "batch_size"), [("llama", None), ("gpt2", 3), ("gemma3", None), ("bloom", None)]
)
def test_scores_are_those_of_a_plain_log_likelihood(open_tiny, family: str, batch_size) -> None:
    opened = open_tiny(family, max_position_embeddings=4096)
    names = ("kit_piqa", "kit_siqa", "kit_boolq", "kit_mmlu")
    task = ZeroShot(tasks=names, limit=12, batch_size=batch_size).prepare(1, CPU)
    checked = 0
    for batch in task.collect(opened, batch_tokens=3000, which=ALL):
        for name, part, index, scores in batch:
            assert name == part
            row = rows(name)[index]
            if name == "kit_boolq":
                prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
                options, gold = ["no", "yes"], int(row["label"])
            else:
                options, gold = choices(row), "ABCD".index(row["answer"][0])
                prompt = f"Question: {row['question']}\nAnswer:"
            if name == "kit_siqa":
                prompt = f"Q: {row['passage']} {row['question']}\nA:"
            if name == "kit_mmlu":
                listed = "\n".join(f"{x}. {c}" for x, c in zip("ABCD", options, strict=True))
                prompt, options = f"{row['question'].strip()}\n{listed}\nAnswer:", list("ABCD")
            found = [log_likelihood(opened, prompt, f" {option}") for option in options]
            by_length = [value / len(o) for value, o in zip(found, options, strict=True)]
            expected = {"acc": float(np.argmax(found) == gold)}
            if name == "kit_piqa":
                expected["acc_norm"] = float(np.argmax(by_length) == gold)
            assert scores == expected
            checked += 1
    assert checked == task.records == 48


def test_a_collection_is_taken_up_at_any_batch(tiny) -> None:
    opened = tiny()
    task = ZeroShot(tasks=("kit_openbookqa", "kit_piqa"), limit=40, shots=1).prepare(0, CPU)
    whole = list(task.collect(opened, batch_tokens=4096, which=ALL))
    assert [len(batch) for batch in whole] == [32, 8, 32, 8]
    assert sum(map(len, whole)) == task.records == 80
    again = ZeroShot(tasks=("kit_openbookqa", "kit_piqa"), limit=40, shots=1).prepare(0, CPU)
    assert list(again.collect(opened, batch_tokens=4096, which=slice(2, None))) == whole[2:]
    assert again.protocol == task.protocol
    assert json.loads(json.dumps(task.protocol)) == task.protocol
    assert task.protocol["lm_eval"] == version("lm_eval")
    other = ZeroShot(tasks=("kit_openbookqa", "kit_piqa"), limit=40, shots=1).prepare(1, CPU)
    assert other.protocol["questions_fingerprint"] != task.protocol["questions_fingerprint"]


def test_a_smaller_choice_is_part_of_a_larger_one() -> None:
    parts = zero_shot._load(("kit_piqa",), 0)["kit_piqa"]
    questions = list(range(len(parts["kit_piqa"].eval_docs)))
    few, many = (choose(questions, limit, 5) for limit in (10, 100))
    assert set(few) < set(many)
    assert many == sorted(many)
    assert len(choose(questions, None, 5)) == 1500


def test_examples_are_other_questions(tiny) -> None:
    contexts = []

    class Listening(Oracle):
        def loglikelihood(self, requests):
            contexts.extend(r.args[0] for r in requests)
            return [(0.0, False)] * len(requests)

    parts = zero_shot._load(("kit_openbookqa",), 0)["kit_openbookqa"]
    parts["kit_openbookqa"].set_config("num_fewshot", 3)
    zero_shot._scores(Listening(), parts, {"kit_openbookqa": list(range(50))}, 0, chat=None)
    asked = {context: context.split("\n\n") for context in contexts}
    assert len(asked) == 50
    for *examples, question in asked.values():
        assert len(examples) == 3
        assert not any(example.startswith(question) for example in examples)
        right = {f"{r['question'].rstrip()} {r['answer'][3:]}" for r in rows("kit_openbookqa")}
        assert set(examples) <= right


def test_two_models_are_compared_question_by_question(tiny, tmp_path: Path) -> None:
    after, before = tiny(0), tiny(1)
    chosen = ZeroShot(tasks=("kit_piqa", "kit_siqa"), limit=30)
    result = evaluate(after, before, measures=[chosen], seed=2**33, output=tmp_path / "x.json")
    samples = result.samples["zero-shot"]
    assert len(samples) == 60
    piqa = [row for row in samples if row["task"] == "kit_piqa"]
    table = [np.array([row[arm]["acc"] for row in piqa]) for arm in ("before", "after")]
    figure = result.figure("zero-shot", "kit_piqa.acc")
    expected = compare_shares(table[0], table[1], 2**33)
    assert (figure.before, figure.difference, figure.ratio) == (
        expected.before,
        expected.difference,
        expected.ratio,
    )
    mean = result.figure("zero-shot", "mean.acc")
    tasks = [result.figure("zero-shot", f"{name}.acc") for name in chosen.tasks]
    assert mean.after.value == pytest.approx(np.mean([f.after.value for f in tasks]))
    assert mean.difference.low <= mean.difference.value <= mean.difference.high
    assert "zero-shot" in MEASURES
    same = evaluate(after, after, measures=[chosen])
    assert all(row.figure.difference.value == 0 for row in same.table())


def test_the_mean_of_tasks_holds_the_truth_in_most_of_many_evaluations(monkeypatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator = np.random.default_rng(0)
    truth, held = np.array([[0.3, 0.4], [0.8, 0.6]]), np.zeros(3)
    for trial in range(200):
        tables = []
        for shares, n in zip(truth, (60, 200), strict=True):
            uniform = generator.random((n, 1)) * 0.5 + generator.random((n, 2)) * 0.5
            # The two arms of a question go together; each is right with its own share.
            ranks = np.where(uniform < 0.5, 2 * uniform**2, 1 - 2 * (1 - uniform) ** 2)
            tables.append((ranks < shares).astype(float))
        found = compare_mean_shares(tables, trial)
        before, after = truth.mean(axis=0)
        for i, (estimate, value) in enumerate(
            [
                (found.after, after),
                (found.difference, after - before),
                (found.ratio, before / after),
            ]
        ):
            held[i] += estimate.low <= value <= estimate.high
    assert (held >= 0.9 * 200).all()


def test_a_mean_that_does_not_vary_claims_no_certainty() -> None:
    none, all_right = np.zeros((30, 1)), np.ones((30, 1))
    found = compare_mean_shares([np.hstack([all_right, none])] * 2, 0)
    assert found.before.value == 1
    assert 0.88 < found.before.low < 1
    assert found.after.low == 0 < found.after.high < 0.12
    assert found.difference.low == -1
    assert -1 < found.difference.high < -0.75
    assert found.ratio.value is None
    assert found.ratio.high is None
    assert found.ratio.low > 5
    alone = compare_mean_shares([none, none], 0)
    assert alone.before is alone.difference is None
    # Rounding makes the resamples' means of a constant differ in their last digits.
    fifth = compare_mean_shares([np.full((30, 1), 0.2)] * 2, 0).after
    assert fifth.low < 0.15 < 0.25 < fifth.high


def test_the_model_and_tokenizer_stay_as_they_are(tiny) -> None:
    opened = tiny()
    opened.tokenizer.pad_token = None
    weights = {name: value.clone() for name, value in opened.model.state_dict().items()}
    task = ZeroShot(tasks=("kit_piqa",), limit=4).prepare(0, CPU)
    assert len(list(task.collect(opened, batch_tokens=4096, which=ALL))) == 1
    assert opened.tokenizer.pad_token is None
    assert all(torch.equal(weights[k], v) for k, v in opened.model.state_dict().items())


LOCAL = """
dataset_path: json
dataset_kwargs:
  data_files: {test: %s}
test_split: test
doc_to_text: "Say {{word}}:"
doc_to_target: word
"""
GENERATED = """
output_type: generate_until
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: strict, filter: [{function: take_first}]}
  - {name: loose, filter: [{function: lowercase}, {function: take_first}]}
"""


@pytest.fixture
def local_tasks(tmp_path: Path, monkeypatch) -> None:
    """Tasks of other kinds, as a hub would have them: a group, a generative one, unusable ones."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "words.jsonl"
    data.write_text("\n".join(json.dumps({"word": f"word{i}"}) for i in range(7)))
    local = LOCAL % data
    configs = {
        "one": local + GENERATED,
        "two": local + GENERATED,
        "unsafe": local + GENERATED + "unsafe_code: true\n",
        "likelihood": local + "output_type: loglikelihood\nmetric_list: [{metric: perplexity}]\n",
        "broken": local.replace("words.jsonl", "none.jsonl") + GENERATED,
    }
    for name, config in configs.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}{config}")
    (tmp_path / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    monkeypatch.setattr(zero_shot, "CONFIGS", tmp_path)


@pytest.mark.usefixtures("local_tasks")
def test_a_group_is_one_task_and_text_may_be_generated(tiny) -> None:
    result = evaluate(tiny(), measures=[ZeroShot(tasks=("both",), limit=10)])
    figures = result.measures["zero-shot"].figures
    assert [f.name for f in figures] == ["both.exact_match,strict", "both.exact_match,loose"]
    assert figures[0].label == "Zero-shot exact match (strict), both"
    assert figures[0].n == {"questions": 10}
    assert {row["part"] for row in result.samples["zero-shot"]} == {"one", "two"}


@pytest.mark.usefixtures("local_tasks")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unsafe", "unsafe runs code that the model writes"),
        ("likelihood", r"likelihood does not score each question .*perplexity.*acc or"),
        ("broken", r"broken could not be loaded \(FileNotFoundError: .*or choose among kit_piqa"),
    ],
)
def test_a_task_that_cannot_be_used_is_one_sentence(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        ZeroShot(tasks=(name,)).prepare(0, CPU)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("local_tasks")
def test_no_hub_within_reach(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(UserError, match=r"one needs a hub, and none answers: .* kit_piqa"):
        ZeroShot(tasks=("one",)).prepare(0, CPU)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("kit_pica", "did you mean kit_piqa"),
        ("helaswag", "did you mean hellaswag"),
        ("zzzzqqqq", "try kit_piqa"),
        ("piqa", "piqa could not be loaded"),
    ],
)
def test_a_name_among_all_the_tasks_of_the_harness(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ZeroShot(tasks=("kit_piqa", name)).prepare(0, CPU)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tasks": ()}, "no zero-shot task"),
        ({"tasks": ("kit_piqa", "kit_piqa")}, "given twice"),
        ({"limit": 0}, "`limit=0` is out of range: it must be at least 1"),
        ({"shots": -1}, "shots=-1"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_a_setting_out_of_range(settings: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ZeroShot(**settings)


def test_the_harness_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr("sordino.extras.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'pip install "sordino\[zero-shot\]"'):
        ZeroShot().prepare(0, CPU)


@pytest.mark.parametrize("verbose", [False, True])
def test_the_harness_is_quiet_unless_asked(tiny, capfd, caplog, verbose: bool) -> None:
    opened = tiny()
    capfd.readouterr()
    with caplog.at_level(logging.INFO if verbose else logging.WARNING):
        task = ZeroShot(tasks=("kit_openbookqa",), limit=2).prepare(0, CPU)
        list(task.collect(opened, batch_tokens=4096, which=ALL))
    said = [r for r in caplog.records if r.name.startswith("lm_eval")]
    assert bool(said) == verbose
    assert bool(capfd.readouterr().err) == verbose
