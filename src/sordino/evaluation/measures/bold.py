"""Whether a model's open-ended texts about some groups are more toxic than those about others."""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from sordino import kit
from sordino.concepts.text_files import one_line, whole_text
from sordino.errors import UserError
from sordino.evaluation.groups import EVERYONE, first_found, group_figures, group_sizes
from sordino.evaluation.measure import register
from sordino.evaluation.opening import AUTO
from sordino.evaluation.scoring import ScoredTask, Scoring
from sordino.evaluation.texts import (
    Text,
    choose,
    choose_evenly,
    distinct_texts,
    hub_rows,
    read_texts,
)
from sordino.evaluation.writing import Writer, Writing
from sordino.files import printable, read_json, user_path
from sordino.hub_table import BOLD

DOMAINS = ("gender", "political_ideology", "profession", "race", "religious_ideology")
_SUFFIX = "_prompt"


@register
@dataclass(frozen=True)
class Bold(Scoring, Writing):
    """Toxicity after BOLD's prompts, by group (Dhamala et al. 2021, arXiv 2101.11718).

    The prompts are beginnings of sentences from Wikipedia, about people and ideas of 43 groups in
    five domains. There are so many that one continuation of each suffices. The chosen prompts are
    spread evenly over the groups. The settings are those of `Writing` and `Scoring`; `prompts` are
    "auto" for the demo kit's or else the hub's, or as for `read_bold`.
    """

    name: ClassVar[str] = "bold"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "BOLD"
    sentence: ClassVar[str] = (
        "Toxicity after beginnings of sentences about people and ideas, by group."
    )
    options: ClassVar[Mapping[str, str]] = {
        **Writing.options,
        **Scoring.options,
        "prompts": "bold_prompts",
    }

    prompts: str = AUTO
    max_prompts: int | None = 2000
    continuations: int = 1

    def prepare(self, seed: int, device: torch.device) -> ScoredTask:
        """Read and choose the prompts, and open the scorers."""
        source, prompts = first_found(read_bold, self.prompts, BOLD.spec, "Bold.prompts")
        chosen = choose_evenly(prompts, self.max_prompts, seed)
        return ScoredTask(
            Writer(self, chosen, seed),
            self.open_scorers(source, device),
            group_figures("Toxic continuations"),
            source=source,
            everyone=EVERYONE,
            n_prompts=group_sizes(chosen),
        )


PROTECTED = ("gender", "race", "religious_ideology")
"""BOLD's domains of the groups of people that toxic text attacks."""


def protected_texts(spec: str, most: int, seed: int, measured: Collection[str] = ()) -> list[str]:
    """Texts whose likelihood an edit must not lower, chosen by seed.

    Args:
        spec: "groups" for harmless beginnings of sentences about people by gender, descent and
            religion, from BOLD, spread evenly over the groups; or as for
            `sordino.evaluation.texts.read_texts`.
        most: How many at most.
        seed: Of the choice.
        measured: Texts by which the edit is measured, each in one line. They are left out, because
            a protected text cannot say what the edit does to others.

    Raises:
        UserError: They are not available, or all of them are measured.
    """
    texts = read_texts(spec) if spec != "groups" else _about_people()
    free = [text for text in texts if one_line(text.text) not in measured]
    if not free:
        raise UserError(
            f"All texts to protect ({printable(spec)}) are measured as well: measure others, or "
            "give others as `protect`."
        )
    choice = choose if spec != "groups" else choose_evenly
    return [text.text for text in choice(free, most, seed)]


def _about_people() -> list[Text]:
    _, texts = first_found(read_bold, AUTO, BOLD.spec, "protected")
    return [text for text in texts if text.domain in PROTECTED]


def read_bold(spec: str) -> list[Text]:
    """BOLD's prompts, each with its domain and group; blank ones are skipped.

    Args:
        spec: A file in BOLD's own layout, {group: {name: [prompt, …]}}, named DOMAIN_prompt.json; a
            folder of such files; "kit" for those of the demo kit; or "hf:org/name[:split]" for a
            hub data set with the columns `domain`, `category` and `prompts`.

    Raises:
        UserError: There is no such source, or it is not in that layout.
    """
    if spec.startswith("hf:"):
        found = list(_hub_texts(hub_rows(spec)))
    elif spec == "kit":
        files = [kit.data_file(f"bold/{domain}{_SUFFIX}.json") for domain in DOMAINS]
        found = [text for file in files for text in _file_texts(file)]
    else:
        path = user_path(spec)
        files = sorted(path.glob(f"*{_SUFFIX}.json")) if path.is_dir() else [path]
        if not files or not os.path.exists(path):  # noqa: PTH110 - unlike Path's, it raises nothing
            what = "holds no *_prompt.json file" if path.is_dir() else "does not exist"
            raise UserError(
                f"{printable(spec)} {what}: give kit, {BOLD.spec}, a file in BOLD's layout, or a "
                "folder of such files."
            )
        found = [text for file in files for text in _file_texts(file)]
    return distinct_texts(found, spec, "prompt")


def _file_texts(path: Path) -> Iterator[Text]:
    value = read_json(path)
    domain = path.stem.removesuffix(_SUFFIX)
    shape = f"{path} is not in BOLD's layout, {{group: {{name: [prompt, …]}}}}"
    if not isinstance(value, Mapping):
        raise UserError(f"{shape}: it is not a JSON object.")
    for group, names in value.items():
        if not isinstance(names, Mapping):
            raise UserError(f"{shape}: {json.dumps(group)} is not an object.")
        for name, prompts in names.items():
            yield from _texts(prompts, domain, group, f"{shape}: {json.dumps(name)}")


def _hub_texts(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Text]:
    for where, row in rows:
        missing = [key for key in ("domain", "category", "prompts") if key not in row]
        if missing:
            raise UserError(f"{where} has no column '{missing[0]}', so it is not BOLD.")
        yield from _texts(row["prompts"], str(row["domain"]), str(row["category"]), where)


def _texts(prompts: Any, domain: str, group: str, where: str) -> Iterator[Text]:
    if not isinstance(prompts, list) or not all(isinstance(one, str) for one in prompts):
        raise UserError(f"{where} has no list of prompts.")
    for prompt in prompts:
        yield Text(whole_text(prompt, where).strip(), None, domain, whole_text(group, where))
