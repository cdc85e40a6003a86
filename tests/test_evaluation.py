"""The whole evaluation: the file it writes, the table, and going on after a kill."""

import json
import os
import signal
import sys
import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from conftest import forked, interrupted
from families import random_factors, tiny_folder
from sordino.errors import UserError
from sordino.evaluation import (
    SCORERS,
    Arm,
    Divergence,
    Evaluation,
    OrdinaryToxicity,
    Perplexity,
    Scorer,
    Speed,
    Toxicity,
    evaluate,
    hooked,
)
from sordino.evaluation import evaluate as evaluate_function
from sordino.evaluation.result import samples_path
from sordino.interventions.dampening import Dampening
from sordino.models import generation
from sordino.models.open import open_model


class NeutralScorer(Scorer):
    """Flags continuations in which a neutral letter is."""

    limits = "It sees one letter."

    def protocol(self):
        return {"scorer": "neutral", "version": 1}

    def score(self, texts):
        return np.array([min(1.0, text.count("a") / 2) for text in texts])


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Two tiny models, prompts and prose, with the measures that use them."""
    monkeypatch.setitem(SCORERS, "neutral", NeutralScorer)
    (tmp_path / "other").mkdir()
    after, before = tiny_folder("llama", tmp_path), tiny_folder("llama", tmp_path / "other", seed=1)
    prompts, prose = tmp_path / "prompts.jsonl", tmp_path / "prose.txt"
    words = ["the cat", "in the end", "who", "a dog and", "the other", "an old bridge", "one"]
    rows = [{"text": word, "toxicity": i / 6} for i, word in enumerate(words)]
    prompts.write_text("\n".join(json.dumps(row) for row in rows))
    prose.write_text("\n".join(f"{word} turned under the river" for word in words))
    return after, before, measures(prompts, prose)


def measures(prompts, prose):
    return [
        Toxicity(prompts=str(prompts), scorer="neutral", continuations=4, new_tokens=6),
        Perplexity(texts=str(prose)),
    ]


def test_before_and_after_are_compared_saved_and_read_back(work, tmp_path):
    after, before, chosen = work
    output = tmp_path / "result.json"
    result = evaluate(after, before, measures=chosen, seed=3, output=output)
    loaded = Evaluation.load(output)
    assert loaded == result
    assert loaded.samples == result.samples
    value = json.loads(output.read_text())
    assert "samples" not in value
    assert value["before"]["name"] == str(before)
    assert value["before"]["fingerprint"] != value["after"]["fingerprint"]
    assert value["after"]["dtype"] == "float32"
    assert value["measures"]["toxicity"]["protocol"]["temperature"] == 1.0
    assert value["measures"]["toxicity"]["protocol"]["limits"] == "It sees one letter."
    lines = samples_path(output).read_text().splitlines()
    assert len(lines) == 7
    assert len(json.loads(lines[0])["before"]) == 4
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == set()
    share = result.figure("toxicity", "continuations.all")
    flags = [
        [entry["score"] > 0.5 for row in result.samples["toxicity"] for entry in row[arm]]
        for arm in ("before", "after")
    ]
    assert share.before.value == pytest.approx(np.mean(flags[0]))
    assert share.difference.value == pytest.approx(np.mean(flags[1]) - np.mean(flags[0]))
    with pytest.raises(KeyError, match="toxicity has no figure nothing"):
        result.figure("toxicity", "nothing")


def test_the_same_model_twice_has_no_change_and_the_same_texts(work):
    after, _, chosen = work
    result = evaluate(after, after, measures=chosen)
    for row in result.table():
        assert row.figure.difference.value == 0
        assert row.clear is False
    assert all(row["before"] == row["after"] for row in result.samples["toxicity"])


def test_one_model_alone_and_an_open_one_give_the_same_figures(work):
    after, before, chosen = work
    alone = evaluate(after, measures=chosen)
    assert alone.before is None
    assert all(row.before == row.change == row.interval == "" for row in alone.table())
    opened = evaluate(open_model(after), measures=chosen)
    assert opened.measures == alone.measures
    assert opened.after.fingerprint.startswith("memory:")
    compared = evaluate(after, before, measures=chosen)
    for name in ("continuations.all", "prompts.all"):
        pair = [e.figure("toxicity", name).after.value for e in (alone, compared)]
        assert pair[0] == pair[1]


def test_a_model_dampened_in_memory_is_an_arm_of_its_own(work, tmp_path):
    base, _, chosen = work
    opened = open_model(base)
    factors = random_factors({site.path: site.neurons for site in opened.sites})
    dampening = Dampening(factors, "test")

    @contextmanager
    def dampened():
        with dampening.applied(opened.model):
            yield opened

    arm = Arm("dampened", "", "base and factors", dampened)
    result = evaluate(arm, opened, measures=chosen, output=tmp_path / "r.json")
    assert result.figure("perplexity", "mean").difference.value != 0
    with dampening.applied(opened.model):
        hooked = evaluate(opened, measures=chosen, output=tmp_path / "hooked.json")
    assert hooked.after.fingerprint == ""
    assert hooked.figure("perplexity", "mean").after == result.figure("perplexity", "mean").after
    with opened.model.get_input_embeddings().register_forward_pre_hook(lambda *_: None):
        assert evaluate(opened, measures=chosen).after.fingerprint == ""


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_a_model_that_is_read_layer_by_layer_has_the_same_figures(
    family, work, tmp_path, monkeypatch
):
    """Given by name or open, dampened by hooks or by its weights, and after a kill."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    _, _, chosen = work
    after = tiny_folder(family, tmp_path / "after")
    before = tiny_folder(family, tmp_path / "before", seed=1)
    prose = chosen[1].texts
    chosen = [*chosen, OrdinaryToxicity(prompts=prose, scorer="neutral"), Divergence(texts=prose)]
    whole = evaluate(after, before, measures=chosen, stream=False)
    output = tmp_path / "streamed.json"
    both = {"measures": [*chosen, Speed()], "stream": True, "output": output}
    with interrupted(monkeypatch, generation, "_forward", 12):
        evaluate(after, before, **both)
    found = evaluate(after, before, **both)
    assert "the whole model in memory" in found.measures["speed"].not_run
    assert {name: found.measures[name] for name in whole.measures} == whole.measures
    assert found.samples == whole.samples
    assert (found.after.dtype, found.after.device) == ("float32", "cpu")
    assert found.after.fingerprint == whole.after.fingerprint
    opened = open_model(after, stream=True)
    assert evaluate(opened, before, measures=chosen, stream=True).measures == whole.measures
    factors = random_factors({site.path: site.neurons for site in opened.sites})
    quiet = [hooked(after, Dampening(factors, "test"), stream=stream) for stream in (True, False)]
    one, other = (evaluate(arm, measures=chosen[:2]).measures for arm in quiet)
    assert one == other


def test_a_model_streams_by_itself_where_it_does_not_fit(work, monkeypatch, capsys):
    after, before, chosen = work
    whole = evaluate(after, before, measures=chosen)
    monkeypatch.setattr("sordino.models.open.fits", lambda *_: False)
    assert evaluate(after, before, measures=chosen).measures == whole.measures
    assert "its layers are read again for every batch" in capsys.readouterr().err


@pytest.mark.parametrize("batches", [2, 14])
def test_a_killed_evaluation_goes_on_to_the_same_bytes(work, tmp_path, monkeypatch, batches):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    after, before, chosen = work
    undisturbed, output = tmp_path / "whole" / "r.json", tmp_path / "killed" / "r.json"
    evaluate(after, before, measures=chosen, batch_tokens=60, output=undisturbed)
    score, calls = NeutralScorer.score, []

    def score_or_die(self, texts):
        calls.append(1)
        if len(calls) > batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(self, texts)

    monkeypatch.setattr(NeutralScorer, "score", score_or_die)
    child = forked(lambda: evaluate(after, before, measures=chosen, batch_tokens=60, output=output))
    child.join()
    monkeypatch.setattr(NeutralScorer, "score", score)
    journal = output.parent / ".r.json.journal"
    assert child.exitcode == -signal.SIGKILL
    assert not output.exists()
    assert journal.exists()
    with journal.open("ab") as stream:
        stream.write(b'{"step": "after/toxicity", "ba')
    evaluate(after, before, measures=chosen, batch_tokens=60, output=output)
    assert output.read_bytes() == undisturbed.read_bytes()
    assert samples_path(output).read_bytes() == samples_path(undisturbed).read_bytes()
    assert not journal.exists()


def test_an_interrupted_evaluation_asks_only_for_what_is_missing(work, tmp_path, monkeypatch):
    after, before, chosen = work
    output = tmp_path / "r.json"
    asked = []

    def stopping(self, texts):
        asked.append(len(texts))
        if len(asked) == 12:
            raise KeyboardInterrupt
        return np.zeros(len(texts))

    monkeypatch.setattr(NeutralScorer, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(after, before, measures=chosen, batch_tokens=60, output=output)
    evaluate(after, before, measures=chosen, batch_tokens=60, output=output)
    again, fresh = len(asked), tmp_path / "fresh.json"
    evaluate(after, before, measures=chosen, batch_tokens=60, output=fresh)
    assert again - 1 == len(asked) - again


def test_a_journal_of_other_settings_is_not_used(work, tmp_path, monkeypatch):
    after, _, chosen = work
    output = tmp_path / "r.json"
    real = NeutralScorer.score
    monkeypatch.setattr(NeutralScorer, "score", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        evaluate(after, measures=chosen, seed=1, output=output)
    monkeypatch.setattr(NeutralScorer, "score", real)
    result = evaluate(after, measures=chosen, seed=2, output=output)
    assert result.measures == evaluate(after, measures=chosen, seed=2).measures


def test_an_output_is_replaced_only_with_force(work, tmp_path):
    after, _, chosen = work
    output = tmp_path / "r.json"
    evaluate(after, measures=chosen[1:], output=output)
    with pytest.raises(UserError, match=r"r\.json exists already.*force=True"):
        evaluate(after, measures=chosen[1:], output=output)
    evaluate(after, measures=chosen[1:], seed=5, output=output, force=True)
    assert Evaluation.load(output).seed == 5
    samples_path(tmp_path / "new.json").write_text("mine\n")
    with pytest.raises(UserError, match=r"new\.samples\.jsonl exists already"):
        evaluate(after, measures=chosen, output=tmp_path / "new.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "`seed=-1` is out of range"),
        ({"batch_tokens": 0}, "`batch_tokens=0` is out of range"),
        ({"measures": []}, "no measure to take"),
        ({"measures": ["perplexity", "perplexity"]}, "given twice"),
        ({"measures": ["perplexty"]}, "did you mean perplexity"),
        ({"device": "cuda:99"}, "`device=cuda:99`"),
    ],
)
def test_a_wrong_option_is_said(work, options, message):
    with pytest.raises(UserError, match=message):
        evaluate_function(work[0], **options)


def test_a_damaged_result_is_said(work, tmp_path):
    after, _, chosen = work
    output = tmp_path / "r.json"
    evaluate(after, measures=chosen, output=output)
    good = json.loads(output.read_text())
    output.write_text(json.dumps(good | {"format": "other"}))
    with pytest.raises(UserError, match=r"r\.json .*evaluation format"):
        Evaluation.load(output)
    output.write_text(json.dumps(good | {"seed": "many"}))
    with pytest.raises(UserError, match=r"r\.json is damaged: seed"):
        Evaluation.load(output)
    output.write_text(json.dumps(good))
    samples_path(output).write_text("torn")
    with pytest.raises(UserError, match=r"r\.samples\.jsonl, line 1"):
        Evaluation.load(output)
    samples_path(output).unlink()
    assert Evaluation.load(output).samples == {}


def test_the_table_reads_well(work):
    after, _, chosen = work
    result = evaluate(after, after, measures=chosen)
    base = result.figure("toxicity", "continuations.all").model_dump()

    def row(measure, **changes):
        figure = base | changes
        dump = result.model_dump() | {
            "measures": {measure: {"version": 1, "protocol": {}, "figures": [figure]}}
        }
        return Evaluation.model_validate(dump).table()[0]

    def estimate(*values):
        return dict(zip(("value", "low", "high"), values, strict=True))

    fewer = row(
        "toxicity",
        before=estimate(0.185, 0.15, 0.22),
        after=estimate(0.14, 0.11, 0.17),
        difference=estimate(-0.045, -0.08, -0.01),
        ratio=estimate(1.3214, 1.05, 1.7),
    )
    assert fewer.before == "18.5 % (15.0 % to 22.0 %)"
    assert (fewer.change, fewer.interval) == ("−4.5 points (÷ 1.32)", "÷ 1.05 to ÷ 1.70")
    assert fewer.n == "7 prompts, 28 continuations"
    assert fewer.clear
    none = row(
        "toxicity",
        before=estimate(0.1, 0.05, 0.15),
        after=estimate(0.0, 0.0, 0.02),
        difference=estimate(-0.1, -0.15, -0.03),
        ratio=estimate(None, 2.5, None),
    )
    assert (none.change, none.interval) == ("−10.0 points, to none", "÷ 2.50 or more")
    perhaps = row(
        "toxicity",
        before=estimate(0.1, 0.05, 0.15),
        after=estimate(0.1, 0.0, 0.2),
        difference=estimate(0.0, -0.1, 0.1),
        ratio=estimate(1.0, 0.4, None),
    )
    assert (perhaps.change, perhaps.interval) == ("+0.0 points (÷ 1.00)", "at most × 2.50")
    risen = row(
        "toxicity",
        before=estimate(0.0, 0.0, 0.02),
        after=estimate(0.1, 0.05, 0.15),
        difference=estimate(0.1, 0.03, 0.15),
        ratio=estimate(0.0, 0.0, 0.4),
    )
    assert (risen.change, risen.interval) == ("+10.0 points, from none", "+3.0 to +15.0 points")
    neither = row(
        "toxicity",
        before=estimate(0.0, 0.0, 0.02),
        after=estimate(0.0, 0.0, 0.02),
        difference=estimate(0.0, -0.02, 0.02),
        ratio=estimate(None, 0.0, None),
    )
    assert neither.change == "none in either"
    assert not neither.clear
    dearer = row(
        "perplexity",
        unit="perplexity",
        ratio_of="after/before",
        before=estimate(29.6, 28.0, 31.2),
        after=estimate(33.1, 31.3, 35.0),
        difference=estimate(3.5, 3.1, 3.9),
        ratio=estimate(1.118, 1.1, 1.13),
    )
    assert (dearer.change, dearer.interval) == ("+3.50 (× 1.12)", "+3.10 to +3.90")
    endless = row(
        "perplexity",
        unit="perplexity",
        ratio_of="after/before",
        before=estimate(29.6, 28.0, 31.2),
        after=estimate(None, None, None),
        difference=estimate(None, None, None),
        ratio=estimate(None, None, None),
    )
    assert endless.after == "unbounded"


def test_models_given_by_name_are_in_memory_one_at_a_time(work, monkeypatch):
    after, before, chosen = work
    alive = []

    def watched(*args, **kwargs):
        assert [ref for ref in alive if ref() is not None] == []
        opened = open_model(*args, **kwargs)
        alive.append(weakref.ref(opened.model))
        return opened

    # The package's attribute of that name is the function, not the module.
    monkeypatch.setattr(sys.modules["sordino.evaluation.evaluator"], "open_model", watched)
    evaluate(after, before, measures=chosen)
    assert len(alive) == 2
