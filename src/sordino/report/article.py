"""A page of text, tables and charts, as one HTML file or as Markdown with SVG files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.files import today, write_text
from sordino.report import tables
from sordino.report.page import frame, plain_spec
from sordino.templates import environment


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Args:
        name: The name of its CSV file.
        caption: What it shows.
        columns: The headings.
        rows: The cells, as text.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def csv(self) -> str:
        """The table as a CSV file inside an address."""
        return tables.link(self.columns, self.rows)


@dataclass(frozen=True)
class Chart:
    """A chart.

    Args:
        name: Its name, unique on the page.
        caption: What it shows, also for readers who cannot see it.
        drawn: The Altair chart.
        key: The CSS variable of each name's colour.
    """

    name: str
    caption: str
    drawn: Any
    key: Mapping[str, str]


@dataclass(frozen=True)
class Code:
    """Lines to type."""

    text: str


@dataclass(frozen=True)
class Points:
    """Sentences in a list.

    Args:
        title: What they are about.
        lines: The sentences.
    """

    title: str
    lines: Sequence[str]


Block = str | Table | Chart | Code | Points


@dataclass(frozen=True)
class Section:
    """A section of a page: paragraphs (text) and other blocks, in order."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Article:
    """A page.

    Args:
        kind: The kind of page, in a word or two.
        title: Its title.
        answer: The answer, which comes first: sentences, tables and lists.
        sections: The rest.
        limits: What the figures cannot promise.
    """

    kind: str
    title: str
    answer: Sequence[Block]
    sections: Sequence[Section]
    limits: Sequence[str]


def write_html(article: Article, path: Path) -> None:
    """Write the page as one HTML file, which replaces an earlier one."""
    charts = {chart.name: chart.drawn for chart in _charts(article)}
    html = (
        environment("sordino.report")
        .get_template("article.html.jinja")
        .render(
            article=article,
            sections=[(f"s{n}", of.title) for n, of in enumerate(article.sections, 1)],
            **frame(charts, today()),
        )
    )
    write_text(path, html)


def write_markdown(article: Article, path: Path) -> None:
    """Write the page as Markdown, with its charts as SVG files beside it."""
    import vl_convert

    for chart in _charts(article):
        spec = plain_spec(chart.drawn) | {"width": 640, "background": "#fbfaf6"}
        write_text(_svg(path, chart), _with_colours(vl_convert.vegalite_to_svg(spec)))
    write_text(path, "\n".join(_markdown(article, path)) + "\n")


def _markdown(article: Article, path: Path) -> Iterator[str]:
    yield f"# {article.title}\n"
    for block in article.answer:
        yield from _block(block, path)
    for section in article.sections:
        yield f"## {section.title}\n"
        for block in section.blocks:
            yield from _block(block, path)
    yield "## What this cannot promise\n"
    for limit in article.limits:
        yield f"- {limit}"


def _block(block: Block, path: Path) -> Iterator[str]:
    if isinstance(block, Table):
        yield f"{block.caption}\n"
        yield _line(block.columns)
        yield _line(["---", *["--:"] * (len(block.columns) - 1)])
        yield from map(_line, block.rows)
        yield ""
    elif isinstance(block, Chart):
        yield f"![{block.caption}]({_svg(path, block).name})\n"
        colours = _colours()
        key = [f"{name} ({colours[variable]})" for name, variable in block.key.items()]
        yield f"*{block.caption}* " + ("Lines: " + ", ".join(key) + ".\n" if key else "\n")
    elif isinstance(block, Code):
        yield f"```\n{block.text}\n```\n"
    elif isinstance(block, Points):
        yield f"**{block.title}**\n"
        yield from (f"- {line}" for line in block.lines)
        yield ""
    else:
        yield f"{block}\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _charts(article: Article) -> Iterator[Chart]:
    for section in article.sections:
        yield from (block for block in section.blocks if isinstance(block, Chart))


def _svg(path: Path, chart: Chart) -> Path:
    return path.with_name(f"{path.stem}-{chart.name}.svg")


def _colours() -> dict[str, str]:
    """The light theme's colours by their CSS variables."""
    style = (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    return dict(re.findall(r"--([a-z0-9-]+): light-dark\((#\w+),", style))


def _with_colours(svg: str) -> str:
    colours = _colours()
    return re.sub(r"var\(--([a-z0-9-]+)\)", lambda found: colours[found[1]], svg)
