"""Bake dampening factors into a model's files."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from sordino.edits import gguf_file, gguf_source, safetensors_folder
from sordino.edits.formats import FORMATS, RANK, Format, Written
from sordino.edits.provenance import (
    BEFORE,
    DAMPENING,
    EARLIER,
    EXTRAS,
    GGUF,
    plain_card,
    provenance,
)
from sordino.edits.record import Provenance
from sordino.errors import UserError
from sordino.files import (
    has_suffix,
    is_disk_full,
    new_files,
    new_folder,
    only_one,
    user_path,
    write_json,
)
from sordino.interventions import Dampening
from sordino.models.folder import piece_files
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef, resolve
from sordino.outputs import RECORD, claim_output, listing, model_kind

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
    format: str = "weights",
    rank: int | None = None,
    finish: Callable[[Path, Provenance], None] | None = None,
    opened: OpenModel | None = None,
) -> Provenance:
    """Write a dampened copy of a model, or what dampens one while it runs.

    `sordino.bake` documents the parameters; this function takes a `Dampening` only. `opened` is the
    same model, open and as it was loaded, so that a GGUF file need not be de-quantised again for a
    folder of weights. An `OpenModel` as `model` is not used for that, for it may have been changed.

    Raises:
        UserError: The model and the dampening do not fit, or the output cannot be written.
    """
    ref = model.ref if isinstance(model, OpenModel) else resolve(model, revision)
    target = claim(ref, output, force=force, dtype=dtype, format=format, rank=rank)
    written = FORMATS.named(format)
    if written.is_ranked:
        _refuse_rank(RANK if rank is None else rank, dampening)
    if not allow_other_weights:
        dampening.refuse_other_weights(ref)
    fingerprint = ref.weights_fingerprint()
    if has_suffix(target, GGUF):
        pieces = piece_files(target)
        with file_errors(target), only_one(target), new_files(pieces, force=force) as stages:
            record = gguf_file.bake(ref, dampening, fingerprint, stages)
            if finish is not None:
                finish(stages[0], record)
        return record
    write = written.write
    if written is FORMATS["weights"]:
        write = partial(_write_weights, opened=opened)
    with file_errors(target), only_one(target), new_folder(target, force=force) as stage:
        done = write(ref, dampening, stage, dtype)
        record = provenance(ref, dampening, fingerprint, done, format=format)
        dampening.save(stage / DAMPENING)
        _write_cards(stage, (written.card or plain_card)(record))
        record = record.model_copy(update={"files": tuple(listing(stage))})
        write_json(stage / RECORD, record.as_json())
        if finish is not None:
            finish(stage, record)
    return record


def claim(
    ref: ModelRef,
    output: str | Path,
    *,
    force: bool,
    dtype: str = "auto",
    format: str = "weights",
    rank: int | None = None,
) -> Path:
    """Check that a model can be baked to an output in this way, whatever the dampening.

    The arguments are those of `bake`.

    Returns:
        The path to write to; see `claim_output`.

    Raises:
        UserError: It cannot.
    """
    target = claim_model(ref, output, force=force)
    written = FORMATS.named(format)
    if rank is not None and not written.is_ranked:
        raise UserError(f"`rank={rank}` is for `format=lora`: `format={format}` has no rank.")
    if has_suffix(target, GGUF) and (format != "weights" or dtype != "auto"):
        wanted = f"`format={format}` writes a folder"
        reason = f"`dtype={dtype}` is for folders" if format == "weights" else wanted
        raise UserError(f"`output={target}` names a GGUF file: {reason}.")
    if dtype != "auto" and (not written.is_model or ref.kind == "folder"):
        kept = f"{ref.name} keeps its own dtype"
        reason = kept if written.is_model else f"`format={format}` writes no weights"
        raise UserError(f"`dtype={dtype}` is for baking GGUF models: {reason}.")
    return target


def _refuse_rank(most: int, dampening: Dampening) -> None:
    site, rows = max(dampening.rows.items(), key=lambda item: item[1], default=("", 0))
    if rows > most:
        raise UserError(
            f"{rows:,} rows of {site} change, more than a rank of {most} can hold: limit the rule "
            f"with setting `rows={most}`, if the factors are made from an expertise, or use "
            f"`rank={rows}`."
        )


def _write_weights(
    ref: ModelRef,
    dampening: Dampening,
    stage: Path,
    dtype: str,
    opened: OpenModel | None = None,
) -> Written:
    """Write the dampened model to the staging path."""
    if ref.kind == "gguf":
        return Written(settings=gguf_source.write_folder(ref, dampening, stage, dtype, opened))
    edit = safetensors_folder.plan(ref, dampening)
    edit.tell(ref.name)
    edit.write(stage)
    _set_earlier_aside(stage)
    for file in edit.rewritten:
        (stage / BEFORE / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ref.path / file, stage / BEFORE / file)
    return Written(
        left_out=tuple(map(str, edit.left_out)),
        settings=edit.settings,
        added=tuple(name for tensors in edit.added.values() for name in tensors),
        quantised=edit.quantised,
        rewritten=tuple(map(str, edit.rewritten)),
        not_copied=tuple(edit.not_copied),
        linked=tuple(map(str, edit.linked)),
        draft_heads=edit.drafts.record,
    )


FORMATS["weights"] = Format("in the weights", _write_weights, is_model=True)


def _set_earlier_aside(stage: Path) -> None:
    """Keep what an earlier edit (most likely) left, so that `undo` can restore it."""
    extras, card, kept = stage / EXTRAS, stage / BASE_CARD, stage / ".earlier"
    if not (extras.exists() or card.exists()):
        return
    if extras.exists():
        extras.rename(kept)
    kept.mkdir(exist_ok=True)
    if card.exists():
        card.rename(kept / BASE_CARD)
    extras.mkdir()
    kept.rename(stage / EARLIER)


def _write_cards(stage: Path, text: str) -> None:
    card = stage / "README.md"
    if card.exists():
        shutil.move(card, stage / BASE_CARD)
    card.write_text(text, encoding="utf-8")


def claim_model(ref: ModelRef, output: str | Path, *, force: bool) -> Path:
    """Check that a model can be baked to an output, whatever the dampening.

    Returns:
        The path to write to; see `claim_output`.

    Raises:
        UserError: It cannot.
    """
    if has_suffix(output, GGUF) and ref.kind != "gguf":
        raise UserError(
            f"`output={output}` names a GGUF file, and {ref.name} is not one: bake to a folder, "
            "and convert that with llama.cpp."
        )
    inputs = ref.weight_files if ref.kind == "gguf" else [ref.path]
    files = piece_files(user_path(output))
    if len(files) > 1 and len(files) != len(inputs):
        raise UserError(
            f"`output={output}` names one of {len(files)} files, and {ref.name} has "
            f"{len(inputs)}: give a name without numbers to write one file."
        )
    given = files if len(files) > 1 else [output]
    kind = model_kind(output)
    targets = [claim_output(file, kind, force=force, inputs=inputs) for file in given]
    return targets[0]


@contextmanager
def file_errors(target: Path) -> Iterator[None]:
    """Turn a failure of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            reason = "no space is left on its disk; free some, or choose another `output`"
        else:
            reason = f"{error.filename or target}: {error.strerror or error}"
        raise UserError(f"{target} could not be written: {reason}.") from None
    except SafetensorError as error:
        raise UserError(f"{target} could not be written: {error}.") from None
