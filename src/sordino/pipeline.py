"""The whole job: find, bake, evaluate, report."""

import gc
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from sordino import progress as show
from sordino.concepts.concept import Concept, refuse_unloaded
from sordino.edits import read_provenance
from sordino.edits.baking import BASE_CARD, bake, claim_model
from sordino.edits.biases import can_shift
from sordino.edits.provenance import EXTRAS, GGUF, extras_of
from sordino.edits.safetensors_folder import refuse_needed_outside
from sordino.errors import UserError, refuse_text
from sordino.evaluation import (
    Arm,
    Evaluation,
    Measure,
    Prepared,
    evaluate,
    evaluate_each,
    measure,
    prepare,
    with_chat,
)
from sordino.evaluation.hooks import hooked_on
from sordino.evaluation.judged import Judged, JudgedSamples
from sordino.evaluation.opening import AUTO
from sordino.evaluation.own_samples import OwnPlan
from sordino.evaluation.result import samples_path
from sordino.evaluation.texts import KIT_PROSE
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.find import find_experts
from sordino.expertise.own import OwnSettings
from sordino.expertise.statistic import Asked, Statistic
from sordino.expertise.sweep import SweepSettings
from sordino.extras import require, started_as
from sordino.files import (
    clear_staging,
    drop_link,
    fingerprint,
    flush,
    has_suffix,
    name_part,
    only_one,
    publish,
    read_json,
    staging_path,
    to_json,
    write_json,
    write_text,
)
from sordino.interventions import (
    RULES,
    Dampening,
    dampen,
    family,
    sites_for,
)
from sordino.models.chat_template import template_of
from sordino.models.folder import piece_files
from sordino.models.open import OpenModel, has_to_stream, open_model
from sordino.models.reference import ModelRef, resolve
from sordino.models.sites import find_sites
from sordino.outputs import MODEL_EXTRAS, claim_output
from sordino.report.card import model_card
from sordino.report.exemplars import Exemplar, exemplars
from sordino.report.page import RunRecord, write_page
from sordino.tuning.calibration import sized, sizing_texts
from sordino.version import __version__
from sordino.work import WorkFolder

RECOMMENDED_RULE, RECOMMENDED_DIVERGENCE = "contrast", 0.05
"""The rule of a run that does not name one, and its divergence in nats per token."""
MEASURED, MEASURED_OF_CHAT = ("toxicity", "perplexity"), ("refusals", "piqa")
"""What a run measures of every model, and as well of one whose chat template is used."""
_CARD = "README.md"
_PACKAGES = ("sordino", "torch", "transformers", "safetensors", "numpy", "numba", "scipy")


@dataclass(frozen=True)
class RunResult:
    """The outputs of a run.

    Args:
        folder: The dampened model's folder, or its GGUF file.
        expertise: The expertise file.
        evaluation: The figures before and after; None where the model is larger than memory.
        beside: The figures of the rules for comparison, by name.
        page: The page to open.
    """

    folder: Path
    expertise: Path
    evaluation: Evaluation | None
    beside: Mapping[str, Evaluation]
    page: Path


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a run's result, except the model and the concept.

    Args:
        intervention: The rule's name; None for the recommended one, `contrast` at a divergence of
            0.05. A named rule is applied at `strength`, unless a divergence is given; "aura" is the
            paper's.
        strength: See `Dampening.scaled`.
        settings: The rule's own settings.
        divergence: Make the change as large as this measured divergence from the original allows,
            in nats per token, instead.
        clean: Texts on which that is measured.
        beside: Further rules to measure for comparison, at strength 1; no model is written for
            them.
        sweep: How responses are taken.
        attribution: How attribution is measured; None for the default if a rule needs it.
        own: How own samples are taken; their prompts and judge are none of the measures'. True for
            `OwnPlan()`, False for none. By default they are taken if the rule uses them and their
            judge is known: that of a `Judged` concept, or the one a concept names
            (`Concept.judge`).
        measures: What is measured before and after; None for toxicity and perplexity and, of a
            model whose chat template is used, refusals and PIQA.
        measures_of_chat: What is measured as well of such a model, beside `measures`.
        device: See `open_model`.
        dtype: See `open_model`.
        sites: See `open_model`; None for each rule's own, which for some include the linear layers
            of attention (`in_attention` of `sordino.interventions.registry.Rule`).
        stream: See `find_experts`.
        seed: Of everything that is random.

    Example:
        >>> sordino.RunSettings(divergence=0.1, seed=3).rule
        'contrast'
    """

    intervention: str | None = None
    strength: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    divergence: float | None = None
    clean: str = KIT_PROSE
    beside: Sequence[str] = ()
    sweep: SweepSettings = field(default_factory=SweepSettings)
    attribution: AttributionSettings | None = None
    own: OwnPlan | bool | None = None
    measures: Sequence[str | Measure] | None = None
    measures_of_chat: Sequence[str | Measure] = ()
    device: str = "auto"
    dtype: str = "auto"
    sites: str | None = None
    stream: bool | None = None
    seed: int = 0

    @property
    def rule(self) -> str:
        """The rule's name, whether it was given or not."""
        return self.intervention or RECOMMENDED_RULE

    @property
    def asked(self) -> set[Asked]:
        """What the rules need beside the AUROC."""
        return {one for name in (self.rule, *self.beside) for one in RULES.named(name).asks}

    @property
    def whole_sweep(self) -> SweepSettings:
        """How neurons are found, with what the rules need.

        Raises:
            UserError: Something that they need does not go with the other settings.
        """
        by_length = Asked.STRATA in self.asked and not self.sweep.stratify
        return replace(
            self.sweep,
            stratify="length" if by_length else self.sweep.stratify,
            moments=self.sweep.moments or Asked.MOMENTS in self.asked,
        )

    def decided(self) -> "RunSettings":
        """The settings with all defaults decided."""
        refuse_text(beside=self.beside)
        open_size = self.intervention is None and self.divergence is None and self.strength == 1
        needed = self.asked
        attribution = AttributionSettings(seed=self.seed) if Asked.ATTRIBUTION in needed else None
        by_default = self.measures is None
        return replace(
            self,
            intervention=self.rule,
            divergence=RECOMMENDED_DIVERGENCE if open_size else self.divergence,
            attribution=self.attribution or attribution,
            measures=MEASURED if self.measures is None else self.measures,
            measures_of_chat=MEASURED_OF_CHAT if by_default else self.measures_of_chat,
        )


def run(
    model: str | Path | ModelRef,
    concept: Concept | Judged,
    output: str | Path,
    settings: RunSettings | None = None,
    *,
    revision: str | None = None,
    command: Sequence[str] = (),
    recipe: Callable[[Sequence[str], OwnPlan | None], str] | None = None,
    force: bool = False,
    cache: bool = False,
) -> RunResult:
    """Find a concept's expert neurons, dampen them, measure the effect and write a report.

    The output is a folder that plain transformers loads; the figures, the page and the expertise
    are in its `sordino/` folder. From a GGUF file it can be a GGUF file, with the rest in the
    folder `NAME.sordino` beside it. Every finished step is kept, and an interrupted run continues
    from there.

    Args:
        model: What `sordino.open_model` takes.
        concept: The labelled sentences, or a judge of what the model itself writes.
        output: The folder to make, or the ".gguf" file.
        settings: The rest.
        revision: A branch, tag or commit of the hub.
        command: The command line that repeats the run, for the page.
        recipe: Makes the same as a recipe, to be kept with the figures, of the names of what was
            measured and of how own samples were taken; None for none.
        force: Replace an existing output.
        cache: Keep what is measured of the original in the cache folder, and take it from there if
            nothing that decides it has changed since; see `sordino.evaluation.kept`.

    Returns:
        The paths of the outputs, and the figures.

    Raises:
        UserError: An input cannot be used.

    Example:
        >>> perplexity = sordino.Perplexity("prose.txt", max_texts=8)
        >>> settings = sordino.RunSettings(measures=[perplexity])
        >>> result = sordino.run("tiny", concept, "ran", settings)
        >>> result.page.name
        'report.html'
    """
    require("report", "The page of a run")
    refuse_unloaded(concept)
    chosen = (settings or RunSettings()).decided()
    chosen = replace(chosen, sweep=chosen.whole_sweep)
    by_divergence = chosen.divergence is not None
    RULES.named(chosen.rule).read(chosen.settings, sized=by_divergence)
    for rule in chosen.beside:
        RULES.named(rule).read({}, sized=False)
    # What will be needed hours later is opened now, before a model is even downloaded.
    assert chosen.measures is not None  # all is decided
    ready = prepare(chosen.measures, compared=True, device=chosen.device, seed=chosen.seed)
    clean = [] if chosen.divergence is None else sizing_texts(chosen.clean, chosen.seed)
    ref = resolve(model, revision)
    target = claim_model(ref, output, force=force)
    if len(piece_files(target)) > 1:
        raise UserError(
            f"`output={output}` names one of several files, and a run writes its model as one: "
            "give a name without numbers, or take its expertise and bake that."
        )
    if ref.kind == "folder":
        refuse_needed_outside(ref.path)
    if has_suffix(target, GGUF):
        claim_output(extras_of(target), MODEL_EXTRAS, force=force)
    ready = with_chat(_with_measures_of_chat(ready, chosen, ref), chosen.sweep.chat, ref)
    plan, own = decide_own(chosen, concept, ready)
    chosen = replace(chosen, own=plan or False)
    written = recipe(ready.names, plan) if recipe else ""
    if chosen.attribution is not None:
        chosen = replace(chosen, attribution=chosen.attribution.apart_from(ready.texts))
    with only_one(target):
        steps = _begin(ref, concept, target, chosen, own, ready, clean, cache=cache)
        steps.refuse_what_needs_memory()
        expertise = steps.find()
        dampening = steps.dampen(expertise)
        shown = steps.exemplars(expertise)
        steps.bake(dampening)
        beside = steps.evaluate_beside(expertise)
        evaluation = steps.evaluate()
        steps.report(expertise, dampening, evaluation, beside, shown, command)
        steps.publish(written)
    extras = extras_of(target)
    return RunResult(
        target, extras / steps.expertise.name, evaluation, beside, extras / "report.html"
    )


def decide_own(
    settings: RunSettings, concept: Concept | Judged, measured: Prepared | None = None
) -> tuple[OwnPlan | None, OwnSettings | None]:
    """How a run takes own samples: as its settings say or, if they leave it open, where it can.

    Args:
        settings: The run's.
        concept: Its concept.
        measured: Its measures; None for those that are not known yet.

    Returns:
        The plan, and the prompts and judge that it takes; neither without own samples, and the plan
        alone if they are the sentences of a `Judged` concept.

    Raises:
        UserError: The plan that was asked for cannot be carried out.
    """
    given = settings.own
    used = Statistic.OWN in RULES.named(settings.rule).uses
    used = used and settings.settings.get("evidence") != "corpus"
    if given is False or (given is None and not used):
        return None, None
    itself = concept.plan if isinstance(concept, Judged) else OwnPlan()
    plan = given if isinstance(given, OwnPlan) else itself
    if isinstance(concept, Judged):
        plan = replace(plan, judge=itself.judge) if plan.judge == AUTO else plan
        if plan == itself:
            return plan, None
    elif given is None:
        if not concept.judge:
            show.note(
                f"own samples are left out, for no scorer is known to recognise {concept.name}: "
                "give `own_judge`, or `own` for a probe of the model as the judge"
            )
            return None, None
        plan = replace(plan, judge=concept.judge)
    try:
        return plan, plan.settings(
            None if isinstance(concept, Judged) else concept,
            seed=settings.seed,
            device=settings.device,
            chat=settings.sweep.chat,
            measured=measured,
        )
    except UserError as error:
        if given is not None:
            raise
        show.note(f"warning: own samples are left out: {error}")
        return None, None


def _with_measures_of_chat(ready: Prepared, settings: RunSettings, ref: ModelRef) -> Prepared:
    """What is ready, with what is measured as well of a model whose chat template is used.

    What is not available here is left out: nobody has asked for it by name.
    """
    if settings.sweep.chat.use == "off" or template_of(ref) is None:
        return ready
    known = {one.key for one in ready.measures}
    for one in map(measure, settings.measures_of_chat):
        if one.key in known:
            continue
        try:
            more = prepare([one], compared=True, device=settings.device, seed=settings.seed)
        except UserError as error:
            show.note(f"warning: {one.name} is not measured: {error}")
        else:
            ready = ready.joined(more)
    return ready


def _begin(
    ref: ModelRef,
    concept: Concept | Judged,
    target: Path,
    settings: RunSettings,
    own: OwnSettings | None,
    ready: Prepared,
    clean: Sequence[str],
    *,
    cache: bool,
) -> "_Steps":
    """The steps of a run, after its sentences are there."""
    opened, judged = None, None
    if isinstance(concept, Judged):
        opened = _open(ref, settings)
        judged = concept.samples(
            opened,
            target,
            seed=settings.seed,
            device=settings.device,
            chat=settings.sweep.chat,
            measured=ready,
        )
        own = judged.own if settings.own == concept.plan else own
        concept = judged.concept
    ready.note_shared_sentences(concept.source)
    return _Steps(ref, concept, target, settings, own, ready, clean, opened, judged, cache=cache)


def _open(ref: ModelRef, settings: RunSettings) -> OpenModel:
    """The original, with the sites of all rules."""
    show.note(f"opening {ref.name}")
    return open_model(
        ref,
        device=settings.device,
        dtype=settings.dtype,
        sites=_sites(settings),
        stream=settings.stream,
    )


def _sites(settings: RunSettings) -> str | None:
    """The sites to search: those of all rules together."""
    return sites_for((settings.rule, *settings.beside), settings.sites)


class _Steps:
    """The steps of a run; each writes a file to the work folder and is skipped if that is valid."""

    def __init__(
        self,
        ref: ModelRef,
        concept: Concept,
        target: Path,
        settings: RunSettings,
        own: OwnSettings | None,
        ready: Prepared,
        clean: Sequence[str],
        opened: OpenModel | None,
        judged: JudgedSamples | None,
        *,
        cache: bool,
    ) -> None:
        self._ref, self._concept, self._target, self._settings = ref, concept, target, settings
        self._ready, self._clean, self._cache = ready, clean, cache
        self._opened, self._judged, self._own = opened, judged, own
        key = fingerprint(
            ref.weights_fingerprint(),
            concept.fingerprint,
            repr(replace(settings, stream=None)),  # it gives the same bytes either way
            to_json(_contents(own, ready, clean)),
            __version__,
        )
        self._steps = _begun(target, key)
        self._work = self._steps.folder
        self._model = self._work / f"model{GGUF if self._is_file else ''}"
        self.expertise = self._work / f"{name_part(concept.name)}.expertise.safetensors"
        self._size = self._work / "size.json"
        self._exemplars = self._work / "exemplars.json"
        self._records = self._work / "records.jsonl"
        self._evaluation = self._work / "evaluation.json"

    @property
    def _is_file(self) -> bool:
        return has_suffix(self._target, GGUF)

    def refuse_what_needs_memory(self) -> None:
        """Refuse early that a divergence cannot be measured on a model larger than memory."""
        if self._settings.divergence is not None and self._is_too_large():
            raise UserError(
                f"The divergence that sizes it is measured, for which {self._ref.name} does "
                f"not fit into memory: give `intervention={self._settings.rule}` alone (or with "
                "`strength`), for the rule's own size, or use a machine with more memory."
            )

    def find(self) -> Expertise:
        if not self._steps.holds("find", self.expertise):
            self._refuse_unbakeable()
            find_experts(
                self._original(),
                self._concept,
                settings=self._settings.sweep,
                attribution=self._settings.attribution,
                own=self._own,
                output=self.expertise,
            )
            self._steps.done("find", self.expertise)
        self._own = None  # a judge takes memory
        return Expertise.load(self.expertise)

    def dampen(self, expertise: Expertise) -> Dampening:
        """The intervention, at the strength or divergence that was asked for."""
        chosen = self._settings
        expertise = self._at_its_sites(chosen.rule, expertise)
        if chosen.divergence is None:
            return dampen(expertise, chosen.rule, strength=chosen.strength, **chosen.settings)
        if not self._steps.holds("size", self._size):
            found = sized(
                self._whole_original(),
                expertise,
                chosen.divergence,
                intervention=chosen.rule,
                settings=chosen.settings,
                texts=self._clean,
                seed=chosen.seed,
            )
            write_json(self._size, {"dial": found.dial})
            self._steps.done("size", self._size)
        sizes = family(expertise, chosen.rule, **chosen.settings)
        return sizes(read_json(self._size)["dial"])

    def exemplars(self, expertise: Expertise) -> list[Exemplar]:
        kind = TypeAdapter(list[Exemplar])
        if not self._steps.holds("exemplars", self._exemplars):
            found = exemplars(
                self._original(),
                self._concept,
                expertise,
                max_tokens=self._settings.sweep.max_tokens,
            )
            write_json(self._exemplars, kind.dump_python(found, mode="json"))
            self._steps.done("exemplars", self._exemplars)
        return kind.validate_python(read_json(self._exemplars))

    def bake(self, dampening: Dampening) -> None:
        # The card beside a folder's weights is written again at the end.
        if not self._steps.holds("bake", self._model, apart=_CARD):
            show.note("writing the dampened model")
            bake(self._ref, dampening, self._model, opened=self._opened)
            self._steps.done("bake", self._model, apart=_CARD)

    def evaluate_beside(self, expertise: Expertise) -> dict[str, Evaluation]:
        """The figures of the rules for comparison, measured in memory."""
        arms = []
        for rule in self._settings.beside:
            dampening = dampen(self._at_its_sites(rule, expertise), rule)
            arms.append(hooked_on(self._ref, dampening, self._keep_original, name=rule))
        if not arms or self._is_too_large():
            return {}
        found = evaluate_each(
            arms,
            Arm.of(self._ref, self._keep_original),
            measures=self._ready,
            device=self._settings.device,
            dtype=self._settings.dtype,
            seed=self._settings.seed,
            records=self._records,
            cache=self._cache,
        )
        return dict(zip(self._settings.beside, found, strict=True))

    def evaluate(self) -> Evaluation | None:
        results = self._evaluation, samples_path(self._evaluation)
        if not self._steps.holds("evaluate", *results):
            if self._is_too_large():
                show.note(
                    f"{self._ref.name} does not fit into memory, so the effect is not measured "
                    f"now: run {started_as()} evaluate {self._target} --against {self._ref.name} "
                    "-o result.json, which reads the weights for each token here, or is faster on "
                    "a machine with more memory"
                )
                return None
            kind: Literal["gguf", "folder"] = "gguf" if self._is_file else "folder"
            baked = ModelRef(self._target.name, kind, self._model)
            evaluate(
                Arm.of(baked, partial(self._measured, baked)),
                Arm.of(self._ref, self._lend_original),
                measures=self._ready,
                device=self._settings.device,
                dtype=self._settings.dtype,
                seed=self._settings.seed,
                output=self._evaluation,
                records=self._records,
                force=True,
                cache=self._cache,
            )
            self._steps.done("evaluate", *results)
        return Evaluation.load(self._evaluation)

    def report(
        self,
        expertise: Expertise,
        dampening: Dampening,
        evaluation: Evaluation | None,
        beside: Mapping[str, Evaluation],
        shown: Sequence[Exemplar],
        command: Sequence[str],
    ) -> None:
        record = RunRecord(
            expertise=expertise,
            dampening=dampening,
            concept_source=self._concept.source,
            command=shlex.join(command),
            divergence=self._settings.divergence,
            evaluation=evaluation,
            beside=beside,
            exemplars=tuple(shown),
            versions={name: version(name) for name in _PACKAGES},
        )
        for name, of in beside.items():
            of.model_copy(update={"samples": {}}).save(self._work / _beside(name), force=True)
        write_page(record, self._work / "report.html", force=True)
        base = self._model / BASE_CARD
        card = model_card(
            read_provenance(self._model),
            evaluation,
            base.read_text(encoding="utf-8", errors="replace") if base.exists() else None,
            file=self._target.name if self._is_file else "",
        )
        place = self._work if self._is_file else self._model
        write_text(place / _CARD, card)

    def publish(self, recipe: str) -> None:
        """Copy the other files into the model's folder, and move that to its final name.

        What takes long comes first, and nothing of it takes a file from the work: a run that is
        killed there continues from what was found and measured.
        """
        flush(self._model)
        extras = (self._work if self._is_file else self._model) / EXTRAS
        extras.mkdir(exist_ok=True)
        if recipe:
            (extras / "recipe.toml").write_text(recipe, encoding="utf-8")
        for name in (
            self.expertise.name,
            self._evaluation.name,
            samples_path(self._evaluation).name,
            *(_beside(name) for name in self._settings.beside),
            "report.html",
            _CARD,
        ):
            if (self._work / name).exists():
                shutil.copyfile(self._work / name, extras / name)
        if self._judged is not None:
            shutil.copyfile(self._judged.file, extras / self._judged.file.name)
        flush(extras)
        if self._is_file:
            publish(extras, extras_of(self._target))
        publish(self._model, self._target)
        shutil.rmtree(self._work)
        if self._judged is not None:
            self._judged.drop()

    def _at_its_sites(self, rule: str, expertise: Expertise) -> Expertise:
        """The expertise at the sites of a rule."""
        if _sites(self._settings) == self._settings.sites or RULES.named(rule).in_attention:
            return expertise
        return expertise.at({site.path for site in find_sites(self._original().model)})

    def _refuse_unbakeable(self) -> None:
        """Refuse early that a rule with shifts cannot be baked into this model."""
        rule = self._settings.rule
        if not RULES.named(rule).shifts:
            return
        opened = self._original()
        if not can_shift(opened.model, [site.path for site in opened.sites]):
            raise UserError(
                f"{rule} shifts outputs, and {self._ref.name} has no biases to hold that and no "
                "setting that makes some: choose a rule without shifts, such as aura, or use "
                f"`{started_as()} find` and then `{started_as()} bake` with `format=hooks`, which "
                "writes the shifts to a separate file."
            )

    def _original(self) -> OpenModel:
        if self._opened is None:
            self._opened = _open(self._ref, self._settings)
        return self._opened

    def _keep_original(self) -> AbstractContextManager[OpenModel]:
        return nullcontext(self._whole_original())

    def _whole_original(self) -> OpenModel:
        """The original in memory as a whole.

        The sweep may have read it layer by layer: because that was asked for, or because memory was
        short for a while.
        """
        if self._opened is None or self._opened.streamed:
            self._opened = _open(self._ref, replace(self._settings, stream=False))
        return self._opened

    def _is_too_large(self) -> bool:
        """Whether the model does not fit into memory, so that `evaluate` has to measure it."""
        if self._opened and not self._opened.streamed:
            return False
        return has_to_stream(self._ref, self._settings.device, self._settings.dtype)

    @contextmanager
    def _lend_original(self) -> Iterator[OpenModel]:
        """The original for its part of the evaluation, closed afterwards."""
        try:
            yield self._whole_original()
        finally:
            self._opened = None
            gc.collect()

    @contextmanager
    def _measured(self, baked: ModelRef) -> Iterator[OpenModel]:
        """The baked model, read from its files; the original is closed first, to make room."""
        self._opened = None
        gc.collect()
        chosen = self._settings
        yield open_model(baked, device=chosen.device, dtype=chosen.dtype)


def _contents(own: OwnSettings | None, ready: Prepared, clean: Sequence[str]) -> list[Any]:
    """What is in the files that settings only name, as JSON values."""
    protocols = {name: dict(task.protocol) for name, task in ready.tasks.items()}
    return [own and own.metadata, protocols, list(clean)]


def _beside(rule: str) -> str:
    """The file with the figures of a rule for comparison."""
    return f"evaluation-{rule}.json"


def _begun(target: Path, key: str) -> WorkFolder:
    """The finished steps of this run; none if the work folder is from another run."""
    work = drop_link(staging_path(target))
    if steps := WorkFolder.open(work, key):
        return steps
    if work.exists():
        show.note("discarding an unfinished run with other settings or texts")
    clear_staging(target).mkdir(parents=True)
    steps = WorkFolder(work, key)
    steps.write()
    return steps
