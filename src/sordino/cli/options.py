"""Options that several commands share, and how commands print."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

from sordino import progress
from sordino.errors import UserError
from sordino.files import printable
from sordino.registry import brought

if TYPE_CHECKING:
    from rich.text import Text

    from sordino.concepts.concept import Concept
    from sordino.evaluation import Access
    from sordino.evaluation.judged import Judged
    from sordino.evaluation.own_samples import OwnPlan
    from sordino.expertise import AttributionSettings, SweepSettings
    from sordino.expertise.statistic import Asked
    from sordino.models.chat import Chat


def with_others(about: str, group: str) -> str:
    """The help of an option whose values are names, with the names from other packages.

    Args:
        about: The help, with Sordino's own names.
        group: The group of names, such as "measures".
    """
    names = ", ".join(brought(group))
    return f"{about} From other packages: {names}." if names else about


_PIPE_WIDTH = 240

Output = Annotated[Path, Parameter(name=["--output", "-o"])]


@Parameter(name="*", group="Model")
@dataclass(frozen=True)
class ModelOptions:
    """How the model is opened."""

    device: str = "auto"
    """Where it runs: auto (a GPU if there is one), cpu, cuda, cuda:1, mps, …; or all (every GPU of
    the machine, some of the layers on each)."""
    dtype: str = "auto"
    """auto (the checkpoint's own; float32 for GGUF), float32, bfloat16 or float16."""
    revision: str | None = None
    """Branch, tag or commit, for a model on the hub."""
    sites: str | None = None
    """attention (also attention's linear layers), all (every linear layer except routers), norms
    (the gains of norms between a block and the residual stream), or a regular expression that the
    linear layers' module paths must match."""


@Parameter(name="*", group="Concept")
@dataclass(frozen=True)
class ConceptOptions:
    """The concept to dampen."""

    concept: Annotated[
        str,
        Parameter(
            help=with_others(
                "A built-in concept (toxicity, insults, religion, politics); a CSV, TSV, JSON, "
                "JSONL or Parquet file; hf:org/name; a text file of positive sentences, one per "
                "line, with --negatives; or, for find and run, judge:SCORER, for what the model "
                "itself writes after --own-prompts, which a scorer judges.",
                "concepts",
            )
        ),
    ] = "toxicity"
    negatives: Path | None = None
    """Text file of negative sentences, one per line."""
    label: str | None = None
    """One of Jigsaw's labels (toxic, severe_toxic, obscene, threat, insult, identity_hate)."""
    text_column: str | None = None
    """Column of the sentences."""
    label_column: str | None = None
    """Column of the labels (1 positive, 0 negative)."""
    positive: str | None = None
    """Label of positive sentences, if it cannot be inferred."""
    concept_config: str | None = None
    """Configuration, for a data set on the hub that has several."""
    concept_revision: str | None = None
    """Branch, tag or commit, for a data set on the hub."""
    split: str | None = None
    """Split, for a data set on the hub."""
    max_per_class: int | None = None
    """The largest number of sentences per class, drawn by --seed."""
    balance: Annotated[bool, Parameter(negative="--no-balance")] = True
    """Use the same number of sentences of both classes: as many as the smaller one has."""

    def judged(
        self, own: "OwnOptions", strata_column: str | None, *, plan: bool
    ) -> "Judged | None":
        """The concept as what a judge makes of own samples, if that is what was asked for."""
        from sordino.concepts.load import JUDGE
        from sordino.evaluation.judged import Judged

        if not self.concept.startswith(JUDGE):
            return None
        for flag, value in {
            "--negatives": self.negatives,
            "--label": self.label,
            "--text-column": self.text_column,
            "--label-column": self.label_column,
            "--positive": self.positive,
            "--concept-config": self.concept_config,
            "--concept-revision": self.concept_revision,
            "--split": self.split,
            "--stratify": strata_column,
        }.items():
            if value is not None:
                raise UserError(f"{self.concept} cannot be combined with {flag}: leave it out.")
        if plan:
            raise UserError(
                f"--plan counts sentences, and those of {self.concept} are not written "
                "yet: leave it out."
            )
        taken = replace(own.settings(), judge=self.concept.removeprefix(JUDGE))
        return Judged(taken, self.max_per_class, self.balance)

    def load(self, seed: int, strata_column: str | None = None) -> "Concept":
        """The concept, loaded with these options."""
        from sordino.concepts import load_concept

        concept = load_concept(
            self.concept,
            negatives=self.negatives,
            label=self.label,
            text_column=self.text_column,
            label_column=self.label_column,
            positive=self.positive,
            strata_column=strata_column,
            config=self.concept_config,
            revision=self.concept_revision,
            split=self.split,
            max_per_class=self.max_per_class,
            balance=self.balance,
            seed=seed,
        )
        progress.note(
            f"concept {concept.name}: {len(concept.positive)} positive and "
            f"{len(concept.negative)} negative sentences ({concept.source})"
        )
        return concept


@Parameter(name="*", group="Intervention")
@dataclass(frozen=True)
class InterventionOptions:
    """The rule that gives the factors."""

    intervention: Annotated[
        str,
        Parameter(
            help=with_others(
                "aura (from the paper); contrast (recommended, with --divergence: it removes more "
                "at the same cost); selective, stratified, damp, det_zero, mean_shift, "
                "linear_transport; or the permuted control, shuffled.",
                "rules",
            )
        ),
    ] = "aura"
    strength: float = 1.0
    """0 for no change, 1 for the rule itself, more to go further in the same direction."""
    divergence: float | None = None
    """Make the change as large as this divergence from the original allows (in nats per token, such
    as 0.05), measured on ordinary text. It replaces --strength and a rule's own size (contrast's
    budget, the k of damp and det_zero)."""
    set: tuple[str, ...] = ()
    """A setting of the rule, NAME=VALUE, such as --set k=500 for damp and det_zero; every rule has
    rows, the largest number of neurons in each linear layer that it may change."""

    def __post_init__(self) -> None:
        """Refuse a strength together with a divergence."""
        if self.divergence is not None and self.strength != 1:
            raise UserError("--strength and --divergence both set the size: pass one of them.")

    def settings(self) -> dict[str, str]:
        """The rule's settings by name."""
        pairs = [setting.partition("=") for setting in self.set]
        for name, equals, value in pairs:
            if not (name and equals and value):
                raise UserError(f"--set {name}{equals}{value} is not of the form NAME=VALUE.")
        return {name: value for name, _, value in pairs}


@Parameter(name="*", group="Chat template")
@dataclass(frozen=True)
class ChatOptions:
    """How a model's chat template is used."""

    chat: str = "auto"
    """on: put texts into the template; off: use them as they are; auto: put conversations into it,
    and measure prompts both ways if the model has a template."""
    role: str = "assistant"
    """Whose turn a sentence of the concept is: assistant or user."""
    system: str = ""
    """The system message: the text, or a text file."""
    thinking: bool = False
    """Count what a model thinks before its reply as part of it, instead of cutting it off."""

    def settings(self) -> "Chat":
        """These options as a value."""
        from sordino.concepts.text_files import text_or_file
        from sordino.models.chat import Chat, Role, Use

        system = text_or_file(self.system, "system") if self.system else ""
        return Chat(cast("Use", self.chat), cast("Role", self.role), system, self.thinking)


@Parameter(name="*", group="Intervention")
@dataclass(frozen=True)
class RunRuleOptions(InterventionOptions):
    """The rule of a run, by default the one that we recommend."""

    intervention: Annotated[
        str,
        Parameter(
            help=with_others(
                "By default contrast at a divergence of 0.05, which we recommend. aura is the "
                "paper's. Others: selective, stratified, damp, det_zero, mean_shift, "
                "linear_transport; or the permuted control, shuffled.",
                "rules",
            ),
            show_default=False,
        ),
    ] = ""

    def decided(self) -> "RunRuleOptions":
        """The same with a rule, and with a divergence if neither rule nor size was given."""
        from sordino.pipeline import RunSettings

        chosen = RunSettings(self.intervention or None, self.strength, divergence=self.divergence)
        return replace(self, intervention=chosen.rule, divergence=chosen.decided().divergence)


@Parameter(name="*", group="Responses")
@dataclass(frozen=True)
class SweepOptions:
    """How responses are taken."""

    max_tokens: int = 128
    """Sentences are cut at this many tokens."""
    pooling: str = "max"
    """A neuron's response to a sentence: max (the paper's), mean or last."""
    batch_tokens: int | None = None
    """How many tokens to process at a time; by default 2,048, or more on a GPU."""
    stratify: str | None = None
    """Also measure the AUROC between sentences of the same stratum only: length, or a column of the
    data. For the intervention stratified."""
    moments: bool = False
    """Also measure the means of both classes, with --pooling mean. For mean_shift and
    linear_transport."""
    causal: str = ""
    """mean_shift or linear_transport: measure the means of each layer with this rule's maps on all
    layers before it, as their paper does; by default all are measured on the model as it is."""
    attribution: bool = False
    """Also measure, by gradients, each neuron's contribution to the likelihood of both classes, and
    the cost of changing it. For contrast."""
    attribution_per_class: int = 1000
    """The largest number of sentences per class for --attribution."""
    protect: str | None = None
    """Texts whose likelihood must not fall, for contrast: groups (harmless sentences about people
    of different gender, descent and religion), a text file or a table with a column text."""
    stream: Annotated[bool | None, Parameter(negative="--no-stream")] = None
    """Read the weights layer by layer from their files, for a model larger than memory; by default
    only if the model does not fit."""

    @property
    def strata_column(self) -> str | None:
        """The column that --stratify names, if it names one."""
        return None if self.stratify in (None, "length") else self.stratify

    def settings(self, chat: ChatOptions, *asked: "Asked") -> "SweepSettings":
        """The sweep's settings, including what interventions need."""
        from sordino.expertise import SweepSettings
        from sordino.expertise.statistic import Asked

        by_column = "column" if self.strata_column else self.stratify or ""
        return SweepSettings(
            self.max_tokens,
            self.pooling,
            self.batch_tokens,
            by_column or ("length" if Asked.STRATA in asked else ""),
            self.moments or Asked.MOMENTS in asked,
            chat.settings(),
            self.causal,
        )

    def attributing(self, seed: int, *asked: "Asked") -> "AttributionSettings | None":
        """The settings of attribution, if it is wanted or an intervention needs it."""
        from sordino.expertise import AttributionSettings
        from sordino.expertise.statistic import Asked

        if not (self.attribution or Asked.ATTRIBUTION in asked):
            if self.protect is not None:
                raise UserError(
                    "--protect needs attribution: pass --attribution, or use the intervention "
                    "contrast."
                )
            return None
        most, protected = self.attribution_per_class, list[str]()
        if self.protect is not None:
            from sordino.evaluation.measures.bold import protected_texts

            protected = protected_texts(self.protect, most, seed)
            progress.note(f"protected: {len(protected):,} texts ({printable(self.protect)})")
        return AttributionSettings(most, seed, tuple(protected))


@Parameter(name="*", group="Own samples")
@dataclass(frozen=True)
class OwnOptions:
    """What the model itself writes, for contrast."""

    own: bool = False
    """With --attribution, also measure the attribution to continuations of the model itself that a
    judge objects to; contrast then uses it as well."""
    own_prompts: str = "auto"
    """Prompts for these continuations, as for --prompts; prompts that are measured are left out."""
    own_judge: str = "auto"
    """What judges them: a scorer, as for --scorer, but none of those that measure; concept for a
    probe of the model, trained on the concept's sentences; auto for tox-block where the concept is
    insults or toxicity, for SCORER where it is judge:SCORER, else for concept."""
    own_max_prompts: int = 300
    """The largest number of prompts, drawn by --seed."""
    own_continuations: int = 8
    """Continuations of each prompt."""
    own_new_tokens: int = 20
    """Tokens of a continuation."""

    def plan(self) -> "OwnPlan | None":
        """The settings of own samples, if they are wanted."""
        return self.settings() if self.own else None

    def settings(self) -> "OwnPlan":
        """The settings of own samples."""
        from sordino.evaluation.own_samples import OwnPlan

        return OwnPlan(
            self.own_prompts,
            self.own_judge,
            self.own_max_prompts,
            self.own_continuations,
            self.own_new_tokens,
        )


@dataclass(frozen=True)
class AccessOptions:
    """How servers are asked; a subclass names the group in the help."""

    concurrency: int = 4
    """Concurrent requests per server."""
    request_timeout: float = 120
    """Seconds to wait for an answer."""
    retries: int = 5
    """How often a failed request is retried."""
    rate: float | None = None
    """The largest number of requests per minute and server."""

    def access(self, key_variable: str | None) -> "Access":
        """These, with the variable that holds the key."""
        from sordino.evaluation import Access

        return Access(key_variable, self.concurrency, self.request_timeout, self.retries, self.rate)


@Parameter(name="*", group="Judging")
@dataclass(frozen=True)
class JudgeOptions:
    """How answers are scored."""

    scorer: str = "auto"
    """As for evaluate: auto, alt-profanity-check, tox-block, hf:org/name, an address, …"""
    toxic_label: str | None = None
    """The classifier's label that means toxic, if it cannot be inferred."""
    judge_refusal: float | None = None
    """Score of an answer that a server's model refuses to judge, from 0 to 1."""


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class JsonOptions:
    """How results are printed, for commands that never replace anything."""

    json: bool = False
    """Print the result as JSON on standard output, without progress."""
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False
    """Show the libraries' own messages."""

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Apply these options to progress and messages; the work begins.

        Garbage is collected again from here on (see `sordino.cli.app.main`).
        """
        import gc
        import logging
        import warnings

        gc.enable()
        products = logging.getLogger("bitsandbytes")
        with ExitStack() as stack:
            if self.verbose:
                logging.basicConfig(level=logging.INFO)
            else:
                stack.enter_context(warnings.catch_warnings(action="ignore"))
                stack.callback(products.setLevel, products.level)
                products.setLevel(logging.ERROR)  # it has a line for every product
            if self.json:
                stack.enter_context(progress.hushed())
            yield


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class OutputOptions(JsonOptions):
    """How results are printed."""

    force: bool = False
    """Replace an existing output."""


def clean_texts(spec: str) -> str:
    """The source of ordinary text that an option names."""
    from sordino.evaluation.texts import KIT_PROSE

    return KIT_PROSE if spec == "kit" else spec


def open_in_browser(address: str, *, anyway: bool = False) -> None:
    """Open an address in the browser, unless that would be a text browser in this terminal.

    Args:
        address: The address.
        anyway: Open it even if there is no sign of a display.
    """
    import webbrowser

    windows = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if windows or anyway:
        webbrowser.open(address)


def print_lines(*lines: str) -> None:
    """Print lines on standard output, without control characters from foreign text."""
    for line in lines:
        print(progress.tame(line.replace("\n", " ")))


def print_columns(columns: Sequence[str], rows: Iterable[Sequence["str | Text"]]) -> None:
    """Print a table on standard output.

    Args:
        columns: The headings; without any, no heading is printed.
        rows: The cells. In those that are strings, nothing is markup or a control character.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")  # cells are never cut
    for row in rows:
        table.add_row(*(Text(progress.tame(c)) if isinstance(c, str) else c for c in row))
    console.print(table)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    from sordino.files import to_json

    print(to_json(value), end="")
