"""The record of an edit, whether it lies in `sordino.json` or in a GGUF file."""

from typing import Literal

from pydantic import TypeAdapter

from sordino.folders import Folders
from sordino.interventions.dampening import Origin, Rule
from sordino.records import Count, Kept, Number, Site, parse_format

FORMAT: Literal["sordino-provenance-1"] = "sordino-provenance-1"


class Original(Kept):
    """The model that was edited.

    Args:
        name: What the user called it.
        kind: What its files are.
        revision: The hub's commit; "" of a folder or a file.
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
    """What became of a site.

    Args:
        neurons: How many it has.
        changed: How many of them have a factor other than 1 or a shift other than 0.
        min: The smallest factor.
        mean: The mean of all factors.
        shift: Of a site with shifts.
    """

    neurons: Count
    changed: Count
    min: Number
    mean: Number
    shift: Shift | None = None


class Extent(Kept):
    """How many neurons an edit changes, and by how much, site by site."""

    neurons: Count
    changed: Count
    sites: dict[Site, SiteChange]


class Quantisation(Kept):
    """How the weights are stored that an edit changed, and what that rounded.

    Args:
        scheme: The format's name.
        layers: How many layers were changed.
        rounded: How many of them were rounded again.
        scales_vanished: How many scales became 0, times their factors.
        scales_coarse: How many lost digits.
        error: Of 4-bit floats, how far weights are off, the root mean square, relative.
        largest_error: Of 4-bit floats, the most, relative to the largest of a block.
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
        names: What the names of their tensors begin with.
        dampened: The tensors that are copies of dampened ones, and were dampened alike.
    """

    names: tuple[str, ...]
    dampened: tuple[str, ...]


class TensorRounding(Kept):
    """What rounding did to the block scales of a GGUF file's tensor.

    Args:
        largest: The largest error of one, relative.
        coarse: How many are off by more than 1 %.
        zeroed: How many of those became 0.
    """

    largest: Number
    coarse: Count
    zeroed: Count


class Provenance(Kept):
    """The record of an edit.

    Args:
        format: Names this file format.
        sordino_version: Of the Sordino that made it.
        created: The day, as in "2026-01-31".
        model: The model that was edited.
        intervention: The rule that gave the factors.
        expertise: The metadata of the expertise that they were derived from.
        parts: Where they came from, each, if they are composed of several dampenings.
        written_as: The format in which the edit was written.
        neurons: How many neurons have a factor.
        changed: How many were changed.
        sites: What became of each site.
        left_out: The original's files with undampened weights, which the edited model lacks.
        configuration: What was changed in the configuration, for biases that the model lacked.
        added: The names of the tensors that were added for them.
        quantised: How the weights are stored, if they are quantised.
        rewritten: The files of the configuration that were changed.
        not_copied: The other files in the original's folder, which do not belong to a model.
        linked: The weight files that the original's folder has by a link to elsewhere.
        draft_heads: The draft heads, if there are any.
        earlier: The record of the edit before, if the original was an edited model.
        files: The files of the folder.
        undone: How many neurons an undoing brought back, where it left others.
        rounding: What rounding did, by tensor; of a GGUF file, whose JSON does not have it.
    """

    # The fields are in the order in which they are written.
    format: Literal["sordino-provenance-1"] = FORMAT
    sordino_version: str
    created: str
    model: Original
    intervention: Rule
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
        """Where the factors came from."""
        return Origin(intervention=self.intervention, expertise=self.expertise, parts=self.parts)

    @property
    def concept(self) -> str:
        """What was dampened, by its name."""
        return self.expertise.get("concept", "a concept")

    def cleaned(self, folders: Folders) -> "Provenance":
        """The record without folders of a machine."""
        return Provenance.model_validate(folders.cleaned(self.as_json()))


_PROVENANCE = TypeAdapter(Provenance)


def parse_provenance(text: str | bytes, what: str) -> Provenance:
    """The record of an edit that JSON text holds, with all its keys.

    Args:
        text: JSON.
        what: What it is called in a message.

    Raises:
        UserError: It is none, or a value in it is of another type.
    """
    return parse_format(_PROVENANCE, text, what, "provenance", FORMAT)
