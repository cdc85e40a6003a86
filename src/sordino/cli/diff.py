"""`sordino diff`."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from sordino.cli.options import JsonOptions, print_columns, print_json, print_lines

if TYPE_CHECKING:
    from sordino.edits.difference import Difference, Factors, SettingChange, TensorChange

_MANY = 8


def diff(
    before: str,
    after: str,
    /,
    *,
    printing: JsonOptions = JsonOptions(),
) -> None:
    """Show what an edit changed between two models or files.

    Exit status: 0 if nothing differs, 1 if something does, 2 if they cannot be compared.

    Parameters
    ----------
    before
        A folder, a .safetensors file (also an expertise or a dampening), a .gguf file, or a model
        of the hub or the kit.
    after
        Another of the same kind.
    """
    from sordino.edits import diff as compare

    with printing.in_force():
        found = compare(before, after)
    if printing.json:
        print_json({"differ": not found.is_none, **asdict(found)})
    else:
        _print(found)
    if not found.is_none:
        sys.exit(1)


def _print(found: "Difference") -> None:
    tensors = [f"{found.unchanged:,} the same", f"{len(found.changed):,} changed"]
    tensors += [f"{len(found.added):,} added"] if found.added else []
    tensors += [f"{len(found.removed):,} removed"] if found.removed else []
    print(f"tensors: {', '.join(tensors)}")
    if found.changed:
        print_columns(
            ("changed", "", "", "factors", "change / norm"),
            ([name, f"× {len(group)}", *_row(group)] for name, group in _groups(found.changed)),
        )
    for sign, names in (("+", found.added), ("-", found.removed)):
        for name, count in Counter(map(_kind, names)).items():
            print_lines(f"{sign} {name} × {count}")
    _print_settings(found.settings)
    for sign, files in (
        ("±", found.files_changed),
        ("+", found.files_added),
        ("-", found.files_removed),
    ):
        for file in files:
            print_lines(f"{sign} {file}")


def _print_settings(settings: Sequence["SettingChange"]) -> None:
    for file in dict.fromkeys(setting.file for setting in settings):
        here = [setting for setting in settings if setting.file == file]
        for setting in here[:_MANY]:
            before, after = (_short(value) for value in (setting.before, setting.after))
            print_lines(f"{file}: {setting.key}: {before} → {after}")
        if len(here) > _MANY:
            print_lines(f"{file}: … and {len(here) - _MANY:,} more (all with --json)")


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return value if len(value) <= 60 else f"{value[:59]}…"


def _groups(changes: Iterable["TensorChange"]) -> Iterable[tuple[str, list["TensorChange"]]]:
    """Changes grouped by the tensor's name without the layer."""
    groups: dict[str, list[TensorChange]] = {}
    for change in changes:
        groups.setdefault(_kind(change.name), []).append(change)
    return groups.items()


def _kind(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _row(group: Sequence["TensorChange"]) -> list[str]:
    """The cells of a group: how many rows changed, their factors, and the relative change."""
    kinds = sorted({f"{a} → {b}" for a, b in (change.dtypes for change in group) if a != b})
    shapes = [change for change in group if change.rows is None]
    notes = [*kinds, *([f"{len(shapes)} of another shape"] if shapes else [])]
    whole = [change for change in group if change.rows is not None]
    if whole:
        changed, count = (sum(getattr(c, key) for c in whole) for key in ("rows", "row_count"))
        notes.append(f"{changed:,} of {count:,} {_lines(whole)}")
    factors = [change.factors for change in group if change.factors]
    return [", ".join(notes), _factors(factors, whole), _change(whole)]


def _lines(group: Sequence["TensorChange"]) -> str:
    if len(group[0].shapes[0]) < 2:
        return "values"
    return group[0].factors.lines if group[0].factors else "rows"


def _factors(factors: Sequence["Factors"], group: Sequence["TensorChange"]) -> str:
    if not factors:
        return ""
    count = sum(found.count for found in factors)
    mean = sum(found.count * found.mean for found in factors) / count
    low, high = min(found.smallest for found in factors), max(found.largest for found in factors)
    rest = sum(change.rows or 0 for change in group) - count
    some = f" ({rest:,} have none)" if rest else ""
    return f"{low:.3g} to {high:.3g}, mean {mean:.3g}{some}"


def _change(group: Sequence["TensorChange"]) -> str:
    known = [c for c in group if c.norm is not None and c.norm_of_change is not None]
    norm = sum((c.norm or 0) ** 2 for c in known) ** 0.5
    change = sum((c.norm_of_change or 0) ** 2 for c in known) ** 0.5
    return f"{change / norm:.3%}" if norm else ""
