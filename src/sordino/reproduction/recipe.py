"""Recipes for reproducing published rows: one file each, in `recipes/`."""

from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, TypeAdapter, model_validator

from sordino import extras
from sordino.errors import UserError
from sordino.files import has_suffix, user_path
from sordino.hub_table import TABLE
from sordino.records import Record, check, kinds, parse_toml, read_bytes
from sordino.registry import did_you_mean

if TYPE_CHECKING:
    from sordino.evaluation import Measure

_GB = 10**9
_BESIDE_WEIGHTS = 1.2
"""Memory for weights and a forward pass's activations, relative to that for the weights."""


class Published(Record):
    """A figure from the literature.

    Args:
        measure: The measure's name here.
        figure: The figure's name in it.
        before: Their figure before; a share from 0 to 1, or a perplexity.
        after: Their figure after.
        times_fewer_at_most: Before divided by after, if that is all they publish.
        difference: After minus before, if that is all they publish.
        whole_paper: Whether it is about all their models together, and not about this one.
    """

    measure: str
    figure: str
    before: float | None = None
    after: float | None = None
    times_fewer_at_most: float | None = None
    difference: float | None = None
    whole_paper: bool = False

    @model_validator(mode="after")
    def _one_claim(self) -> Self:
        row = self.before is not None and self.after is not None
        claims = [row, self.times_fewer_at_most is not None, self.difference is not None]
        if sum(claims) != 1 or (self.before is None) != (self.after is None):
            raise ValueError("give before and after, or times_fewer_at_most, or difference")
        return self


class Recipe(Record):
    """A published row: the model, the protocol, and the published figures.

    Args:
        name: Its name.
        title: The row's model, as the literature calls it.
        source: Where the figures were published.
        model: A hub id, or whatever else `sordino.open_model` takes.
        parameters: About how many the model has.
        bytes_per_parameter: As the checkpoint stores them.
        gated: Whether the hub requires its terms to be accepted first.
        concept: See `sordino.load_concept`.
        intervention: The rule.
        dtype: In which it runs; "auto" is the checkpoint's own.
        seed: Of everything that is random.
        measures: The measures' settings, by name.
        published: The published figures.
        notes: Differences from the published protocol.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    source: str
    model: str
    parameters: int = Field(gt=0, lt=10**15)
    bytes_per_parameter: int = Field(default=2, gt=0, le=16)
    gated: bool = False
    concept: str = "toxicity"
    intervention: str = "aura"
    dtype: str = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    measures: dict[str, dict[str, Any]] = Field(min_length=1)
    published: tuple[Published, ...] = Field(min_length=1)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _measured(self) -> Self:
        for claim in self.published:
            if claim.measure not in self.measures:
                raise ValueError(f"{claim.measure} is published and not measured")
        return self

    @property
    def memory(self) -> int:
        """About how many bytes of memory it needs on its device."""
        return round(self.parameters * self.bytes_per_parameter * _BESIDE_WEIGHTS + 2 * _GB)

    @property
    def disk(self) -> int:
        """About how many bytes of disk: the checkpoint and its dampened copy."""
        return 2 * self.parameters * self.bytes_per_parameter

    @property
    def from_hub(self) -> list[str]:
        """The files that it needs from the hub."""
        named = [self.model] if _is_hub_id(self.model) else []
        named += ["Jigsaw's comments"] if self.concept == "toxicity" else []
        values = [value for settings in self.measures.values() for value in settings.values()]
        named += [v for v in values if isinstance(v, str) and v.startswith("hf:")]
        tasks = self.measures.get("zero-shot", {}).get("tasks", ())
        return [*named, *(f"the task {task}" for task in tasks if not task.startswith("kit_"))]

    @property
    def extras(self) -> list[str]:
        """The optional parts of Sordino that it needs."""
        wanted = {
            "datasets": any(
                name.startswith("hf:") and name.removeprefix("hf:").partition(":")[0] not in TABLE
                for name in self.from_hub
            ),
            "zero-shot": "zero-shot" in self.measures,
        }
        return [name for name, needed in wanted.items() if needed]

    def missing_extras(self) -> list[str]:
        """Required extras that are not installed."""
        return [name for name in self.extras if extras.lacking(name)]

    @property
    def scorers(self) -> set[str]:
        """The scorers that its measures name."""
        return {settings["scorer"] for settings in self.measures.values() if "scorer" in settings}

    def build(self, max_prompts: int | None = None, scorer: str | None = None) -> "list[Measure]":
        """The measures, with their settings.

        Args:
            max_prompts: The most prompts for toxicity, instead of the recipe's own number.
            scorer: A copy of the recipe's scorer, used in its place.

        Raises:
            UserError: There is no such measure or setting.
        """
        from sordino.evaluation import MEASURES, measure

        made = []
        for name, settings in self.measures.items():
            chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
            if name == "toxicity" and max_prompts is not None:
                chosen["max_prompts"] = max_prompts
            if scorer is not None and "scorer" in chosen:
                chosen["scorer"] = scorer
            measure(name)  # raises for an unknown name
            known = kinds(MEASURES[name])
            for key, value in settings.items():
                if key in known:
                    kind: TypeAdapter[Any] = TypeAdapter(known[key])
                    check(kind, value, f"The recipe {self.name}, measure {name}: {key}")
            try:
                made.append(MEASURES[name](**chosen))
            except TypeError as error:
                raise UserError(f"The recipe {self.name}, measure {name}: {error}.") from None
        return made


def recipes() -> dict[str, Recipe]:
    """All published rows, by name."""
    folder = files("sordino.reproduction") / "recipes"
    found = sorted((one for one in folder.iterdir() if one.name.endswith(".toml")), key=str)
    return {recipe.name: recipe for recipe in (_parse(one.read_bytes(), one.name) for one in found)}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name, or in that TOML file.

    Raises:
        UserError: There is none, or the file is not a recipe.
    """
    path = user_path(name)
    if has_suffix(path, ".toml"):
        recipe = _parse(read_bytes(path, "recipe"), str(path))
        recipe.build()  # raises for unknown settings
        return recipe
    known = recipes()
    if name not in known:
        hint = did_you_mean(name.lower(), known)
        raise UserError(
            f"There is no recipe '{name}': {hint}There are {', '.join(known)}; or give a .toml "
            "file."
        )
    return known[name]


_RECIPE = TypeAdapter(Recipe)


def _parse(text: bytes, where: str) -> Recipe:
    what = f"The recipe {where}"
    value = parse_toml(text, what)
    check(_RECIPE, value, what)
    return Recipe.model_validate(value)


def _is_hub_id(model: str) -> bool:
    return not (model.startswith("kit:") or user_path(model).exists())
