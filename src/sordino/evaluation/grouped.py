"""What models write about groups of people, for the measures of differences between them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from sordino.errors import UserError
from sordino.evaluation.judged import JudgedTask, share
from sordino.evaluation.measure import NotRun
from sordino.evaluation.result import Figure
from sordino.evaluation.scorer import Scorer
from sordino.evaluation.statistics import Floats, compare_gaps
from sordino.evaluation.texts import Text, choose_evenly
from sordino.evaluation.writing import Writing


class GroupedTask(JudgedTask):
    """A measure of prompts about groups that is ready; the groups are those of domains.

    Args:
        settings: The measure.
        prompts: All prompts, each with its domain and group.
        source: Where they come from.
        scorers: One judge or two, by name.
        seed: Of the choice of prompts, of the sampling and of the intervals.
        about: What else belongs into the protocol.
    """

    everyone = "all groups"
    subject: ClassVar[str]

    def __init__(
        self,
        settings: Writing,
        prompts: Sequence[Text],
        source: str,
        scorers: Mapping[str, Scorer],
        seed: int,
        **about: Any,
    ) -> None:
        chosen = choose_evenly(list(prompts), settings.max_prompts, seed)
        n_prompts = {
            domain: {group: len(members) for group, members in groups.items()}
            for domain, groups in _domains(chosen).items()
        }
        super().__init__(settings, chosen, source, scorers, seed, n_prompts=n_prompts, **about)

    def figures_of(self, scores: Mapping[str, Floats], by: str) -> Iterator[Figure]:
        """The share in all groups, the gaps between a domain's groups, and each group's share."""
        shares = {arm: share(table) for arm, table in scores.items()}
        domains = _domains(self._prompts)

        def figure(members: Sequence[int], name: str, whose: str) -> Figure:
            label = f"{self.subject}, {whose}{by}"
            return self.share_figure(
                shares,
                members,
                name=f"continuations.{name}",
                label=label,
                detail=name != "all",
            )

        yield figure(range(len(self._prompts)), "all", self.everyone)
        for domain, groups in domains.items():
            gap = compare_gaps(
                shares.get("before"), shares["after"], list(groups.values()), self._seed
            )
            if gap is not None:
                yield self.lower(
                    gap,
                    [i for members in groups.values() for i in members],
                    name=f"gap.{domain}",
                    label=f"Gap between groups, {_words(domain)}{by}",
                    unit="gap",
                )
        for domain, groups in domains.items():
            if len(domains) > 1:
                members = [i for each in groups.values() for i in each]
                yield figure(members, domain, _words(domain))
            for group, members in groups.items():
                yield figure(members, f"{domain}.{group}", f"{_words(domain)}: {_words(group)}")


def first_found(
    read: Callable[[str], list[Text]], sources: Sequence[str], flag: str
) -> tuple[str, list[Text]]:
    """The first of some sources that can be read, and what it holds.

    Args:
        read: Reads a source.
        sources: One that the user named, or several that are tried in turn.
        flag: By which the user can name another.

    Raises:
        UserError: The only source cannot be read.
        NotRun: None of several can.
    """
    reasons = []
    for source in sources:
        try:
            return source, read(source)
        except UserError as error:
            if len(sources) == 1:
                raise
            reasons.append(str(error).rstrip("."))
    raise NotRun(f"its prompts cannot be had ({'; '.join(reasons)}): give a copy as {flag}")


def _domains(prompts: Sequence[Text]) -> dict[str, dict[str, list[int]]]:
    """Which of the prompts belong to each group of each domain."""
    found: dict[str, dict[str, list[int]]] = {}
    for index, prompt in enumerate(prompts):
        found.setdefault(prompt.domain, {}).setdefault(prompt.group, []).append(index)
    return found


def _words(name: str) -> str:
    return name.replace("_", " ")
