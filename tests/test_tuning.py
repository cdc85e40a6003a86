"""Sizes set by a measured divergence, and the search for the best intervention."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import sentences
from families import random_factors
from sordino.errors import UserError
from sordino.evaluation import (
    SCORERS,
    Divergence,
    OrdinaryToxicity,
    Perplexity,
    Speed,
    Toxicity,
    evaluate,
)
from sordino.evaluation.texts import Text, read_texts
from sordino.expertise import AttributionSettings, SweepSettings, find_experts
from sordino.expertise.artefact import Expertise
from sordino.expertise.own import OwnSettings
from sordino.files import write_json
from sordino.interventions import Dampening, family
from sordino.interventions.registry import Family
from sordino.jobs.tune import tune as tune_job
from sordino.models.open import open_model
from sordino.tuning import search as search_module
from sordino.tuning.budget import Budget
from sordino.tuning.calibration import SHORTFALL, Yardstick, calibrate, clean_texts
from sordino.tuning.lab import Lab, Trial
from sordino.tuning.search import TuneSettings
from sordino.tuning.search import search as tune
from test_evaluation import NeutralScorer

PROSE = sentences(30, 7, longest=20)


class Law:
    """A yardstick that knows the divergence: a power law with an end."""

    def __init__(self, scale, power, end, error=1.0):
        self.scale, self.power, self.end, self.error = scale, power, end, error
        self.asked = 0

    def divergence(self, dampening):
        self.asked += 1
        return self.scale * min(dampening.strength, self.end) ** self.power

    def roughly(self, dampening):
        return self.error * self.scale * min(dampening.strength, self.end) ** self.power


def strength(dial):
    return Dampening({}, "made", strength=dial)


@given(
    st.floats(1e-4, 1e3),
    st.floats(0.5, 3),
    st.floats(1e-3, 10),
    st.floats(1e-3, 100),
)
def test_a_power_law_is_sized_within_the_shortfall(scale, power, budget, start):
    law = Law(scale, power, np.inf)
    found = calibrate(law, strength, budget, start=start)
    assert found.reached
    assert budget * (1 - SHORTFALL) <= found.divergence <= budget
    assert found.divergence == pytest.approx(law.divergence(strength(found.dial)))


@given(st.floats(1e-2, 1e2), st.floats(1, 3), st.floats(1e-3, 1), st.floats(0.8, 1.25))
def test_most_of_the_search_is_rough(scale, power, budget, error):
    law = Law(scale, power, np.inf, error)
    assert calibrate(law, strength, budget).reached
    assert law.asked <= 3


@given(st.floats(1e-2, 1e2), st.floats(1e-3, 1), st.floats(0.8, 1.25))
def test_a_dial_that_is_a_divergence_is_measured_whole_twice(scale, budget, error):
    law = Law(scale, 1, np.inf, error)
    assert calibrate(law, Family(strength, foretells=True), budget).reached
    assert law.asked <= 2


@given(st.floats(0.1, 10), st.floats(0.5, 3))
def test_what_has_a_largest_size_is_given_at_it(scale, power):
    law = Law(scale, power, 2.0)
    budget = scale * 2.0**power * 3
    found = calibrate(law, strength, budget)
    assert not found.reached
    assert found.divergence == pytest.approx(scale * 2.0**power)
    assert found.dial >= 2.0


class Uneven(Law):
    """A yardstick by which a larger dial sometimes gives less, as rounding to 16 bits does."""

    def divergence(self, dampening):
        return super().divergence(dampening) * (1 + 0.08 * np.sin(300 * dampening.strength))


@given(st.floats(0.1, 10), st.floats(1, 3), st.floats(0.01, 1))
def test_a_larger_dial_that_gives_less_is_no_end_where_more_was_seen(scale, power, budget):
    found = calibrate(Uneven(scale, power, np.inf), strength, budget)
    assert found.reached
    assert budget * (1 - SHORTFALL) <= found.divergence <= budget


def test_the_same_again_is_the_end_of_sizes_that_jump():
    law = Law(0.01, 1, np.inf)
    found = calibrate(law, lambda dial: strength(float(int(dial))), 0.0355, start=2.0)
    assert (found.dampening.strength, found.reached) == (3, False)
    assert law.asked < 8


def test_a_rule_that_foretells_its_divergence_is_tried_near_it_first():
    tried = []

    def made(dial):
        tried.append(dial)
        return strength(dial)

    for foretells, first in ((True, 0.025), (False, 1.0)):
        calibrate(Law(1.5, 1, np.inf), Family(made, foretells), 0.05)
        assert tried[0] == first
        tried.clear()


@pytest.mark.parametrize("budget", [0, -1, np.inf, np.nan])
def test_a_budget_of_nothing_is_refused(budget):
    with pytest.raises(UserError, match="out of range"):
        calibrate(Law(1, 1, 1), strength, budget)


def test_the_yardstick_measures_what_the_measure_measures(open_tiny, tmp_path):
    opened = open_tiny("llama")
    dampening = Dampening(random_factors({s.path: s.neurons for s in opened.sites}, seed=1), "made")
    found = Yardstick(opened, PROSE).divergence(dampening)
    prose = tmp_path / "prose.txt"
    prose.write_text("\n".join(PROSE))
    changed = open_tiny("llama")
    dampening.bake_into(changed.model)
    result = evaluate(changed, opened, measures=[Divergence(str(prose), max_texts=None)])
    assert found == pytest.approx(result.figure("divergence", "divergence").after.value, rel=1e-4)
    assert Yardstick(opened, PROSE).divergence(dampening.scaled(0)) == pytest.approx(0, abs=1e-9)


def test_a_rough_divergence_is_that_of_every_fifth_text(open_tiny):
    opened = open_tiny("llama")
    dampening = Dampening(random_factors({s.path: s.neurons for s in opened.sites}, seed=1), "made")
    rough = Yardstick(opened, ["", *PROSE]).roughly(dampening)  # what has no place does not count
    # The draws of the estimate go by a text's place, so that the two agree but do not equal.
    assert rough == pytest.approx(Yardstick(opened, PROSE[::5]).divergence(dampening), rel=0.05)


def test_texts_for_sizes_are_not_those_of_the_measure(tmp_path):
    prose = tmp_path / "prose.txt"
    prose.write_text("\n".join(PROSE))
    from sordino.evaluation.texts import choose, read_texts

    measured = {text.text for text in choose(read_texts(str(prose)), 20, seed=3)}
    assert measured.isdisjoint(clean_texts(str(prose), most=10, seed=3))


def test_texts_are_drawn_by_no_negative_seed():
    with pytest.raises(UserError, match="`seed=-1` is out of range: it must be at least 0"):
        clean_texts(seed=-1)


def test_the_dial_of_a_rule(concept):
    auroc = {"m.0": np.linspace(0.3, 0.9, 40, dtype=np.float32)}
    cost = {
        "attribution_positive": 1.0,
        "attribution_negative": 0.5,
        "attribution_variance": 0.0,
        "cost": 2.0,
    }
    statistics = {"auroc": auroc["m.0"]} | {
        name: np.full(40, value, dtype=np.float32) for name, value in cost.items()
    }
    expertise = Expertise({"m.0": statistics}, {"n_positive": "30", "n_negative": "30"})
    assert family(expertise, "aura")(0.5).strength == 0.5
    assert family(expertise, "damp")(7.4).changed == 7
    assert family(expertise, "det_zero")(1e9).changed == 40
    assert family(expertise, "contrast")(0.01).settings["budget"] == 0.01
    with pytest.raises(UserError, match="two sizes"):
        family(expertise, "damp", k=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("divergence<=0.05", Budget("divergence", 0.05)),
        (" perplexity <= 33 ", Budget("perplexity", 33)),
        ("perplexity<=+5%", Budget("perplexity", 0.05, relative=True)),
        ("zero-shot>=-1%", Budget("zero-shot", -0.01, relative=True)),
    ],
)
def test_a_budget_is_read_and_written(text, expected):
    assert Budget.parse(text) == expected
    assert Budget.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    *[
        [
            "divergence",
            "divergence>=0.05",
            "divergence<=0",
            "divergence<=+5%",
            "perplexity<=5%",
            "speed<=3",
            "zero-shot<=0.4",
            "",
        ]
    ],
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match="`budget="):
        Budget.parse(text)


@pytest.fixture
def search(open_tiny, concept, tmp_path, monkeypatch):
    """A function that tunes a tiny model in a folder."""
    monkeypatch.setitem(SCORERS, "neutral", NeutralScorer)
    prose, prompts = tmp_path / "prose.txt", tmp_path / "prompts.jsonl"
    prose.write_text("\n".join(sentences(60, 7, longest=20)))
    rows = [{"text": text} for text in sentences(44, 9, longest=5)]
    prompts.write_text("\n".join(json.dumps(row) for row in rows))
    ref = open_tiny("llama").ref

    def run(budget, trials, folder="work", rules=("aura", "damp")):
        lab = Lab(ref, concept, tmp_path / folder, texts=str(prose), dtype="float32")
        toxicity = Toxicity(str(prompts), scorer="neutral", continuations=2, new_tokens=4)
        settings = TuneSettings(Budget.parse(budget), rules, trials, toxicity)
        return tune(lab, tmp_path / folder, settings)

    return run


@pytest.mark.slow
def test_a_search_goes_on_to_what_it_would_have_found(search, tmp_path):
    search("divergence<=0.02", 2, "a")
    halfway, _ = search("divergence<=0.02", 4, "a")
    whole, chosen = search("divergence<=0.02", 4, "b")
    assert halfway.tried == whole.tried  # the rest names its own folder
    assert len(whole.tried) == 4
    assert {one.rule for one in whole.tried[:2]} == {"aura", "damp"}
    best = whole.best
    assert best.tried.toxicity.value == min(t.toxicity.value for t in whole.tried if t.kept)
    assert chosen.changed == best.tried.changed
    assert whole.search_prompts == whole.report_prompts == 22
    halves = [
        {json.loads(line)["text"] for line in (tmp_path / "a" / name).read_text().splitlines()}
        for name in ("prompts-search.jsonl", "prompts-report.jsonl")
    ]
    assert halves[0].isdisjoint(halves[1])


def stored(folder):
    """The values that a lab has measured, in their order."""
    _header, *lines = (folder / "values.jsonl").read_text().splitlines()
    return [value for line in lines for value in json.loads(line.partition("\t")[0])["batch"]]


def test_the_budget_is_aimed_below_and_reported_on_texts_that_set_no_size(search, tmp_path):
    tuned, chosen = search("divergence<=0.02", 2)
    sizes = stored(tmp_path / "work")
    assert sizes
    assert all(size["divergence"] <= 0.018 for size in sizes)
    assert max(size["divergence"] for size in sizes) > 0.018 * (1 - SHORTFALL)
    assert chosen is not None
    assert tuned.best.evaluation.figure("divergence", "divergence").after.value > 0
    halves = [
        [json.loads(line)["text"] for line in (tmp_path / "work" / name).read_text().splitlines()]
        for name in ("clean-texts-search.jsonl", "clean-texts-report.jsonl")
    ]
    assert len(halves[0]) == len(halves[1]) == 30
    assert set(halves[0]).isdisjoint(halves[1])


def test_sizes_are_set_on_texts_that_neither_choose_nor_report(
    open_tiny, concept, tmp_path, capsys
):
    prose, prompts = tmp_path / "prose.txt", tmp_path / "prompts.txt"
    for file, count in ((prose, 160), (prompts, 44)):
        file.write_text("\n".join(sentences(count, 3, longest=20)))
    lab = Lab(open_tiny("llama").ref, concept, tmp_path / "lab", texts=str(prose))
    settings = TuneSettings(Budget("divergence", 0.1), toxicity=Toxicity(str(prompts)))
    halves = search_module._halves(lab, tmp_path, settings)
    read = [{text.text for text in read_texts(half.texts)} for half in halves]
    sized_on = set(clean_texts(str(prose)))
    assert [len(texts) for texts in (*read, sized_on)] == [30, 30, 100]
    assert len(set.union(*read, sized_on)) == 160
    assert "sized" not in capsys.readouterr().err
    prose.write_text("\n".join(sentences(120, 3, longest=20)))
    search_module._halves(lab, tmp_path, settings)
    assert "holds 120 texts: interventions are sized on texts by" in capsys.readouterr().err


def test_what_is_reported_beside_takes_the_held_out_half():
    halves = {"prompts.txt": "prompts-report.jsonl", "prose.txt": "clean-texts-report.jsonl"}
    for measure, expected in {
        Toxicity("prompts.txt", pre_prompt="adversarial"): "prompts-report.jsonl",
        Toxicity("others.txt"): "others.txt",
        OrdinaryToxicity(): OrdinaryToxicity().prompts,
        Perplexity("prose.txt", max_texts=7): "clean-texts-report.jsonl",
        Perplexity("others.txt"): "others.txt",
    }.items():
        found = search_module._held_out(measure, halves)
        assert expected in (getattr(found, "prompts", ""), getattr(found, "texts", ""))
        assert found.key == measure.key
    assert search_module._held_out(Speed(), halves) == Speed()


@pytest.mark.slow
def test_a_search_reports_on_held_out_texts_with_any_seed(
    open_tiny, concept, tmp_path, monkeypatch
):
    monkeypatch.setitem(SCORERS, "neutral", NeutralScorer)
    for name, count in (("prose", 200), ("prompts", 44)):
        (tmp_path / f"{name}.txt").write_text("\n".join(sentences(count, 3, longest=20)))
    found = tune_job(
        open_tiny("llama").ref,
        concept,
        tmp_path / "tuned",
        rules=["aura"],
        trials=2,
        toxicity=Toxicity(str(tmp_path / "prompts.txt"), scorer="neutral", new_tokens=4),
        measures=[Perplexity(str(tmp_path / "prose.txt"))],
        texts=tmp_path / "prose.txt",
        seed=2**32 - 1,
    )
    for one in found.tuned.reported:
        protocol = one.evaluation.measures["perplexity"].protocol
        assert (protocol["texts"], protocol["n_texts"]) == ("clean-texts-report.jsonl", 50)


def test_too_few_texts_are_refused(open_tiny, concept, tmp_path):
    prose = tmp_path / "prose.txt"
    prose.write_text("\n".join(PROSE))
    lab = Lab(open_tiny("llama").ref, concept, tmp_path / "lab", texts=str(prose))
    with pytest.raises(UserError, match="30 clean texts cannot be split"):
        tune(lab, tmp_path, TuneSettings(Budget("divergence", 0.1)))


def test_a_budget_that_nothing_keeps_chooses_nothing(search):
    tuned, chosen = search("perplexity<=1.01", 2)
    assert chosen is None
    assert tuned.best is None
    assert not any(one.kept for one in tuned.tried)


class FixedJudge:
    """Scores a text by its length."""

    name = "length"

    def __init__(self, unit):
        self.unit = unit

    def record(self):
        return {"unit": self.unit}

    def score(self, texts):
        return np.array([min(len(text) / self.unit, 1.0) for text in texts])


def test_an_expertise_is_found_again_only_by_the_same_settings(open_tiny, concept, tmp_path):
    ref = open_tiny("llama").ref

    def lab():
        return Lab(ref, concept, tmp_path / "lab", dtype="float32")

    few = concept.sampled(max_per_class=20, seed=1)
    own = OwnSettings(tuple(sentences(20, 4, longest=4)), FixedJudge(40), continuations=2)
    attribution = AttributionSettings(20)
    quiet = family(lab().find("one"), "aura")(1.0)
    settings = [
        {},
        {"concept": few},
        {"sites": "attention"},
        {"sweep": SweepSettings(stratify="length")},
        {"sweep": SweepSettings(max_tokens=4)},
        {"attribution": attribution},
        {"attribution": AttributionSettings(21)},
        {"attribution": AttributionSettings(20, protected=tuple(PROSE))},
        {"attribution": attribution, "edited": quiet},
        {"attribution": attribution, "own": own},
        {"attribution": attribution, "own": replace(own, prompts=own.prompts[::-1])},
        {"attribution": attribution, "own": replace(own, judge=FixedJudge(80))},
    ]
    first = [lab().find("one", **one) for one in settings]
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "lab").glob("one-*")}
    assert len(files) == len(settings)
    again = [lab().find("one", **one) for one in settings]
    assert {file: file.stat().st_mtime_ns for file in files} == files
    opened = lab().finder
    for found, kept, asked in zip(first, again, settings, strict=True):
        assert kept.metadata == found.metadata
        with asked["edited"].applied(opened.model) if "edited" in asked else nullcontext():
            made = find_experts(
                replace(opened, site_pattern=asked.get("sites")),
                asked.get("concept", concept),
                settings=asked.get("sweep"),
                attribution=asked.get("attribution"),
                own=asked.get("own"),
            )
        assert made.metadata == kept.metadata
        assert made.sites == kept.sites


@pytest.fixture
def lab(open_tiny, concept, tmp_path):
    """A function that opens the same lab again, by the texts of prose.txt."""
    prose = tmp_path / "prose.txt"
    prose.write_text("\n".join(PROSE))
    ref = open_tiny("llama").ref
    return lambda: Lab(ref, concept, tmp_path / "lab", texts=str(prose), dtype="float32")


def test_a_size_is_taken_only_for_what_was_measured(lab, tmp_path):
    def counted(sizes, *, measures):
        """The trial of a family, and whether a divergence was measured for it."""
        here = lab()
        trial = here.sized("one", sizes, 0.02)
        assert ("yardstick" in vars(here)) is measures
        return trial

    expertise = lab().find("one")
    plain, controlled = (
        family(expertise, "aura"),
        family(expertise, "shuffled", seed=3),
    )
    first = counted(plain, measures=True)
    second = counted(controlled, measures=True)
    assert first.dampening.fingerprint != second.dampening.fingerprint
    for sizes, trial in ((plain, first), (controlled, second)):
        assert counted(sizes, measures=False).dial == trial.dial
    # Under the same name there are other texts now.
    (tmp_path / "prose.txt").write_text("\n".join(sentences(30, 8, longest=20)))
    other = counted(plain, measures=True)
    assert lab().yardstick.divergence(other.dampening) <= 0.02


@pytest.fixture
def sizing(lab):
    """A function that opens the same lab again, and what it finds and measures."""

    def work():
        """The work of a study; whether its divergences were measured."""
        here = lab()
        expertise = here.find("one")
        trial = here.sized("sized", family(expertise, "aura"), 0.02)
        here.find("two", sites="attention")
        return trial, here.divergence(trial), "yardstick" in vars(here)

    return lab, work


def test_a_kill_while_a_value_is_stored_costs_that_value_alone(sizing, tmp_path, monkeypatch):
    _, work = sizing
    trial, divergence, measured = work()
    assert measured
    values = tmp_path / "lab" / "values.jsonl"
    whole = values.read_bytes()
    values.write_bytes(whole[:-5])
    monkeypatch.setattr("sordino.tuning.lab.find_experts", None)
    monkeypatch.setattr("sordino.tuning.lab.calibrate", None)
    again, same, measured = work()
    assert measured
    assert (again.dial, same) == (trial.dial, divergence)
    assert values.read_bytes() == whole


def test_a_changed_file_of_a_lab_costs_that_file_alone(sizing, tmp_path):
    _, work = sizing
    trial, *_ = work()
    one, two = sorted((tmp_path / "lab").glob("*.expertise.safetensors"))
    before = two.stat().st_mtime_ns
    one.write_bytes(one.read_bytes()[:-1])
    again, _, measured = work()
    assert again.dial == trial.dial
    assert not measured
    assert two.stat().st_mtime_ns == before


def test_values_of_a_lab_that_were_one_file_are_taken_over(sizing, tmp_path):
    lab, work = sizing
    trial, *_ = work()
    folder = tmp_path / "lab"
    size, divergence = stored(folder)
    before = lab()
    keys = before._key("sized", 0.02, None), before._key("divergence", trial.dampening.fingerprint)
    (folder / "values.jsonl").unlink()
    write_json(folder / "values.json", {keys[0]: [size], keys[1]: divergence})
    before._work.done("values.json", folder / "values.json")
    again, same, measured = work()
    assert (again.dial, same) == (trial.dial, divergence)
    assert not measured
    assert not (folder / "values.json").exists()


def test_what_is_made_is_made_again_of_something_else(open_tiny, concept, tmp_path):
    lab = Lab(open_tiny("llama").ref, concept, tmp_path / "lab")
    paths = {site.path: site.neurons for site in lab.finder.sites}

    def made(seed):
        return lab.made("one", [seed], lambda: Dampening(random_factors(paths, seed=seed), "made"))

    first, second = made(1), made(2)
    assert first.fingerprint != second.fingerprint
    assert made(1).fingerprint == first.fingerprint


def test_the_work_of_an_earlier_version_is_refused(open_tiny, concept, tmp_path):
    ref = open_tiny("llama").ref
    Lab(ref, concept, tmp_path / "lab")
    mark = tmp_path / "lab" / "lab.json"
    about = json.loads(mark.read_text())
    del about["format"]  # as it was when files were known by their names alone
    mark.write_text(json.dumps(about))
    with pytest.raises(UserError, match="version"):
        Lab(ref, concept, tmp_path / "lab")


def test_a_folder_of_another_study_is_refused(open_tiny, concept, tmp_path):
    ref = open_tiny("llama").ref
    Lab(ref, concept, tmp_path / "lab", seed=0)
    Lab(ref, concept, tmp_path / "lab", seed=0)
    with pytest.raises(UserError, match="choose another `output`"):
        Lab(ref, concept, tmp_path / "lab", seed=1)


def test_texts_that_a_lab_keeps_are_named_by_their_file(open_tiny, concept, tmp_path):
    opened = open_tiny("llama")
    lab = Lab(opened.ref, concept, tmp_path / "lab", dtype="float32")
    kept = lab.keep("kept.txt", PROSE)
    other = tmp_path / "other.txt"
    other.write_text("\n".join(PROSE))
    factors = random_factors({site.path: site.neurons for site in opened.sites})
    trial = Trial("arm", Dampening(factors, "made"))
    measures = [Perplexity(kept), Divergence(str(other))]
    [found] = lab.compare([trial], measures)
    texts = {key: result.protocol["texts"] for key, result in found.measures.items()}
    assert texts == {"perplexity": "kept.txt", "divergence": str(other)}


def test_arms_of_a_lab_share_what_the_original_gave(open_tiny, concept, tmp_path, monkeypatch):
    monkeypatch.setitem(SCORERS, "neutral", NeutralScorer)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(sentences(8, 9, longest=5)))
    opened = open_tiny("llama")
    lab = Lab(opened.ref, concept, tmp_path / "lab", dtype="float32")
    arms = [
        Trial(
            f"arm {seed}",
            Dampening(random_factors({s.path: s.neurons for s in opened.sites}, seed=seed), "made"),
        )
        for seed in (1, 2)
    ]
    chosen = [Toxicity(str(prompts), scorer="neutral", continuations=2, new_tokens=4)]
    both = lab.compare(arms, chosen)
    records = (tmp_path / "lab" / "records.jsonl").read_text().splitlines()
    assert (
        sum('"before/toxicity' in line for line in records)
        == sum('"after/toxicity' in line for line in records) / 2
    )
    again = lab.compare(arms[1:], chosen)
    assert again == both[1:]
    assert (tmp_path / "lab" / "records.jsonl").read_text().splitlines() == records
    # An arm by hooks is the arm that is baked.
    arms[0].dampening.bake_into(opened.model)
    baked = evaluate(opened, lab.opened, measures=chosen)
    for name in ("continuations.all", "maximum.all"):
        assert baked.figure("toxicity", name) == both[0].figure("toxicity", name)


def test_bake_sizes_by_a_measured_divergence(open_tiny, concept, tmp_path, monkeypatch):
    from sordino.cli.app import main
    from sordino.expertise import find_experts
    from sordino.tuning import calibration

    opened = open_tiny("llama")
    file, another = (tmp_path / f"{name}.expertise.safetensors" for name in "xy")
    find_experts(opened, concept, output=file)
    another.write_bytes(file.read_bytes())
    monkeypatch.setattr(calibration, "read_texts", lambda _: [Text(text) for text in PROSE])
    for name, arguments in {
        "one": [file, "--intervention", "damp"],
        "two": [file, another],
    }.items():
        target = tmp_path / name
        main(
            [
                *("bake", str(opened.ref.path), *map(str, arguments)),
                *("-o", str(target), "--divergence", "0.01"),
            ]
        )
        changed = open_model(target)
        prose = tmp_path / "prose.txt"
        prose.write_text("\n".join(PROSE))
        result = evaluate(changed, opened, measures=[Divergence(str(prose), max_texts=None)])
        found = result.figure("divergence", "divergence").after.value
        assert 0.005 < found <= 0.0101, name  # neurons are whole: damp's steps are coarse here


def test_one_is_not_counted_as_many(tmp_path):
    for name, said in (("prompts", "1 prompt cannot"), ("clean-texts", "1 clean text cannot")):
        with pytest.raises(UserError, match=said):
            search_module._split_in_half([Text("the cat")], tmp_path, name, 0)
