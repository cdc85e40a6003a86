"""Restore the model from which a baked folder was made.

A neuron's factor can be divided out again unless it is 0. What the edit's rounding lost stays lost:
two weights that became one value cannot be told apart. How many weights are uncertain for that
reason is counted exactly, by applying the edit to each weight's neighbours.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from sordino.edits.baking import BASE_CARD, file_errors
from sordino.edits.provenance import (
    BEFORE,
    DAMPENING,
    EARLIER,
    EXTRAS,
    plain_card,
    read_provenance,
    summary,
)
from sordino.edits.record import Provenance
from sordino.edits.safetensors_folder import FolderEdit, plan
from sordino.edits.shard import Change, change_
from sordino.errors import UserError
from sordino.files import has_suffix, new_folder, only_one, user_path, write_json
from sordino.interventions import Dampening
from sordino.models.reference import ModelRef
from sordino.outputs import MODEL, RECORD, claim_output, listing

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Of a rounded quotient, how many steps away the weight can be that the edit made its value of.
_STEPS = (0, -1, 1, -2, 2)


@dataclass(frozen=True)
class Undone:
    """What `undo` restored.

    Args:
        original: The name of the original model.
        weights: How many weights (and entries of biases) were changed back.
        uncertain: How many of these may differ from the original's by rounding.
        lost: By site, how many neurons had the factor 0 and stayed as they are.
        same: Whether the weight files are the original's, by their fingerprint; None where there is
            none to compare with (the original is a GGUF file), or neurons were lost.
        missing: The original's files that were left out when it was edited.
    """

    original: str
    weights: int
    uncertain: int
    lost: Mapping[str, int]
    same: bool | None
    missing: tuple[str, ...]


def undo(
    folder: str | Path, output: str | Path, *, partly: bool = False, force: bool = False
) -> Undone:
    """Restore the model from which a baked folder was made.

    Biases that were added for shifts are removed, and the configuration is restored. Of a folder
    that was edited several times, the last edit is undone.

    Args:
        folder: A folder that `bake` made.
        output: The folder to make.
        partly: Where some factors are 0, restore the other rows and leave these as they are; the
            output's record then lists them.
        force: Whether an existing model folder there is replaced.

    Returns:
        What was restored, and how certain it is.

    Raises:
        UserError: `bake` wrote no weights into the folder, some factors were 0, or the output
            cannot be written.

    Example:
        >>> sordino.undo("quiet", "loud").weights > 0
        True
    """
    source = user_path(folder)
    target = claim_output(output, MODEL, force=force, inputs=[source])
    if has_suffix(source, ".gguf") and source.is_file():
        raise UserError(f"{source} is a GGUF file; only folders of safetensors can be undone yet.")
    if has_suffix(target, ".gguf"):
        raise UserError(
            f"`output={output}` names a GGUF file, and what is undone is a folder: choose another "
            "name."
        )
    record = read_provenance(source)
    if record.written_as != "weights":
        raise UserError(f"{source} holds no weights: the model itself was not changed.")
    dampening = Dampening.load(source / DAMPENING)
    left = _find_lasting(dampening)
    if left.changed == dampening.changed > 0:
        raise UserError(
            f"All {left.changed} neurons that {source} changed were multiplied by 0 and cannot be "
            f"restored: use the original, {record.model.name}."
        )
    if left.changed and not partly:
        raise UserError(
            f"{left.changed:,} of the {dampening.changed:,} neurons that {source} changed (such as "
            f"some of {min(left.factors)}) were multiplied by 0 and cannot be restored: use the "
            f"original, {record.model.name}, or restore the others with `partly=True`."
        )
    edit = plan(ModelRef(str(source), "folder", source), dampening)
    _refuse_replaced(source, record, edit)
    _refuse_without_originals(source, record)
    removed = set() if left.shifted else set(record.added)
    tally = _Tally()
    edit.tell(str(source))
    with file_errors(target), only_one(target), new_folder(target, force=force) as stage:
        edit.write(stage, "Undoing", removed=removed, change=tally.restore)
        if not left.shifted:
            _bring_back_rewritten(stage)
        if left.changed:
            _keep_record(stage, record, dampening, left)
        else:
            _bring_back_extras(stage, record)
        found = ModelRef("", "folder", stage).weights_fingerprint()
    original = record.model
    comparable = original.kind == "folder" and not left.changed
    return Undone(
        original=original.name,
        weights=tally.weights,
        uncertain=tally.uncertain,
        lost={site: int((left.factors[site] == 0).sum()) for site in left.factors},
        same=found == original.weights_fingerprint if comparable else None,
        missing=(*record.left_out, *record.not_copied),
    )


def restore_(values: Tensor, change: Change) -> int:
    """Reverse a change of values, in place; what it scaled by 0 stays as it is.

    Returns:
        How many are uncertain, because the change maps a neighbour to the same value. The change is
        monotonic: if it does so for neither neighbour, it does for no other number.
    """
    scale = change.scale.double()
    shift = torch.zeros((), dtype=torch.float64) if change.shift is None else change.shift.double()
    touched = _find_touched(change).expand_as(values)
    nearest = ((values.double() - shift) / torch.where(scale == 0, 1, scale)).to(values.dtype)
    # Compared and chosen as bits, so that 0 and −0 differ.
    kept = values.view(_BITS[values.itemsize])
    first = nearest.view(kept.dtype)
    found, hits = first, torch.zeros(values.shape, dtype=torch.int8)
    for step in _STEPS:
        candidate = _step(first, step) if step else first
        again = candidate.view(values.dtype).clone()
        change_(again, change)
        hit = again.view(kept.dtype) == kept
        found = torch.where(hit & (hits == 0), candidate, found)
        hits += hit
    kept.copy_(torch.where(touched, found, kept))
    return int(((hits != 1) & touched).sum())


def _step(bits: Tensor, step: int) -> Tensor:
    """The bits of the numbers that are `step` steps above (NaN beyond the ends)."""
    lowest = torch.iinfo(bits.dtype).min
    # Numbers below 0 count away from it, with the lowest integer for −0.
    order = torch.where(bits < 0, lowest - bits, bits) + step
    return torch.where(order < 0, lowest - order, order)


def _find_touched(change: Change) -> Tensor:
    """What was changed and can be reversed, bool; it broadcasts to the tensor."""
    moved = change.scale != 1
    if change.shift is not None:
        moved |= change.shift != 0
    return moved & (change.scale != 0)


class _Tally:
    """Counts while tensors are restored, several at a time."""

    def __init__(self) -> None:
        self.weights = self.uncertain = 0
        self._lock = Lock()

    def restore(self, values: Tensor, change: Change) -> None:
        touched, uncertain = (
            int(_find_touched(change).expand_as(values).sum()),
            restore_(values, change),
        )
        with self._lock:
            self.weights += touched
            self.uncertain += uncertain


def _find_lasting(dampening: Dampening) -> Dampening:
    """The part of a dampening that cannot be undone: what has the factor 0."""
    lost = {site: values == 0 for site, values in dampening.factors.items() if (values == 0).any()}
    return replace(
        dampening,
        factors={site: np.where(zero, 0, 1).astype(np.float32) for site, zero in lost.items()},
        shifts={
            site: np.where(zero, dampening.shifts[site], 0).astype(np.float32)
            for site, zero in lost.items()
            if site in dampening.shifts
        },
    )


def _refuse_replaced(source: Path, record: Provenance, edit: FolderEdit) -> None:
    """A quantised layer can be undone if its scales were multiplied, and nothing was replaced."""
    products = all(
        isinstance(change, Change)
        for changes in edit.edited.values()
        for change in changes.values()
    )
    rewritten = record.rewritten or (source / BEFORE).exists()
    if (record.quantised and rewritten) or not products:
        raise UserError(
            f"{source} is quantised, and some of its tensors were replaced when it was baked, "
            f"which cannot be undone: use the original, {record.model.name}."
        )


def _refuse_without_originals(source: Path, record: Provenance) -> None:
    """Raise `UserError` without the copies of rewritten files, which a pushed model lacks."""
    names = record.rewritten or (("config.json",) if record.configuration else ())
    for name in names:
        if not (source / BEFORE / name).is_file():
            raise UserError(
                f"{source / BEFORE / name}, the {name} from before the edit, is missing (it is not "
                f"pushed to a hub): use the original, {record.model.name}."
            )


def _bring_back_rewritten(stage: Path) -> None:
    """Replace the configuration and the index by what they were before biases were added."""
    before = stage / BEFORE
    for file in sorted(path for path in before.rglob("*") if path.is_file()):
        file.replace(stage / file.relative_to(before))
    shutil.rmtree(before, ignore_errors=True)


def _bring_back_extras(stage: Path, record: Provenance) -> None:
    """Replace what the edit put beside the weights by what was there before."""
    kept = stage / ".earlier"
    if (stage / EARLIER).exists():
        (stage / EARLIER).rename(kept)
    shutil.rmtree(stage / EXTRAS)
    (stage / RECORD).unlink()
    (stage / "README.md").unlink(missing_ok=True)
    if (stage / BASE_CARD).exists():
        (stage / BASE_CARD).rename(stage / "README.md")
    if kept.exists():
        if (kept / BASE_CARD).exists():
            (kept / BASE_CARD).rename(stage / BASE_CARD)
        kept.rename(stage / EXTRAS)
        if not any((stage / EXTRAS).iterdir()):
            (stage / EXTRAS).rmdir()
    if record.earlier:
        write_json(stage / RECORD, record.earlier.as_json())


def _keep_record(stage: Path, record: Provenance, dampening: Dampening, left: Dampening) -> None:
    """Reduce the record and the factors to what could not be undone."""
    gone = () if left.shifted else ("configuration", "added", "rewritten")
    kept = {key: value for key, value in record.as_json().items() if key not in gone}
    extent, undone = summary(left).as_json(), dampening.changed - left.changed
    remains = Provenance.model_validate(kept | extent | {"undone": undone})
    left.save(stage / DAMPENING, force=True)
    (stage / "README.md").write_text(plain_card(remains), encoding="utf-8")
    remains = remains.model_copy(update={"files": tuple(listing(stage))})
    write_json(stage / RECORD, remains.as_json())
