"""Draft heads in a model's files, with which a speculative decoder guesses the next tokens.

Transformers does not load them (`mtp.*`, or a layer beyond the last), and the model's output does
not depend on them, but how many guesses the model accepts does, and so does its speed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from transformers import PreTrainedModel

from sordino.edits.names import not_loaded
from sordino.edits.record import DraftHeads
from sordino.edits.shard import Change
from sordino.models.gguf_header import Header
from sordino.models.safetensors_header import Stored
from sordino.models.sites import decoder_layers
from sordino.progress import note

_NAMED = re.compile(r"(.*?(?:^|\.)(?:mtp|nextn|eagle|medusa)[^.]*)\.", re.IGNORECASE)
_LAYER = re.compile(r"(.*?(?:^|\.)layers\.(\d+))\.")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Drafts:
    """The draft heads of a checkpoint.

    Args:
        heads: The prefixes of their tensors' names, such as "mtp".
        copies: By the name of a tensor in a head, that of the dampened tensor with the same bytes.
    """

    heads: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)

    @property
    def record(self) -> DraftHeads | None:
        """Their entry in an edit's record; None if there are none."""
        if not self.heads:
            return None
        return DraftHeads(names=self.heads, dampened=tuple(sorted(self.copies)))

    def tell(self, name: str) -> None:
        """Say what happens to them in the edited copy of the model `name`."""
        heads = ", ".join(f"{head}.*" for head in self.heads)
        if self.copies:
            note(
                f"{name} has draft heads ({heads}): {len(self.copies)} of their tensors are copies "
                "of dampened ones, and are dampened alike."
            )
        elif self.heads:
            note(
                f"{name} has draft heads ({heads}), which are copied unchanged. The output of the "
                "model does not depend on them, but a speculative decoder may accept fewer of "
                "their guesses."
            )


def find_drafts(
    folder: Path,
    model: PreTrainedModel,
    shards: Mapping[PurePosixPath, Mapping[str, Stored]],
    changes: Mapping[str, Change],
) -> Drafts:
    """The draft heads in a folder's shards.

    Args:
        folder: The model's folder.
        model: Its module tree.
        shards: By file, its tensors.
        changes: The changes of the sites' tensors, by name on disk.
    """
    left = not_loaded(model, [name for tensors in shards.values() for name in tensors])
    if not left:
        return Drafts()
    _, layers = decoder_layers(model)
    inside = dict(_heads(left, len(layers)))
    places = {
        name: (folder / file, of)
        for file, tensors in shards.items()
        for name, of in tensors.items()
    }
    alike: dict[tuple[str, object, object], list[str]] = {}
    for name in changes.keys() & places.keys():
        alike.setdefault(_kind(name, places[name][1]), []).append(name)
    copies = {}
    for name in inside:
        for other in sorted(alike.get(_kind(name, places[name][1]), ())):
            if _same_bytes(places[name], places[other]):
                copies[name] = other
                break
    return Drafts(tuple(dict.fromkeys(inside.values())), copies)


def find_drafts_in_file(header: Header) -> Drafts:
    """The draft heads in a GGUF file: its last layers, as many as its metadata say."""
    layers, count = (
        header.metadata.get(f"{header.architecture}.{key}")
        for key in ("block_count", "nextn_predict_layers")
    )
    if not (isinstance(layers, int) and isinstance(count, int) and 0 < count < layers):
        return Drafts()
    return Drafts(tuple(f"blk.{number}" for number in range(layers - count, layers)))


def _heads(names: Iterable[str], layers: int) -> Iterator[tuple[str, str]]:
    """The names that belong to a draft head, each with the head's prefix."""
    for name in names:
        found = _NAMED.match(name) or _LAYER.match(name)
        if found and (found.re is _NAMED or int(found[2]) >= layers):
            yield name, found[1]


def _kind(name: str, stored: Stored) -> tuple[str, object, object]:
    """What two copies of a tensor have in common: "down_proj.weight", type and shape."""
    return ".".join(name.split(".")[-2:]), stored.dtype, stored.shape


def _same_bytes(one: tuple[Path, Stored], other: tuple[Path, Stored]) -> bool:
    (first, here), (second, there) = one, other
    with first.open("rb") as a, second.open("rb") as b:
        a.seek(here.start)
        b.seek(there.start)
        left = here.nbytes
        while left:
            size = min(left, _CHUNK)
            if a.read(size) != b.read(size):
                return False
            left -= size
    return True
