"""From a baked folder back to the model from which it was made.

A neuron's factor can be divided out again unless it is 0. What cannot be had back is what the
edit's rounding lost: two weights that became one value are one value still. How many weights that
leaves open is counted exactly, by trying what the edit makes of each weight's neighbours.
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
    FILE_NAME,
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
from sordino.outputs import MODEL, claim_output

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Of a rounded quotient, how many steps away the weight can be that the edit made its value of.
_STEPS = (0, -1, 1, -2, 2)


@dataclass(frozen=True)
class Undone:
    """What an undoing came to.

    Args:
        original: The name of the model that was brought back.
        weights: How many weights (and entries of biases) were changed back.
        uncertain: How many of these are not certain to be as they were.
        lost: By site, how many neurons had the factor 0 and stayed as they are.
        same: Whether the weight files are the original's, by their fingerprint; None where it has
            none to compare with (a GGUF file), or neurons were lost.
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
    """Write the model from which a baked folder was made, as far as its weights tell.

    Biases that were made for shifts go, and the configuration is what it was. A folder that was
    edited several times goes back by its last edit.

    Args:
        folder: A folder that `bake` made.
        output: The folder to make.
        partly: Bring back what can be where some factors are 0, and leave the other rows as they
            are; the output's record then tells of those.
        force: Whether an existing model folder there is replaced.

    Raises:
        UserError: The folder is none that `bake` filled with weights, has neurons whose factor was
            0, or the output cannot be written.

    Example:
        >>> sordino.undo("quiet", "loud").weights > 0
        True
    """
    source = user_path(folder)
    target = claim_output(output, MODEL, force=force, inputs=[source])
    if has_suffix(source, ".gguf") and source.is_file():
        raise UserError(f"{source} is a GGUF file; only folders of safetensors can be undone yet.")
    record = read_provenance(source)
    if record.written_as != "weights":
        raise UserError(f"{source} holds no weights: without it the model is as it was.")
    dampening = Dampening.load(source / DAMPENING)
    left = _find_lasting(dampening)
    if left.changed == dampening.changed > 0:
        raise UserError(
            f"All {left.changed} neurons that {source} changed were multiplied by 0: nothing can "
            f"come back; take the original, {record.model.name}."
        )
    if left.changed and not partly:
        raise UserError(
            f"{left.changed:,} of the {dampening.changed:,} neurons that {source} changed (such as "
            f"some of {_name_first(left)}) were multiplied by 0 and cannot come back: take the "
            f"original, {record.model.name}, or bring the others back with `partly=True`."
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
    """Turn values that a change made back, in place, into those that it made them of.

    What the change scaled by 0 stays as it is.

    Args:
        values: Of any floating dtype.
        change: What became of them; see `change_`.

    Returns:
        How many are not certain, because the change makes the same value of a neighbour. The change
        is monotonic, so that where it does not do so for either, it does for no other number.
    """
    scale = change.scale.double()
    shift = torch.zeros((), dtype=torch.float64) if change.shift is None else change.shift.double()
    touched = _find_touched(change).expand_as(values)
    nearest = ((values.double() - shift) / torch.where(scale == 0, 1, scale)).to(values.dtype)
    # Compared and chosen as bits, so that the zeros of both signs are two.
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
    """The bits of the numbers that are so many steps above (not a number beyond the ends)."""
    lowest = torch.iinfo(bits.dtype).min
    # Numbers below 0 count away from it, with the lowest integer for −0.
    order = torch.where(bits < 0, lowest - bits, bits) + step
    return torch.where(order < 0, lowest - order, order)


def _find_touched(change: Change) -> Tensor:
    """What was changed and can be turned back; it broadcasts to the tensor."""
    moved = change.scale != 1
    if change.shift is not None:
        moved |= change.shift != 0
    return moved & (change.scale != 0)


class _Tally:
    """Counts while tensors are turned back, several at a time."""

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
            f"{source} is quantised so that tensors had to be replaced when it was baked, which "
            f"cannot be undone: take the original, {record.model.name}."
        )


def _refuse_without_originals(source: Path, record: Provenance) -> None:
    """What was rewritten comes back from copies, which a pushed model lacks."""
    names = record.rewritten or (("config.json",) if record.configuration else ())
    for name in names:
        if not (source / BEFORE / name).is_file():
            raise UserError(
                f"{source / BEFORE / name} is missing, which is {name} as it was before {source} "
                "was baked (it is not pushed to a hub): take the original, "
                f"{record.model.name}."
            )


def _name_first(dampening: Dampening) -> str:
    return next(iter(dampening.factors))


def _bring_back_rewritten(stage: Path) -> None:
    """Replace the configuration and the index by what they were before biases were added."""
    before = stage / BEFORE
    for file in sorted(path for path in before.rglob("*") if path.is_file()):
        file.replace(stage / file.relative_to(before))
    shutil.rmtree(before, ignore_errors=True)


def _bring_back_extras(stage: Path, record: Provenance) -> None:
    """Replace what the edit put beside the weights by what was there before it."""
    kept = stage / ".earlier"
    if (stage / EARLIER).exists():
        (stage / EARLIER).rename(kept)
    shutil.rmtree(stage / EXTRAS)
    (stage / FILE_NAME).unlink()
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
        write_json(stage / FILE_NAME, record.earlier.as_json())


def _keep_record(stage: Path, record: Provenance, dampening: Dampening, left: Dampening) -> None:
    """Make the record and the factors those of what could not be undone."""
    gone = () if left.shifted else ("configuration", "added")
    kept = {key: value for key, value in record.as_json().items() if key not in gone}
    extent, undone = summary(left).as_json(), dampening.changed - left.changed
    remains = Provenance.model_validate(kept | extent | {"undone": undone})
    left.save(stage / DAMPENING, force=True)
    write_json(stage / FILE_NAME, remains.as_json())
    (stage / "README.md").write_text(plain_card(remains), encoding="utf-8")
