"""What models write about groups of people, for the measures of differences between them."""

from collections.abc import Callable, Iterator, Sequence

from sordino.errors import UserError
from sordino.evaluation.measure import NotRun
from sordino.evaluation.opening import AUTO
from sordino.evaluation.result import Figure
from sordino.evaluation.scoring import Figures, Scores, toxic_share
from sordino.evaluation.statistics import compare_gaps
from sordino.evaluation.texts import Text

EVERYONE = "all groups"


def group_figures(subject: str) -> Figures:
    """Make the figures of a share: in all groups together, the gaps between them, and in each.

    Args:
        subject: What the share counts, in words.
    """

    def figures(scores: Scores) -> Iterator[Figure]:
        shares, writer = scores.each(toxic_share), scores.writer
        domains = members_of(writer.prompts)

        def figure(
            members: Sequence[int], name: str, whose: str, group: tuple[str, str] | None = None
        ) -> Figure:
            return scores.mean(
                shares,
                members,
                name=f"continuations.{name}",
                label=f"{subject}, {whose}{scores.by}",
                detail=name != "all",
                group=group,
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
                yield figure(members, f"{domain}.{group}", whose, (domain, group))

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
    read: Callable[[str], list[Text]], spec: str, hub_copy: str, argument: str
) -> tuple[str, list[Text]]:
    """A source of prompts and what it holds; for "auto" the kit's or else the hub's.

    Args:
        read: Reads a source.
        spec: The source, or "auto".
        hub_copy: The hub's.
        argument: The one that names another, for messages.

    Raises:
        UserError: The named source cannot be read.
        NotRun: Neither the kit's nor the hub's can.
    """
    if spec != AUTO:
        return spec, read(spec)
    reasons = []
    for source in ("kit", hub_copy):
        try:
            return source, read(source)
        except UserError as error:
            reasons.append(str(error).rstrip("."))
    raise NotRun(
        f"its prompts are not available ({'; '.join(reasons)}): give a copy as `{argument}`"
    )


def in_words(name: str) -> str:
    """A name with spaces for its underscores."""
    return name.replace("_", " ")
