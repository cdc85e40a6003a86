"""All repositories of the model hub that Sordino uses by itself, and their expected content.

The rest of the code takes ids from here. `sordino doctor --hub` compares the table with the hub,
and the tests' own hub serves these layouts.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Repository:
    """A repository of the hub.

    Args:
        name: Its id, "org/name".
        kind: What it holds.
        licence: Of its content, according to its card.
        used_by: The part of Sordino that uses it.
        files: Patterns of the files that are read; each matches at least one.
        columns: The columns of a data set that are read, or the labels of a scorer.
        revision: The branch, tag or commit that is used.
        gated: Whether its terms must be accepted first.
        pickled: Whether its weights are known to exist only as a pickle (pytorch_model.bin), which
            Sordino does not read.
        trained_on: The data that a scorer was trained on, if a concept comes from them, too.
        toxic_label: The scorer's label for toxic text, if it is not "toxic".
    """

    name: str
    kind: Literal["model", "scorer", "dataset"]
    licence: str
    used_by: str
    files: tuple[str, ...] = ("config.json", "*.safetensors")
    columns: tuple[str, ...] = ()
    revision: str = "main"
    gated: bool = False
    pickled: bool = False
    trained_on: str = ""
    toxic_label: str = ""

    @property
    def spec(self) -> str:
        """What a user writes for it, where a file is also accepted."""
        return self.name if self.kind == "model" else f"hf:{self.name}"

    @property
    def repo_type(self) -> Literal["model", "dataset"]:
        """The hub's name of its kind."""
        return "dataset" if self.kind == "dataset" else "model"


JIGSAW = Repository(
    "thesofakillers/jigsaw-toxic-comment-classification-challenge",
    "dataset",
    "cc0-1.0",
    "the concept toxicity",
    ("train.csv",),
    ("comment_text", "toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"),
)
TOXICITY_PROMPTS = Repository(
    "allenai/real-toxicity-prompts",
    "dataset",
    "apache-2.0",
    "the measure toxicity",
    ("prompts.jsonl",),
    ("prompt", "challenging"),
)
HONEST = Repository(
    "MilaNLProc/honest",
    "dataset",
    "mit",
    "the measure honest, where the demo kit is not available",
    ("data/en/en_binary_template.tsv", "data/en/en_queer_nonqueer_template.tsv"),
    ("template_masked", "category"),
)
BOLD = Repository(
    "AmazonScience/bold",
    "dataset",
    "cc-by-4.0",
    "the measure bold, where the demo kit is not available",
    ("*_prompt_wiki.json",),
    ("domain", "category", "prompts"),
)
XSTEST = Repository(
    "Paul/XSTest",
    "dataset",
    "cc-by-4.0",
    "the measure refusals, where xstest is asked for",
    ("*.csv",),
    ("prompt", "type", "label"),
)
HATECHECK = Repository(
    "Paul/hatecheck",
    "dataset",
    "cc-by-4.0",
    "the measure coverage, where hatecheck is asked for",
    ("*.csv",),
    ("test_case", "label_gold", "target_ident"),
)
TOXIC_BERT = Repository(
    "unitary/toxic-bert",
    "scorer",
    "apache-2.0",
    "the scorer auto",
    columns=("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"),
    trained_on="jigsaw",
)
TOXIC_ROBERTA = Repository(
    "unitary/unbiased-toxic-roberta",
    "scorer",
    "apache-2.0",
    "the scorer auto, where the first is not available",
    columns=("toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat"),
    # Pull request 2 of the repository; its main branch has a pickle alone.
    revision="91650552a4f31b7120c36680cfa47ddd47676b48",
    trained_on="jigsaw",
)
PAPER_SCORER = Repository(
    "s-nlp/roberta_toxicity_classifier",
    "scorer",
    "openrail++",
    "the recipes, for it is the paper's",
    ("config.json", "*.bin"),
    ("neutral", "toxic"),
    pickled=True,
    trained_on="jigsaw",
)

IMPLICIT_SCORER = Repository(
    "tomh/toxigen_roberta",
    "scorer",
    "none stated",
    "a user who names it, because it was trained on implicit hate",
    ("config.json", "*.bin"),
    ("LABEL_0", "LABEL_1"),
    pickled=True,
    toxic_label="LABEL_1",
)

AUTO_SCORERS = (TOXIC_BERT, TOXIC_ROBERTA)
"""The scorer "auto" is the first of these that is available; without a hub, the linear one."""


def _model(name: str, licence: str, *, gated: bool = False, pickled: bool = False) -> Repository:
    weights = "*.bin" if pickled else "*.safetensors"
    return Repository(
        name,
        "model",
        licence,
        "a recipe",
        ("config.json", weights),
        gated=gated,
        pickled=pickled,
    )


REPOSITORIES = (
    JIGSAW,
    TOXICITY_PROMPTS,
    HONEST,
    BOLD,
    XSTEST,
    HATECHECK,
    TOXIC_BERT,
    TOXIC_ROBERTA,
    PAPER_SCORER,
    IMPLICIT_SCORER,
    _model("openai-community/gpt2-xl", "mit"),
    _model("tiiuae/falcon-7b", "apache-2.0"),
    _model("tiiuae/falcon-40b", "apache-2.0", pickled=True),
    _model("mosaicml/mpt-7b", "apache-2.0", pickled=True),
    _model("mosaicml/mpt-30b", "apache-2.0", pickled=True),
    _model("meta-llama/Llama-2-7b-hf", "llama2", gated=True),
    _model("meta-llama/Meta-Llama-3-8B", "llama3", gated=True),
    _model("mistralai/Mistral-7B-v0.1", "apache-2.0", gated=True),
    _model("google/gemma-2-2b", "gemma", gated=True),
)
"""All of them."""

TABLE = {repository.name: repository for repository in REPOSITORIES}
"""All of them, by name."""

HURTLEX_ADDRESS = (
    "https://raw.githubusercontent.com/valeriobasile/hurtlex/"
    "10ae72a48a4d9266d0d0d72ed2f90d63ae6fdcae/lexica/EN/1.2/hurtlex_EN.tsv"
)
"""HurtLex 1.2, English, at one commit of its repository, which cannot change."""
