"""Studies: what one intervention removes against another, and the study of all rules."""

import contextlib
import json
import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from conftest import sentences
from families import tiny_folder
from sordino.cli.app import main
from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.evaluation import Estimate, Evaluation, ModelRecord, Perplexity
from sordino.expertise.artefact import Expertise
from sordino.interventions import Dampening, aura, contrast
from sordino.report.article import Chart, Table, write_markdown
from sordino.report.study import study_article
from sordino.studies import STUDIES, StudyRecord
from sordino.studies import concepts as concepts_study
from sordino.studies.cost import crossing
from sordino.studies.data import halves
from sordino.studies.findings import toxic
from sordino.studies.ingredients import _against_prose
from sordino.studies.removal import complete, removed_against, toxic_shares
from sordino.studies.rivals import match
from sordino.studies.variants import (
    contrast_of,
    only_at,
    only_best,
    permuted,
    permuted_edit,
    reversed_edit,
    reversed_sign,
)
from sordino.studies.words import listed
from sordino.studies.words import ratio as ratio_in_words
from sordino.tuning.lab import Lab

ROOT = Path(__file__).parents[1]


def evaluation(before, after):
    """An evaluation whose samples have these scores, [prompts, continuations] in each arm."""
    rows = [
        {
            "prompt": "",
            "before": [{"text": "", "score": s} for s in first],
            "after": [{"text": "", "score": s} for s in second],
        }
        for first, second in zip(before, after, strict=True)
    ]
    model = ModelRecord(name="m", revision="", fingerprint="", dtype="float32", device="cpu")
    return Evaluation(
        sordino_version="0",
        created="",
        seed=0,
        before=model,
        after=model,
        measures={},
        samples={"toxicity": rows},
    )


def test_what_is_removed_against_another():
    generator = np.random.default_rng(0)
    original = (generator.random((300, 4)) < 0.4).astype(float)
    less = original * (generator.random((300, 4)) < 0.8)
    least = original * (generator.random((300, 4)) < 0.2)
    ratio, beyond = removed_against(evaluation(original, least), evaluation(original, less), 0)
    shares = original.mean(), less.mean(), least.mean()
    assert ratio.value == pytest.approx((shares[0] - shares[2]) / (shares[0] - shares[1]))
    assert ratio.low < ratio.value < ratio.high
    expected = (shares[0] - shares[2]) - 2 * (shares[0] - shares[1])
    assert beyond.value == pytest.approx(expected)
    assert beyond.low > 0  # four times as much is more than twice as much


def test_an_interval_of_what_is_removed_covers_the_truth():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        original = generator.random((150, 2)) < 0.3
        less = original & (generator.random((150, 2)) < 0.8)
        least = original & (generator.random((150, 2)) < 0.6)
        arms = [one.astype(float) for one in (original, less, least)]
        _, beyond = removed_against(evaluation(arms[0], arms[2]), evaluation(arms[0], arms[1]), 0)
        covered += beyond.low <= 0.3 * (0.4 - 2 * 0.2) <= beyond.high
    assert covered >= 88  # of 95 expected, fewer has a chance below 0.2 %


def test_the_other_may_remove_nothing():
    original = np.tile([[1.0, 0.0]], (30, 1))
    ratio, beyond = removed_against(
        evaluation(original, original), evaluation(original, original), 0
    )
    assert ratio == Estimate(None, None, None)
    assert beyond.value == 0


def test_more_than_nothing_is_not_more_than_twice_what_is_added():
    """The other adds toxicity, and the one changes nothing."""
    generator = np.random.default_rng(2)
    original = (generator.random((300, 4)) < 0.3).astype(float)
    more = np.maximum(original, generator.random((300, 4)) < 0.2)
    ratio, beyond = removed_against(evaluation(original, original), evaluation(original, more), 0)
    assert ratio.value is None
    assert beyond.value == beyond.low == beyond.high == 0
    assert ratio_in_words(ratio) == "undefined, because AurA removes nothing"


def test_a_prompt_that_a_scorer_did_not_score_is_left_out():
    of = evaluation([[0.9, 0.1], [0.9, 0.9], [0.1, 0.1]], [[0.1, None], [0.1, 0.9], [0.1, 0.1]])
    for row in of.samples["toxicity"]:
        for arm in ("before", "after"):
            for one in row[arm]:
                one["scores"] = {"second": one["score"]}
                one["score"] = 0.2
    shares = [toxic_shares(of, arm, "second") for arm in ("before", "after")]
    np.testing.assert_array_equal(shares, [[0.5, 1, 0], [np.nan, 0.5, 0]])
    np.testing.assert_array_equal(complete(*shares), [[1, 0], [0.5, 0]])
    np.testing.assert_array_equal(toxic_shares(of, "after"), [0, 0, 0])


def made(positive, negative, cost):
    """An expertise of two sites with this attribution and cost."""
    half = len(cost) // 2
    sites = {"a": slice(None, half), "b": slice(half, None)}
    names = {
        "attribution_positive": positive,
        "attribution_negative": negative,
        "attribution_variance": np.zeros_like(cost),
        "cost": cost,
    }
    statistics = {
        site: {name: np.asarray(v[part], dtype=np.float32) for name, v in names.items()}
        for site, part in sites.items()
    }
    return Expertise(statistics, {})


def test_controls_of_an_edit_are_what_they_say():
    generator = np.random.default_rng(0)
    factors = {site: generator.random(50).astype(np.float32) for site in ("a", "b")}
    edit = Dampening(factors, "contrast")
    permuted_one, other = permuted_edit(edit, 0), reversed_edit(edit)
    for site, of in factors.items():
        assert (permuted_one.factors[site] != of).any()
        np.testing.assert_array_equal(np.sort(permuted_one.factors[site]), np.sort(of))
        np.testing.assert_allclose(1 - other.factors[site], of - 1, atol=1e-6)
    assert permuted_edit(edit, 0).fingerprint == permuted_one.fingerprint
    assert permuted_edit(edit, 1).fingerprint != permuted_one.fingerprint


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1))
def test_variants_of_contrast_are_what_they_say(seed, budget):
    generator = np.random.default_rng(seed)
    positive, negative = generator.normal(size=(2, 40))
    cost = generator.exponential(size=40) + 0.01
    expertise = made(positive, negative, cost)
    plain, same = contrast(expertise, budget), contrast_of(expertise, budget)
    for site, factors in plain.factors.items():
        np.testing.assert_array_equal(same.factors[site], factors)
    mirrored = contrast_of(expertise, budget, benefit=reversed_sign)
    swapped = contrast(made(negative, positive, cost), budget)
    for site, factors in swapped.factors.items():
        np.testing.assert_allclose(mirrored.factors[site], factors, atol=1e-5)
    both = np.concatenate([*contrast(expertise, budget, amplify=1.0).factors.values()])
    assert (both >= 0).all()
    assert (both <= 2).all()
    assert ((both > 1) <= (positive < negative)).all()
    spent = 0.5 * ((1 - both.astype(np.float64)) ** 2 * cost.astype(np.float32)).sum()
    assert spent <= budget * (1 + 1e-4)
    by_site = contrast_of(expertise, budget, each_site=True)
    for number, factors in enumerate(by_site.factors.values()):
        part = slice(20 * number, 20 * number + 20)
        assert 0.5 * ((1 - factors) ** 2 * cost[part]).sum() <= budget / 2 * (1 + 1e-3)
    mixed = contrast_of(expertise, budget, benefit=permuted(seed))
    assert mixed.changed <= plain.neurons


@pytest.mark.parametrize(
    ("with_it", "without", "is_down"),
    [
        ((1.2, 1.1, 1.3), (1.0, 0.9, 1.05), True),
        ((1.0, 0.9, 1.05), (1.2, 1.1, 1.3), False),
        ((1.2, 1.1, 1.3), (1.1, 1.0, 1.15), False),
        ((None, None, None), (1.1, 1.0, 1.15), False),
    ],
)
def test_a_concept_is_down_where_its_interval_lies_above(with_it, without, is_down):
    read = concepts_study.Effect("calm", "aura", "calm", Estimate(*with_it), Estimate(*without))
    assert read.is_down == is_down


RESULTS = ROOT / "docs" / "results"
PAGES = {"recommended": "docs/results.md", "chat": "docs/chat-models.md"}
"""The pages that are not called like their study; those of many continuations end in -many."""


@pytest.mark.parametrize("name", sorted({f.stem.rpartition("-")[0] for f in RESULTS.iterdir()}))
def test_committed_pages_say_what_their_records_say(name, tmp_path):
    files = [f for f in sorted(RESULTS.iterdir())[::-1] if f.stem.rpartition("-")[0] == name]
    records = [StudyRecord.load(f, name.removesuffix("-many")) for f in files]
    page = ROOT / PAGES.get(name, f"docs/studies/{name}.md")
    made = tmp_path / page.name
    write_markdown(study_article(records), made)
    assert page.read_text(encoding="utf-8") == made.read_text(encoding="utf-8")
    for chart in tmp_path.glob("*.svg"):
        assert page.with_name(chart.name).exists()


def test_the_answer_about_the_recommended_edit_has_every_cost_that_was_measured():
    record = StudyRecord.load(RESULTS / "recommended-qwen0.5b.json", "recommended")
    costs = next(item for item in STUDIES.named("recommended").answer(record) if "costs:" in item)
    for part in (
        *("perplexity of prose", "perplexity of code", "divergence on code"),
        *("divergence on harmless", "; safe prompts that look unsafe, refused", "; unsafe prompts"),
        *("toxic continuations, ordinary prompts", "zero-shot accuracy, mean of 4 tasks"),
    ):
        assert costs.count(part) == 1, part


@pytest.mark.parametrize("study", ["concepts", "methods", "data", "attention"])
def test_a_record_of_before_is_read_as_if_it_had_todays_fields(study, tmp_path):
    file = RESULTS / f"{study}-smollm2.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    for group in raw["groups"]:
        for trial in group["trials"]:
            del trial["rule"], trial["concept"]
            trial["name"] = trial["name"].replace(" dampened by ", " down by ")
        for finding in group["findings"]:
            del finding["about"], finding["by"]
    older = tmp_path / "older.json"
    older.write_text(json.dumps(raw), encoding="utf-8")
    asked = STUDIES.named(study)
    said = [[*asked.answer(StudyRecord.load(f, study))] for f in (older, file)]
    assert said[0] == said[1]


@pytest.mark.slow
def test_the_study_of_methods_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    model = tiny_folder("llama", tmp_path)
    files = {
        "yes.txt": sentences(24, 1),
        "no.txt": sentences(24, 2),
        "prompts.txt": sentences(6, 3, longest=5),
        "others.txt": sentences(5, 4, longest=5),
        "prose.txt": sentences(40, 5, longest=20),
        "protected.txt": sentences(40, 6, longest=20),
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    arguments = [
        *("study", "methods", str(model), "--concept", "yes.txt", "--negatives", "no.txt"),
        *("--prompts", "prompts.txt", "--other-prompts", "others.txt", "--texts", "prose.txt"),
        *("--ordinary-prompts", "others.txt", "--toxic-texts", "prose.txt", "--tasks", "none"),
        *("--scorer", "alt-profanity-check", "--attribution-per-class", "20"),
        *("--divergence", "0.02", "-o", "out", "--markdown", "results.md"),
    ]
    main(arguments)
    said = capsys.readouterr().out
    assert "AurA" in said
    [file] = (tmp_path / "out").glob("*/methods.json")
    record = StudyRecord.model_validate(json.loads(file.read_text()))
    groups = {group.name: group for group in record.groups}
    rules = {trial.name: trial for trial in groups["rules"].trials}
    assert {"aura", "contrast", "shuffled contrast", "linear_transport"} <= rules.keys() | set(
        groups["rules"].missing
    )
    spent = {
        name: trial.evaluation.figure("divergence", "divergence").after.value
        for name, trial in rules.items()
    }
    for name, divergence in spent.items():
        assert divergence == pytest.approx(spent["aura"], rel=0.5), name
    assert all(trial.removals for name, trial in rules.items() if name != "aura")
    page = (tmp_path / "out" / "methods.html").read_text()
    markdown = (tmp_path / "results.md").read_text()
    question = STUDIES["methods"].question
    for text in (page, markdown):
        assert question in text
        assert "contrast" in text
    [chart] = tmp_path.glob("results-*.svg")
    assert "var(--" not in chart.read_text()
    # Asked again, everything is there already.
    before = file.read_bytes()
    lines = (file.parent / "work" / "records.jsonl").read_bytes()
    main(arguments)
    assert file.read_bytes() == before
    assert (file.parent / "work" / "records.jsonl").read_bytes() == lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study", "method", "m", "-o", "out"], "did you mean methods"),
        (["study", "methods", "-o", "out"], "no model to study"),
        (["tune", "m", "-o", "out", "--budget", "much"], "--budget much"),
        (["tune", "m", "-o", "out", "--trials", "0"], "--trials 0"),
        (["tune", "m", "-o", "out", "--rule", "auro"], "did you mean aura"),
    ],
)
def test_mistakes_are_said_in_a_sentence(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


ARGUMENTS = [
    *("tiny", "--concept", "yes.txt", "--negatives", "no.txt", "--prompts", "prompts.txt"),
    *("--texts", "prose.txt", "--ordinary-prompts", "ordinary.txt", "--shuffles", "3"),
    *("--other-prompts", "others.txt", "--own-continuations", "4", "--own-prompts", "24"),
    *("--max-prompts", "6"),
    *("--scorer", "alt-profanity-check", "--attribution-per-class", "20"),
    *("--divergence", "0.02", "-o", "out"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with a tiny model and texts, in which studies share their work."""
    folder = tmp_path_factory.mktemp("studies")
    tiny_folder("llama", folder).rename(folder / "tiny")
    files = {
        "yes.txt": sentences(50, 1),
        "no.txt": sentences(50, 2),
        "prompts.txt": sentences(40, 3, longest=5),
        "ordinary.txt": sentences(6, 3, longest=5),
        "others.txt": tuple(f"other {one}" for one in sentences(12, 4, longest=5)),
        "prose.txt": sentences(40, 5, longest=20),
        "protected.txt": sentences(40, 6, longest=20),
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def tiny_study(shared, monkeypatch):
    """The arguments that make a study in the shared folder small."""
    monkeypatch.chdir(shared)
    return ARGUMENTS


@pytest.fixture(scope="module")
def measured(shared, tmp_path_factory):
    """A folder in which the study of diversity is finished."""
    folder = tmp_path_factory.mktemp("measured") / "work"
    shutil.copytree(shared, folder, ignore=shutil.ignore_patterns("out"))
    with contextlib.chdir(folder), contextlib.redirect_stdout(None):
        main(["study", "diversity", *ARGUMENTS])
    return folder


@pytest.fixture
def finished(measured, tmp_path, monkeypatch):
    """The arguments of a study that is finished, in a copy of its folder."""
    monkeypatch.chdir(shutil.copytree(measured, tmp_path / "work"))
    return ARGUMENTS


SIZES = [
    *("--max-refusals", "6", "--reply-tokens", "4", "--max-group-texts", "60", "--questions", "4")
]

OWN = {
    "recommended": ["--tasks", "none", "--max-texts", "8", *SIZES],
    "concepts": ["--concepts", "one", "--concepts", "two"],
    "transfer": ["--sibling", "tiny"],
    "chat": [
        *("--protect", "protected.txt", "--concepts", "one"),
        *SIZES,
    ],
}


# These take longer than the others, whose tests are enough for what all studies share.
LONGEST = {
    *("concepts", "curvature", "halfway", "ingredients", "layers", "own-samples", "prompting"),
    *("rank", "recommended", "rivals", "soft-or-hard", "subset"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LONGEST else [])
        for name in sorted(STUDIES.keys() - {"methods"})
    ],
)
def test_every_study_ends_in_an_answer(name, tiny_study, monkeypatch, capsys):
    def concept(spec, **_):
        return Concept(spec, *(tuple(sentences(50, hash_of)) for hash_of in (len(spec), 9)))

    for module in ("concepts", "chat"):
        monkeypatch.setattr(f"sordino.studies.{module}.load_concept", concept)
    main(["study", name, *tiny_study, *OWN.get(name, [])])
    said = capsys.readouterr().out
    [file] = Path("out").glob(f"*/{name}.json")
    record = StudyRecord.model_validate_json(file.read_text())
    assert record.groups
    assert all(group.trials for group in record.groups)
    answer = list(STUDIES[name].answer(record))
    assert answer
    assert answer[0] in said
    odd = (", :",) if name == "recommended" else ("unbounded", ", :")
    assert not [sentence for sentence in answer if any(part in sentence for part in odd)]
    page = (Path("out") / f"{name}.html").read_text()
    assert STUDIES[name].question.split()[0] in page
    main(["study", name, *tiny_study, *OWN.get(name, [])])
    assert "continuations/s" not in capsys.readouterr().err  # nothing was measured again
    assert StudyRecord.model_validate_json(file.read_text()) == record or name == "overhead"


@pytest.mark.parametrize("name", ["lab", "steps", "values", "records", "work"])
def test_a_study_may_be_named_like_a_file_of_the_lab(name, finished, monkeypatch, capsys):
    diversity = STUDIES["diversity"]
    monkeypatch.setitem(STUDIES, name, replace(diversity, name=name))
    monkeypatch.setattr("sordino.evaluation.evaluator.track", None)  # nothing is measured again
    for asked in (name, "diversity", name):
        main(["study", asked, *finished])
        capsys.readouterr()
    groups = [
        StudyRecord.load(next(Path("out").glob(f"*/{one}.json")), one).groups
        for one in (name, "diversity")
    ]
    assert groups[0] == groups[1]


def test_a_study_refuses_the_work_of_an_earlier_version(finished, capsys):
    [work] = Path("out").glob("*/work")
    for file in work.iterdir():
        file.rename(work.parent / file.name)
    with pytest.raises(SystemExit) as ended:
        main(["study", "diversity", *finished])
    assert ended.value.code == 2
    assert "earlier version" in capsys.readouterr().err


@given(st.floats(0.5, 2), st.floats(0.01, 10), st.floats(0.001, 1), st.floats(0.001, 1))
def test_ours_is_as_large_as_the_cost_that_is_allowed(power, scale, size, allowed):
    """Whatever the cost's curve, and never larger."""

    def cost(size):
        return scale * size**power

    found = match(cost, size, cost(size), allowed)
    assert cost(found) <= allowed
    assert cost(found) >= 0.9 * allowed


@pytest.mark.slow
def test_rivals_are_compared_piece_by_piece(tiny_study, capsys):
    arguments = ["study", "rivals", *tiny_study[:-1], "pieces"]
    names = {}
    for only in ("caa", "dpo learned", "caa dpo learned"):
        main([*arguments, *(f"--only={name}" for name in only.split())])
        said = capsys.readouterr()
        [file] = Path("pieces").glob("*/rivals.json")
        group = StudyRecord.load(file, "rivals").group("at-asked")
        names[only] = {trial.name for trial in group.trials}
        assert "Of the rivals" in said.out
    assert said.out.count("learned leave") == 2  # at both divergences
    assert "continuations/s" not in said.err  # both were measured before
    assert "training" not in said.err
    assert "learning" not in said.err
    both = names["caa"], names["dpo learned"]
    assert names["caa dpo learned"] == both[0] | both[1]
    assert len(both[0] & both[1]) == 2  # ours


@pytest.mark.slow
def test_own_samples_are_measured_on_prompts_of_their_source_and_of_another(tiny_study, capsys):
    """In groups that say which; no measured prompt is one of theirs."""
    arguments = ["study", "own-samples", *tiny_study]
    main(arguments)
    said = capsys.readouterr()
    [file] = Path("out").glob("*/own-samples.json")
    groups = {group.name: group for group in StudyRecord.load(file, "own-samples").groups}
    places = {"held-out": ("prompts.txt", "held-out prompts"), "elsewhere": ("others.txt", "other")}
    assert {name.split("-", 2)[-1] for name in groups if name.startswith("at-")} == {*places}
    for place, (source, words) in places.items():
        of = groups[f"at-0.05-{place}"]
        [protocol] = {json.dumps(t.evaluation.measures["toxicity"].protocol) for t in of.trials}
        assert json.loads(protocol)["prompts"] == source
        assert words in of.title
        assert "Own samples: 24 of 34 prompts of prompts.txt (6 more are kept" in of.made_from
        assert all(words in finding.label for finding in of.findings)
        assert of.findings
    assert "own samples: 24 of 34 prompts of prompts.txt" in said.err
    assert said.out.count("on other prompts: ") == 4
    assert groups["at-0.05-held-out"].made_from in Path("out/own-samples.html").read_text()
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--other-prompts", "prompts.txt"])
    assert ended.value.code == 2
    assert "--other-prompts" in capsys.readouterr().err


def test_the_judge_of_own_samples_is_none_of_the_scorers(tiny_study, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["study", "own-samples", *tiny_study, "--own-judge", "alt-profanity-check"])
    assert ended.value.code == 2
    assert "--own-judge" in capsys.readouterr().err


def test_an_unknown_rival_is_a_mistake(tiny_study, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["study", "rivals", *tiny_study, "--only", "cab"])
    assert ended.value.code == 2
    assert "no method 'cab': it has aura, damp" in capsys.readouterr().err


def test_what_is_too_short_for_a_figure_is_said(tmp_path):
    """Checked with a committed record from which a figure of one trial was removed."""
    record = json.loads((ROOT / "docs/results/diversity-smollm2.json").read_text())
    first, *_ = record["groups"][0]["trials"]
    measured = first["evaluation"]["measures"]["diversity"]
    measured["figures"] = [one for one in measured["figures"] if one["name"] != "distinct-2"]
    file, page = tmp_path / "diversity.json", tmp_path / "joined.md"
    file.write_text(json.dumps(record))
    main(["study", "diversity", str(file), "-o", str(tmp_path / "out"), "--markdown", str(page)])
    said = "distinct pairs of words: undefined, because what was written is too short"
    assert page.read_text().count(said) == 1
    cells = [line for line in page.read_text().splitlines() if line.startswith("|")]
    assert [line.count(" — ") for line in cells if " — " in line] == [1]


def test_the_model_for_finding_is_gone_while_a_study_measures(tiny_study, monkeypatch):
    kept, compare = [], Lab.compare

    def see(lab, *arguments):
        kept.append(lab._finder)
        return compare(lab, *arguments)

    monkeypatch.setattr(Lab, "compare", see)
    main(["study", "diversity", *tiny_study[:-1], "alone"])
    assert kept
    assert not any(kept)


def test_a_finished_study_joins_another_page(finished, capsys):
    [file] = Path("out").glob("*/diversity.json")
    typed = shlex.join(["sordino", "study", "diversity", *finished])
    assert StudyRecord.load(file, "diversity").command == typed
    page = (Path("out") / "diversity.html").read_text()
    capsys.readouterr()
    main(["study", "diversity", str(file), "-o", "joined", "--markdown", "joined.md"])
    assert (Path("joined") / "diversity.html").read_text() == page
    assert StudyRecord.load(file, "diversity").command in Path("joined.md").read_text()
    for wrong, words in ((file, "of the study diversity"), (Path("missing.json"), "not exist")):
        with pytest.raises(UserError, match=words):
            StudyRecord.load(wrong, "ranking")
    file.write_text('{"study": "ranking"}')
    with pytest.raises(UserError, match="is damaged: model: "):
        StudyRecord.load(file, "ranking")


def test_a_study_in_a_run_s_folder_is_on_its_page(finished, capsys):
    """The page has its marks, as `render` leaves them; a study asked again replaces itself."""
    marks = "<!-- studies-link --><!-- /studies-link --><!-- studies --><!-- /studies -->"
    Path("report.html").write_text(f"<p>before</p>{marks}<p>after</p>")
    main(["study", "diversity", *finished])
    first = Path("report.html").read_text()
    assert first.startswith("<p>before</p>")
    assert first.endswith("<p>after</p>")
    assert 'data-tab="diversity"' in first
    assert 'href="out/diversity.html"' in first
    assert first.count('href="#studies"') == 1
    _, _, answer = capsys.readouterr().out.splitlines()[0].partition(": ")
    assert f"<li>{escape(answer)}</li>" in first
    Path("out/other").mkdir()
    Path("out/other/diversity.json").write_text("{}")
    capsys.readouterr()
    main(["study", "diversity", *finished])
    assert Path("report.html").read_text() == first
    assert str(Path("out/other/diversity.json")) in capsys.readouterr().err


def test_transfer_asks_for_the_sibling(tiny_study, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["study", "transfer", *tiny_study])
    assert ended.value.code == 2
    assert "--sibling" in capsys.readouterr().err


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
    st.floats(0, 1),
)
def test_where_a_curve_comes_down_to_a_level(levels, goal):
    places = np.arange(len(levels), dtype=float)
    found = crossing(places, np.array(levels), goal)
    if levels[0] <= goal:
        assert found == 0
    elif found == np.inf:
        assert min(levels) > goal
    else:
        assert np.interp(found, places, levels) == pytest.approx(goal, abs=1e-9)
        assert all(
            level > goal for place, level in zip(places, levels, strict=True) if place < found
        )


def test_halves_have_nothing_in_common():
    concept = Concept("c", tuple(f"p{n}" for n in range(50)), tuple(f"n{n}" for n in range(41)))
    first, second = halves(concept, 0)
    assert not set(first.sentences) & set(second.sentences)
    assert sorted(first.positive + second.positive) == sorted(concept.positive)
    assert sorted(first.negative + second.negative) == sorted(concept.negative)


def test_parts_of_a_dampening():
    auroc = {"a": np.array([0.9, 0.6, 0.2]), "b": np.array([0.7, 0.95])}
    expertise = Expertise({s: {"auroc": v.astype(np.float32)} for s, v in auroc.items()}, {})
    paper = aura(expertise)
    assert only_at(paper, {"b"}).factors.keys() == {"b"}
    best = only_best(paper, expertise, 2).factors
    np.testing.assert_allclose(best["a"], [0.2, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(best["b"], [1, 0.1], rtol=1e-5)


RECORDS = Path(__file__).parents[1] / "docs" / "results"


def test_a_page_of_several_records_has_them_side_by_side():
    """With real records. Two are of the same model, and one lacks rivals that the other has."""
    names = ("rivals-qwen0.5b", "rivals-gemma3", "rivals-gemma3_dpo")
    records = [StudyRecord.load(RECORDS / f"{name}.json", "rivals") for name in names]
    tables = [block for block in study_article(records).answer if isinstance(block, Table)]
    asked = next(table for table in tables if "at-asked" in table.name)
    assert asked.columns == ["", "Qwen2.5-Coder 0.5B", "Gemma 3 270M", "Gemma 3 270M (2)"]
    cells = {row[0]: row[1:] for row in asked.rows}
    counts = Counter(trial.name for of in records for trial in of.group("at-asked").trials)
    trials = [name for name, count in counts.items() if count > 1]
    assert list(cells) == ["by", "original", *trials]
    for column, record in enumerate(records):
        for name in trials:
            trial = record.group("at-asked").trial(name)
            shares = [figure.after.value for _, figure in toxic(trial.evaluation)] if trial else []
            found = re.findall(r"([\d.]+) %", cells[name][column])
            assert [float(each) for each in found] == pytest.approx(
                [100 * each for each in shares], abs=0.051
            )
            assert trial or cells[name][column] == "—"
    sized = next(table for table in tables if "at-aura" in table.name)
    assert sized.rows[0][1:] == [of.group("at-aura").title for of in records]
    assert not [block for block in study_article(records[:1]).answer if isinstance(block, Table)]


def test_records_of_one_model_have_charts_and_seeds_of_their_own():
    record = StudyRecord.load(RECORDS / "recommended-smollm2.json", "recommended")
    names = [
        block.name
        for section in study_article([record, record.model_copy(update={"seed": 7})]).sections
        for block in section.blocks
        if isinstance(block, Chart)
    ]
    assert names == ["smollm2-budgets", "smollm2-2-budgets"]
    protocol = study_article([record, record.model_copy(update={"seed": 7})]).sections[-1].blocks
    models, measures = (block for block in protocol if isinstance(block, Table))
    assert [row[-1] for row in models.rows] == ["0", "7"]
    assert "seed" not in measures.caption


@given(st.lists(st.text("ab, ", min_size=1).map(str.strip).filter(bool), max_size=5))
def test_listed_names_can_be_told_apart(names):
    said = listed(names)
    if not names:
        assert said == "none"
    elif any("," in name for name in names):
        assert said.split("; ") == names
    else:
        assert said.split(", ") == names


def test_prose_that_stands_for_negatives_sets_no_size_and_measures_nothing(open_tiny, tmp_path):
    concept = Concept("calm", tuple(sentences(40, 1)), tuple(sentences(40, 2)), "here")
    file = tmp_path / "prose.txt"
    file.write_text("\n".join(sentences(200, 3, longest=20)))
    lab = Lab(open_tiny("llama").ref, concept, tmp_path / "lab", texts=str(file))
    prose = set(_against_prose(lab, 30).negative)
    assert len(prose) == 30
    assert prose.isdisjoint(lab._sizing_texts)
    measured = Perplexity(str(file), max_texts=70).prepare(0, torch.device("cpu"))
    assert prose.isdisjoint(text.text for text in measured.texts)
