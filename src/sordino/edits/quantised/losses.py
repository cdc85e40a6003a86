"""What rounding does to scales times factors, in the type of the scales."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from sordino.edits.quantised.layer import Changes, Layer, QuantisedEdit
from sordino.edits.shard import Change, New, change_


@dataclass(frozen=True)
class Losses:
    """Counts of scales, over all dampened layers.

    Args:
        vanished: Products that are not 0 and became 0.
        coarse: Products so small that their type holds them with fewer digits.
    """

    vanished: int = 0
    coarse: int = 0

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(self.vanished + other.vanished, self.coarse + other.coarse)


def losses(layers: Iterable[Layer], edit: QuantisedEdit) -> Losses:
    """Compute all new scales, and count what rounding loses.

    Raises:
        UserError: A scale is not finite, before the edit or after it.
    """
    found = Losses()
    for layer in layers:
        here = {
            suffix: edit.changes[layer.tensor(suffix)]
            for suffix in layer.tensors
            if suffix != "weight" and layer.tensor(suffix) in edit.changes
        }
        found += _of(layer, here)
    return found


def _of(layer: Layer, changes: Changes) -> Losses:
    found = Losses()
    for suffix, change in changes.items():
        if isinstance(change, New):
            made = change.make()
            if made.is_floating_point() and not made.isfinite().all():
                raise layer.unfit(f"{suffix} has scales that are not finite, or too large for it")
        elif isinstance(change, Change):
            before = layer.read(suffix)
            if not before.float().isfinite().all():
                raise layer.unfit(f"{suffix} has scales that are not finite numbers")
            exact = before.float() * change.scale
            after = before.clone()
            change_(after, change)
            rounded = after.float()
            if not rounded.isfinite().all():
                raise layer.unfit(
                    f"{suffix} times the factors is too large for {layer.dtype(suffix)}"
                )
            smallest = torch.finfo(after.dtype).tiny
            vanished = (rounded == 0) & (exact != 0)
            coarse = (rounded != exact) & (rounded != 0) & (rounded.abs() < smallest)
            found += Losses(int(vanished.sum()), int(coarse.sum()))
    return found
