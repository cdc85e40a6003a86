"""Find a model's files, by a hub id, a folder, a GGUF file or a name of the demo kit."""

import hashlib
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from sordino import hub
from sordino.errors import UserError
from sordino.files import has_suffix, is_regular, printable, read_json, user_path
from sordino.models.folder import piece_files
from sordino.progress import note

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_PIECE = 64 * 1024
# All that opening a model can need; weights come from safetensors alone.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*"]
"""Patterns of the files that are fetched of a model on the hub."""


@dataclass(frozen=True)
class ModelRef:
    """A model whose files are on this machine.

    Args:
        name: What the user wrote, such as "kit:smollm2" or "org/name".
        kind: "folder" (transformers, safetensors) or "gguf".
        path: The folder, or the GGUF file; of several the first.
        revision: The hub commit, or "" where there is none.
    """

    name: str
    kind: Literal["folder", "gguf"]
    path: Path
    revision: str = ""

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold the weights, sorted by name.

        Raises:
            UserError: The folder has no safetensors file.
        """
        if self.kind == "gguf":
            return [file for file in piece_files(self.path) if file.is_file()]
        index = self.path / "model.safetensors.index.json"
        whole = self.path / "model.safetensors"
        if whole.exists():  # transformers, too, looks for this one first
            return [whole]
        if index.exists():
            return [self.path / name for name in _shards(index)]
        files = [file.name for file in sorted(self.path.iterdir())]
        hub.refuse_pickles(self.name, files, "AutoModelForCausalLM")
        raise UserError(
            f"{self.path} has no model.safetensors and no model.safetensors.index.json: weights "
            "are read from safetensors (and GGUF) files only; save the model again with "
            "save_pretrained, which writes safetensors."
        )

    def weights_fingerprint(self) -> str:
        """SHA-256 over each weight file's size and up to 1,024 evenly spaced pieces of 64 KiB.

        A file up to 64 MiB is read whole, a larger one is sampled: enough to recognise an edited or
        another model without reading hundreds of gigabytes.
        """
        digest = hashlib.sha256()
        for file in self.weight_files:
            size = file.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            pieces = min(1024, -(-size // _PIECE))
            with file.open("rb") as stream:
                for piece in range(pieces):
                    stream.seek(piece * max(size - _PIECE, 0) // max(pieces - 1, 1))
                    digest.update(stream.read(_PIECE))
        return digest.hexdigest()


def place_of(model: object) -> str | Path | None:
    """Where a model's files are, without asking the hub or the kit; None if unknown.

    Args:
        model: A name, a `ModelRef`, or an opened model, whose `ref` is one.
    """
    ref = getattr(model, "ref", model)
    given = ref.path if isinstance(ref, ModelRef) else ref
    return given if isinstance(given, str | Path) else None


def resolve(spec: str | Path | ModelRef, revision: str | None = None) -> ModelRef:
    """Find a model's files, and download them if they are on the hub or in the kit.

    Args:
        spec: A hub id ("org/name"), a folder, a ".gguf" file, or a model of the kit
            ("kit:smollm2").
        revision: A branch, tag or commit of the hub.

    Raises:
        UserError: There is no such model, or it cannot be downloaded.
    """
    if isinstance(spec, ModelRef):
        return spec
    if not isinstance(spec, str | os.PathLike):
        raise UserError(
            f"A model is a name, a folder, a file or what `sordino.open_model` gives, and not a "
            f"{type(spec).__name__}: save it with save_pretrained, and give the folder."
        )
    name = str(spec)
    if revision is not None and (name.startswith("kit:") or user_path(name).exists()):
        note(f"warning: `revision` is for models on the hub: {printable(name)} is read as it is")
    if name.startswith("kit:"):
        from sordino import kit

        return ModelRef(name, "gguf", kit.model_file(name.removeprefix("kit:")))
    path = user_path(name)
    if path.is_dir():
        return _folder(name, path)
    if path.is_file():
        if not has_suffix(path, ".gguf"):
            raise UserError(f"{path} is not a model: give a transformers folder or a .gguf file.")
        return ModelRef(name, "gguf", piece_files(path)[0])
    if isinstance(spec, Path) or has_suffix(name, ".gguf") or not _HUB_ID.fullmatch(name):
        raise UserError(f"The model {name} does not exist: there is no such file or folder.")
    return _from_hub(name, revision)


def _folder(name: str, path: Path, revision: str = "") -> ModelRef:
    if not (path / "config.json").is_file():
        inside = ", ".join(sorted(p.name for p in path.glob("*.gguf"))[:5])
        hint = f" (it holds {inside}: name that file)" if inside else ""
        raise UserError(f"{path} is not a model's folder: it has no config.json{hint}.")
    refuse_adapter(path)
    _refuse_pipes(path)
    return ModelRef(name, "folder", path, revision)


def refuse_adapter(folder: Path) -> None:
    """Raise `UserError` if an adapter lies beside whole weights.

    Transformers loads it onto the model, servers do not: the folder is two models.
    """
    adapter = folder / "adapter_config.json"
    if adapter.exists() and (folder / "config.json").exists():
        raise UserError(
            f"{folder} holds a whole model and an adapter ({adapter.name}), which some programs "
            "load and others do not: move the adapter's files into a folder of their own, or merge "
            "it into the weights (PEFT's merge_and_unload)."
        )


def _refuse_pipes(folder: Path) -> None:
    """Opening a named pipe would wait for ever."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() or not path.exists() or is_regular(path):
            continue
        if any(fnmatch(path.name, pattern) for pattern in HUB_FILES):
            raise UserError(
                f"{path} is not a regular file (a pipe, a socket or a device): remove it, or "
                "replace it by the model's own file."
            )


def _shards(index: Path) -> list[str]:
    listing = read_json(index)
    weight_map = listing.get("weight_map") if isinstance(listing, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map: it is not an index of safetensors shards.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise UserError(f"{index} names the shard '{name}', which is outside its folder.")
        if not _is_file(index.parent / name):
            raise UserError(f"{index} names the shard {name[:100]}, which is missing beside it.")
    return names


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _from_hub(name: str, revision: str | None) -> ModelRef:
    wanted = hub.Wanted(
        name,
        revision,
        instead="give a folder or file that is here, a .gguf file or kit:smollm2",
    )
    folder = hub.fetch_files(
        wanted,
        HUB_FILES,
        lambda files: hub.refuse_pickles(name, files, "AutoModelForCausalLM", revision),
    )
    return _folder(name, folder, revision=folder.name)
