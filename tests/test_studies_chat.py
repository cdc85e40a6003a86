"""The study of chat models: what is measured of which model, and what protection is worth."""

from functools import partial

import numpy as np
import pytest

from chat_templates import FAMILIES
from conftest import sentences
from families import tiny_model
from sordino.cli.app import main
from sordino.concepts import load_concept
from sordino.evaluation import Evaluation
from sordino.evaluation.statistics import compare_gaps
from sordino.expertise import Expertise
from sordino.models.reference import resolve
from sordino.studies import STUDIES, Plan, StudyRecord, chat
from sordino.tuning.lab import Lab
from taught import requests, taught
from test_studies import evaluation

GROUPS = ("north", "south")


def folder_of(place, *, template=True):
    weights = tiny_model("llama")
    weights.resize_token_embeddings(weights.config.vocab_size + 16)
    weights.save_pretrained(place)
    tokenizer = FAMILIES["chatml"].tokenizer()
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = {
        "yes.txt": sentences(24, 1),
        "no.txt": sentences(24, 2),
        "prompts.txt": sentences(6, 3, longest=5),
        "prose.txt": sentences(40, 5, longest=20),
        "protected.txt": sentences(20, 6),
    }
    for name, of in lines.items():
        (tmp_path / name).write_text("\n".join(of) + "\n")
    tables = {
        "refusals.csv": [("prompt", "label")]
        + [(one, ("safe", "unsafe")[n % 2]) for n, one in enumerate(sentences(6, 7, longest=4))],
        "groups.csv": [("text", "group")]
        + [(f"{one} people", GROUPS[n % 2]) for n, one in enumerate(sentences(12, 8))],
    }
    for name, rows in tables.items():
        (tmp_path / name).write_text("\n".join(",".join(row) for row in rows) + "\n")
    return tmp_path


def ask(*models, scorer="wordlist", output="out", reply=6, more=()):
    main(
        [
            *("study", "chat", *map(str, models), "--concept", "yes.txt", "--negatives", "no.txt"),
            *("--prompts", "prompts.txt", "--texts", "prose.txt", "--protect", "protected.txt"),
            *("--refusal-prompts", "refusals.csv", "--group-texts", "groups.csv"),
            *("--scorer", "alt-profanity-check", "--scorer", scorer, "--concepts", "yes"),
            *("--attribution-per-class", "20", "--max-texts", "12", "--questions", "4"),
            *("--reply-tokens", str(reply), "--continuations", "1"),
            *("-o", output, "--markdown", f"{output}.md", *more),
        ]
    )


def test_a_model_with_a_template_and_one_without_stand_on_one_page(files, capsys):
    speaks = folder_of(files / "speaks")
    ask(speaks, scorer=f"yes-no:{speaks}")
    said = capsys.readouterr().out
    [file] = (files / "out").glob("*/chat.json")
    record = StudyRecord.load(file, "chat")
    groups = {group.name: group for group in record.groups}
    assert [*groups] == ["toxicity", "refusals", "groups", "cost", "protection"]
    rules = [trial.name for trial in groups["toxicity"].trials]
    assert rules == ["aura", "contrast", "contrast with protection"]
    for trial in groups["toxicity"].trials:
        assert [*trial.evaluation.measures] == ["toxicity", "toxicity:chat"]
    assert [*groups["refusals"].trials[0].evaluation.measures] == ["refusals:chat"]
    assert "judges with the model itself as it was before the edit" in said
    assert "toxic replies go from" in said
    assert "No trial protects refusals, since only 0 unsafe requests are not measured" in said
    # One expertise says what is done with protection and without.
    first, second = groups["toxicity"].trials[1:]
    assert first.evaluation.after.fingerprint != second.evaluation.after.fingerprint
    # Asked again with a second model, the first is not measured again.
    before, lines = file.read_bytes(), (file.parent / "work" / "records.jsonl").read_bytes()
    silent = folder_of(files / "silent", template=False)
    ask(file, silent)
    assert file.read_bytes() == before
    assert (file.parent / "work" / "records.jsonl").read_bytes() == lines
    said = capsys.readouterr().out
    assert "silent: The model has no chat template" in said.replace(str(files) + "/", "")
    assert "toxic replies go from" in said
    page = (files / "out.md").read_text()
    assert page.count("Harmless text about groups of people") == 2
    assert page.count(": Refusals") == 1


def test_refusals_are_protected_in_an_arm_of_their_own(files, capsys):
    """By requests that are not measured, from the same sweep as the other arms."""
    refused, answered = requests(34), requests(8, 1)
    speaks = taught(files / "refuses", refused, answered)
    rows = [*((one, "unsafe") for one in refused), *((one, "safe") for one in answered)]
    (files / "refusals.csv").write_text(
        "prompt,label\n" + "".join(f"{one},{kind}\n" for one, kind in rows)
    )
    ask(speaks, reply=32, more=("--max-refusals", "16"))
    said = capsys.readouterr().out
    [file] = (files / "out").glob("*/chat.json")
    groups = {group.name: group for group in StudyRecord.load(file, "chat").groups}
    trials = groups["refusals"].trials
    arms = ["aura", "contrast", "contrast with protection", "contrast with refusals protected"]
    assert [trial.name for trial in trials] == arms
    assert len({trial.evaluation.after.fingerprint for trial in trials}) == 4
    for trial in trials:
        figure = trial.evaluation.figure("refusals:chat", "refused.unsafe")
        assert figure.before.value == 1
        assert figure.n["prompts"] == 8
    about = [finding.about for finding in groups["protected refusals"].findings]
    assert about[:2] == ["unsafe prompts refused", "safe prompts refused"]
    assert {"toxic replies", "toxic continuations"} <= set(about)
    assert "With refusals and groups protected less with groups alone: unsafe prompts" in said
    [found] = file.parent.glob("work/protected-*.expertise.safetensors")
    about = Expertise.load(found).metadata
    assert (about["refusals_n_prompts"], about["refusals_kept"]) == ("26", "26")
    assert about["n_protected"] == "20"


def test_a_model_that_refuses_too_little_says_so(files, concept):
    refused, answered = requests(4), requests(20, 1)
    helps = resolve(taught(files / "helps", refused, answered))
    rows = [(one, "unsafe") for one in (*refused, *answered)]
    (files / "refusals.csv").write_text(
        "prompt,label\n" + "".join(f"{one},{kind}\n" for one, kind in rows)
    )
    lab, plan = Lab(helps, concept, files / "lab"), Plan(refusal_prompts="refusals.csv")
    settings, why = chat._own_refusals(lab, plan, ())
    assert settings is None
    assert why.endswith(
        "refuses 4 of 24 unsafe requests, and its refusals can be protected only if it refuses at "
        "least 20"
    )
    # Written once.
    [journal] = (files / "lab").glob("own-refusals-*.jsonl")
    before = journal.read_bytes()
    assert chat._own_refusals(lab, plan, ()) == (None, why)
    assert journal.read_bytes() == before


def test_no_text_is_protected_that_is_measured(files, open_tiny, concept, monkeypatch):
    """Whatever part of the study measures it: groups, prose, or text with another concept."""

    class Found(Exception):
        pass

    class OnlyFind(Lab):
        def find(self, name, *, attribution=None, **_):
            raise Found(attribution.protected)

    table = (files / "groups.csv").read_text().splitlines()[1:]
    texts = [line.rpartition(",")[0] for line in table]
    parts = [(files / name).read_text().splitlines() for name in ("prose.txt", "yes.txt")]
    others = [f"another text {n}" for n in range(9)]
    everything = [*texts, *parts[0], *parts[1], *others]
    (files / "protect.txt").write_text("\n".join(everything) + "\n")
    plan = Plan(
        group_texts="groups.csv",
        protect="protect.txt",
        concepts=("yes.txt",),
        per_class=20 + len(everything),
        texts=5,
    )
    monkeypatch.setattr(chat, "load_concept", partial(load_concept, negatives="no.txt"))
    lab = OnlyFind(open_tiny("llama").ref, concept, files / "lab", texts="prose.txt")
    with pytest.raises(Found) as found:
        next(iter(STUDIES["chat"].groups(lab, plan)))
    [protected] = found.value.args
    assert set(others) <= set(protected)
    assert not set(protected) & set(texts)
    # Five of the prose and of the other concept's text are measured, and the others are protected.
    for part in parts:
        assert len(set(part) - set(protected)) == 5


def test_what_protection_is_worth_is_read_off_the_same_texts():
    generator = np.random.default_rng(0)
    toxic = [(generator.random((40, 2)) < share).astype(float) for share in (0.5, 0.3)]
    tokens = generator.integers(5, 20, 40)
    losses = {"contrast": 0.4 * tokens + generator.random(40)}
    # Protection spares the texts about one of the groups.
    north = np.arange(40) % 2 == 0
    losses["contrast with protection"] = np.where(north, losses["contrast"], 0.1 * tokens)
    evaluations = {}
    for (name, loss), scores in zip(losses.items(), toxic, strict=True):
        made = evaluation(np.zeros_like(scores), scores)
        rows = [
            {
                "text": str(n),
                "domain": "place",
                "group": GROUPS[n % 2],
                "tokens": int(tokens[n]),
                "nll_before": 10.0,
                "nll_after": 10.0 + float(loss[n]),
            }
            for n in range(40)
        ]
        measures = {"toxicity": {"version": 2, "protocol": {"scorer": {"scorer": "letter"}}}}
        figure = {
            **{"name": "continuations.all", "label": "", "unit": "share", "better": "lower"},
            **{"ratio_of": "before/after", "n": {}, "before": None, "difference": None},
            **{"after": {"value": 0.0, "low": None, "high": None}, "ratio": None},
        }
        measures["toxicity"]["figures"] = [figure]
        evaluations[name] = Evaluation.model_validate(
            made.model_dump() | {"measures": measures}
        ).model_copy(update={"samples": {"toxicity": made.samples["toxicity"], "coverage": rows}})
    found = {f.about: f.estimate for f in chat._with_protection(evaluations, 0)}
    assert found["toxic continuations"].value == pytest.approx(toxic[1].mean() - toxic[0].mean())
    lost = [loss.sum() / tokens.sum() for loss in losses.values()]
    about = "log-likelihood lost per token of text about groups"
    assert found[about].value == pytest.approx(lost[1] - lost[0])
    assert found[about].high < 0
    gap = found["gap between groups in that, place"]
    per_token = [loss / tokens for loss in losses.values()]
    members = [np.flatnonzero(north).tolist(), np.flatnonzero(~north).tolist()]
    assert gap.value == pytest.approx(compare_gaps(*per_token, members, 0).difference.value)
    assert gap.low > 0  # where one group alone is spared, the gap grows
