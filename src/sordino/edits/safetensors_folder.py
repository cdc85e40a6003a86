"""Copy a transformers folder of safetensors, and change its sites on the way.

The model is never loaded. Shards are copied as streams, and whatever is not a site's tensor
(auxiliary heads, the index, the tokenizer, the configuration) is copied byte for byte. The
configuration and the index change only where tensors are added, removed or resized: biases for
shifts, and some scales of quantised layers.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sordino.edits.biases import NewBiases, new_biases, with_settings, without_bias
from sordino.edits.drafts import Drafts, find_drafts
from sordino.edits.names import names_beside, on_disk, parameter_scales, parameter_shifts
from sordino.edits.quantised import (
    Changes,
    edit_quantised,
    quantised_folder,
    refuse_unfit_layers,
    with_quantisation,
)
from sordino.edits.record import Quantisation
from sordino.edits.shard import (
    Change,
    New,
    copy,
    copy_changed,
    copy_rewritten,
    refuse_unchangeable,
)
from sordino.errors import UserError
from sordino.files import create_file, list_some, printable, read_json
from sordino.interventions import Dampening
from sordino.models.checkpoint import quantisation_of
from sordino.models.dtypes import PLAIN
from sordino.models.folder import OUTSIDE, FolderFiles, is_of_model, list_files
from sordino.models.open import empty_model
from sordino.models.reference import ModelRef
from sordino.models.safetensors_header import Stored, read_header
from sordino.progress import note, track

# The same weights in a format that is not edited: they would be served undampened.
_OTHER_WEIGHTS = (
    *("*.bin", "*.h5", "*.msgpack", "*.gguf", "*.pt", "*.pth", "*.ckpt", "*.npz", "*.ot"),
    *("*.onnx", "*.onnx_data", "*.tflite", "*.mlpackage/*", "consolidated*", "original/*"),
    *("*.bin.index.json", "*.h5.index.json", "*.msgpack.index.json"),
)
_CONFIG = "config.json"
_NAMED = 10

Headers = Mapping[PurePosixPath, Mapping[str, Stored]]


@dataclass(frozen=True)
class FolderEdit:
    """The plan of baking a folder, checked before anything is written.

    Args:
        folder: The source.
        edited: The files that hold a site, each with the changes of its tensors.
        copied: The files that stay as they are.
        left_out: The files that would hold undampened weights.
        not_copied: By path, why another file of the folder does not belong to the model.
        linked: The weight files that are links to files elsewhere.
        added: The biases that the model lacked, by file and name.
        rewritten: The JSON files that describe what changed, with their new content.
        settings: The settings of the configuration that were changed for new biases.
        quantised: How the weights are quantised and what their edit rounds; None if plain.
        drafts: The draft heads beside the model.
    """

    folder: Path
    edited: Mapping[PurePosixPath, Changes]
    copied: tuple[PurePosixPath, ...]
    left_out: tuple[PurePosixPath, ...]
    not_copied: Mapping[str, str]
    linked: tuple[PurePosixPath, ...]
    added: Mapping[PurePosixPath, Mapping[str, Tensor]]
    rewritten: Mapping[PurePosixPath, Any]
    settings: Mapping[str, bool]
    quantised: Quantisation | None = None
    drafts: Drafts = field(default_factory=Drafts)

    def tell(self, name: str) -> None:
        """Say which files of the folder `name` are not copied, and which lie behind links."""
        if self.left_out:
            files = [str(file) for file in self.left_out]
            held = "they have, or may have, weights that are not dampened"
            note(f"not copied from {name} ({held}): {list_some(files, _NAMED)}")
        for reason in sorted(set(self.not_copied.values())):
            files = [file for file, why in self.not_copied.items() if why == reason]
            note(f"not copied from {name} ({reason}): {list_some(files, _NAMED)}")
        if self.linked:
            files = [str(file) for file in self.linked]
            note(f"links out of {name}, copied as whole files: {list_some(files, _NAMED)}")
        self.drafts.tell(name)

    def write(
        self,
        target: Path,
        title: str = "Baking",
        *,
        removed: Collection[str] = (),
        change: Callable[[Tensor, Change], None] | None = None,
    ) -> None:
        """Write the edited folder into `target`, an empty folder.

        Args:
            target: The folder.
            title: The label of the progress bar.
            removed: The names of tensors to leave out; see `copy_changed`.
            change: Changes rows of a tensor; see `copy_changed`.
        """
        files = [*self.edited, *self.copied]
        size = sum((self.folder / file).stat().st_size for file in files)
        with track(title, size / 1e6, "MB") as advance:

            def advance_bytes(count: int) -> None:
                advance(count / 1e6)

            for file in files:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                source, copied = self.folder / file, target / file
                if file in self.edited or (removed and _is_shard(file)):
                    self._write_edited(file, target, advance_bytes, removed, change)
                else:
                    copy(source, copied, advance_bytes)
        for file, content in self.rewritten.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            with create_file(target / file) as stream:
                stream.write(text.encode())

    def _write_edited(
        self,
        file: PurePosixPath,
        target: Path,
        advance: Callable[[int], None],
        removed: Collection[str],
        change: Callable[[Tensor, Change], None] | None,
    ) -> None:
        changes, added = self.edited.get(file, {}), self.added.get(file, {})
        products = {name: found for name, found in changes.items() if isinstance(found, Change)}
        source, written = self.folder / file, target / file
        if len(products) == len(changes):
            copy_changed(source, written, products, advance, added, removed=removed, change=change)
        else:
            new = {name: New.of(tensor) for name, tensor in added.items()}
            copy_rewritten(source, written, {**changes, **new}, advance)


def plan(ref: ModelRef, dampening: Dampening) -> FolderEdit:
    """Work out which bytes of a model's folder change, and check that they can.

    Raises:
        UserError: The dampening does not fit the model, a site's tensor is missing or of a type
            that cannot be changed, a bias that a shift needs cannot be, a file that the model needs
            is a link out of its folder, or a file is damaged.
    """
    listed = list_files(ref.path)
    refuse_needed_outside(ref.path, listed)
    model = empty_model(ref)
    # Weights are read wherever they are; everything else is copied only from inside the folder.
    weights = {file.name for file in ref.weight_files}
    linked = tuple(file for file in listed.outside if str(file) in weights)
    files = sorted([*listed.inside, *linked])
    others = {printable(str(file)): OUTSIDE for file in listed.outside if file not in linked}
    left_out = {file for file in files if _is_other_weights(file)}
    headers = {
        file: read_header(ref.path / file)
        for file in files
        if file.suffix == ".safetensors" and file not in left_out
    }
    shards: Headers = {file: tensors for file, tensors in headers.items() if _is_shard(file)}
    raw = read_json(ref.path / _CONFIG)
    quantised = quantised_folder(ref.path, quantisation_of(ref.path), shards)
    names = {name for tensors in shards.values() for name in tensors}
    if quantised:
        refuse_unfit_layers(ref.name, model, quantised)
        names |= quantised.names  # planned as if there were weights, translated afterwards
    shapes = {name: stored.shape for tensors in shards.values() for name, stored in tensors.items()}
    changes = _changes(model, dampening, names, shapes)
    drafts = find_drafts(ref.path, model, shards, {} if quantised else changes)
    changes |= {name: changes[of] for name, of in drafts.copies.items()}
    added: dict[PurePosixPath, dict[str, Tensor]] = {}
    rewritten: dict[PurePosixPath, Any] = {}
    biases = None
    if lacking := without_bias(model, dampening):
        biases = new_biases(model.config, raw, lacking)
        beside = names_beside(model, biases.model, biases.names, names)
        with_weights = quantised.with_weights(shards, _dtype(model)) if quantised else shards
        added = _make_biases(ref.path, with_weights, dampening, biases, beside)
        rewritten[PurePosixPath(_CONFIG)] = with_settings(raw, biases.section, biases.settings)
    edit = edit_quantised(quantised, changes) if quantised else None
    plain = {
        name: c for name, c in changes.items() if not quantised or name not in quantised.layers
    }
    in_codes: Changes = edit.changes if edit else {}
    if edit and edit.settings is not None:
        config = rewritten.get(PurePosixPath(_CONFIG), raw)
        rewritten[PurePosixPath(_CONFIG)] = with_quantisation(config, edit.settings)
    # A deeper folder that has the same tensors has a copy of the model, such as a checkpoint.
    changing = plain.keys() | in_codes.keys()
    left_out |= {file for file in headers.keys() - shards.keys() if changing & headers[file].keys()}
    edited = {
        file: _edits(ref.path / file, tensors, plain)
        | {name: change for name, change in in_codes.items() if name in tensors}
        for file, tensors in shards.items()
    }
    edited = {file: found for file, found in edited.items() if found or file in added}
    rewritten |= _indices(ref.path, files, shards, added, edited)
    gone = {*edited, *left_out, *rewritten}
    return FolderEdit(
        ref.path,
        edited,
        tuple(file for file in files if file not in gone),
        tuple(sorted(left_out)),
        {**listed.left_out, **others},
        linked,
        added,
        rewritten,
        biases.settings if biases else {},
        edit.record if edit else None,
        drafts,
    )


def _dtype(model: PreTrainedModel) -> str:
    """The dtype of the parts of a quantised model that are not quantised."""
    dtype = model.config.dtype
    return next((name for name, ours in PLAIN.items() if ours == dtype), "F32")


def _changes(
    model: PreTrainedModel,
    dampening: Dampening,
    names: set[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Change]:
    """The changes of the checkpoint's tensors, by their names there."""
    scales = on_disk(model, parameter_scales(model, dampening), names, shapes=shapes)
    shifts = on_disk(model, parameter_shifts(model, dampening), names, 0.0, shapes)
    return {name: Change(scale, shifts.get(name)) for name, scale in scales.items()}


def _edits(
    path: Path, tensors: Mapping[str, Stored], changes: Mapping[str, Change]
) -> dict[str, Change | New | None]:
    """The changes of a shard's tensors, without those that change nothing."""
    here = {name: change for name, change in changes.items() if name in tensors}
    for name, change in here.items():
        refuse_unchangeable(path, name, tensors[name], change)
    return {name: change for name, change in here.items() if not change.is_none}


def _make_biases(
    folder: Path,
    shards: Headers,
    dampening: Dampening,
    biases: NewBiases,
    beside: Mapping[str, str],
) -> dict[PurePosixPath, dict[str, Tensor]]:
    """The new biases, each in the file and the dtype of its weight; zeros where nothing shifts."""
    wanted = parameter_shifts(biases.model, dampening)
    new = {name: shift for name, shift in wanted.items() if name in biases.names}
    shifts = on_disk(biases.model, new, beside.values())
    added: dict[PurePosixPath, dict[str, Tensor]] = {}
    for file, tensors in shards.items():
        for weight, bias in beside.items():
            if weight in tensors:
                stored = tensors[weight]
                values = shifts.get(bias, torch.zeros(stored.shape[0]))
                refuse_unchangeable(folder / file, weight, stored, Change(values[:, None]))
                added.setdefault(file, {})[bias] = values.to(PLAIN[stored.dtype])
    return added


def _indices(
    folder: Path,
    files: Iterable[PurePosixPath],
    shards: Headers,
    added: Mapping[PurePosixPath, Mapping[str, Tensor]],
    edited: Mapping[PurePosixPath, Changes],
) -> dict[PurePosixPath, Any]:
    """The indices of shards, where tensors come, go or change in size."""
    new = {name: file for file, tensors in added.items() for name in tensors}
    gone = {name for changes in edited.values() for name, change in changes.items() if not change}
    tensors = [tensor for of_file in added.values() for tensor in of_file.values()]
    grown = sum(tensor.nbytes for tensor in tensors)
    for file, changes in edited.items():
        for name, change in changes.items():
            if not isinstance(change, Change):
                grown += (change.nbytes if change else 0) - shards[file][name].nbytes
    found: dict[PurePosixPath, Any] = {}
    if not (new or gone or grown):
        return found
    for file in files:
        if len(file.parts) == 1 and fnmatch(file.name, "*.safetensors.index.json"):
            index = read_json(folder / file)
            places = index.get("weight_map", {})
            if not set(places.values()) & {str(shard) for shard in edited}:
                continue
            index["weight_map"] = {
                **{name: place for name, place in places.items() if name not in gone},
                **{name: str(shard) for name, shard in new.items()},
            }
            totals = index.get("metadata", {})
            if "total_size" in totals:
                totals["total_size"] += grown
            if "total_parameters" in totals:
                totals["total_parameters"] += sum(tensor.numel() for tensor in tensors)
            found[file] = index
    return found


def refuse_needed_outside(folder: Path, listed: FolderFiles | None = None) -> None:
    """Raise `UserError` if a file that a model needs, and that is copied, is a link out of it."""
    for file in (listed or list_files(folder)).outside:
        if is_of_model(file):
            raise UserError(
                f"{folder / file} is a link out of the model's folder, which is not copied: "
                "replace the link by the file itself, or use the folder that the file is in."
            )


def _is_shard(file: PurePosixPath) -> bool:
    return file.suffix == ".safetensors" and len(file.parts) == 1


def _is_other_weights(file: PurePosixPath) -> bool:
    names = file.name.lower(), str(file).lower()
    return any(fnmatch(name, pattern) for name in names for pattern in _OTHER_WEIGHTS)
