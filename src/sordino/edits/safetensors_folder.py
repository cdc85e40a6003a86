"""A transformers folder of safetensors, copied with its sites scaled on the way.

Weights are never loaded as a model: shards are streams, and whatever is not a site's tensor
(auxiliary heads, the index, the tokenizer, the configuration) is copied byte for byte.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from torch import Tensor
from transformers import PreTrainedModel

from sordino.edits.names import parameter_scales, scales_on_disk
from sordino.edits.shard import Stored, copy_scaled, read_header, refuse_unscalable
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.open import empty_model
from sordino.models.reference import ModelRef
from sordino.progress import track

# The same weights in a format that is not edited: they would be served undampened.
_OTHER_WEIGHTS = (
    *("*.bin", "*.h5", "*.msgpack", "*.gguf", "*.pt", "*.pth", "*.ckpt", "*.npz", "*.ot"),
    *("*.onnx", "*.onnx_data", "*.tflite", "*.mlpackage/*", "consolidated*", "original/*"),
    *("*.bin.index.json", "*.h5.index.json", "*.msgpack.index.json"),
)
_NO_MODEL_FOLDERS = (".git", ".cache", "__pycache__")
_NO_MODEL_FILES = ("*.incomplete", "*.partial", "*.lock")


@dataclass(frozen=True)
class FolderEdit:
    """What baking a folder comes to, checked before anything is written.

    Args:
        folder: The source.
        edited: The files that hold a site, each with the scales of its tensors.
        copied: The files that stay as they are.
        left_out: The files that would hold undampened weights.
    """

    folder: Path
    edited: Mapping[PurePosixPath, Mapping[str, Tensor]]
    copied: tuple[PurePosixPath, ...]
    left_out: tuple[PurePosixPath, ...]

    def write(self, target: Path) -> None:
        """Write the edited folder into `target`, an empty folder."""
        files = [*self.edited, *self.copied]
        size = sum((self.folder / file).stat().st_size for file in files)
        with track("Baking", size / 1e6, "MB") as advance:
            for file in files:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                if file in self.edited:
                    copy_scaled(
                        self.folder / file,
                        target / file,
                        self.edited[file],
                        lambda count: advance(count / 1e6),
                    )
                else:
                    shutil.copyfile(self.folder / file, target / file)
                    advance((target / file).stat().st_size / 1e6)


def plan(ref: ModelRef, dampening: Dampening) -> FolderEdit:
    """Work out which bytes of a model's folder change, and check that they can.

    Raises:
        UserError: The dampening does not fit the model, a site's tensor is missing or of a type
            that cannot be scaled, or a file is damaged.
    """
    model = empty_model(ref)
    _refuse_quantised(ref, model)
    files = list(_files(ref.path))
    left_out = {file for file in files if _is_other_weights(file)}
    headers = {
        file: read_header(ref.path / file)
        for file in files
        if file.suffix == ".safetensors" and file not in left_out
    }
    shards = {file: tensors for file, tensors in headers.items() if len(file.parts) == 1}
    names = (name for tensors in shards.values() for name in tensors)
    scales = scales_on_disk(model, parameter_scales(model, dampening), names)
    # A deeper folder that has the same tensors has a copy of the model, such as a checkpoint.
    left_out |= {file for file in headers.keys() - shards.keys() if scales.keys() & headers[file]}
    edited = {file: _edits(ref.path / file, tensors, scales) for file, tensors in shards.items()}
    edited = {file: scaled for file, scaled in edited.items() if scaled}
    copied = tuple(file for file in files if file not in edited and file not in left_out)
    return FolderEdit(ref.path, edited, copied, tuple(sorted(left_out)))


def _edits(
    path: Path, tensors: Mapping[str, Stored], scales: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The scales of a shard's tensors, less those that change nothing."""
    here = {name: scale for name, scale in scales.items() if name in tensors}
    for name, scale in here.items():
        refuse_unscalable(path, name, tensors[name], scale)
    return {name: scale for name, scale in here.items() if bool((scale != 1).any())}


def _files(folder: Path) -> Iterator[PurePosixPath]:
    """The files of a model folder in a stable order, links followed."""
    for root, folders, names in os.walk(folder, followlinks=True):
        here = Path(root)
        ancestors = {here.resolve(), *here.resolve().parents}
        folders[:] = sorted(
            name
            for name in folders
            if name not in _NO_MODEL_FOLDERS and (here / name).resolve() not in ancestors
        )
        for name in sorted(names):
            if not any(fnmatch(name, pattern) for pattern in _NO_MODEL_FILES):
                yield PurePosixPath((here / name).relative_to(folder).as_posix())


def _is_other_weights(file: PurePosixPath) -> bool:
    names = file.name.lower(), str(file).lower()
    return any(fnmatch(name, pattern) for name in names for pattern in _OTHER_WEIGHTS)


def _refuse_quantised(ref: ModelRef, model: PreTrainedModel) -> None:
    settings = getattr(model.config, "quantization_config", None)
    if settings is not None:
        method = settings.get("quant_method", "") if isinstance(settings, dict) else ""
        raise UserError(
            f"{ref.name} is quantised ({method or 'see its config.json'}), which cannot be baked "
            "yet: use the model from which it was quantised."
        )
