"""What a reproduction does otherwise than a recipe or a run says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sordino.evaluation.opening import AUTO
from sordino.options.recipe import remaining


@dataclass(frozen=True)
class Changes:
    """Deviations from a recipe or from a run.

    Args:
        model: Another copy of its model: a folder, or a GGUF file.
        concept: Another copy of its sentences, such as Jigsaw's train.csv.
        scorer: A copy of its scorer, such as one converted to safetensors.
        max_prompts: The most prompts for toxicity.
        device: Where it runs, as for `sordino.open_model`.

    Example:
        >>> sordino.Changes(max_prompts=3).device
        'auto'
    """

    model: str | None = None
    concept: str | None = None
    scorer: str | None = None
    max_prompts: int | None = None
    device: str = "auto"

    def to(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a run with these deviations."""
        given = {
            "model": self.model,
            "concept": self.concept,
            "scorer": self.scorer,
            "max-prompts": self.max_prompts,
            "device": None if self.device == AUTO else self.device,
        }
        changed = {key: value for key, value in given.items() if value is not None}
        return remaining(recipe, {key: [str(value)] for key, value in changed.items()}) | changed
