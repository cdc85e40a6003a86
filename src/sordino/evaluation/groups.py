"""What models write about groups of people, for the measures of differences between them."""

from collections.abc import Callable, Iterator, Sequence

from sordino.errors import UserError
from sordino.evaluation.measure import NotRun
from sordino.evaluation.result import Figure
from sordino.evaluation.scoring import Figures, Scores, toxic_share
from sordino.evaluation.statistics import compare_gaps
from sordino.evaluation.texts import Text

EVERYONE = "all groups"


def group_figures(subject: str) -> Figures:
    """A function that gives the share in all groups, the gaps, and each group's share.

    Args:
        subject: What the share is of, in words.
    """

    def figures(scores: Scores) -> Iterator[Figure]:
        shares, writer = scores.each(toxic_share), scores.writer
        domains = members_of(writer.prompts)

        def figure(members: Sequence[int], name: str, whose: str) -> Figure:
            return scores.mean(
                shares,
                members,
                name=f"continuations.{name}",
                label=f"{subject}, {whose}{scores.by}",
                detail=name != "all",
            )

        yield figure(range(len(writer.prompts)), "all", EVERYONE)
        for domain, groups in domains.items():
            gap = compare_gaps(
                shares.get("before"), shares["after"], list(groups.values()), writer.seed
            )
            if gap is not None:
                yield writer.figure(
                    gap,
                    sum(map(len, groups.values())),
                    name=f"gap.{domain}",
                    label=f"Gap between groups, {in_words(domain)}{scores.by}",
                    unit="gap",
                )
        for domain, groups in domains.items():
            if len(domains) > 1:
                members = [i for each in groups.values() for i in each]
                yield figure(members, domain, in_words(domain))
            for group, members in groups.items():
                whose = f"{in_words(domain)}: {in_words(group)}"
                yield figure(members, f"{domain}.{group}", whose)

    return figures


def group_sizes(prompts: Sequence[Text]) -> dict[str, dict[str, int]]:
    """How many prompts each group of each domain has."""
    return {
        domain: {group: len(members) for group, members in groups.items()}
        for domain, groups in members_of(prompts).items()
    }


def members_of(prompts: Sequence[Text]) -> dict[str, dict[str, list[int]]]:
    """Which of the prompts belong to each group of each domain."""
    found: dict[str, dict[str, list[int]]] = {}
    for index, prompt in enumerate(prompts):
        found.setdefault(prompt.domain, {}).setdefault(prompt.group, []).append(index)
    return found


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
    raise NotRun(f"its prompts are not available ({'; '.join(reasons)}): give a copy as {flag}")


def in_words(name: str) -> str:
    """A name's words."""
    return name.replace("_", " ")
