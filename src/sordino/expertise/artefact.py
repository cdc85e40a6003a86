"""The expertise artefact: what was measured of each neuron about a concept, in one file."""

import json
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sordino.errors import UserError
from sordino.files import new_file
from sordino.hub import local

FORMAT = "sordino-expertise-1"
# How to find what an expertise lacks.
_WANTED = {
    "stratified_auroc": " with --stratify length",
    **dict.fromkeys(
        ("attribution_positive", "attribution_negative", "attribution_variance", "cost"),
        " with --attribution",
    ),
    **dict.fromkeys(
        ("mean_positive", "mean_negative", "transport_scale"), " with --moments --pooling mean"
    ),
}
_REQUIRED = ("concept", "concept_fingerprint", "model", "weights_fingerprint")


@dataclass(frozen=True)
class Expertise:
    """Statistics of every neuron of every site about one concept.

    Args:
        statistics: By site path, then by statistic, an array [neurons]. "auroc" (float32, in
            [0, 1]; not-a-number where a response was) is always there; "strongest_1" … are the
            indices (int32) of the sentences that excite the neuron most.
        metadata: Strings that say what was measured on what; see `docs/design.md`.
    """

    statistics: Mapping[str, Mapping[str, NDArray[Any]]]
    metadata: Mapping[str, str]

    def __getitem__(self, statistic: str) -> dict[str, NDArray[Any]]:
        """One statistic of all sites, by site path.

        Raises:
            UserError: A site lacks it.
        """
        for site, values in self.statistics.items():
            if statistic not in values:
                raise UserError(
                    f"This expertise has no '{statistic}' for {site}: find it again"
                    f"{_WANTED.get(statistic, ' with this version of sordino')}."
                )
        return {site: values[statistic] for site, values in self.statistics.items()}

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites' module paths, in the model's order."""
        return tuple(self.statistics)

    def at(self, sites: Collection[str]) -> "Expertise":
        """The same at these sites alone, which must be among its own."""
        kept = {site: of for site, of in self.statistics.items() if site in sites}
        return Expertise(kept, self.metadata)

    @cached_property
    def neurons(self) -> int:
        """How many neurons there are in all."""
        return sum(values["auroc"].size for values in self.statistics.values())

    def top(self, count: int) -> list[tuple[str, int, float]]:
        """The `count` neurons of highest AUROC: site path, index, AUROC; ties in model order."""
        sites = list(self.statistics)
        values = [self.statistics[site]["auroc"] for site in sites]
        flat = np.nan_to_num(np.concatenate(values), nan=-1.0)
        ends = np.cumsum([v.size for v in values])
        best = np.argsort(-flat, kind="stable")[:count]
        found = []
        for position in best:
            site = int(np.searchsorted(ends, position, side="right"))
            index = int(position - (ends[site - 1] if site else 0))
            found.append((sites[site], index, float(flat[position])))
        return found

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the artefact; the file appears only when it is whole.

        Raises:
            UserError: `path` exists and `force` is not set.
        """
        target = Path(path)
        tensors = {
            f"{site}.{statistic}": np.ascontiguousarray(values)
            for site, by_name in self.statistics.items()
            for statistic, values in by_name.items()
        }
        # The format keeps no order of its own, and the sites' order is the model's.
        order = json.dumps(list(self.statistics))
        blob = save(tensors, metadata={**self.metadata, "format": FORMAT, "sites": order})
        with new_file(target, force=force) as stage:
            stage.write_bytes(_with_sorted_metadata(blob))
        return target

    @classmethod
    def load(cls, path: str | Path) -> "Expertise":
        """Read an artefact.

        Args:
            path: The file, or "hf:org/name" for one of the hub; see `sordino.hub.local`.

        Raises:
            UserError: It is missing, damaged, or no expertise file.
        """
        source = local(path)
        if not source.is_file():
            raise UserError(f"The expertise file {source} does not exist.")
        try:
            with safe_open(source, framework="numpy") as file:
                metadata: dict[str, str] = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, struct.error, TypeError) as error:
            raise UserError(f"{source} is not a readable safetensors file: {error}") from None
        return cls(_by_site(source, tensors, metadata), _plain(metadata))


def _with_sorted_metadata(blob: bytes) -> bytes:
    """The same safetensors file with its metadata in a fixed order.

    The library writes metadata in an order that changes from process to process; the same input
    has to give the same bytes.
    """
    end = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data that follow stay aligned
    return len(text).to_bytes(8, "little") + text + blob[end:]


def _plain(metadata: Mapping[str, str]) -> dict[str, str]:
    # The library reads them in an order that changes from process to process.
    return {k: metadata[k] for k in sorted(metadata) if k not in ("format", "sites")}


def _by_site(
    source: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> dict[str, dict[str, NDArray[Any]]]:
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{source} is no expertise file of this version (format "
            f"'{metadata.get('format', 'none')}', expected '{FORMAT}')."
        )
    missing = [key for key in _REQUIRED if key not in metadata]
    try:
        sites = json.loads(metadata["sites"])
    except (KeyError, json.JSONDecodeError):
        missing.append("sites")
        sites = []
    if missing:
        raise UserError(f"{source} lacks the metadata {', '.join(missing)}: it is damaged.")
    statistics: dict[str, dict[str, NDArray[Any]]] = {site: {} for site in sites}
    for name, values in tensors.items():
        site, _, statistic = name.rpartition(".")
        if site not in statistics or values.ndim != 1:
            raise UserError(
                f"{source} holds '{name}', which belongs to no listed site: it is damaged."
            )
        statistics[site][statistic] = values
    for site, by_name in statistics.items():
        if "auroc" not in by_name or len({v.size for v in by_name.values()}) != 1:
            raise UserError(f"{source} has no whole set of statistics for {site}: it is damaged.")
        auroc = by_name["auroc"]
        if not bool(np.all(np.isnan(auroc) | ((auroc >= 0) & (auroc <= 1)))):
            raise UserError(f"{source} has an AUROC outside [0, 1] at {site}: it is damaged.")
    return statistics
