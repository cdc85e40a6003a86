"""What is pushed: the files of an output, without this machine's folders and without samples."""

import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sordino.edits import gguf_record, is_dampened, read_provenance
from sordino.edits.baking import BASE_CARD
from sordino.edits.provenance import DAMPENING, EXTRAS, FILE_NAME, GGUF
from sordino.errors import UserError
from sordino.evaluation import Evaluation
from sordino.expertise import Expertise
from sordino.files import read_json, to_json
from sordino.interventions import Dampening
from sordino.report.page import render
from sordino.report.record import RunRecord
from sordino.sharing import cards
from sordino.sharing.folders import Folders, of_this_machine, texts

CARD = "README.md"
EXPERTISE = ".expertise.safetensors"
_SAMPLES = "it holds texts in the clear; --samples takes it along"
# Where a setting of the model's own files may say from which folder the model came.
_NAMES = ("name_or_path", "tokenizer_file", "vocab_file")
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")
_READ = ("README.md", FILE_NAME, *_SETTINGS, "adapter_config.json")
_OURS = (".md", ".toml", ".html", ".json", ".jsonl")


@dataclass
class Bundle:
    """The files to be pushed.

    Args:
        kind: "model", "adapter" (factors that are put on a model) or "expertise" (or dampening).
        files: By their path in the repository: a file, or its content.
        left_out: By their path, why files that are there are not pushed.
        changed: By their path, what was done to files that are not pushed as they are, where that
            is more than to take folders out.
    """

    kind: str
    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many bytes they have in all."""
        return sum(
            len(content) if isinstance(content, bytes) else content.stat().st_size
            for content in self.files.values()
        )


@contextmanager
def bundle(
    subject: str | Path,
    repository: str,
    *,
    license: str | None = None,
    base_model: str | None = None,
    samples: bool = False,
) -> Iterator[Bundle]:
    """Put together what is pushed of an output; what is rewritten lies in a temporary folder.

    Args:
        subject: A folder or a ".gguf" file that Sordino wrote, an expertise or a dampening.
        repository: Where it will be, for the card.
        license: The licence of the original, by the hub's name for it, where its card has none.
        base_model: The hub's name of the original, where the record has none.
        samples: Whether the continuations, in which harmful text stands in the clear, go along.

    Raises:
        UserError: It is none of these, its licence is not known, or a text in it names a folder of
            this machine.
    """
    source = Path(subject).expanduser()
    about = cards.About(repository, license, base_model)
    with TemporaryDirectory(prefix="sordino-push-") as stage:
        if source.suffix == ".safetensors" and source.is_file():
            found = _statistics(source, Path(stage), about)
        elif source.exists() and is_dampened(source):
            found = _Output(source, Path(stage), about, samples=samples).bundle()
        else:
            raise UserError(
                f"{source} is nothing that is pushed: give a folder or .gguf file that sordino "
                f"wrote, or NAME{EXPERTISE}."
            )
        _refuse_folders(found, of_this_machine(source))
        yield found


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
    """An expertise whose metadata name no folders."""
    expertise = Expertise.load(file)
    folders = known.also(_sources(expertise.metadata))
    return Expertise(expertise.statistics, folders.cleaned(dict(expertise.metadata)))


def _without_folders(dampening: Dampening) -> Dampening:
    folders = Folders([t for origin in dampening.origins for t in _sources(origin)])
    return replace(
        dampening,
        settings=folders.cleaned(dict(dampening.settings)),
        expertise=folders.cleaned(dict(dampening.expertise)),
        parts=folders.cleaned([*dampening.parts]),
    )


def _sources(metadata: Mapping[str, str]) -> list[str]:
    """The model, and the files that a concept's source names before what it says of them."""
    source = metadata.get("concept_source", "")
    for mark in (" (positive) and ", " (negative)"):
        source = source.replace(mark, ": ")
    return [metadata.get("model", ""), *source.split(": ")]


class _Output:
    """A folder or a GGUF file that Sordino wrote, with what lies in its `sordino/` folder."""

    def __init__(self, source: Path, stage: Path, about: cards.About, *, samples: bool) -> None:
        self._source, self._stage, self._about, self._samples = source, stage, about, samples
        self._is_file = source.suffix == GGUF
        self._extras = source.with_suffix(f".{EXTRAS}") if self._is_file else source / EXTRAS
        record, recipe = read_provenance(source), self._extras / "recipe.toml"
        known = [*texts(record), *(t for one in _origins(record) for t in _sources(one))]
        if recipe.is_file():
            known += [*texts(tomllib.loads(recipe.read_text(encoding="utf-8")))]
        self._folders = Folders(known)
        self._record: dict[str, Any] = self._folders.cleaned(record)
        self._evaluation = self._read_evaluation()
        self._found = Bundle("model" if record["written_as"] == "weights" else "adapter")

    def bundle(self) -> Bundle:
        """All files, each as it is to be pushed."""
        if self._is_file:
            self._found.files[self._source.name] = self._gguf()
        else:
            for file in sorted(self._source.iterdir()):
                if file.is_file() and not file.name.startswith("."):
                    self._take(file, file.name)
        if self._extras.is_dir():
            self._take_extras(self._extras, EXTRAS)
        card = (self._extras if self._is_file else self._source) / CARD
        base = self._source / BASE_CARD
        self._found.files[CARD] = cards.of_model(
            self._record,
            self._evaluation,
            card.read_text(encoding="utf-8") if card.is_file() else "",
            base.read_text(encoding="utf-8") if base.is_file() else None,
            self._about,
            file=self._source.name if self._is_file else "",
        ).encode()
        return self._found

    def _take(self, file: Path, name: str) -> None:
        if file.name == FILE_NAME:
            self._found.files[name] = self._json(file)
        elif file.name in _SETTINGS or file.name == "adapter_config.json":
            self._found.files[name] = _settings(file)
        else:
            self._found.files[name] = file

    def _take_extras(self, folder: Path, inside: str) -> None:
        """What is known of the `sordino/` folder; anything else is someone's own."""
        for file in sorted(folder.iterdir()):
            name = f"{inside}/{file.name}"
            if file.is_dir() and file.name in ("before", "earlier"):
                for one in sorted(file.rglob("*")):
                    if one.is_file():
                        self._take_extra(one, f"{name}/{one.relative_to(file).as_posix()}")
            elif file.is_file() and not (self._is_file and file.name == CARD):
                self._take_extra(file, name)
            elif file.is_dir():
                self._found.left_out[name] = "it is no part of the model"

    def _take_extra(self, file: Path, name: str) -> None:
        take: dict[str, Callable[[], Path | bytes]] = {
            "recipe.toml": lambda: self._folders.recipe(file.read_text(encoding="utf-8")).encode(),
            FILE_NAME: lambda: self._json(file),
            BASE_CARD: lambda: file,
            Path(DAMPENING).name: lambda: self._staged(
                name, _without_folders(Dampening.load(file))
            ),
        }
        if file.name.endswith(".samples.jsonl"):
            if self._samples:
                self._found.files[name] = file
            else:
                self._found.left_out[name] = _SAMPLES
        elif file.name.endswith(EXPERTISE):
            self._found.files[name] = self._staged(name, _expertise(file, self._folders))
        elif fnmatch(name, f"{EXTRAS}/evaluation*.json"):
            self._found.files[name] = self._json(file)
        elif file.name in take:
            self._found.files[name] = take[file.name]()
        elif name == f"{EXTRAS}/report.html":
            self._take_page(name)
        elif f"{EXTRAS}/before/" in name:
            self._take(file, name)
        else:
            self._found.left_out[name] = "it is no part of the model"

    def _staged(self, name: str, value: Expertise | Dampening) -> Path:
        (self._stage / name).parent.mkdir(parents=True, exist_ok=True)
        return value.save(self._stage / name)

    def _json(self, file: Path) -> bytes:
        return to_json(self._folders.cleaned(read_json(file))).encode()

    def _gguf(self) -> Path:
        """The file, or a copy whose record names no folders."""
        whole = gguf_record.read(self._source)
        if whole == self._folders.cleaned(whole):
            return self._source
        copy = self._stage / self._source.name
        shutil.copyfile(self._source, copy)
        gguf_record.rewrite(copy, self._folders.cleaned)
        return copy

    def _read_evaluation(self) -> Evaluation | None:
        file = self._extras / "evaluation.json"
        return self._evaluation_of(file) if file.is_file() else None

    def _evaluation_of(self, file: Path) -> Evaluation:
        read = Evaluation.load(file)
        value = self._folders.cleaned(read.model_dump(mode="json"))
        return Evaluation.model_validate(value | {"samples": read.samples if self._samples else {}})

    def _take_page(self, name: str) -> None:
        """The page again, from what is pushed: the one that is here shows texts and folders."""
        found = sorted(self._extras.glob(f"*{EXPERTISE}"))
        factors = self._extras / Path(DAMPENING).name
        if len(found) != 1 or not factors.is_file():
            self._found.left_out[name] = "it shows texts in the clear and this machine's folders"
            return
        expertise = _expertise(found[0], self._folders)
        beside = {
            file.stem.removeprefix("evaluation-"): self._evaluation_of(file)
            for file in sorted(self._extras.glob("evaluation-*.json"))
        }
        recipe = (self._extras / "recipe.toml").is_file()
        record = RunRecord(
            expertise=expertise,
            dampening=_without_folders(Dampening.load(factors)),
            concept_source=expertise.metadata.get("concept_source", ""),
            command="sordino run --recipe recipe.toml -o again" if recipe else "",
            evaluation=self._evaluation,
            beside=beside,
            versions={"sordino": self._record["sordino_version"]},
            date=self._record["created"],
        )
        self._found.files[name] = render(record).encode()
        self._found.changed[name] = "made anew, without the sentences that excite the neurons" + (
            "" if self._samples else " and without continuations"
        )


def _origins(record: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    """The metadata of every expertise in a record, and in those of earlier edits."""
    yield record.get("expertise", {})
    for part in record.get("parts", ()):
        yield from _origins(part)
    if "earlier" in record:
        yield from _origins(record["earlier"])


def _settings(file: Path) -> Path | bytes:
    """The model's own settings without the folder that it was once loaded from, if they say it."""
    settings = read_json(file)
    if not isinstance(settings, dict):
        return file
    said = {key: value for key, value in settings.items() if key.endswith(_NAMES)}
    cleaned = Folders([*texts(said)]).cleaned(said)
    return file if cleaned == said else to_json(settings | cleaned).encode()


def _refuse_folders(found: Bundle, places: list[str]) -> None:
    """Raise `UserError` if a text of ours, or of the user's, still names a folder of this machine.

    A model's own vocabulary is no such text.
    """
    for name, content in found.files.items():
        if not (name.endswith(_OURS) and (name.startswith(f"{EXTRAS}/") or name in _READ)):
            continue
        text = content if isinstance(content, bytes) else content.read_bytes()
        for place in places:
            if place.encode() in text:
                raise UserError(
                    f"{name} names {place}, a folder of this machine: take that out of it, and "
                    "push again."
                )
