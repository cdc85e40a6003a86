"""Bake dampening factors into a model's files."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sordino.edits import gguf_source, safetensors_folder
from sordino.edits.provenance import FILE_NAME, HOOKS, plain_card, provenance
from sordino.errors import UserError
from sordino.files import is_disk_full, new_folder, only_one, write_json
from sordino.interventions import Dampening
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef, resolve

BASE_CARD = "README.base.md"


def bake(
    model: str | Path | ModelRef | OpenModel,
    dampening: Dampening,
    output: str | Path,
    *,
    force: bool = False,
    dtype: str = "auto",
    revision: str | None = None,
    allow_other_weights: bool = False,
    hooks: bool = False,
    finish: Callable[[Path, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Write a dampened copy of a model as a transformers folder.

    A folder's shards are edited as streams, and every byte that is no site's weight or bias is
    kept; where the weights are quantised, their scales are edited (docs/quantised.md). A GGUF file
    is de-quantised and saved. The output appears under its name only when it is whole. It holds the
    provenance (`sordino.json`), a README.md, and the source's own README.md as `README.base.md`.

    Shifts go into biases. Where a site has none, the setting of the configuration that gives it one
    (such as `mlp_bias`) is turned on; where there is no such setting, `hooks` is the way.

    Args:
        model: A hub id, a transformers folder, a ".gguf" file, or one that is open already (whose
            files are read again: what is in memory stays as it is).
        dampening: Factors for the model's sites.
        output: The folder to make.
        force: Whether an existing model folder there is replaced.
        dtype: Of the weights written from a GGUF file; a folder keeps its own.
        revision: A branch, tag or commit of the hub.
        allow_other_weights: Whether the factors may come from other weights of the same
            architecture, such as those from which this model was fine-tuned.
        hooks: Write no weights, but factors and shifts to `sordino/hooks.safetensors`, for
            `Dampening.load(path).applied(model)`; see docs/shifts.md.
        finish: Called with the folder and the provenance before the folder takes its name, to add
            to it, such as a README.md with an evaluation.

    Returns:
        The provenance, as in `sordino.json`.

    Raises:
        UserError: The model and the dampening do not fit, or the output cannot be written.
    """
    ref = model.ref if isinstance(model, OpenModel) else resolve(model, revision)
    target = Path(output).expanduser()
    _refuse_overlap(ref, target)
    _refuse_other_folder(target)
    if dtype != "auto" and (hooks or ref.kind == "folder"):
        reason = "hooks have no weights" if hooks else f"{ref.name} keeps its own dtype"
        raise UserError(f"--dtype {dtype} is for baking GGUF models: {reason}.")
    fingerprint = ref.weights_fingerprint()
    if not allow_other_weights:
        _refuse_other_weights(ref, dampening, fingerprint)
    with _file_errors(target), only_one(target), new_folder(target, force=force) as stage:
        if hooks:
            dampening.save(stage / HOOKS)
            record = provenance(ref, dampening, fingerprint, hooks=True)
        else:
            left_out, settings, quantised = _write_weights(ref, dampening, stage, dtype)
            record = provenance(
                ref, dampening, fingerprint, left_out, settings, quantised=quantised
            )
        write_json(stage / FILE_NAME, record)
        _write_cards(stage, record)
        if finish is not None:
            finish(stage, record)
    return record


def _write_weights(
    ref: ModelRef, dampening: Dampening, stage: Path, dtype: str
) -> tuple[Sequence[str], Mapping[str, bool], Mapping[str, Any] | None]:
    """Fill the stage with the dampened model.

    Returns:
        The names of the files left out, the settings changed in the configuration, and what there
        is to say of quantised weights.
    """
    if ref.kind == "gguf":
        return [], gguf_source.write_folder(ref, dampening, stage, dtype), None
    edit = safetensors_folder.plan(ref, dampening)
    edit.write(stage)
    return [str(file) for file in edit.left_out], edit.settings, edit.quantised


def _write_cards(stage: Path, record: dict[str, Any]) -> None:
    card = stage / "README.md"
    if card.exists():
        shutil.move(card, stage / BASE_CARD)
    card.write_text(plain_card(record), encoding="utf-8")


def _refuse_overlap(ref: ModelRef, target: Path) -> None:
    """The source must outlive the output's replacement, and not hold it."""
    source, output = ref.path.resolve(), target.resolve()
    if output == source or source in output.parents or output in source.parents:
        raise UserError(f"-o {target} and the model {ref.path} overlap: choose another -o.")


def _refuse_other_folder(target: Path) -> None:
    """`--force` replaces a model or an export of hooks, never someone's other files."""
    marks = ("config.json", FILE_NAME)
    ours = any((target / mark).is_file() for mark in marks)
    if target.is_dir() and any(target.iterdir()) and not ours:
        raise UserError(
            f"{target} exists and is no model folder, so that it is not replaced: choose another "
            "-o."
        )


def _refuse_other_weights(ref: ModelRef, dampening: Dampening, fingerprint: str) -> None:
    """Factors belong to the weights they were found on; those made by hand name none."""
    if dampening.expertise.get("weights_fingerprint", fingerprint) != fingerprint:
        raise UserError(
            f"The expertise was found on other weights ({dampening.expertise.get('model', '?')}) "
            f"than those of {ref.name}: find it on this model, or --allow-other-weights if it is "
            "a sibling (a fine-tuned copy)."
        )


@contextmanager
def _file_errors(target: Path) -> Iterator[None]:
    """Turn a failure of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            reason = "no space is left on its disk; free some, or choose another -o"
        else:
            reason = f"{error.filename or target}: {error.strerror or error}"
        raise UserError(f"{target} could not be written: {reason}.") from None
    except SafetensorError as error:
        raise UserError(f"{target} could not be written: {error}.") from None
