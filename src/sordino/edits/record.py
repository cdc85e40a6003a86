"""The record of an edit, in `sordino.json` or in a GGUF file."""

from typing import Literal

from pydantic import TypeAdapter

from sordino.folders import Folders
from sordino.interventions.dampening import Origin, UsedRule
from sordino.records import Count, Kept, Number, Site, parse_format

FORMAT: Literal["sordino-provenance-1"] = "sordino-provenance-1"


class Original(Kept):
    """The model that was edited.

    Args:
        name: What the user called it.
        kind: The kind of its files.
        revision: The hub's commit; "" for a folder or a file.
        weights_fingerprint: Of its weights before the edit.
    """

    name: str
    kind: Literal["folder", "gguf"]
    revision: str
    weights_fingerprint: str


class Shift(Kept):
    """The smallest, the mean and the largest of a site's shifts."""

    min: Number
    mean: Number
    max: Number


class SiteChange(Kept):
    """The change of a site.

    Args:
        neurons: How many it has.
        changed: How many of them have a factor other than 1 or a shift other than 0.
        min: The smallest factor.
        mean: The mean of all factors.
        shift: The shifts, if there are any.
    """

    neurons: Count
    changed: Count
    min: Number
    mean: Number
    shift: Shift | None = None


class Extent(Kept):
    """How many neurons an edit changes, and by how much at each site."""

    neurons: Count
    changed: Count
    sites: dict[Site, SiteChange]


class Quantisation(Kept):
    """How the changed weights are quantised, and what rounding did.

    Args:
        scheme: The format's name.
        layers: How many layers were changed.
        rounded: How many of them were rounded again.
        scales_vanished: How many scales times their factors became 0.
        scales_coarse: How many of them lost digits.
        error: For 4-bit floats, the root mean square error of the weights, relative.
        largest_error: For 4-bit floats, the largest error, relative to the largest of its block.
    """

    scheme: str
    layers: Count | None = None
    rounded: Count | None = None
    scales_vanished: Count | None = None
    scales_coarse: Count | None = None
    error: Number | None = None
    largest_error: Number | None = None


class DraftHeads(Kept):
    """The draft heads in a model's files.

    Args:
        names: The prefixes of their tensors' names.
        dampened: The tensors that are copies of dampened ones, and were dampened alike.
    """

    names: tuple[str, ...]
    dampened: tuple[str, ...]


class TensorRounding(Kept):
    """What rounding did to the block scales of a GGUF file's tensor.

    Args:
        largest: The largest relative error.
        coarse: How many scales are off by more than 1 %.
        zeroed: How many of those became 0.
    """

    largest: Number
    coarse: Count
    zeroed: Count


class Provenance(Kept):
    """The record of an edit.

    Args:
        format: Names this file format.
        sordino_version: The version of Sordino that made it.
        created: The day, as in "2026-01-31".
        model: The model that was edited.
        intervention: The rule that gave the factors.
        expertise: The metadata of the expertise from which they were derived.
        parts: The origin of each part, if several dampenings were composed.
        written_as: The format in which the edit was written.
        neurons: How many neurons have a factor.
        changed: How many were changed.
        sites: The change of each site.
        left_out: The original's files with undampened weights, which the edited model lacks.
        configuration: The settings that were changed, for biases that the model lacked.
        added: The names of the tensors that were added for them.
        quantised: How the weights are quantised; None if they are not.
        rewritten: The files of the configuration that were changed.
        not_copied: Other files in the original's folder, which do not belong to a model.
        linked: The weight files that are links in the original's folder.
        draft_heads: The draft heads; None if there are none.
        earlier: The record of the earlier edit, if the original was an edited model.
        files: The files of the folder.
        undone: How many neurons `undo` restored, if it left others.
        rounding: What rounding did, by tensor; only for a GGUF file, outside of its JSON.
    """

    # The fields are in the order in which they are written.
    format: Literal["sordino-provenance-1"] = FORMAT
    sordino_version: str
    created: str
    model: Original
    intervention: UsedRule
    expertise: dict[str, str]
    parts: tuple[Origin, ...] = ()
    written_as: str
    neurons: Count
    changed: Count
    sites: dict[Site, SiteChange]
    left_out: tuple[str, ...]
    configuration: dict[str, bool] | None = None
    added: tuple[str, ...] = ()
    quantised: Quantisation | None = None
    rewritten: tuple[str, ...] = ()
    not_copied: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()
    draft_heads: DraftHeads | None = None
    earlier: "Provenance | None" = None
    files: tuple[str, ...] = ()
    undone: Count | None = None
    rounding: dict[str, TensorRounding] | None = None

    @property
    def origin(self) -> Origin:
        """The origin of the factors."""
        return Origin(intervention=self.intervention, expertise=self.expertise, parts=self.parts)

    @property
    def concept(self) -> str:
        """The name of what was dampened."""
        return self.expertise.get("concept", "a concept")

    def cleaned(self, folders: Folders) -> "Provenance":
        """The record without the folders of a machine."""
        return Provenance.model_validate(folders.cleaned(self.as_json()))


_PROVENANCE = TypeAdapter(Provenance)


def parse_provenance(text: str | bytes, what: str) -> Provenance:
    """The record of an edit that JSON text holds, with all its keys.

    Args:
        text: JSON.
        what: What it is called in a message.

    Raises:
        UserError: It is not one, or a value in it is of another type.
    """
    return parse_format(_PROVENANCE, text, what, "provenance", FORMAT)
