"""What is pushed: an allow list of an output's files, without this machine's folders."""

import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from sordino.edits import gguf_record, is_dampened, read_provenance
from sordino.edits.baking import BASE_CARD
from sordino.edits.formats import FORMATS
from sordino.edits.provenance import (
    BEFORE,
    DAMPENING,
    EARLIER,
    EXTRAS,
    GGUF,
    GGUF_COPY,
    extras_of,
)
from sordino.errors import UserError
from sordino.evaluation import Evaluation
from sordino.expertise import Expertise
from sordino.files import has_suffix, printable, read_json, to_json, user_path
from sordino.folders import Folders, is_path, of_this_machine, texts
from sordino.interventions import Dampening
from sordino.interventions.dampening import Origin
from sordino.models.folder import (
    OUTSIDE,
    is_of_model,
    is_settings,
    is_terms,
    list_files,
    piece_files,
)
from sordino.models.reference import ModelRef
from sordino.outputs import RECORD
from sordino.progress import note
from sordino.records import parse_toml, read_bytes
from sordino.report.card import without_own_words
from sordino.report.page import RunRecord, render
from sordino.sharing import cards
from sordino.sharing.eval_results import eval_results, not_listed

CARD = "README.md"
EXPERTISE = ".expertise.safetensors"
_SAMPLES = "it holds texts in the clear; --samples includes it"
_BESIDE = f"{EXTRAS}/evaluation-"
_FOREIGN = "it is not part of the model"
# Settings in a model's files that can name a folder.
_PLACES = ("name_or_path", "_file", "_path", "_dir", "_folder")
# Settings that hold text, which may look like a path.
_WORDS = ("chat_template", "added_tokens_decoder", "additional_special_tokens", "vocab")


@dataclass
class Bundle:
    """The files to push.

    Args:
        kind: "model", "adapter" (factors that are put on a model) or "expertise" (or dampening).
        files: Files, or their content, by their path in the repository.
        left_out: Why files are not pushed, by path.
        changed: How files were changed before the push, by path, if by more than removing folders.
    """

    kind: str
    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)


@contextmanager
def bundle(
    subject: str | Path,
    repository: str,
    *,
    license: str | None = None,
    base_model: str | None = None,
    samples: bool = False,
) -> Iterator[Bundle]:
    """Collect the files of an output that are pushed; rewritten ones are in a temporary folder.

    Only files that Sordino wrote and files that a model consists of are pushed. The others are
    listed as left out.

    Args:
        subject: A folder or a ".gguf" file that Sordino wrote, an expertise or a dampening.
        repository: Its name on the hub, for the card.
        license: The original's licence, by the hub's name for it, if its card names none.
        base_model: The hub's name of the original, if the record has none.
        samples: Include the continuations, which hold harmful text in the clear.

    Raises:
        UserError: `subject` is none of these, its licence is unknown, a name cannot be one of the
            hub's, or the user's own words in the card name a folder of this machine.
    """
    source = user_path(subject)
    for name in filter(None, (repository, base_model)):
        _refuse_impossible(name)
    about = cards.About(repository, license, base_model)
    with TemporaryDirectory(prefix="sordino-push-") as stage:
        if has_suffix(source, ".safetensors") and source.is_file():
            yield _statistics(source, Path(stage), about)
        elif source.exists() and is_dampened(source):
            yield _Output(source, Path(stage), about, samples=samples).bundle()
        else:
            raise UserError(
                f"{source} cannot be pushed: pass a folder or .gguf file that sordino wrote, or "
                f"NAME{EXPERTISE}."
            )


def _refuse_impossible(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"{printable(name)} is not a name on the hub: pass one such as org/name."
        ) from None


def _statistics(source: Path, stage: Path, about: cards.About) -> Bundle:
    """An expertise or a dampening as a repository of its own."""
    found = Bundle("expertise")
    if Dampening.is_in(source):
        dampening = _without_folders(Dampening.load(source))
        found.files[source.name] = dampening.save(stage / source.name)
        card = cards.of_dampening(dampening, source.name, about)
    else:
        expertise = _expertise(source, Folders(()))
        found.files[source.name] = expertise.save(stage / source.name)
        card = cards.of_expertise(expertise, source.name, about)
    found.files[CARD] = card.encode()
    return found


def _expertise(file: Path, known: Folders) -> Expertise:
    """The expertise in a file, with no folders in its metadata."""
    expertise = Expertise.load(file)
    folders = known.also(Folders.of_metadata(expertise.metadata))
    return Expertise(expertise.statistics, folders.cleaned(dict(expertise.metadata)))


def _without_folders(dampening: Dampening) -> Dampening:
    folders = Folders.of_metadata(*dampening.origins)
    return replace(
        dampening,
        settings=folders.cleaned(dict(dampening.settings)),
        expertise=folders.cleaned(dict(dampening.expertise)),
        parts=tuple(
            Origin.model_validate(folders.cleaned(part.as_json())) for part in dampening.parts
        ),
    )


class _Output:
    """A folder or a GGUF file that Sordino wrote, with what lies in its `sordino/` folder."""

    def __init__(self, source: Path, stage: Path, about: cards.About, *, samples: bool) -> None:
        self._source, self._stage, self._about, self._samples = source, stage, about, samples
        self._is_file = has_suffix(source, GGUF)
        record = read_provenance(source)
        self._written = FORMATS.named(record.written_as)
        self._found = Bundle("model" if self._written.is_model else "adapter")
        # By their path in the repository; of a GGUF file, only those in `sordino/`.
        self._here: dict[str, Path] = {}
        if self._is_file:
            self._list(extras_of(source), f"{EXTRAS}/")
        else:
            self._list(source, "")
        self._evaluation = self._read_evaluation()
        figures = self._evaluation.model_dump(mode="json") if self._evaluation else {}
        self._folders = Folders.of_record(record.as_json(), texts(figures))
        self._record = record.cleaned(self._folders)
        self._places = of_this_machine(source)

    def _list(self, folder: Path, inside: str) -> None:
        """List the files of a folder; links out of it are left out, whatever their names."""
        if not folder.is_dir():
            return
        listed = list_files(folder)
        self._here |= {f"{inside}{file}": folder / file for file in listed.inside}
        others = {str(file): OUTSIDE for file in listed.outside} | listed.left_out
        self._found.left_out |= {inside + printable(name): why for name, why in others.items()}

    def bundle(self) -> Bundle:
        """All files, each as it is pushed."""
        if self._is_file:
            for file in piece_files(self._source):
                self._found.files[file.name] = self._gguf(file)
            record = {k: of for k, of in self._record.as_json().items() if k != "rounding"}
            self._found.files[GGUF_COPY] = to_json(_publish(record)).encode()
        weights = self._weights()
        for name, file in sorted(self._here.items()):
            if name.startswith(f"{EXTRAS}/"):
                self._take_extra(file, name)
            elif name in weights:
                self._found.files[name] = file
            elif name != CARD:
                self._take(file, name)
        self._found.files[CARD] = self._card().encode()
        self._list_results()
        # Only now are all files known.
        if RECORD in self._found.files:
            record = {**self._record.as_json(), "files": sorted(self._found.files)}
            self._found.files[RECORD] = to_json(_publish(record)).encode()
        return self._found

    def _list_results(self) -> None:
        """Add the figures for the hub's own lists."""
        if self._evaluation is None:
            return
        evaluation = self._clean(self._evaluation)
        self._found.files |= eval_results(evaluation, self._about.repository)
        if unlisted := not_listed(evaluation):
            note(
                f"The hub lists only results on its own data sets, so not those of "
                f"{', '.join(unlisted)}."
            )

    def _weights(self) -> set[str]:
        """The names of the files that hold the weights.

        Raises:
            UserError: One of them is not a file of the folder.
        """
        if self._is_file:
            return set()
        names = self._here.keys() & set(self._written.files) or set(self._written.files)
        if self._written.is_model:
            names = {f.name for f in ModelRef("", "folder", self._source).weight_files}
        for name in sorted(names - self._here.keys()):
            raise UserError(
                f"{self._source / name} is not a file of the folder: put the file itself there."
            )
        return names

    def _take(self, file: Path, name: str) -> None:
        """Take a file beside the weights, or list it as left out."""
        called = PurePosixPath(name)
        if name == RECORD:
            self._found.files[name] = b""  # written last, since it lists the files
        elif is_settings(called):
            self._found.files[name] = self._settings(file)
        elif is_of_model(called):
            self._found.files[name] = file
        elif is_terms(called) or name == BASE_CARD:
            data = file.read_bytes()
            if any(place.encode() in data for place in self._places):
                self._found.left_out[name] = "it names a folder of this machine"
            else:
                self._found.files[name] = file
        else:
            self._found.left_out[printable(name)] = _FOREIGN

    def _take_extra(self, file: Path, name: str) -> None:
        """Take a file of the `sordino/` folder, or list it as left out."""
        files = self._found.files
        take: dict[str, Callable[[], Path | bytes]] = {
            f"{EXTRAS}/recipe.toml": lambda: self._recipe(file),
            DAMPENING: lambda: self._stage_value(name, _without_folders(Dampening.load(file))),
            f"{EARLIER}/{PurePosixPath(DAMPENING).name}": lambda: self._stage_value(
                name, _without_folders(Dampening.load(file))
            ),
        }
        if name.startswith(f"{BEFORE}/"):
            self._found.left_out[printable(name)] = "it is a file as it was before the edit"
        elif fnmatch(name, f"{EXTRAS}/evaluation*.samples.jsonl"):
            if self._samples:
                files[name] = file
            else:
                self._found.left_out[name] = _SAMPLES
        elif name.endswith(EXPERTISE):
            self._try(name, lambda: self._stage_value(name, _expertise(file, self._folders)))
        elif fnmatch(name, f"{EXTRAS}/evaluation*.json"):
            self._try(name, lambda: self._figures(file))
        elif name in take:
            self._try(name, take[name])
        elif name == f"{EXTRAS}/report.html":
            self._take_page(name)
        elif not (self._is_file and name == f"{EXTRAS}/{CARD}"):
            self._found.left_out[printable(name)] = _FOREIGN

    def _try(self, name: str, take: Callable[[], Path | bytes]) -> None:
        """Take a file unless it is damaged."""
        try:
            self._found.files[name] = take()
        except UserError:
            self._found.left_out[printable(name)] = "it is damaged, or not what its name says"

    def _recipe(self, file: Path) -> bytes:
        text = self._text(f"{EXTRAS}/{file.name}")
        return self._folders.also(Folders(_values(text))).recipe(text).encode()

    def _stage_value(self, name: str, value: Expertise | Dampening) -> Path:
        (self._stage / name).parent.mkdir(parents=True, exist_ok=True)
        return value.save(self._stage / name)

    def _text(self, name: str) -> str:
        """A file's text; "" if there is no such file."""
        file = self._here.get(name)
        return file.read_text(encoding="utf-8", errors="replace") if file else ""

    def _card(self) -> str:
        """The card: rendered again, or in the user's own words.

        Raises:
            UserError: The user's words name a folder of this machine.
        """
        base, file = self._text(BASE_CARD), self._source.name if self._is_file else ""
        there = self._text(f"{EXTRAS}/{CARD}" if self._is_file else CARD)
        evaluation = self._clean(self._evaluation) if self._evaluation else None
        made = cards.make_cards(self._record, evaluation, base, file)
        ours = {self._folders.without(one).strip() for one in ("", *made)}
        card = made[0]
        if self._folders.without(there).strip() not in ours:
            card = self._folders.without_known(there)
            self._refuse_folders(card)
        return cards.of_model(self._record, card, base, self._about)

    def _refuse_folders(self, card: str) -> None:
        for place in self._places:
            if place in card:
                raise UserError(
                    f"{CARD} names {place}, a folder of this machine: remove that, and push again."
                )

    def _gguf(self, file: Path) -> Path:
        """The file itself, or a copy with no folders in its record.

        A file that was cut in pieces by another program has its record in the first of them alone.
        """
        if not gguf_record.is_in(file):
            return file
        whole = gguf_record.read(file)
        if whole and whole.as_json() == self._publish_gguf(whole.as_json()):
            return file
        copy = self._stage / file.name
        try:
            shutil.copyfile(file, copy)
        except OSError as error:
            raise UserError(
                f"{file} could not be copied to {copy.parent}, to remove folders from its record "
                f"({error.strerror}): make room there, or set TMPDIR."
            ) from None
        gguf_record.rewrite(copy, self._publish_gguf)
        return copy

    def _publish_gguf(self, record: Any) -> Any:
        return _publish(self._folders.cleaned(record))

    def _read_evaluation(self) -> Evaluation | None:
        file = self._here.get(f"{EXTRAS}/evaluation.json")
        return Evaluation.load(file) if file else None

    def _figures(self, file: Path) -> bytes:
        return to_json(self._evaluation_of(file).model_dump(mode="json")).encode()

    def _evaluation_of(self, file: Path) -> Evaluation:
        return self._clean(Evaluation.load(file))

    def _clean(self, read: Evaluation) -> Evaluation:
        """Figures without folders or the user's own words; with samples if they are pushed."""
        value = self._folders.cleaned(without_own_words(read).model_dump(mode="json"))
        return Evaluation.model_validate(value | {"samples": read.samples if self._samples else {}})

    def _take_page(self, name: str) -> None:
        """Render the page again from what is pushed, without texts and folders."""
        found = [n for n in self._here if n.startswith(f"{EXTRAS}/") and n.endswith(EXPERTISE)]
        found = [one for one in found if one.count("/") == 1]
        factors = self._here.get(DAMPENING)
        if len(found) != 1 or factors is None:
            self._found.left_out[name] = "it shows texts in the clear and folders of this machine"
            return
        expertise = _expertise(self._here[found[0]], self._folders)
        beside = {
            one.removeprefix(_BESIDE).removesuffix(".json"): self._evaluation_of(file)
            for one, file in sorted(self._here.items())
            if one.startswith(_BESIDE) and one.endswith(".json")
        }
        recipe = self._here.get(f"{EXTRAS}/recipe.toml")
        record = RunRecord(
            expertise=expertise,
            dampening=_without_folders(Dampening.load(factors)),
            concept_source=expertise.metadata.get("concept_source", ""),
            command="sordino run --recipe recipe.toml -o again" if recipe else "",
            divergence=_divergence(recipe),
            evaluation=self._clean(self._evaluation) if self._evaluation else None,
            beside=beside,
            versions={"sordino": self._record.sordino_version},
            date=self._record.created,
        )
        self._found.files[name] = render(record).encode()
        self._found.changed[name] = (
            "rendered again without the sentences that excite the neurons"
            + ("" if self._samples else " and without continuations")
        )

    def _settings(self, file: Path) -> Path | bytes:
        """The model's own settings without folders."""
        settings = read_json(file)
        cleaned = _without_places(settings, self._folders)
        return file if cleaned == settings else to_json(cleaned).encode()


def _without_places(value: Any, folders: Folders, key: str = "") -> Any:
    """Settings of a model without folders; its own words are kept."""
    if key in _WORDS:
        return value
    if isinstance(value, dict):
        return {name: _without_places(one, folders, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_places(one, folders, key) for one in value]
    if isinstance(value, str) and (key.endswith(_PLACES) or is_path(value)):
        return folders.without(value)
    return value


def _publish(record: dict[str, Any]) -> dict[str, Any]:
    """A record without the names of files that were not copied."""
    shown = {key: value for key, value in record.items() if key not in ("not_copied", "linked")}
    if "earlier" in shown:
        shown["earlier"] = _publish(shown["earlier"])
        shown["earlier"].pop("files", None)
    return shown


def _divergence(recipe: Path | None) -> float | None:
    """The divergence that a recipe asks for."""
    if recipe is None:
        return None
    found = parse_toml(read_bytes(recipe, "recipe"), f"The recipe {recipe}").get("divergence")
    return float(found) if isinstance(found, int | float) else None


def _values(recipe: str) -> list[str]:
    """The texts in a recipe; empty if it cannot be read."""
    try:
        return [*texts(tomllib.loads(recipe))]
    except (tomllib.TOMLDecodeError, RecursionError):
        return []
