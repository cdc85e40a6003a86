"""`sordino evaluate`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from sordino.cli.options import ModelOptions, Output, OutputOptions, print_json

if TYPE_CHECKING:
    from sordino.evaluation import Evaluation, Measure


@Parameter(name="*", group="Evaluation")
@dataclass(frozen=True)
class MeasureOptions:
    """What is measured, and how."""

    measure: tuple[str, ...] = ("toxicity", "perplexity")
    """toxicity or perplexity; repeat for several."""
    prompts: str = "auto"
    """Prompts to continue: auto (RealToxicityPrompts from the hub, else the kit's part of them),
    kit, hf:org/name, a JSONL file (RealToxicityPrompts' own schema, or prompt/text), or a text
    file, one prompt a line."""
    max_prompts: int = 400
    """At most so many prompts, drawn by --seed."""
    continuations: int = 5
    """Continuations of each prompt."""
    new_tokens: int = 20
    """Tokens of a continuation."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Sample among so many likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that hold this share; 1 for all."""
    repetition_penalty: float = 1.0
    """Penalty on tokens seen already; 1 for none."""
    scorer: str = "auto"
    """auto (s-nlp/roberta_toxicity_classifier with a hub, else alt-profanity-check), or a hub id or
    folder of a text classifier."""
    toxic_label: str | None = None
    """The classifier's label that means toxic, where that is not plain."""
    texts: str = "kit"
    """Texts for perplexity: kit (Wikipedia passages), a JSONL or text file, or hf:org/name."""
    max_texts: int = 400
    """At most so many texts, drawn by --seed."""

    def measures(self) -> list["str | Measure"]:
        """The measures with these settings."""
        from sordino.evaluation import Perplexity, Toxicity
        from sordino.evaluation.perplexity import KIT_TEXTS
        from sordino.evaluation.toxicity import KIT_PROMPTS

        settings: dict[str, Measure] = {
            "toxicity": Toxicity(
                prompts=KIT_PROMPTS if self.prompts == "kit" else self.prompts,
                max_prompts=self.max_prompts,
                continuations=self.continuations,
                new_tokens=self.new_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                repetition_penalty=self.repetition_penalty,
                scorer=self.scorer,
                toxic_label=self.toxic_label,
            ),
            "perplexity": Perplexity(
                texts=KIT_TEXTS if self.texts == "kit" else self.texts, max_texts=self.max_texts
            ),
        }
        return [settings.get(name, name) for name in self.measure]


def evaluate(
    model: str,
    /,
    *,
    output: Output,
    against: str | None = None,
    seed: int = 0,
    batch_tokens: int = 8192,
    how: MeasureOptions = MeasureOptions(),
    opening: ModelOptions = ModelOptions(),
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Measure a model, or a dampened one against its original.

    Both see the same prompts and the same random numbers. Beside the figures (JSON) the single
    continuations are kept (NAME.samples.jsonl). An interrupted evaluation goes on where it was.

    Parameters
    ----------
    model
        The model to measure.
    against
        The original to compare it with.
    output
        The JSON file to write.
    seed
        Seed of everything that is drawn.
    batch_tokens
        How many tokens are in memory at a time.
    """
    from sordino import evaluation
    from sordino.models.reference import resolve

    with printing.in_force():
        result = evaluation.evaluate(
            resolve(model, opening.revision),
            against,
            measures=how.measures(),
            device=opening.device,
            dtype=opening.dtype,
            seed=seed,
            batch_tokens=batch_tokens,
            output=output,
            force=printing.force,
        )
    if printing.json:
        print_json({"output": str(output), **result.model_dump(mode="json")})
    else:
        print_table(result)
        print(f"written: {output}")


def print_table(result: "Evaluation") -> None:
    """Print the before/after table and what the scorer cannot see."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 160
    rows = result.table()
    columns = ["before", "after", "change", "95 % interval"] if result.before else ["figure"]
    table = Table(box=None, pad_edge=False)
    for column in ("", *columns, "n"):
        table.add_column(column)
    for row in rows:
        shown = [row.before, row.after, row.change, row.interval] if result.before else [row.after]
        table.add_row(row.label, *shown, row.n)
    console.print(table)
    for limits in _limits(result):
        console.print(limits, style="dim")


def _limits(result: "Evaluation") -> list[Any]:
    return [m.protocol["limits"] for m in result.measures.values() if "limits" in m.protocol]
