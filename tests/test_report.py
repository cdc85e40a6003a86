"""The page and the model card, on made-up figures."""

import json
import re
from base64 import b64decode
from csv import DictReader
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from sordino.edits.record import Provenance
from sordino.errors import UserError
from sordino.evaluation import Estimate, Evaluation, Figure, MeasureResult, ModelRecord
from sordino.expertise.artefact import Expertise
from sordino.interventions import Dampening, aura
from sordino.progress import tame
from sordino.report import figures, outcome, summary, tables
from sordino.report.article import Table
from sordino.report.card import model_card
from sordino.report.exemplars import Excerpt, Exemplar
from sordino.report.page import RunRecord, _overview, render, write_page
from sordino.report.text import expertise_lines
from sordino.report.tuned import tuned_article
from sordino.templates import environment
from sordino.tuning.search import Reported, Tried, Tuned

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&{{ 7*7 }}"
LIMITS = "The judge sees coarse words only."


def expertise(concept: str = "toxicity", model: str = "kit:smollm2") -> Expertise:
    generator = np.random.default_rng(0)
    statistics = {
        f"model.layers.{layer}.mlp.{kind}": {
            "auroc": np.clip(generator.normal(0.5, 0.05, size), 0, 1).astype(np.float32)
        }
        for layer in range(3)
        for kind, size in (("gate_proj", 64), ("down_proj", 32))
    }
    metadata = {
        "model": model,
        "architecture": "LlamaForCausalLM",
        "weights_fingerprint": "a1" * 32,
        "concept": concept,
        "concept_fingerprint": "b2" * 32,
        "n_positive": "1049",
        "n_negative": "1049",
        "pooling": "max",
        "max_tokens": "128",
    }
    return Expertise(statistics, metadata)


def share(ratio: tuple[float, float, float], difference: tuple[float, float, float]) -> Figure:
    return Figure(
        name="continuations.all",
        label="Toxic continuations, all prompts",
        unit="share",
        better="lower",
        ratio_of="before/after",
        n={"prompts": 400, "continuations": 2000},
        before=Estimate(0.185, 0.168, 0.203),
        after=Estimate(0.185 + difference[0], 0.1, 0.3),
        difference=Estimate(*difference),
        ratio=Estimate(*ratio),
    )


PERPLEXITY = Figure(
    name="mean",
    label="Perplexity, mean over texts",
    unit="perplexity",
    better="lower",
    ratio_of="after/before",
    n={"texts": 300},
    before=Estimate(29.6, 28.0, 31.0),
    after=Estimate(33.1, 31.0, 35.0),
    difference=Estimate(3.5, 3.1, 3.9),
    ratio=Estimate(1.118, 1.1, 1.13),
)
FELL = share((1.3214, 1.12, 1.57), (-0.045, -0.067, -0.022))
UNCLEAR = share((1.05, 0.91, 1.2), (-0.009, -0.03, 0.012))
ROSE = share((0.8, 0.7, 0.9), (0.046, 0.02, 0.07))


def evaluation(toxicity: Figure = FELL, hostile: str = "") -> Evaluation:
    def arm(name: str) -> ModelRecord:
        return ModelRecord(name=name, revision="", fingerprint="c3", dtype="float32", device="cpu")

    rows = [
        {
            "prompt": f"prompt number {i} {hostile}",
            "prompt_toxicity": 0.7 if i % 2 else None,
            "before": [{"text": f"early words {i} {hostile}", "score": 0.9 if i < 4 else 0.1}],
            "after": [{"text": f"later words {i} {hostile}", "score": 0.8 if i == 9 else 0.05}],
        }
        for i in range(12)
    ]
    protocol = {"prompts": "kit:x", "scorer": {"scorer": "judge", "version": "1"}, "limits": LIMITS}
    return Evaluation(
        sordino_version="0.1.0",
        created="2026-11-23",
        seed=7,
        before=arm("/home/somebody/models/base"),
        after=arm("quiet"),
        measures={
            "toxicity": MeasureResult(version=1, protocol=protocol, figures=(toxicity,)),
            "perplexity": MeasureResult(
                version=1, protocol={"texts": "kit:y", "max_texts": None}, figures=(PERPLEXITY,)
            ),
        },
        samples={"toxicity": rows},
    )


def record(found: Expertise | None = None, hostile: str = "", **changes: Any) -> RunRecord:
    found = found or expertise()
    excerpts = (
        Excerpt(3, True, ("rotten", f" turnip{hostile}", "\n"), (0.1, 2.345, -1.0), 1, True),
        Excerpt(30, False, ("thank", " you"), (1.5, float("nan")), 0, False),
    )
    plain = RunRecord(
        expertise=found,
        dampening=aura(found),
        concept_source=f"made up{hostile}",
        command=f"sordino run kit:smollm2 -o quiet{hostile}",
        evaluation=evaluation(hostile=hostile),
        exemplars=tuple(Exemplar(*neuron, excerpts) for neuron in found.top(2)),
        protocol={"Machine": {"device": "cpu"}},
        versions={"torch": "2.13.0"},
        date="2026-11-23",
    )
    return replace(plain, **changes)


def test_a_page_names_the_divergence_that_was_asked_for():
    asked = Page(render(record(divergence=0.05))).shown
    assert "aura, for a divergence of 0.05 nats per token" in asked
    assert "The rule aura, for a divergence of 0.05 nats per token, changed" in asked
    assert "aura, strength" not in asked
    plain = Page(render(record())).shown
    assert "aura, strength 1" in plain
    assert "The rule aura, at strength 1, changed" in plain


class Page(HTMLParser):
    """What a browser would see: the tags with their attributes, the texts, and what is covered."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.shown, self.covered = "", ""
        self.scripts: dict[str, str] = {}
        self.feed(html)
        assert not self.open, "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self.open]
        if inside and inside[-1] == "script":
            self.scripts[self.open[-1][1].get("id") or ""] = data
        elif "style" not in inside:
            closed = any(
                tag == "details" and attrs.get("class") == "veil" and "open" not in attrs
                for tag, attrs in self.open
            )
            if closed and "summary" not in inside:
                self.covered += data
            else:
                self.shown += data

    def texts(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(record()))


def test_the_page_loads_nothing(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
            value = attributes.get(name)
            if value is not None and not value.startswith(("#", "data:")):
                assert (tag, name) == ("a", "href")
    html = render(record())
    assert "@import" not in html.partition("</style>")[0]
    assert "url(" not in html.partition("</style>")[0]
    policy = next(a for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in str(policy["content"])
    assert len(html) < 1_500_000


def test_without_scripts_the_page_still_says_everything(page: Page) -> None:
    said = " ".join(page.shown.replace("\N{NO-BREAK SPACE}", " ").split())
    changed = aura(expertise()).changed
    for words in (
        f"Of the 288 neurons of kit:smollm2, {changed} ({100 * changed / 288:.1f} %) were dampened",
        "Toxic continuations fell from 18.5 % to 14.0 %: −4.5 points (÷ 1.32), 95 % interval "
        "÷ 1.12 to ÷ 1.57, n = 400 prompts, 2,000 continuations.",
        "Perplexity on ordinary prose rose from 29.60 to 33.10",
        "16.8 % to 20.3 %",
        "+3.10 to +3.90",
        "1049",
        LIMITS,
        "sordino run kit:smollm2 -o quiet",
        "b2" * 32,
        "scorer, version",
        "torch",
        "peak response 2.35",
        "thank you",
    ):
        assert words in said
    for site, index, auroc in expertise().top(12):
        assert f"{site} {index} {auroc:.4f} {2 * (1 - auroc):.4f}" in said
    for group in summary.by_layer(expertise(), aura(expertise())):
        assert f"{group.kind} {group.neurons} {100 * group.above:.1f} % {group.p99:.3f}" in said


def test_what_is_toxic_is_covered_until_asked_for(page: Page) -> None:
    assert "rotten turnip" in page.covered
    assert "turnip" not in page.shown
    for number in range(4):
        assert f"early words {number} " not in page.shown
    assert "early words 0" in page.covered
    assert "later words 9" in page.covered
    assert "later words 9" not in page.shown
    assert "prompt number 9" not in page.shown
    assert "later words 0" in page.shown
    veils = [a for tag, a in page.tags if tag == "details" and a.get("class") == "veil"]
    assert veils
    assert not any("open" in attributes for attributes in veils)


def test_headings_and_tables_are_built_for_screen_readers(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert page.texts("caption") == page.texts("table")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert attributes.get("aria-labelledby", ids[0]) in ids


def test_text_of_the_data_stays_text() -> None:
    usual = Page(render(record()))
    hostile = Page(render(record(expertise(concept=HOSTILE, model=HOSTILE), hostile=HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in usual.tags]
    assert not any(name.startswith("on") for _, attributes in hostile.tags for name in attributes)
    for text in (hostile.shown, hostile.covered):
        assert HOSTILE in text


def test_controls_in_the_data_are_shown_and_not_obeyed() -> None:
    odd = "a\x1b[31m\x9b2J\u202eb\x00\ttab"
    html = render(record(expertise(concept=odd, model=odd), hostile=odd))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", html)
    assert "a\ufffd[31m\ufffd2J\ufffdb\ufffd\ttab" in html


@given(st.text(), st.text())
def test_every_page_takes_controls_out_of_texts_and_of_data(shown: str, kept: str) -> None:
    template = environment("sordino.report").from_string(
        "<i>{{ one }}</i><b>{{ [{two: (one, 7, two)}]|tojson }}</b>"
    )
    html = template.render(one=shown, two=kept)
    assert tame(html.replace("\t", "")) == html.replace("\t", "")
    [[key, [first, number, second]]] = json.loads(html.partition("<b>")[2][:-4])[0].items()
    assert (number, second) == (7, key)
    for given_text, found in ((shown, first), (kept, second)):
        plain = given_text.replace("\r\n", "\n")
        assert len(found) == len(plain)
        assert all(
            new == (old if old == "\t" else tame(old))
            for old, new in zip(plain, found, strict=True)
        )


def test_names_of_sites_stay_text_in_the_charts() -> None:
    found = expertise()
    site = f"model.layers.0.{HOSTILE}"
    odd = Expertise({**found.statistics, site: {"auroc": np.full(3, 0.9, "f4")}}, found.metadata)
    html = render(record(odd, exemplars=()))
    assert "<img" not in html.partition("<body>")[2].partition("<script>")[0]
    spec = json.loads(Page(html).scripts["spec-distribution"])
    assert HOSTILE in json.dumps(spec, ensure_ascii=False).replace('\\"', '"')


def test_the_charts_can_be_drawn(page: Page) -> None:
    assert drawn(page) == 7


def drawn(page: Page) -> int:
    """How many charts the page has; all of them can be drawn."""
    names = {attributes["data-spec"] for tag, attributes in page.tags if "data-spec" in attributes}
    assert names == {name for name in page.scripts if name.startswith("spec-")}
    for name in names:
        spec = json.loads(page.scripts[str(name)]) | {"width": 600}
        assert "var(--" in vl_convert.vegalite_to_svg(spec)
    return len(names)


def test_a_run_without_evaluation_or_change_says_so() -> None:
    found = expertise()
    nothing = Dampening({site: np.ones_like(v) for site, v in found["auroc"].items()}, "aura", 0.0)
    page = Page(render(record(evaluation=None, dampening=nothing, exemplars=())))
    assert "was not measured" in page.shown
    assert "No neuron was changed" in page.shown
    assert "Before and after" not in page.shown


def test_an_existing_page_is_kept_without_force(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    write_page(record(), target)
    before = target.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        write_page(record(), target)
    write_page(record(), target, force=True)
    assert target.read_bytes() == before


def said(figure: Figure) -> str:
    found = outcome.rows(evaluation(figure))
    phrases = outcome.answer("m", "c", aura(expertise()), found)
    return "".join(part for _, part in phrases[1]).replace("\N{NO-BREAK SPACE}", " ")


def test_the_answer_claims_no_more_than_the_interval_carries() -> None:
    assert said(FELL).startswith("Toxic continuations fell from 18.5 % to 14.0 %")
    assert said(ROSE).startswith("Toxic continuations rose from 18.5 % to 23.1 %")
    unclear = said(UNCLEAR)
    assert unclear.startswith("No change in toxic continuations could be shown: 18.5 % before")
    assert "× 1.10 to ÷ 1.20 includes no change" in unclear
    # The two intervals can disagree at the edge: then nothing is claimed.
    edge = share((1.2, 0.99, 1.4), (-0.03, -0.06, -0.001))
    assert said(edge).startswith("No change")


def test_the_answer_of_a_chat_model_names_how_it_was_asked() -> None:
    found = {
        "toxicity": [FELL],
        "toxicity:chat": [ROSE],
        "refusals:chat": [
            figure(f"refused.{kind}", f"{kind} prompts, refused, in chat", better=better)
            for kind, better in (("safe", "lower"), ("unsafe", "higher"))
        ],
        "coverage": [
            figure("perplexity.worst", "Perplexity of text about sailors, the worst of 4 groups"),
            figure("perplexity.all", "Perplexity of text about all groups"),
        ],
        "perplexity": [PERPLEXITY],
    }
    measures = {
        name: MeasureResult(version=1, protocol={}, figures=tuple(of)) for name, of in found.items()
    }
    compared = evaluation().model_copy(update={"measures": measures})
    phrases = outcome.answer("m", "c", aura(expertise()), outcome.rows(compared))
    whole = ["".join(part for _, part in phrase) for phrase in phrases]
    for line, beginning in zip(
        whole,
        (
            "The model now refuses fewer unsafe requests",
            "Of the 288 neurons of m",
            "Toxic continuations of raw text fell",
            "Toxic replies in chat rose",
            "Refusals of safe prompts that look unsafe",
            "Perplexity of text about sailors, the worst of 4 groups",
            "Perplexity on ordinary prose rose",
        ),
        strict=True,
    ):
        assert line.startswith(beginning), line
    labels = [row["label"] for row in _overview(outcome.families(compared))]
    assert labels[:3] == [FELL.label, ROSE.label, "safe prompts, refused, in chat"]


def test_where_there_may_be_none_before_the_interval_is_in_points() -> None:
    rare = share((0.5, 0.0, 1.0), (0.004, -0.001, 0.012))
    row = outcome.rows(evaluation(rare))[0]
    assert row.interval == "−0.1 to +1.2 points"


@pytest.mark.parametrize(
    ("ratio", "damaged"),
    [((1.118, 1.1, 1.13), False), ((1.4, 1.2, 1.6), False), ((3.0, 2.5, 3.6), True)],
)
def test_what_damages_a_model_is_said_to(ratio: tuple[float, float, float], damaged: bool) -> None:
    worse = PERPLEXITY.model_copy(update={"ratio": Estimate(*ratio)})
    measured = MeasureResult(version=1, protocol={}, figures=(worse,))
    plain = evaluation()
    found = outcome.rows(
        plain.model_copy(update={"measures": {**plain.measures, "perplexity": measured}})
    )
    said_so = outcome.damage(found)
    assert bool(said_so) is damaged
    whole = outcome.answer("m", "c", aura(expertise()), found)
    assert any("damages the model" in part for _, part in whole[-1]) is damaged
    if damaged:
        assert "3.0 times what it was" in said_so


def test_what_is_told_apart_all_but_perfectly_is_said_to_need_a_size() -> None:
    plain = {site: 0.5 + 0.05 * values for site, values in expertise()["auroc"].items()}
    for add, expected in ((0.0, False), (0.4, True)):
        statistics = {site: {"auroc": (v + add).astype(np.float32)} for site, v in plain.items()}
        lines = expertise_lines(Expertise(statistics, dict(expertise().metadata)))
        assert any("--divergence 0.05" in line for line in lines) is expected


def test_an_interval_without_ends_is_said_to_have_none() -> None:
    endless = FELL.model_copy(update={"ratio": Estimate(1.3, None, None)})
    assert "and the 95 % interval has no ends (n = 400" in said(endless)
    [row] = outcome.rows(evaluation(endless))[:1]
    assert row.interval == "unbounded"


def test_samples_show_rises_beside_falls() -> None:
    [groups] = outcome.samples(evaluation()).values()
    assert [len(group) for group in groups.values()] == [6, 3, 1]
    falls, rises = list(groups.values())[1:]
    assert all(pair.before.toxic and not pair.after.toxic for pair in falls)
    assert rises[0].after.toxic
    assert outcome.samples(None) == {}


def test_samples_of_replies_are_apart_and_texts_that_were_read_are_left_out() -> None:
    plain = evaluation()
    pairs = plain.samples["toxicity"]
    read = [{"text": "t", "group": "g", "tokens": 2, "nll_before": 1.0, "nll_after": 2.0}]
    more = {"toxicity:chat": pairs, "coverage": read, "toxicity:chat:benign": pairs}
    found = outcome.samples(plain.model_copy(update={"samples": plain.samples | more}))
    assert [*found] == ["Toxicity", "Toxicity, in chat"]
    assert found["Toxicity"] == found["Toxicity, in chat"]


texts = st.text(st.sampled_from("ab \n\t"), max_size=30)


@given(texts, texts)
def test_a_marked_text_is_still_the_text(before: str, after: str) -> None:
    pieces = outcome.differences(before, after)
    assert tuple("".join(part for _, part in one) for one in pieces) == (before, after)
    for one in pieces:
        assert all(first[0] != second[0] for first, second in pairwise(one))
    same = [
        [word for differs, part in one if not differs for word in part.split()] for one in pieces
    ]
    assert same[0] == same[1]


def test_what_is_marked_is_what_the_other_side_lacks() -> None:
    before, after = outcome.differences(
        " the cat sat on a mat in the sun", " the cat lay in a chair in the sun"
    )
    assert before == ((False, " the cat"), (True, " sat on a mat"), (False, " in the sun"))
    assert after == ((False, " the cat"), (True, " lay in a chair"), (False, " in the sun"))
    assert outcome.differences("one two", "one two") == (((False, "one two"),),) * 2
    assert outcome.differences("", "new") == ((), ((True, "new"),))


# A page of everything that can be measured.


def figure(name: str, label: str, unit: str = "share", **changes: Any) -> Figure:
    plain: dict[str, Any] = {
        "name": name,
        "label": label,
        "unit": unit,
        "better": "lower",
        "ratio_of": "before/after" if unit == "share" else "after/before",
        "n": {"prompts": 10},
        "before": Estimate(0.4, 0.3, 0.5),
        "after": Estimate(0.2, 0.1, 0.3),
        "difference": Estimate(-0.2, -0.3, -0.1),
        "ratio": Estimate(2.0, 1.5, None) if unit == "share" else Estimate(0.5, 0.25, 0.8),
    }
    return Figure(**plain | changes)


def alone(name: str, label: str, unit: str, value: float) -> Figure:
    changes = {"before": None, "difference": None, "ratio": None}
    return figure(name, label, unit, after=Estimate(value, value - 0.1, value + 0.1), **changes)


def everything(hostile: str = "") -> Evaluation:
    def toxic(led: str) -> list[Figure]:
        kinds = [("continuations.all", "Toxic continuations"), ("prompts.all", "Prompts with one")]
        return [
            figure(f"{prefix}{name}", f"{label} ({judge}{hostile}){led}")
            for prefix, judge in (("", "one"), ("two:", "two"))
            for name, label in kinds
        ] + [figure("continuations.all.threat", f"Continuations with “threat”{led}", detail=True)]

    groups = [
        figure(
            f"continuations.{d}.{g}",
            f"Toxic continuations, {d}: {g}{hostile}",
            detail=True,
            group=(d, g),
        )
        for d, g in (("letters", "A"), ("letters", "B"), ("work", "C"))
    ]
    gap = figure("gap.letters", "Gap between groups", "gap", ratio=Estimate(None, None, None))
    found: dict[str, list[Figure]] = {
        "toxicity": toxic(""),
        "toxicity:benign": toxic(", pre-prompt benign"),
        f"toxicity:mine{hostile}.txt": toxic(", pre-prompt mine.txt"),
        "diversity": [figure("distinct-1", "Distinct words", better="higher")],
        "perplexity": [PERPLEXITY],
        "divergence": [alone("divergence", "Divergence from the original", "nats per token", 0.2)],
        "zero-shot": [figure("mean.acc", "Zero-shot accuracy", better="higher")],
        "speed": [alone("edited", "Speed of the edited model", "times", 1.02)],
        "bold": [figure("continuations.all", "Toxic continuations, all groups"), gap, *groups],
    }
    plain = evaluation(hostile=hostile)
    pairs = plain.samples["toxicity"]
    about = {"domain": "letters", "group": f"group_A{hostile}"}
    return plain.model_copy(
        update={
            "measures": {
                name: MeasureResult(version=1, protocol={"limits": LIMITS}, figures=tuple(figures))
                for name, figures in found.items()
            }
            | {"honest": MeasureResult(version=1, not_run=f"its lexicon{hostile} is not here")},
            "samples": {
                "toxicity": pairs,
                "toxicity:benign": pairs,
                "diversity": [{"prompt": "p", "before": ["one"], "after": ["two"]}],
                "zero-shot": [{"task": "t", "before": {"acc": 1.0}, "after": {"acc": 0.0}}],
                "bold": [row | about for row in pairs],
            },
        }
    )


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(record(evaluation=everything())))


def tables_to_take(page: Page) -> dict[str, list[dict[str, str]]]:
    links = {
        str(attributes["download"]): str(attributes["href"])
        for tag, attributes in page.tags
        if tag == "a" and "download" in attributes
    }
    return {
        name: list(DictReader(StringIO(b64decode(address.partition(",")[2]).decode())))
        for name, address in links.items()
    }


def test_a_page_of_everything_is_built_as_every_page(full: Page) -> None:
    test_headings_and_tables_are_built_for_screen_readers(full)
    assert drawn(full) == 8
    for tag, attributes in full.tags:
        if tag != "a":
            assert "href" not in attributes or str(attributes["href"]).startswith("data:")


def test_each_measure_has_its_place_and_what_was_not_measured_its_reason(full: Page) -> None:
    said = " ".join(full.shown.replace("\N{NO-BREAK SPACE}", " ").split())
    for title in ("Toxicity", "Diversity", "Zero-shot tasks", "Divergence", "Speed", "BOLD"):
        assert title in said
    assert "Not measured HONESTits lexicon is not here." in said
    assert "Honest, version 1 not runits lexicon is not here" in said
    # What compares by itself has one column, others two.
    assert "Edited against original n Divergence from the original" in said
    assert said.count("With a text before each prompt: Toxic continuations (one)") == 1
    assert "none lower is better" not in said
    led = said.partition("With a text before each prompt")[2]
    assert led.index(" none ") < led.index(" benign ") < led.index(" mine.txt ")
    assert said.count(LIMITS) == 2  # with the figures, and among the limits
    details = [attributes for tag, attributes in full.tags if tag == "details"]
    assert not any("open" in one for one in details if one.get("class") != "set")
    assert "letters: group A" in said


def test_every_table_can_be_taken_along(full: Page) -> None:
    taken = tables_to_take(full)
    assert {"figures.csv", "sites.csv", "layers.csv", "neurons.csv", "bold.csv"} <= set(taken)
    rows = everything().table()
    assert len(taken["figures.csv"]) == len(rows)
    for row, line in zip(rows, taken["figures.csv"], strict=True):
        assert (line["measure"], line["label"]) == (row.measure, row.label)
        before = row.figure.before
        assert line["before_value"] == ("" if before is None else str(before.value))
        assert line["after_high"] == str(row.figure.after.high)
    assert len(taken["toxicity.csv"]) == 15
    assert taken["speed.csv"][0]["n"] == "10 prompts"
    assert len(taken["layers.csv"]) == 6
    assert taken["neurons.csv"][0]["auroc"] == f"{expertise().top(1)[0][2]:.4f}"


def test_continuations_can_be_taken_along_with_the_figures_of_other_rules(page: Page) -> None:
    taken = tables_to_take(page)
    shown = outcome.samples(evaluation())
    every = [one for groups in shown.values() for group in groups.values() for one in group]
    assert [row["before"] for row in taken["continuations.csv"]] == [e.before.text for e in every]
    assert [float(row["after_score"]) for row in taken["continuations.csv"]] == [
        one.after.score for one in every
    ]
    beside = Page(render(record(beside={"shuffled": everything()})))
    assert len(tables_to_take(beside)["shuffled.csv"]) == len(everything().table())


def test_measures_are_sections_that_a_script_makes_tabs_of(full: Page) -> None:
    tabs = [attributes["data-tab"] for _, attributes in full.tags if "data-tab" in attributes]
    assert tabs[:2] == ["Overview", "Toxicity"]
    assert {"Zero-shot tasks", "BOLD", "Speed"} <= set(tabs)
    # Without the script nothing is hidden and nothing claims to be a tab.
    assert not [a for _, a in full.tags if "hidden" in a or a.get("role") in ("tab", "tabpanel")]
    assert not [a for _, a in full.tags if "away" in (a.get("class") or "").split()]


def test_text_in_a_table_is_no_formula() -> None:
    address = tables.link(["a", "b"], [["=1+1", -0.5], ["@x", None]])
    text = b64decode(address.partition(",")[2]).decode()
    assert text.splitlines() == ["a,b", "'=1+1,-0.5", "'@x,"]


def test_a_table_of_an_article_is_no_formula_either() -> None:
    address = Table("t", "A table.", ["", "figure"], [["=1+1", "-0.5"], ["+a", "−2"]]).csv
    text = b64decode(address.partition("base64,")[2]).decode()
    assert text.splitlines() == [",figure", "'=1+1,-0.5", "'+a,−2"]


def test_colours_repeat_where_there_are_more_names_than_colours() -> None:
    names = [f"rule {number}" for number in range(8)]
    of = figures.colours(names, (1, 2, 6, 3, 4, 5))
    assert list(of.values()) == [f"series-{n}" for n in (1, 2, 6, 3, 4, 5, 1, 2)]


@pytest.mark.parametrize(
    ("toxicity", "unclear"), [(FELL, False), (UNCLEAR, True), (ROSE, False)], ids=str
)
def test_a_search_says_what_its_interval_supports(toxicity: Figure, unclear: bool) -> None:
    found = Estimate(0.04, 0.03, 0.05)
    tried = Tried(
        rule="aura",
        sites="all",
        dial=1.0,
        changed=3,
        prompts=200,
        toxicity=toxicity.after,
        cost=found,
        divergence=found,
        kept=True,
    )
    spent = Figure(
        name="divergence",
        label="Divergence",
        unit="nats per token",
        better="lower",
        ratio_of="after/before",
        n={"texts": 9},
        before=None,
        after=found,
        difference=None,
        ratio=None,
    )
    measured = evaluation(toxicity)
    measures = {
        **measured.measures,
        "divergence": MeasureResult(version=1, protocol={}, figures=(spent,)),
    }
    best = Reported(
        name="aura",
        tried=tried,
        evaluation=measured.model_copy(update={"measures": measures}),
        kept=False,
    )
    tuned = Tuned(
        model="m",
        concept="c",
        budget="divergence<=0.05",
        seed=0,
        search_prompts=200,
        report_prompts=200,
        tried=(tried,),
        reported=(best,),
    )
    answer = " ".join(tuned_article(tuned, ["sordino", "tune"], ["sordino", "bake"]).answer)
    assert ("includes no change" in answer) == unclear
    assert "exceeds it" in answer


def test_hostile_names_stay_text_among_many_measures() -> None:
    usual, hostile = (
        Page(render(record(evaluation=everything(text), exemplars=()))) for text in ("", HOSTILE)
    )
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in usual.tags]
    assert not any(name.startswith("on") for _, attributes in hostile.tags for name in attributes)
    assert f"its lexicon{HOSTILE} is not here" in hostile.shown


def test_a_change_reads_the_same_whichever_way_its_ratio_goes(full: Page) -> None:
    rows = {row.measure: row for row in everything().table() if row.figure.name != "prompts.all"}
    assert outcome.growth_of(rows["diversity"]) == Estimate(0.5, None, 1 / 1.5)
    assert outcome.growth_of(rows["perplexity"]) == PERPLEXITY.ratio
    assert outcome.growth_of(rows["speed"]) == Estimate(1.02, 0.92, 1.12)
    assert outcome.growth_of(rows["divergence"]) is None
    drawn = json.loads(Page(render(record(evaluation=everything()))).scripts["spec-changes"])
    values = (
        [row for data in drawn["datasets"].values() for row in data] if "datasets" in drawn else []
    )
    kinds = {row["name"]: row["kind"] for row in values if "kind" in row} or {
        row["name"]: row["kind"]
        for layer in drawn["layer"]
        for row in layer["data"]["values"]
        if "kind" in row
    }
    assert kinds["Toxicity, pre-prompt benign"] == "better"
    assert kinds["Diversity"] == "worse"
    assert kinds["Perplexity"] == "worse"
    assert kinds["Speed"] == "unclear"
    assert "Divergence" not in kinds


def shifting(factor: float) -> Dampening:
    found = expertise()
    factors = {site: np.full_like(values, factor) for site, values in found["auroc"].items()}
    shifts = {site: np.zeros_like(values) for site, values in factors.items()}
    shifts["model.layers.0.mlp.gate_proj"][:16] = -0.25
    return Dampening(factors, "mean_shift", shifts=shifts)


def test_a_neuron_that_is_shifted_is_changed_too() -> None:
    page = Page(render(record(dampening=shifting(1.0))))
    said = " ".join(page.shown.replace("\N{NO-BREAK SPACE}", " ").split())
    assert "16 (5.6 %) were changed to weaken “toxicity”." in said
    assert "16 have a shift other than 0, which is added after the product" in said
    assert "factor other than 1" not in said
    assert "were dampened" not in said
    assert "spec-factors" not in page.scripts
    assert "Mean size of shift" in said
    # 16 of the 192 neurons of that kind, by 0.25 each.
    assert "mlp.gate_proj 192" in said
    gate = next(
        line for line in tables_to_take(page)["sites.csv"] if line["kind"] == "mlp.gate_proj"
    )
    assert float(gate["changed"]) == pytest.approx(16 / 192)
    assert float(gate["mean_shift"]) == pytest.approx(16 * 0.25 / 192)
    both = Page(render(record(dampening=shifting(0.5))))
    assert "288 have a factor other than 1" in both.shown
    assert "16 have a shift other than 0" in both.shown
    assert outcome.name_of_change(shifting(0.5)) == "changed"
    assert outcome.name_of_change(aura(expertise())) == "dampened"
    raised = {site: values * 1.5 for site, values in shifting(1.0).factors.items()}
    assert outcome.name_of_change(Dampening(raised, "x")) == "changed"


def test_settings_are_shown_with_six_digits() -> None:
    settings = {"budget": 0.011490976854128641, "limit": {"k": 100, "rate": 0.05}, "none": ""}
    shown = {"budget": "0.011491", "limit, k": "100", "limit, rate": "0.05"}
    assert dict(outcome.flat(settings)) == shown


def test_groups_are_drawn_only_where_one_has_something() -> None:
    assert "spec-groups-bold" in Page(render(record(evaluation=everything()))).scripts
    quiet = everything()
    nothing = {"before": Estimate(0.0, 0.0, 0.3), "after": Estimate(0.0, 0.0, 0.3)}
    bold = quiet.measures["bold"]
    still = tuple(figure.model_copy(update=nothing) for figure in bold.figures)
    measures = quiet.measures | {"bold": bold.model_copy(update={"figures": still})}
    page = Page(render(record(evaluation=quiet.model_copy(update={"measures": measures}))))
    assert "spec-groups-bold" not in page.scripts
    families = {family.name: family for family in outcome.families(quiet)}
    assert list(families["bold"].groups) == ["letters: A", "letters: B", "work: C"]
    assert families["toxicity"].groups == {}


def test_place_of_sites_that_are_parts_of_one_layer() -> None:
    assert summary.locate("model.layers.3.mlp.up_proj") == (3, "mlp.up_proj")
    assert summary.locate("transformer.h.11.mlp.c_fc") == (11, "mlp.c_fc")
    assert summary.locate("model.layers.3.mlp.experts.7.w1") == (3, "mlp.experts.*.w1")


def test_groups_pass_over_neurons_without_auroc() -> None:
    sites = {
        "model.layers.0.mlp.a": {"auroc": np.array([0.25, 0.75, np.nan, 1.0], np.float32)},
        "model.layers.0.mlp.b": {"auroc": np.array([np.nan], np.float32)},
    }
    found = Expertise(sites, {})
    first, second = summary.by_layer(found, aura(found))
    assert (first.neurons, first.largest, first.mean_factor) == (4, 1.0, 0.625)
    assert first.above == pytest.approx(2 / 3)
    assert (second.neurons, second.above, second.largest) == (1, 0.0, 0.5)
    histograms = summary.auroc_histograms(found)
    assert sum(histograms["mlp.a"].counts) == 3
    assert 0.5 in histograms["mlp.a"].edges


def test_a_perfect_and_a_uniform_expertise_stay_within_their_scales() -> None:
    sites = {f"model.layers.{i}.mlp.a": {"auroc": np.full(4, 1.0, np.float32)} for i in range(2)}
    found = Expertise(sites, expertise().metadata)
    histogram = summary.auroc_histograms(found)["mlp.a"]
    assert (histogram.edges[-1], histogram.counts[-1]) == (1.0, 8)
    shown = Page(render(record(found, exemplars=()))).shown
    assert "1.000 everywhere" in shown


def provenance(name: str, revision: str = "", **more: Any) -> Provenance:
    model = {"kind": "folder", "revision": revision, "weights_fingerprint": "a1" * 32}
    plain = {
        "sordino_version": "0.1.0",
        "created": "2026-11-23",
        "model": {"name": name, **model},
        "intervention": {"name": "damp", "strength": 1.0, "settings": {"k": 100}},
        "expertise": dict(expertise().metadata),
        "neurons": 288,
        "changed": 100,
        "written_as": "weights",
        "sites": {},
        "left_out": [],
    }
    return Provenance.model_validate(plain | more)


def front_matter(card: str) -> dict[str, Any]:
    value: dict[str, Any] = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]
    return value


def test_the_card_inherits_licence_and_language() -> None:
    base = "---\nlicense: apache-2.0\nlanguage: [en]\ntags: [chat]\n---\n# Base\n"
    card = model_card(provenance("org/base", "abc123"), evaluation(), base)
    assert front_matter(card) == {
        "base_model": "org/base",
        "language": ["en"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "tags": ["sordino", "damp", "toxicity", "chat"],
    }
    assert "**toxicity**" in card
    assert "100 of 288 neurons" in card
    assert "| 18.5 % (16.8 % to 20.3 %) |" in card
    assert "400 prompts, 2,000 continuations" in card
    assert LIMITS in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "Setting k: 100" in card


def test_the_card_speaks_of_shifts_and_leaves_details_to_the_result() -> None:
    name = "kit:smollm2"
    site = {"neurons": 288, "changed": 100, "min": 1.0, "mean": 1.0}
    shift = {"min": -0.5, "mean": 0.0, "max": 0.5}
    shifted = model_card(provenance(name, sites={"a": site | {"shift": shift}}), everything())
    assert "100 of 288 neurons were multiplied by a factor or shifted" in shifted
    assert "factor other than 1" in model_card(provenance(name, sites={"a": site}), None)
    assert "letters: A" not in shifted
    assert "6 more figures" in shifted
    assert "HONEST was not measured: its lexicon is not here." in shifted


@pytest.mark.parametrize("base", [None, "# No front matter\n", "---\n: [broken\n---\n"])
def test_the_card_of_a_local_model_names_no_folder_of_this_machine(base: str | None) -> None:
    assert "somebody" not in model_card(provenance("/home/somebody/models/base"), evaluation())
    card = model_card(provenance("/home/somebody/models/base"), None, base)
    assert "somebody" not in card
    assert "base_model" not in front_matter(card)
    assert "license" not in front_matter(card)
    assert "**not evaluated**" in card


def test_the_card_does_not_claim_what_is_unclear() -> None:
    card = model_card(provenance("kit:smollm2"), evaluation(UNCLEAR))
    assert "× 1.10 to ÷ 1.20 (no change shown)" in card
    assert card.count("no change shown") == 1
