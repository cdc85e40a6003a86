"""How often a model completes sentences about people with a hurtful word."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from sordino import hub, kit
from sordino.concepts.readers import read_table
from sordino.concepts.text_files import input_path, whole_text
from sordino.errors import UserError
from sordino.evaluation.groups import EVERYONE, first_found, group_figures, group_sizes
from sordino.evaluation.measure import register
from sordino.evaluation.opening import AUTO
from sordino.evaluation.scorers.lexicon import Lexicon
from sordino.evaluation.scoring import ScoredTask
from sordino.evaluation.texts import Text, choose_evenly, distinct_texts
from sordino.evaluation.writing import Writer, Writing
from sordino.hub_table import HONEST

IDENTITIES = ("binary", "queer_nonqueer")
_BLANK = "[M]"
_NUMBERS = ("singular", "plural")


@register
@dataclass(frozen=True)
class Honest(Writing):
    """HONEST: hurtful completions of templates about people (Nozza, Bianchi and Hovy 2021).

    The score is the share of completions that contain an entry of a lexicon (HurtLex), by category
    of identity. The templates ("the baker hopes to become a [M].") were made for models that fill
    blanks: here a template ends before the blank, and a few tokens are sampled after it. The
    chosen templates are spread evenly over the identities. The settings are those of `Writing`,
    and:

    Args:
        prompts: Where the templates come from; see `read_templates`. "auto" for the demo kit's, or
            else the hub's.
        lexicon: See `sordino.evaluation.scorers.lexicon.Lexicon`.
    """

    name: ClassVar[str] = "honest"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "HONEST"
    sentence: ClassVar[str] = "How often sentences about people are completed with a hurtful word."
    options: ClassVar[Mapping[str, str]] = {
        **Writing.options,
        "prompts": "templates",
        "lexicon": "lexicon",
    }

    prompts: str = AUTO
    new_tokens: int = 10
    lexicon: str = AUTO

    def prepare(self, seed: int, device: torch.device) -> ScoredTask:  # noqa: ARG002
        """Read and choose the templates, and read the lexicon."""
        source, templates = first_found(read_templates, self.prompts, HONEST.spec, "Honest.prompts")
        chosen = choose_evenly(templates, self.max_prompts, seed)
        return ScoredTask(
            Writer(self, chosen, seed),
            # Last: a wrong setting is reported even where the lexicon is not available.
            {"lexicon": Lexicon(self.lexicon)},
            group_figures("Hurtful completions"),
            source=source,
            everyone=EVERYONE,
            n_prompts=group_sizes(chosen),
        )


def read_templates(spec: str) -> list[Text]:
    """HONEST's templates up to their blank, each with its set of identities and its category.

    Args:
        spec: A ".tsv" file in HONEST's own layout (`template_masked`, `category`); "kit" for the
            English ones of the demo kit; or "hf:org/name" for those of a hub repository in
            HONEST's layout (its own is `sordino.hub_table.HONEST`), "hf:org/name:it_binary" for
            another of its sets.

    Raises:
        UserError: There is no such source, or it is not in that layout.
    """
    if spec == "kit":
        files = {name: kit.data_file(f"honest/{name}.tsv") for name in IDENTITIES}
    elif spec.startswith("hf:"):
        repository, _, name = spec.removeprefix("hf:").partition(":")
        names = [name] if name else [f"en_{identities}" for identities in IDENTITIES]
        files = {name.partition("_")[2]: _from_hub(repository, name) for name in names}
    else:
        path = input_path(
            spec,
            mend=f"give kit, {HONEST.spec}, or a .tsv file in HONEST's layout",
        )
        files = {path.stem: path}
    texts = [text for domain, path in files.items() for text in _file_texts(path, domain)]
    return distinct_texts(texts, spec, "template")


def _from_hub(repository: str, name: str) -> Path:
    file = f"data/{name.partition('_')[0]}/{name}_template.tsv"
    spec = f"hf:{repository}:{name}"
    return hub.fetch_file(
        hub.Wanted(repository, None, "dataset", file, spec, "give kit or a .tsv file")
    )


def _file_texts(path: Path, domain: str) -> Iterator[Text]:
    table = read_table(path)
    for index, row in table.rows():
        template, category = row.get("template_masked"), row.get("category")
        if not isinstance(template, str) or not isinstance(category, str) or not template:
            raise UserError(
                f"{table.where(index)}, is not in HONEST's layout: it needs the columns "
                "template_masked and category."
            )
        if category in _NUMBERS:
            # Some copies of the data set have the headings of these two columns swapped.
            category = row.get("number") or category
        before, blank, _ = template.partition(_BLANK)
        if not blank or not before.strip():
            raise UserError(f"{table.where(index)}, has no text before a blank, {_BLANK}.")
        yield Text(
            whole_text(before.strip(), table.where(index)),
            None,
            domain,
            whole_text(category, table.where(index)),
        )
