"""The lab of studies and searches: a model, its expertise, and dampened models compared with it."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sordino import progress as show
from sordino.concepts.concept import Concept
from sordino.concepts.text_files import one_line
from sordino.edits import bake
from sordino.errors import UserError
from sordino.evaluation import Arm, Evaluation, Measure, evaluate_each
from sordino.evaluation.hooks import hooked_on
from sordino.evaluation.texts import KIT_PROSE
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.find import find_experts
from sordino.expertise.own import OwnSamples, OwnSettings, sample
from sordino.expertise.refusals import OwnRefusals, RefusalSettings, find_refusals
from sordino.expertise.sweep import BATCH_TOKENS, SweepSettings
from sordino.files import fingerprint, read_json, to_json, write_json
from sordino.interventions import Dampening, Edit
from sordino.journal import Journal
from sordino.models.chat import AS_SEES_FIT, Chat
from sordino.models.open import OpenModel, open_model
from sordino.models.ranks import Ranks
from sordino.models.reference import ModelRef
from sordino.tuning.calibration import Yardstick, calibrate, clean_texts
from sordino.version import __version__
from sordino.work import KeptFiles

_FORMAT = "sordino-lab-2"
"""Other formats know what is stored by its name alone, so none is continued."""


@dataclass(frozen=True)
class Trial:
    """A dampened model of a study.

    Args:
        name: A short name.
        dampening: Its dampening.
        dial: The value that gave its divergence; None if it was not calibrated.
        baked: Measure it with its factors in the weights, instead of forward hooks: as "folder", or
            as "gguf" if the model is a GGUF file.
        rule: The rule, if trials are grouped by rule.
        concept: The dampened concept, if trials are grouped by concept.
    """

    name: str
    dampening: Edit
    dial: float | None = None
    baked: Literal["", "folder", "gguf"] = ""
    rule: str = ""
    concept: str = ""


class Lab:
    """A model and a folder that stores every result about it.

    Arms are measured with forward hooks, so that shifts need no bias and nothing is written.

    What is stored is found again by all that it depends on, and not by its name alone: with other
    settings it is made anew and stored beside the earlier one.

    Args:
        ref: The model.
        concept: What is dampened.
        folder: Where results are stored; a study that was killed continues from there.
        device: See `open_model`.
        dtype: In which arms are measured.
        find_dtype: In which neurons are found.
        seed: Of everything that is random.
        texts: Clean texts for calibration.
        sites: See `open_model`.
        chat: How the model's chat template is applied to sentences.

    Raises:
        UserError: The folder holds the work of another model, concept or setting.
    """

    def __init__(
        self,
        ref: ModelRef,
        concept: Concept,
        folder: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        find_dtype: str = "float32",
        seed: int = 0,
        texts: str = KIT_PROSE,
        sites: str | None = None,
        chat: Chat = AS_SEES_FIT,
    ) -> None:
        self.ref, self.concept, self.seed, self.texts = ref, concept, seed, texts
        self.device, self.dtype, self.find_dtype, self.sites = device, dtype, find_dtype, sites
        self.chat, self._folder = chat, folder
        self._finder: OpenModel | None = None
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / "lab.json"
        about = {
            "format": _FORMAT,
            "sordino_version": __version__,
            "weights": ref.weights_fingerprint(),
            "concept": concept.fingerprint,
            "device": device,
            "dtype": dtype,
            **({} if find_dtype == "float32" else {"find_dtype": find_dtype}),
            "seed": seed,
            "texts": texts,
            "sites": sites,
            **({} if chat == AS_SEES_FIT else {"chat": asdict(chat)}),
        }
        if not mark.exists():
            write_json(mark, about)
        elif read_json(mark) != about:
            raise UserError(
                f"{folder} holds the work of another model, concept, setting or version: choose "
                "another `output`, or remove it."
            )
        self._about = fingerprint(to_json(about))
        self._work = KeptFiles.open(folder, self._about) or KeptFiles(folder, self._about)
        self._take_over()

    def elsewhere(self, name: str, *, ref: ModelRef | None = None, dtype: str = "") -> "Lab":
        """A lab in a folder of this one, for another model or in another dtype."""
        return Lab(
            ref or self.ref,
            self.concept,
            self._folder / name,
            device=self.device,
            dtype=dtype or self.dtype,
            find_dtype=self.find_dtype,
            seed=self.seed,
            texts=self.texts,
            sites=self.sites,
            chat=self.chat,
        )

    def keep(self, name: str, lines: Sequence[str]) -> str:
        """Write texts to a file of the folder, one per line; its path, for a measure."""
        file = self._folder / name
        file.write_text("\n".join(map(one_line, lines)) + "\n", "utf-8")
        return str(file)

    def find(
        self,
        name: str,
        *,
        concept: Concept | None = None,
        sites: str | None = None,
        sweep: SweepSettings | None = None,
        attribution: AttributionSettings | None = None,
        own: OwnSettings | None = None,
        edited: Edit | None = None,
    ) -> Expertise:
        """An expertise of the model, found once with the same settings.

        With `edited`, it is that of the model under this edit: attribution is by a further change
        of what its neurons put out then.
        """
        about, pattern = concept or self.concept, sites or self.sites
        settings = replace(sweep or SweepSettings(), chat=self.chat)
        if own is not None and edited is None:
            own = replace(own, journal=self._journal(own))
        refusals = None if attribution is None else attribution.refusals
        if attribution is not None and refusals is not None and edited is None:
            kept = replace(refusals, journal=self._journal_of_refusals(refusals))
            attribution = replace(attribution, refusals=kept)

        def find(file: Path) -> None:
            show.note(f"finding: {name}")
            opened = replace(self.finder, site_pattern=pattern)
            with nullcontext() if edited is None else edited.applied(opened.model):
                find_experts(
                    opened, about, settings=settings, attribution=attribution, own=own, output=file
                )

        made_of = {
            "concept": [about.name, about.source, about.fingerprint],
            "sites": pattern,
            "sweep": asdict(settings),
            "attribution": attribution
            and {
                "per_class": attribution.per_class,
                "seed": attribution.seed,
                "protected": attribution.protected,
                **({} if refusals is None else {"refusals": refusals.metadata}),
            },
            "own": own and own.metadata,
            "edited": edited and edited.fingerprint,
        }
        return Expertise.load(self.kept(name, made_of, "expertise.safetensors", find))

    def own_samples(self, settings: OwnSettings) -> OwnSamples:
        """What the model itself writes, with a judge's scores; written once."""
        return sample(
            self.finder,
            settings,
            batch_tokens=BATCH_TOKENS,
            journal=self._journal(settings),
            ranks=Ranks(),
        )

    def own_refusals(self, settings: RefusalSettings) -> OwnRefusals:
        """What the model replies to unsafe requests where it refuses them; written once."""
        return find_refusals(
            self.finder,
            settings,
            self.chat,
            journal=self._journal_of_refusals(settings),
            ranks=Ranks(),
        )

    def _journal_of_refusals(self, settings: RefusalSettings) -> Path:
        """Where the model's replies to these requests are kept."""
        return self.path_of("own-refusals", settings.metadata, "jsonl")

    def _journal(self, settings: OwnSettings) -> Path:
        """Where what the model writes is kept, for all that take the same samples."""
        return self.path_of("own-samples", settings.written, "jsonl")

    def made(self, name: str, made_of: Any, make: Callable[[], Dampening]) -> Dampening:
        """A dampening that takes long to make, made once.

        Args:
            name: A short name.
            made_of: Everything that it depends on besides the lab itself, as JSON values.
            make: Makes it.
        """

        def save(file: Path) -> None:
            make().save(file, force=True)

        return Dampening.load(self.kept(name, made_of, "dampening.safetensors", save))

    def kept(self, name: str, made_of: Any, suffix: str, make: Callable[[Path], object]) -> Path:
        """The file that was made of this, made if there is none; arguments as for `made`."""
        file = self.path_of(name, made_of, suffix)
        if not self._work.holds(file.name, file):
            make(file)
            self._work.done(file.name, file)
        return file

    def path_of(self, name: str, made_of: Any, suffix: str) -> Path:
        """Where something that was made of this is kept in the folder."""
        return self._folder / f"{name}-{fingerprint(to_json(made_of))[:16]}.{suffix}"

    @property
    def finder(self) -> OpenModel:
        """The model for finding."""
        if self._finder is None:
            self._finder = open_model(
                self.ref, device=self.device, dtype=self.find_dtype, sites=self.sites
            )
        return self._finder

    @cached_property
    def opened(self) -> OpenModel:
        """The model for measuring arms; the one for finding is released."""
        self._finder = None
        gc.collect()
        return open_model(self.ref, device=self.device, dtype=self.dtype, sites=self.sites)

    @cached_property
    def _sizing_texts(self) -> list[str]:
        """Texts that no evaluation with the same seed uses."""
        return clean_texts(self.texts, seed=self.seed)

    @cached_property
    def yardstick(self) -> Yardstick:
        """Measures divergences, on texts that no evaluation with the same seed uses."""
        return Yardstick(self.opened, self._sizing_texts, self.seed)

    def divergence(self, trial: Trial) -> float:
        """The divergence of a trial on the yardstick's texts, measured once."""
        key = self._key("divergence", trial.dampening.fingerprint)
        found = self._values(key)
        if not found:
            found = [self.yardstick.divergence(trial.dampening)]
            self._store(key, found)
        return float(found[0])

    def sized(
        self,
        name: str,
        family: Callable[[float], Edit],
        budget: float,
        *,
        start: float | None = None,
        rule: str = "",
        concept: str = "",
    ) -> Trial | None:
        """The trial of that name, as strong as the budget allows; None if it cannot fill it."""
        trial, reached = self._calibrate(name, family, budget, start)
        return replace(trial, rule=rule, concept=concept) if reached else None

    def largest(
        self,
        name: str,
        family: Callable[[float], Edit],
        budget: float,
        *,
        start: float | None = None,
    ) -> Trial:
        """The trial of that name, as strong as the budget allows or as possible."""
        return self._calibrate(name, family, budget, start)[0]

    def _calibrate(
        self, name: str, family: Callable[[float], Edit], budget: float, start: float | None
    ) -> tuple[Trial, bool]:
        """A trial and whether it fills the budget.

        A family is a function and has no digest. So a stored size is taken only if the family gives
        the very dampening there whose divergence was measured.
        """
        key = self._key(name, budget, start)
        for size in self._values(key):
            made = family(size["dial"])
            if made.fingerprint == size["dampening"]:
                return Trial(name, made, size["dial"]), size["reached"]
        found = calibrate(self.yardstick, family, budget, start=start)
        about = {"dial": found.dial, "divergence": found.divergence, "reached": found.reached}
        self._store(key, [about | {"dampening": found.dampening.fingerprint}])
        return Trial(name, found.dampening, found.dial), found.reached

    def compare(
        self, trials: Sequence[Trial], measures: Sequence[str | Measure]
    ) -> list[Evaluation]:
        """Compare each trial with the original; the records are stored for later calls.

        The evaluations name texts that the lab keeps by their files alone, wherever its folder is.
        """
        original = Arm.of(self.ref, lambda: nullcontext(self.opened))
        found = evaluate_each(
            [self._arm(trial) for trial in trials],
            original,
            measures=measures,
            device=self.device,
            dtype=self.dtype,
            seed=self.seed,
            records=self._folder / "records.jsonl",
        )
        return [self._without_folder(evaluation) for evaluation in found]

    def _without_folder(self, evaluation: Evaluation) -> Evaluation:
        measures = {
            key: result.model_copy(
                update={
                    "protocol": {name: self._by_file(of) for name, of in result.protocol.items()}
                }
            )
            for key, result in evaluation.measures.items()
        }
        return evaluation.model_copy(update={"measures": measures})

    def _by_file(self, value: Any) -> Any:
        """A file of the folder by its name; any other value as it is."""
        is_own = isinstance(value, str) and Path(value).parent == self._folder
        return Path(value).name if is_own else value

    def _arm(self, trial: Trial) -> Arm:
        if trial.baked:
            return self._bake(trial)

        def lend() -> AbstractContextManager[OpenModel]:
            show.note(f"measuring: {trial.name}")
            return nullcontext(self.opened)

        return hooked_on(self.ref, trial.dampening, lend, name=f"{self.ref.name} {trial.name}")

    def _bake(self, trial: Trial) -> Arm:
        """A trial written to files, which stay in the folder."""
        suffix = ".gguf" if trial.baked == "gguf" else ""
        dampening = trial.dampening
        if not isinstance(dampening, Dampening):
            raise TypeError(f"{trial.name} has no factors to be baked")
        target = self._folder / f"baked-{trial.dampening.fingerprint[:16]}{suffix}"

        @contextmanager
        def opened() -> Iterator[OpenModel]:
            if not self._work.holds(target.name, target):
                show.note(f"writing: {trial.name}")
                bake(self.ref, dampening, target)
                self._work.done(target.name, target)
            show.note(f"measuring: {trial.name}")
            yield open_model(target, device=self.device, dtype=self.dtype)

        changes = trial.dampening.fingerprint, trial.baked
        return Arm.of(self.ref, opened, *changes, name=f"{self.ref.name} {trial.name}")

    def _key(self, name: str, *about: object) -> str:
        """The key of a value that was measured on the sizing texts."""
        return f"{name} {fingerprint(to_json(about), *self._sizing_texts)[:16]}"

    def _values(self, key: str) -> list[Any]:
        """The small values that were measured under a key."""
        with closing(self._open_values()) as journal:
            return [value for values in journal.batches(key) for value in values]

    def _store(self, key: str, values: list[Any]) -> None:
        with closing(self._open_values()) as journal:
            journal.add(key, values)

    def _open_values(self) -> Journal:
        """The values by key; closed at once, since another lab can have this folder."""
        return Journal(self._folder / "values.jsonl", self._about)

    def _take_over(self) -> None:
        """Take over the values of a folder in which they were one file, and no journal."""
        file = self._folder / "values.json"
        if file.exists() and self._work.holds(file.name, file):
            for key, found in read_json(file).items():
                self._store(key, found if isinstance(found, list) else [found])
            file.unlink()
