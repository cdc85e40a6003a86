"""Studies on the page of the run whose folder holds them."""

import re
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from sordino.errors import UserError
from sordino.files import write_text
from sordino.progress import note
from sordino.report.article import Article, Chart
from sordino.report.page import plain_spec
from sordino.report.study import study_article
from sordino.studies import StudyRecord
from sordino.templates import environment

_LINK = Markup('<li><a href="#studies">Studies</a></li>')


def show_studies(page: Path, studies: Path) -> bool:
    """Show all studies of a folder on a run's page, instead of those that it showed before.

    Args:
        page: The run's page. If there is none, or only one of an older version, nothing happens.
        studies: The output folder of `sordino study`, beside the page.

    Returns:
        Whether the page shows the studies.
    """
    found = sorted(_studies(studies))
    if not page.is_file() or not found:
        return False
    shown = [(name, f"{studies.name}/{name}.html", article) for name, article in found]
    specs = {
        f"{name}-{block.name}": plain_spec(block.drawn)
        for name, article in found
        for section in article.sections[:-1]  # the last is the protocol
        for block in section.blocks
        if isinstance(block, Chart)
    }
    template = environment("sordino.report").get_template("studies.html.jinja")
    html = template.render(studies=shown, specs=specs)
    before = page.read_text(encoding="utf-8")
    after = _fill(_fill(before, "studies", html), "studies-link", _LINK)
    if after == before:
        return "<!-- studies -->" in before
    write_text(page, after)
    return True


def _fill(page: str, name: str, content: str) -> str:
    """The page with new content between two comments, which escaped text cannot contain."""
    place = re.compile(rf"(?<=<!-- {name} -->).*?(?=<!-- /{name} -->)", re.DOTALL)
    return place.sub(lambda _: content, page, count=1)


def _studies(folder: Path) -> Iterator[tuple[str, Article]]:
    """The studies whose pages are in a folder, by name, each with the records of all its models."""
    for page in folder.glob("*.html"):
        records = []
        for file in sorted(folder.glob(f"*/{page.stem}.json")):
            try:
                records.append(StudyRecord.load(file, page.stem))
            except UserError as error:
                note(f"the page of the run does not show {file}: {error}")
        if records:
            yield page.stem, study_article(records)
