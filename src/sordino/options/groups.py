"""The options of a run: its model, its concept, its rule, and how neurons are found."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from cyclopts import Parameter

from sordino import progress
from sordino.errors import UserError
from sordino.registry import brought

if TYPE_CHECKING:
    from sordino.concepts.concept import Concept
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


@Parameter(name="*", group="Model")
@dataclass(frozen=True)
class OpeningOptions:
    """How the model is opened."""

    device: str = "auto"
    """Where it runs: auto (a GPU if there is one), cpu, cuda, cuda:1, mps, …; or all (every GPU of
    the machine, some of the layers on each)."""
    dtype: str = "auto"
    """auto (the checkpoint's own; float32 for GGUF), float32, bfloat16 or float16."""
    revision: str | None = None
    """Branch, tag or commit, for a model on the hub."""


@Parameter(name="*", group="Model")
@dataclass(frozen=True)
class ModelOptions(OpeningOptions):
    """How the model is opened, and which of its linear layers are measured."""

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

    def judged(self, own: "OwnOptions", strata_column: str | None) -> "Judged | None":
        """The concept as what a judge makes of own samples, if that is what was asked for."""
        from sordino.concepts.load import JUDGE
        from sordino.evaluation.judged import Judged

        if not self.concept.startswith(JUDGE):
            return None
        for name, value in {
            "negatives": self.negatives,
            "label": self.label,
            "text_column": self.text_column,
            "label_column": self.label_column,
            "positive": self.positive,
            "concept_config": self.concept_config,
            "concept_revision": self.concept_revision,
            "split": self.split,
            "stratify": strata_column,
        }.items():
            if value is not None:
                raise UserError(f"{self.concept} cannot be combined with `{name}`: leave it out.")
        taken = replace(own.settings(), judge=self.concept.removeprefix(JUDGE))
        return Judged(taken, self.max_per_class, self.balance)

    def counted(self, own: "OwnOptions", seed: int, strata_column: str | None) -> "Concept":
        """The concept for a plan, which counts its sentences."""
        if self.judged(own, strata_column) is not None:
            raise UserError(
                f"A plan counts sentences, and those of {self.concept} are not written yet: leave "
                "out `plan`."
            )
        return self.load(seed, strata_column)

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
            raise UserError("`strength` and `divergence` both set the size: pass one of them.")

    def settings(self) -> dict[str, str]:
        """The rule's settings by name."""
        pairs = [setting.partition("=") for setting in self.set]
        for name, equals, value in pairs:
            if not (name and equals and value):
                raise UserError(f"`set={name}{equals}{value}` is not of the form NAME=VALUE.")
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

    def stated(self) -> "RunRuleOptions":
        """The same, with the rule's own settings as well."""
        from sordino.interventions import RULES

        chosen = self.decided()
        sized = chosen.divergence is not None
        values = RULES.named(chosen.intervention).defaults(sized=sized) | chosen.settings()
        return replace(chosen, set=tuple(f"{name}={value}" for name, value in values.items()))


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
    protect: tuple[str, ...] = ()
    """What must not become less likely, for contrast; repeat for several. Texts: groups (harmless
    sentences about people of different gender, descent and religion), a text file or a table with a
    column text. For a chat model also refusals: what it itself replies to unsafe requests where it
    refuses them (the kit's requests; refusals:FILE for others, as for --refusal-prompts)."""
    stream: Annotated[bool | None, Parameter(negative="--no-stream")] = None
    """Read the weights layer by layer from their files, for a model larger than memory; by default
    only if the model does not fit."""

    @property
    def protects_refusals(self) -> bool:
        """Whether the model's refusals are protected."""
        return any(spec.partition(":")[0] == "refusals" for spec in self.protect)

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
            if self.protect:
                raise UserError(
                    "`protect` needs attribution: pass `attribution=True`, or use the intervention "
                    "contrast."
                )
            return None
        from sordino.evaluation.protection import protect

        most = self.attribution_per_class
        return AttributionSettings(most, seed, *protect(self.protect, most, seed))


@Parameter(name="*", group="Own samples")
@dataclass(frozen=True)
class OwnOptions:
    """What the model itself writes, for contrast."""

    own: Annotated[bool | None, Parameter(negative="--no-own")] = None
    """Also learn from continuations that the model itself writes and a judge scores. find does so
    only if asked, with --attribution. run does so by default for contrast, if the concept has a
    judge (insults, toxicity, judge:SCORER) or another --own option is given."""
    own_prompts: str = "auto"
    """Prompts for these continuations, as for --prompts; prompts that are measured, or begin like
    one that is, are left out. auto for what is left of --prompts and, where that is too little, for
    the other built-in prompts."""
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

    def of_run(self, *, judged: bool) -> "OwnPlan | bool | None":
        """The settings of own samples, False for none, or None where the run decides.

        Args:
            judged: Whether the concept's sentences are own samples, which the other options are for
                in any case.
        """
        if self.own is None:
            other = replace(self, own=None) != OwnOptions()
            return self.settings() if other and not judged else None
        return self.settings() if self.own else False

    def stated(self, plan: "OwnPlan | None") -> "OwnOptions":
        """The same, as a run decided it."""
        return replace(self, own=plan is not None, own_judge=plan.judge if plan else self.own_judge)

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


def clean_texts(spec: str) -> str:
    """The source of ordinary text that an option names."""
    from sordino.evaluation.texts import KIT_PROSE

    return KIT_PROSE if spec == "kit" else spec
