"""The expertise artefact: every neuron's statistics about a concept, in one file."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from safetensors.numpy import save

from sordino.errors import UserError
from sordino.expertise.statistic import (
    REACHED,
    SHARES,
    STRONGEST,
    UNPROTECTED,
    WITHOUT_REFUSALS,
    Statistic,
)
from sordino.files import counted, new_file, printable
from sordino.hub import fetch_if_shared
from sordino.models.safetensors_header import LENGTH_BYTES, encode_header
from sordino.models.tensor_file import read_about, read_tensors
from sordino.records import Site, fault, parse

FORMAT = "sordino-expertise-1"
PROTECTION = ("n_protected", "protected_fingerprint")
"""Metadata of protected texts."""
REFUSALS = "refusals"
"""The beginning of the names of metadata about protected refusals."""
_Number = Annotated[str, Field(pattern="^[0-9]{1,15}$")]


class _Metadata(BaseModel):
    """Required metadata, and the format of optional ones."""

    model: str
    architecture: str
    weights_fingerprint: str
    concept: str
    concept_fingerprint: str
    n_positive: _Number
    n_negative: _Number
    pooling: Literal["max", "mean", "last"] = "max"
    max_tokens: Annotated[str, Field(pattern="^[1-9][0-9]{0,14}$")] = "128"
    chat_role: Literal["assistant", "user"] = "assistant"
    chat_thinking: Literal["skipped", "kept"] = "skipped"
    chat_template: Annotated[str, Field(pattern="^[0-9a-f]{16}$")] | None = None


_SITES = TypeAdapter(Annotated[list[Site], Field(min_length=1)])


@dataclass(frozen=True, eq=False)
class Expertise:
    """Statistics of every neuron of every site about one concept.

    Args:
        statistics: By site path, then by statistic, an array [neurons]. The AUROC (float32, in
            [0, 1]; not-a-number if a response was) is always there; `STRONGEST` are the indices
            (int32) of the sentences that excite the neuron most.
        metadata: Strings about the model, the concept and the settings; see `docs/design.md`.

    Example:
        >>> expertise.save("copy.expertise.safetensors").name
        'copy.expertise.safetensors'
        >>> again = sordino.Expertise.load("copy.expertise.safetensors")
        >>> again.top(1) == expertise.top(1)
        True
        >>> {values.dtype.name for values in again["auroc"].values()}
        {'float32'}
    """

    statistics: Mapping[str, Mapping[Statistic, NDArray[Any]]]
    metadata: Mapping[str, str]

    def __getitem__(self, statistic: Statistic | str) -> dict[str, NDArray[Any]]:
        """One statistic of all sites, by site path.

        Args:
            statistic: The statistic, or its name.

        Raises:
            UserError: A site lacks it.
        """
        wanted = Statistic(statistic)
        for site, values in self.statistics.items():
            if wanted not in values:
                raise UserError(
                    f"This expertise has no '{wanted}' for {site}: find it again with "
                    f"{wanted.asked or 'this version of sordino'}."
                )
        return {site: values[wanted] for site, values in self.statistics.items()}

    def holds(self, *statistics: Statistic) -> bool:
        """Whether every site has all of these."""
        return all(name in of for of in self.statistics.values() for name in statistics)

    def __repr__(self) -> str:
        """One line: the concept, the model, the number of neurons, and the statistics."""
        about = self.metadata
        names = dict.fromkeys(
            name.rstrip("_0123456789") for of in self.statistics.values() for name in of
        )
        return printable(
            f"Expertise({about.get('concept', '')!r} in {about.get('model', '')!r}: "
            f"{self.neurons:,} neurons of {counted(len(self.sites), 'site')}; {', '.join(names)})"
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites' module paths, in the model's order."""
        return tuple(self.statistics)

    @property
    def protects_refusals(self) -> bool:
        """Whether attribution was measured with protected refusals."""
        return self.holds(Statistic.REFUSALS)

    @property
    def shown(self) -> dict[str, str]:
        """The metadata, made safe for pages and tables, because the file may be anybody's."""
        return {key: printable(value) for key, value in self.metadata.items()}

    def at(self, sites: Collection[str]) -> "Expertise":
        """The same for these sites alone, which must be among its own."""
        kept = {site: of for site, of in self.statistics.items() if site in sites}
        return Expertise(kept, self.metadata)

    def unprotected(self) -> "Expertise":
        """The same as if attribution had been measured without protected texts and refusals.

        Raises:
            UserError: It was.
        """
        gone = {*UNPROTECTED.values(), *WITHOUT_REFUSALS.values()}
        return self._replaced(UNPROTECTED, {*gone, Statistic.PROTECTED, Statistic.REFUSALS})

    def without_refusals(self) -> "Expertise":
        """The same as if attribution had been measured without protected refusals.

        Raises:
            UserError: It was.
        """
        if not self.holds(Statistic.PROTECTED):
            return self.unprotected()
        return self._replaced(WITHOUT_REFUSALS, {*WITHOUT_REFUSALS.values(), Statistic.REFUSALS})

    def _replaced(
        self, kept: Mapping[Statistic, Statistic], gone: Collection[Statistic]
    ) -> "Expertise":
        """The same with the values of some statistics for others, and without those that go."""
        values = {name: self[of] for name, of in kept.items()}
        statistics = {
            site: {name: values[name][site] if name in values else one for name, one in of.items()}
            for site, of in self.statistics.items()
        }
        left = {
            site: {name: one for name, one in of.items() if name not in gone}
            for site, of in statistics.items()
        }
        keys = PROTECTION if Statistic.PROTECTED in gone else ()
        about = {
            key: value
            for key, value in self.metadata.items()
            if key not in keys and not key.startswith(f"{REFUSALS}_")
        }
        return Expertise(left, about)

    @cached_property
    def neurons(self) -> int:
        """The number of neurons of all sites."""
        return sum(values[Statistic.AUROC].size for values in self.statistics.values())

    def top(self, count: int) -> list[tuple[str, int, float]]:
        """The `count` neurons of highest AUROC: site path, index, AUROC; ties in model order.

        There are fewer where fewer have an AUROC.
        """
        best = self.best(count)
        sites = list(self.statistics)
        starts = np.cumsum([0, *(v.size for v in self[Statistic.AUROC].values())])
        found = []
        for position in best:
            site = int(np.searchsorted(starts, position, side="right")) - 1
            index = int(position - starts[site])
            auroc = float(self.statistics[sites[site]][Statistic.AUROC][index])
            found.append((sites[site], index, auroc))
        return found

    def best(self, count: int) -> NDArray[np.int64]:
        """Where among the neurons of all sites those of `top` are, in its order."""
        flat = np.concatenate([*self[Statistic.AUROC].values()])
        known = flat.size - int(np.isnan(flat).sum())
        # What is not a number comes last.
        return np.argsort(-flat, kind="stable")[: min(count, known)]

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the artefact; the file appears only when it is complete.

        Raises:
            UserError: `path` exists and `force` is not set.
        """
        target = Path(path)
        tensors = {
            f"{site}.{statistic}": np.ascontiguousarray(values)
            for site, of_site in self.statistics.items()
            for statistic, values in of_site.items()
        }
        # Safetensors files do not keep the order of the sites, which is the model's.
        order = json.dumps(list(self.statistics))
        blob = save(tensors, metadata={**self.metadata, "format": FORMAT, "sites": order})
        with new_file(target, force=force) as stage:
            stage.write_bytes(_with_sorted_metadata(blob))
        return target

    @classmethod
    def load(cls, path: str | Path) -> "Expertise":
        """Read an artefact.

        Args:
            path: The file, or "hf:org/name" for one of the hub; see `sordino.hub.fetch_if_shared`.

        Raises:
            UserError: It is missing, damaged, or not an expertise file.
        """
        source = fetch_if_shared(path)
        metadata = read_about(source, "expertise")
        if metadata.get("format") != FORMAT:
            raise UserError(
                f"{source} is not an expertise file of this version (format "
                f"'{printable(metadata.get('format', 'none'))}', expected '{FORMAT}')."
            )
        try:
            about = _Metadata.model_validate(metadata)
        except ValidationError as error:
            raise UserError(f"{source} is damaged: its metadata {fault(error)}.") from None
        sites = parse(_SITES, metadata.get("sites", ""), f"{source}, its metadata sites,")
        sentences = int(about.n_positive) + int(about.n_negative)
        tensors = read_tensors(source, "expertise", ("F32", "I32"))
        return cls(_by_site(source, tensors, sites, sentences), _keep_own(metadata))


def _with_sorted_metadata(blob: bytes) -> bytes:
    """The same safetensors file with its metadata in a fixed order.

    The library writes metadata in an order that changes from process to process, and the same input
    has to give the same bytes.
    """
    end = LENGTH_BYTES + int.from_bytes(blob[:LENGTH_BYTES], "little")
    header = json.loads(blob[LENGTH_BYTES:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    return encode_header(header) + blob[end:]


def _keep_own(metadata: Mapping[str, str]) -> dict[str, str]:
    # The library reads them in an order that changes from process to process.
    return {k: metadata[k] for k in sorted(metadata) if k not in ("format", "sites")}


def _by_site(
    source: Path, tensors: Mapping[str, NDArray[Any]], sites: list[str], sentences: int
) -> dict[str, dict[Statistic, NDArray[Any]]]:
    statistics: dict[str, dict[Statistic, NDArray[Any]]] = {site: {} for site in sites}
    if len(statistics) < len(sites):
        raise UserError(f"{source} lists a site twice: it is damaged.")
    for name, values in tensors.items():
        site, _, last = name.rpartition(".")
        if site not in statistics:
            raise UserError(
                f"{source} holds '{printable(name)}', which belongs to no listed site: it is "
                "damaged."
            )
        if last not in set(Statistic):
            raise UserError(
                f"{source} holds '{printable(name)}', a statistic unknown to this version: read it "
                "with the version that wrote it, or find the expertise again."
            )
        statistic = Statistic(last)
        _refuse_other_values(
            f"{source} is damaged: '{printable(name)}'", statistic, values, sentences
        )
        statistics[site][statistic] = values
    for site, of_site in statistics.items():
        if Statistic.AUROC not in of_site or len({v.size for v in of_site.values()}) != 1:
            raise UserError(f"{source} lacks statistics of {printable(site)}: it is damaged.")
    return statistics


def _refuse_other_values(
    what: str, statistic: Statistic, values: NDArray[Any], sentences: int
) -> None:
    if values.size == 0 or values.dtype != statistic.dtype:
        raise UserError(f"{what} has {values.size} values of dtype {values.dtype}.")
    if statistic in STRONGEST and not bool(np.all((values >= -1) & (values < sentences))):
        raise UserError(f"{what} names sentences beyond the {sentences} of the concept.")
    if statistic in REACHED and not bool(np.all((values >= 0) & (values <= sentences))):
        raise UserError(f"{what} counts other numbers of sentences than 0 to {sentences}.")
    if statistic in SHARES and not bool(np.all(np.isnan(values) | ((values >= 0) & (values <= 1)))):
        raise UserError(f"{what} has an AUROC outside [0, 1].")
