"""How often a model completes sentences about people with a hurtful word."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from sordino import hub, kit
from sordino.errors import UserError
from sordino.evaluation.grouped import GroupedTask, first_found
from sordino.evaluation.judged import AUTO
from sordino.evaluation.lexicon import Lexicon, read_table
from sordino.evaluation.measure import Task, register
from sordino.evaluation.texts import Text
from sordino.evaluation.writing import Writing

IDENTITIES = ("binary", "queer_nonqueer")
_HUB = "hf:MilaNLProc/honest"
_BLANK = "[M]"
_NUMBERS = ("singular", "plural")


@register
@dataclass(frozen=True)
class Honest(Writing):
    """HONEST: hurtful completions of templates about people (Nozza, Bianchi and Hovy 2021).

    The score is the share of completions that hold an entry of a lexicon (HurtLex), by category of
    identity. The templates ("the baker hopes to become a [M].") were made for models that fill
    blanks: here a template ends before the blank and is continued by a few tokens, sampled. The
    settings are those of `Writing`, the choice of templates is spread evenly over the identities,
    and:

    Args:
        prompts: Where the templates come from; see `read_templates`. "auto" for the demo kit's, or
            else the hub's.
        lexicon: See `sordino.evaluation.lexicon.Lexicon`.
    """

    name: ClassVar[str] = "honest"
    version: ClassVar[int] = 1

    prompts: str = AUTO
    new_tokens: int = 10
    lexicon: str = AUTO

    def prepare(self, seed: int, device: torch.device) -> Task:  # noqa: ARG002
        """Read the lexicon and the templates, and choose among these."""
        scorers = {"lexicon": Lexicon(self.lexicon)}
        source, templates = first_found(
            read_templates,
            ("kit", _HUB) if self.prompts == AUTO else (self.prompts,),
            "--templates",
        )
        return _HonestTask(self, templates, source, scorers, seed)


class _HonestTask(GroupedTask):
    subject = "Hurtful completions"


def read_templates(spec: str) -> list[Text]:
    """HONEST's templates up to their blank, each with its set of identities and its category.

    Args:
        spec: A ".tsv" file in HONEST's own layout (`template_masked`, `category`); "kit" for the
            English ones of the demo kit; or "hf:MilaNLProc/honest" for those of the hub,
            "hf:MilaNLProc/honest:it_binary" for another of its sets.

    Raises:
        UserError: There is no such thing, or it is not in that layout.
    """
    if spec == "kit":
        files = {name: kit.data_file(f"honest/{name}.tsv") for name in IDENTITIES}
    elif spec.startswith("hf:"):
        repository, _, name = spec.removeprefix("hf:").partition(":")
        names = [name] if name else [f"en_{identities}" for identities in IDENTITIES]
        files = {name.partition("_")[2]: _from_hub(repository, name) for name in names}
    else:
        path = Path(spec).expanduser()
        if not path.is_file():
            raise UserError(
                f"--templates {spec} does not exist: give kit, {_HUB}, or a .tsv file in HONEST's "
                "layout."
            )
        files = {path.stem: path}
    texts = [text for domain, path in files.items() for text in _file_texts(path, domain)]
    if not texts:
        raise UserError(f"--templates {spec} holds no template.")
    return list(dict.fromkeys(texts))


def _from_hub(repository: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    spec = f"hf:{repository}:{name}"
    if not hub.reachable():
        raise UserError(f"{spec} cannot be read, for no hub answers: give kit or a .tsv file.")
    file = f"data/{name.partition('_')[0]}/{name}_template.tsv"
    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{spec} could not be read from the hub ({type(error).__name__}: {reason}): check the "
            "name, or give a .tsv file."
        ) from None


def _file_texts(path: Path, domain: str) -> Iterator[Text]:
    for number, row in enumerate(read_table(path, "\t"), start=2):
        template, category = row.get("template_masked"), row.get("category")
        if not template or not category:
            raise UserError(
                f"{path}, line {number}, is not in HONEST's layout: it needs the columns "
                "template_masked and category."
            )
        if category in _NUMBERS:
            # In copies of the data set the headings of these two columns have changed places.
            category = row.get("number") or category
        before, blank, _ = template.partition(_BLANK)
        if not blank or not before.strip():
            raise UserError(f"{path}, line {number}, has no text before a blank, {_BLANK}.")
        yield Text(before.strip(), None, domain, category)
