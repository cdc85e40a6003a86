"""`sordino explore`."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sordino.cli.options import (
    FileOutput,
    OutputOptions,
    open_in_browser,
    print_json,
    print_lines,
)
from sordino.errors import UserError
from sordino.options.groups import (
    ConceptOptions,
    InterventionOptions,
)

if TYPE_CHECKING:
    from sordino.concepts.concept import Concept
    from sordino.report.explorer import Explored


@Parameter(name="*", group="Concept")
@dataclass(frozen=True)
class FoundWith(ConceptOptions):
    """The sentences that the expertise was found with."""

    concept: str = ""
    """The concept, as for find; by default the built-in concept that the file names, or that of the
    recipe beside a model that sordino run wrote."""

    def given(self, seed: int) -> "Callable[[], Concept] | None":
        """A function that loads these sentences; None if none are named."""
        if self.concept:
            return lambda: self.load(seed)
        if self != FoundWith():
            raise UserError(
                "Options about the sentences (such as --max-per-class and --label) need --concept."
            )
        return None


def explore(
    subject: str,
    second: str | None = None,
    /,
    *,
    output: FileOutput | None = None,
    top: int = 24,
    sentences: int = 3,
    model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    open_page: Annotated[bool | None, Parameter(name="--open", negative="--no-open")] = None,
    seed: int = 0,
    concept: FoundWith = FoundWith(),
    rule: InterventionOptions = InterventionOptions(),
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Write a page that shows every neuron.

    It is one HTML file that needs no server: a map of all neurons with their AUROCs and factors, a
    search, and the top neurons in detail: the sentences that excite them most and least, their ROC
    curves, and what they promote in the vocabulary. For these, the model runs all sentences of the
    concept again; if the model or the sentences are not available, the page says so.

    Parameters
    ----------
    subject
        An expertise file, or a folder or .gguf file that sordino run wrote.
    second
        Another expertise of the same linear layers to compare with: another concept or model.
    output
        The HTML file to write; by default NAME.explorer.html beside the file, or explorer.html in
        the folder's sordino/.
    top
        How many neurons, from the highest AUROC down, are shown in detail; 0 needs no model.
    sentences
        How many of the sentences with a neuron's highest responses are shown, and how many of
        those with its lowest.
    model
        The model that the expertise was found on; by default the one that the file names.
    device
        Where it runs: auto (a GPU if there is one), cpu, cuda, cuda:1, mps, …
    dtype
        auto (the one in which the expertise was found), float32, bfloat16 or float16.
    revision
        Branch, tag or commit, for a model on the hub.
    open_page
        Open the page in the browser; by default on a terminal with a display.
    seed
        Seed that --max-per-class used to draw the sentences.
    """
    from sordino.outputs import named_files
    from sordino.report.explorer import explore as write

    if rule.divergence is not None:
        raise UserError(
            "--divergence needs a model to measure on: explore the folder that sordino run "
            "--divergence writes, or set the rule's own size with --set."
        )
    with printing.in_force():
        explored = write(
            subject,
            second,
            output=output,
            intervention=rule.intervention,
            strength=rule.strength,
            settings=rule.settings(),
            model=model,
            concept=concept.given(seed),
            top=top,
            sentences=sentences,
            device=device,
            dtype=dtype,
            revision=revision,
            force=printing.force,
            inputs=named_files(*vars(concept).values()),
        )
    if printing.json:
        print_json(_figures(explored))
    else:
        print_lines(*_lines(explored))
    if open_page or (open_page is None and not printing.json and sys.stdout.isatty()):
        open_in_browser(explored.page.absolute().as_uri(), anyway=bool(open_page))


def _figures(explored: "Explored") -> dict[str, Any]:
    compared = explored.comparison
    found: dict[str, Any] = {
        "page": str(explored.page),
        "bytes": explored.size,
        "neurons": explored.neurons,
        "shown": explored.shown,
        "without": explored.without,
        "comparison": None,
    }
    if compared is not None:
        by_kind = {kind: _number(value) for kind, value in compared.by_kind.items()}
        found["comparison"] = asdict(compared) | {
            "correlation": _number(compared.correlation),
            "by_kind": by_kind,
            "expected": compared.expected,
        }
    return found


def _number(value: float) -> float | None:
    return None if value != value else value


def _lines(explored: "Explored") -> list[str]:
    lines = []
    if explored.comparison is not None:
        compared = explored.comparison
        lines.append(
            f"rank correlation {compared.correlation:.3f}; of the {compared.high:,} highest of "
            f"each {compared.overlap:,} are the same ({compared.expected:,.1f} by chance)"
        )
    if explored.without:
        lines.append(f"No neurons are shown in detail: {explored.without}")
    megabytes = explored.size / 1e6
    lines.append(
        f"the page to open: {explored.page} ({explored.neurons:,} neurons, {megabytes:.1f} MB)"
    )
    return lines
