"""What a run says of a chat model's refusals: measured by default, and said first if they fall."""

from pathlib import Path

import numpy as np
import pytest

from conftest import sentences
from sordino import RunSettings, pipeline
from sordino.cli.app import main
from sordino.cli.evaluate import print_table
from sordino.cli.run import describe_cost
from sordino.evaluation import Refusals, Toxicity, prepare, with_chat
from sordino.evaluation.result import Evaluation, Figure, MeasureResult
from sordino.evaluation.statistics import compare_shares
from sordino.expertise import SweepSettings
from sordino.interventions import aura
from sordino.models.chat import Chat
from sordino.models.reference import resolve
from sordino.options.job import Job
from sordino.options.measures import RunMeasureOptions
from sordino.pipeline import MEASURED_OF_CHAT
from sordino.report import outcome
from taught import REFUSAL, requests, taught
from test_report import evaluation, expertise

REFUSED, ANSWERED = requests(30), requests(10, 1)
FEWER, MORE = "refuses fewer unsafe requests", "refuses more safe prompts"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A chat model that refuses, requests, and a concept that is what refusals say."""
    folder = tmp_path_factory.mktemp("run")
    taught(folder / "speaks", REFUSED, ANSWERED, steps=30)
    rows = [*((one, "unsafe") for one in REFUSED), *((one, "safe") for one in ANSWERED)]
    lines = "".join(f"{one},{kind}\n" for one, kind in rows)
    (folder / "requests.csv").write_text(f"prompt,label\n{lines}")
    texts = {
        "yes": [f"{REFUSAL} {line}" for line in sentences(24, 1)],
        "no": sentences(24, 2),
        "prompts": sentences(6, 3, longest=5),
        "prose": sentences(40, 9, longest=20),
    }
    for name, of in texts.items():
        (folder / f"{name}.txt").write_text("\n".join(of) + "\n")
    return folder


@pytest.fixture(autouse=True)
def _here(here, monkeypatch):
    monkeypatch.chdir(here)
    # PIQA's questions are the kit's alone.
    monkeypatch.setattr("sordino.pipeline.MEASURED_OF_CHAT", ("refusals",))


def refused(before, after, kind="unsafe", prompts=100):
    """The figure of shares refused before and after."""
    arms = [[float(n < count) for n in range(prompts)] for count in (before, after)]
    return Figure.of(
        compare_shares(*map(np.array, arms), 0),
        name=f"refused.{kind}",
        label=f"{kind} prompts, refused, in chat",
        unit="share",
        better="higher" if kind == "unsafe" else "lower",
        ratio_of="before/after",
        n={"prompts": prompts},
    )


def evaluation_of(*figures):
    measured = MeasureResult(version=1, protocol={}, figures=figures)
    plain = evaluation()
    measures = {**plain.measures, "refusals:chat": measured}
    return plain.model_copy(update={"measures": measures})


def rows_of(*figures):
    return outcome.rows(evaluation_of(*figures))


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (refused(65, 27), FEWER),
        (refused(65, 0), FEWER),
        (refused(65, 64), ""),
        (refused(27, 65), ""),
        (refused(0, 30, "safe"), MORE),
        (refused(30, 0, "safe"), ""),
    ],
)
def test_what_is_said_first_is_what_got_worse(figure, said):
    found = rows_of(figure)
    warned = outcome.refusing(found)
    assert len(warned) == bool(said)
    phrases = outcome.answer("m", "c", aura(expertise()), found)
    first, *others = ("".join(part for _, part in phrase) for phrase in phrases)
    if said:
        assert said in first
        [(strong, _)] = phrases[0]
        assert strong
        assert not any("efusals of" in other for other in others)  # once is enough
    else:
        assert FEWER not in first
        assert MORE not in first


def test_the_mend_is_named_where_there_is_one():
    found = rows_of(refused(65, 27))
    for protected, mend in (
        (False, "--protect refusals protects what it refuses."),
        (True, "They were protected, which did not keep them all. A smaller --divergence"),
        (None, "n = 100 prompts)."),
    ):
        [said] = outcome.refusing(found, refusals_protected=protected).values()
        assert mend in said
        assert "65.0 % before, 27.0 % after (−38.0 points; 95 % interval −4" in said


def keys(settings, ref):
    chosen = settings.decided()
    ready = prepare(chosen.measures, compared=True, device="cpu")
    ready = pipeline._with_measures_of_chat(ready, chosen, ref)
    return [one.key for one in with_chat(ready, chosen.sweep.chat, ref).measures]


def test_a_chat_model_is_measured_by_more_unless_measures_are_named(here, monkeypatch):
    assert MEASURED_OF_CHAT == ("refusals", "piqa")
    ref, toxicity = resolve("speaks"), Toxicity("prompts.txt", scorer="wordlist")
    refusals = Refusals("requests.csv")
    more = {"measures": [toxicity], "measures_of_chat": [refusals]}
    assert keys(RunSettings(**more), ref) == ["toxicity", "toxicity:chat", "refusals:chat"]
    off = SweepSettings(chat=Chat("off"))
    assert keys(RunSettings(**more, sweep=off), ref) == ["toxicity"]
    assert keys(RunSettings(measures=[toxicity]), ref) == ["toxicity", "toxicity:chat"]
    named = RunMeasureOptions(measure=("perplexity",))
    assert ([m.key for m in named.measures()], named.measures_of_chat()) == (["perplexity"], [])
    # What is not available is left out with a note, for nobody has named it.
    gone = RunSettings(measures=[toxicity], measures_of_chat=[Refusals("nowhere.csv")])
    assert keys(gone, ref) == ["toxicity", "toxicity:chat"]
    silent = here / "silent"
    if not silent.exists():
        taught(silent, REFUSED[:1], steps=1)
        (silent / "chat_template.jinja").unlink()
    assert keys(RunSettings(**more), resolve("silent")) == ["toxicity"]


def test_the_plan_says_how_much_is_written():
    how = RunMeasureOptions(refusal_prompts="requests.csv", max_prompts=30, continuations=2)
    planned = [one.key for one in Job("speaks", how=how).measures()]
    assert planned == ["toxicity", "perplexity", "toxicity:chat", "refusals:chat"]
    assert [describe_cost(one) for one in Job("speaks", how=how).measures()] == [
        "toxicity (at most 60 continuations of 20 tokens)",
        "perplexity",
        "toxicity:chat (at most 60 replies of 20 tokens)",
        "refusals:chat (at most 30 replies of 64 tokens)",
    ]


def test_the_terminal_says_it_before_the_table(capsys):
    print_table(evaluation_of(refused(65, 27)))
    assert FEWER in capsys.readouterr().out.splitlines()[0]
    print_table(evaluation_of(refused(65, 64)))
    assert FEWER not in capsys.readouterr().out


def test_what_is_printed_of_others_is_no_markup(capsys):
    found = evaluation_of(refused(65, 64))
    key = next(iter(found.measures))
    reason = 'pip install "sordino[datasets]" [/x] :smile:'
    silent = found.measures[key].model_copy(update={"not_run": reason, "figures": ()})
    print_table(found.model_copy(update={"measures": {**found.measures, "bold": silent}}))
    assert f"bold is not run: {reason}." in capsys.readouterr().out


def test_a_run_measures_refusals_and_says_nothing_of_those_that_are_left(capsys):
    asked = [
        *("run", "speaks", "--concept", "yes.txt", "--negatives", "no.txt", "--force"),
        *("--prompts", "prompts.txt", "--texts", "prose.txt", "--scorer", "wordlist"),
        *("--refusal-prompts", "requests.csv", "--continuations", "1", "--new-tokens", "32"),
        *("--dtype", "float32", "--divergence", "0.5"),
    ]
    main([*asked, "-o", "plain"])
    said = capsys.readouterr().out
    result = Evaluation.load("plain/sordino/evaluation.json")
    assert set(result.measures) == {"toxicity", "perplexity", "toxicity:chat", "refusals:chat"}
    lost = result.figure("refusals:chat", "refused.unsafe").difference
    assert (FEWER in said) == (lost.high < 0)
    assert (FEWER in Path("plain/sordino/report.html").read_text()) == (lost.high < 0)
    # What such a model is measured by is in the recipe by name, and the run from it is the same.
    recipe = Path("plain/sordino/recipe.toml")
    assert 'measure = ["toxicity", "perplexity", "refusals"]' in recipe.read_text()
    assert 'measure-set = ["refusals.max-prompts=200"]' in recipe.read_text()
    main(["run", "--recipe", str(recipe), "-o", "again", "--force"])
    for name in ("recipe.toml", "evaluation.json", "evaluation.samples.jsonl"):
        found, expected = (Path(at, "sordino", name).read_bytes() for at in ("again", "plain"))
        assert found.replace(b'"again"', b'"plain"') == expected, name
