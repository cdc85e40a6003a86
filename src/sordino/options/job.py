"""A run, as its options describe it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.options.groups import (
    ChatOptions,
    ConceptOptions,
    ModelOptions,
    OwnOptions,
    RunRuleOptions,
    SweepOptions,
)
from sordino.options.measures import RunMeasureOptions, of_other_measures
from sordino.options.recipe import group_of, recipe_of, several

if TYPE_CHECKING:
    from sordino.evaluation import Measure
    from sordino.evaluation.judged import Judged
    from sordino.evaluation.own_samples import OwnPlan
    from sordino.expertise.plan import SweepPlan
    from sordino.expertise.statistic import Asked
    from sordino.pipeline import RunResult, RunSettings


@dataclass(frozen=True)
class Job:
    """A run, as its options describe it.

    Args:
        model: What `sordino.open_model` takes.
        seed: Of everything that is random.
        beside: Further rules to measure for comparison.
        concept: The sentences.
        rule: The rule and its size.
        how: What is measured.
        opening: How the model is opened.
        sweep: How neurons are found.
        chat: How the chat template is used.
        own: How own samples are taken.
    """

    model: str
    seed: int = 0
    beside: tuple[str, ...] = ()
    concept: ConceptOptions = field(default_factory=ConceptOptions)
    rule: RunRuleOptions = field(default_factory=RunRuleOptions)
    how: RunMeasureOptions = field(default_factory=RunMeasureOptions)
    opening: ModelOptions = field(default_factory=ModelOptions)
    sweep: SweepOptions = field(default_factory=SweepOptions)
    chat: ChatOptions = field(default_factory=ChatOptions)
    own: OwnOptions = field(default_factory=OwnOptions)

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any]) -> "Job":
        """The run that a recipe describes.

        Args:
            recipe: As `sordino.options.recipe.read` gives it, with a model.
        """
        return cls(
            recipe["model"],
            recipe.get("seed", 0),
            tuple(several(recipe.get("beside", ()))),
            group_of(ConceptOptions, recipe),
            group_of(RunRuleOptions, recipe),
            group_of(RunMeasureOptions, recipe),
            group_of(ModelOptions, recipe),
            group_of(SweepOptions, recipe),
            group_of(ChatOptions, recipe),
            group_of(OwnOptions, recipe),
        )

    @property
    def decided(self) -> RunRuleOptions:
        """The rule and its size, with all defaults decided."""
        return self.rule.decided()

    def plan(self) -> "SweepPlan":
        """What finding takes; see `sordino.plan_find`."""
        from sordino.expertise.find import plan_find
        from sordino.interventions import sites_for
        from sordino.pipeline import decide_own

        asked = self._asked()
        concept = self.concept.counted(self.own, self.seed, self.sweep.strata_column)
        return plan_find(
            self.model,
            concept,
            device=self.opening.device,
            dtype=self.opening.dtype,
            revision=self.opening.revision,
            sites=sites_for((self.decided.intervention, *self.beside), self.opening.sites),
            stream=self.sweep.stream,
            settings=self.sweep.settings(self.chat, *asked),
            attribution=self.sweep.attributing(self.seed, *asked),
            own=decide_own(self.settings().decided(), concept)[1],
        )

    def measures(self) -> "list[Measure]":
        """What is measured before and after, without a chat template and in it."""
        from sordino.evaluation.evaluator import forms
        from sordino.models.chat_template import fingerprint_of, template_of
        from sordino.models.reference import resolve

        found, chat = self.how.measures(), self.chat.settings()
        ref = resolve(self.model, self.opening.revision)
        template = None if chat.use == "off" else template_of(ref)
        if template is None:
            return found
        of_chat = self.how.measures_of_chat()
        kept, twins = forms([*found, *of_chat], chat, fingerprint_of(template))
        return [*kept, *twins]

    def run(
        self,
        output: Path,
        *,
        command: Sequence[str] = (),
        inputs: Sequence[object] = (),
        force: bool = False,
        cache: bool = False,
    ) -> "RunResult":
        """Carry it out; see `sordino.run`.

        Args:
            output: The folder to make, or the ".gguf" file.
            command: The command line that repeats it, for the page.
            inputs: Files that the caller has read, which the output must not overwrite.
            force: Replace an existing output.
            cache: Keep what is measured of the original.
        """
        from sordino.outputs import claim_output, model_kind, named_files
        from sordino.pipeline import run

        judged = self._judged
        named = named_files(*inputs, *vars(self.concept).values(), *vars(self.how).values())
        claim_output(output, model_kind(output), force=force, inputs=[self.model, *named])
        settings = self.settings()
        return run(
            self.model,
            judged or self.concept.load(self.seed, self.sweep.strata_column),
            output,
            settings,
            revision=self.opening.revision,
            command=command,
            recipe=self.recipe,
            force=force,
            cache=cache,
        )

    def settings(self) -> "RunSettings":
        """The settings of `sordino.run`."""
        from sordino.pipeline import RunSettings

        chosen, asked = self.decided, self._asked()
        return RunSettings(
            intervention=chosen.intervention,
            strength=chosen.strength,
            settings=chosen.settings(),
            divergence=chosen.divergence,
            clean=self.how.clean_texts,
            beside=self.beside,
            sweep=self.sweep.settings(self.chat, *asked),
            attribution=self.sweep.attributing(self.seed, *asked),
            own=self.own.of_run(judged=self._judged is not None),
            measures=self.how.measures(sizing=chosen.divergence is not None),
            measures_of_chat=self.how.measures_of_chat(),
            device=self.opening.device,
            dtype=self.opening.dtype,
            sites=self.opening.sites,
            stream=self.sweep.stream,
            seed=self.seed,
        )

    def recipe(self, measured: Sequence[str] = (), own: "OwnPlan | None" = None) -> str:
        """The run as a recipe, which states what decides the result.

        Args:
            measured: Names of the measures that were taken, which by default depend on the model;
                () for those of every model.
            own: How own samples are taken; None for none.
        """
        given = {"model": self.model, "seed": self.seed}
        how = self.how.stated(measured or [*dict.fromkeys(one.name for one in self.how.measures())])
        rule = self.rule.stated()
        return recipe_of(
            given | ({"beside": self.beside} if self.beside else {}),
            self.concept,
            rule,
            how,
            self.opening,
            self.sweep,
            self.chat,
            self.own.stated(own),
            idle=self._idle(how.measure, own),
        )

    @property
    def _judged(self) -> "Judged | None":
        """The concept if a judge makes it of own samples."""
        return self.concept.judged(self.own, self.sweep.strata_column)

    def _idle(self, measured: Sequence[str], own: "OwnPlan | None") -> set[str]:
        """The names of options that decide nothing in this run."""
        idle = of_other_measures(measured)
        if self.decided.divergence is not None:
            idle = (idle | {"strength"}) - {"texts"}
        if own is None and self._judged is None:
            idle |= {field.name for field in fields(self.own)} - {"own"}
        return idle

    def _asked(self) -> list["Asked"]:
        """What the rules need beside the AUROC."""
        from sordino.interventions import RULES

        names = (self.decided.intervention, *self.beside)
        return [one for name in names for one in RULES.named(name).asks]
