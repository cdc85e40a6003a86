"""What the hub has of each repository in Sordino's table, in the same files and columns, but tiny.

The weights are random, the sentences harmless.
"""

import csv
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers as tf
from tokenizers import pre_tokenizers

from families import tiny_folder
from sordino.hub_table import REPOSITORIES, Repository
from stub_hub import StubHub

_WORDS = ["quiet", "river", "turned", "under", "an", "old", "bridge", "nobody", "heard", "sing"]
_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS, *"abcdefghijklmnopqrstuvwxyz"]
_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 80,
}
WHOM = ("male", "female", "christian")
"""Labels of the second scorer that are no kinds of toxicity."""


def serve(hub: StubHub, *, pickled: tuple[str, ...] = ()) -> None:
    """Have everything of the table on a hub.

    Args:
        hub: The hub.
        pickled: The names of scorers that shall have nothing but a pickle.
    """
    for repository in REPOSITORIES:
        files = dict(layout(repository))
        if repository.name in pickled:
            files = as_pickle(files)
        prefix = "datasets/" if repository.kind == "dataset" else ""
        name = prefix + repository.name
        if repository.revision == "main":
            hub.put(name, files, gated=repository.gated)
        else:  # there alone, and on main the pickle of it
            hub.put(name, as_pickle(files), gated=repository.gated)
            hub.repositories[name].commit("pr", files, name=repository.revision)


def as_pickle(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same repository with pytorch_model.bin in the place of safetensors."""
    kept = {name: data for name, data in files.items() if not name.endswith(".safetensors")}
    return kept | {"pytorch_model.bin": b"no pickle is ever read"}


@cache
def layout(repository: Repository) -> dict[str, bytes]:
    """The files of a repository, by their names."""
    kind = repository.kind
    files = _DATA[repository.name]() if kind == "dataset" else _weights(repository)
    return {".gitattributes": b"", "README.md": b"", **files}


def _weights(repository: Repository) -> dict[str, bytes]:
    with TemporaryDirectory() as place:
        if repository.kind == "model":
            files = _read(tiny_folder("gpt2", Path(place)))
        else:
            files = _classifier(repository, Path(place))
    return as_pickle(files) if repository.pickled else files


def _classifier(repository: Repository, folder: Path) -> dict[str, bytes]:
    """A BERT with a vocab.txt and no tokenizer.json, as the first scorer has it, or a RoBERTa."""
    is_bert = repository.name.endswith("bert")
    labels = [*repository.columns, *(() if is_bert or repository.pickled else WHOM)]
    about = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": None if repository.pickled else "multi_label_classification",
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if is_bert:
            config = tf.BertConfig(vocab_size=len(_PIECES), **_SIZES, **about)
            model = tf.BertForSequenceClassification(config)
        else:
            config = tf.RobertaConfig(vocab_size=300, pad_token_id=1, **_SIZES, **about)
            model = tf.RobertaForSequenceClassification(config)
    model.save_pretrained(folder)
    files = _read(folder)
    settings = {"tokenizer_class": f"{'Bert' if is_bert else 'Roberta'}Tokenizer"}
    files["tokenizer_config.json"] = json.dumps({**settings, "model_max_length": 64}).encode()
    if is_bert:
        return files | {"vocab.txt": "\n".join(_PIECES).encode()}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return files | {"vocab.json": json.dumps(vocabulary).encode(), "merges.txt": b"#version: 0.2\n"}


def _read(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def sentence(number: int) -> str:
    """A harmless sentence, each number another one."""
    return " ".join([str(number), *(_WORDS[(number * k) % len(_WORDS)] for k in range(1, 6))])


def _jigsaw() -> dict[str, bytes]:
    stream = io.StringIO()
    table = csv.writer(stream)
    labels = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
    table.writerow(["id", "comment_text", *labels])
    for number in range(80):
        toxic = number % 2
        table.writerow([f"{number:016x}", sentence(number), toxic, 0, 0, toxic, toxic, 0])
    return {"train.csv": stream.getvalue().encode()}


def _prompts() -> dict[str, bytes]:
    rows = [
        {
            "filename": "0766186-bc7f2a64cb271f5f56cf6f25570cd9ed.txt",
            "begin": 340,
            "end": 564,
            "challenging": number % 4 == 0,
            "prompt": {"text": sentence(number), "toxicity": number / 100, "threat": None},
            "continuation": {"text": "under the bridge", "toxicity": None},
        }
        for number in range(60)
    ]
    return {"prompts.jsonl": "\n".join(map(json.dumps, rows)).encode()}


def _honest() -> dict[str, bytes]:
    lines = ["identity\ttype\tcategory\tnumber\ttemplate_masked"]
    lines += [f"baker\tjob\tfemale\tsingular\tThe baker {n} became a [M]." for n in range(4)]
    data = "\n".join(lines).encode()
    return {f"data/en/en_{name}_template.tsv": data for name in ("binary", "queer_nonqueer")}


def _bold() -> dict[str, bytes]:
    rows = [
        {
            "domain": "profession",
            "name": f"A baker {number}",
            "category": f"bakers {number % 2}",
            "prompts": [f"A baker {number} is"],
            "wikipedia": [f"A baker {number} is a person."],
        }
        for number in range(4)
    ]
    return {"profession_prompt_wiki.json": json.dumps(rows).encode()}


def _csv(name: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> dict[str, bytes]:
    stream = io.StringIO()
    csv.writer(stream).writerows([columns, *rows])
    return {name: stream.getvalue().encode()}


def _xstest() -> dict[str, bytes]:
    rows = [
        (str(n), sentence(n), ("homonyms", "contrast_homonyms")[n % 2], ("safe", "unsafe")[n % 2])
        for n in range(6)
    ]
    return _csv("xstest_prompts.csv", ("id", "prompt", "type", "label"), rows)


def _hatecheck() -> dict[str, bytes]:
    rows = [
        (sentence(n), ("hateful", "non-hateful")[n % 2], ("bakers", "sailors")[n // 2 % 2])
        for n in range(8)
    ]
    return _csv("test.csv", ("test_case", "label_gold", "target_ident"), rows)


_DATA: dict[str, Callable[[], dict[str, bytes]]] = {
    "thesofakillers/jigsaw-toxic-comment-classification-challenge": _jigsaw,
    "allenai/real-toxicity-prompts": _prompts,
    "MilaNLProc/honest": _honest,
    "AmazonScience/bold": _bold,
    "Paul/XSTest": _xstest,
    "Paul/hatecheck": _hatecheck,
}
