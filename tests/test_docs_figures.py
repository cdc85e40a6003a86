"""What pages quote from the studies is what the studies' records hold."""

import re
from typing import NamedTuple

import pytest

from pages import ROOT
from sordino.studies import StudyRecord

PROBE = "probe:kit:qwen2.5-coder-0.5b:"
TOX = "tox-block:"


class Of(NamedTuple):
    """One figure of one trial.

    Args:
        record: The file in docs/results, without its suffix.
        group: The group's name there.
        trial: The trial's name.
        part: `before`, `after` or `difference` in per cent or points, or `ratio`.
        figure: The figure's name.
        measure: The measure's name.
    """

    record: str
    group: str
    trial: str
    part: str = "after"
    figure: str = "continuations.all"
    measure: str = "toxicity"

    def value(self) -> float:
        trial = trial_of(self.record, self.group, self.trial)
        figure = trial.evaluation.figure(self.measure, self.figure)
        if self.part == "ratio":
            return figure.after.value / figure.before.value
        scale = 100 if figure.unit == "share" else 1
        if self.part == "difference":
            return scale * (figure.after.value - figure.before.value)
        return scale * getattr(figure, self.part).value


def trial_of(record, group, name):
    [group] = [one for one in load(record).groups if one.name == group]
    [trial] = [one for one in group.trials if one.name == name]
    return trial


def load(record):
    study = record.rpartition("-")[0].removesuffix("-many")
    return StudyRecord.load(ROOT / f"docs/results/{record}.json", study)


def finding(record, group, name):
    [group] = [one for one in load(record).groups if one.name == group]
    [found] = [one.estimate.value for one in group.findings if one.name == name]
    return found


def refused(record, trial, part="after"):
    return Of(record, "refusals", trial, part, "refused.unsafe", "refusals:chat")


def replies(record, trial, part="after", by=""):
    return Of(record, "toxicity", trial, part, f"{by}continuations.all", "toxicity:chat")


def written(record, trial, part="after", by="", group="toxicity"):
    return Of(record, group, trial, part, f"{by}continuations.all")


def divergence(record, group, trial):
    return Of(record, group, trial, "after", "divergence", "divergence")


def own(trial, by="", place="held-out"):
    group = f"at-{trial.split()[-1]}-{place}"
    return written("own-samples-smollm2", trial, by=by, group=group)


def rival(trial, by="", part="after", group="at-asked"):
    return written("rivals-smollm2", trial, part, by, group)


def rival_perplexity(trial):
    figure = ("ratio", "corpus", "perplexity")
    return Of("rivals-smollm2", "at-asked", trial, *figure)


def left(record, group, *trials, part="after", by=PROBE):
    """What each leaves, by two scorers."""
    return [written(record, trial, part, one, group) for trial in trials for one in ("", by)]


def ours(record, by=PROBE):
    """What ours leave, and of how much."""
    parts = ("after", "before")
    return [one for part in parts for one in left(record, "at-asked", OURS, part=part, by=by)]


OURS = "own samples and corpus"
CORPUS = "contrast, corpus alone"
TWO = r"([\d.]+) % and ([\d.]+) %"
DPO = "DPO (LoRA)"
SMOL_PROBE = "probe:kit:smollm2:"
QWEN = "rivals-qwen0.5b"
LARGER, LARGERS_CAA = "rivals-qwen1.5b", "CAA (hooks), behind layer 11"
MANY, GEMMA = "rivals-many-smollm2", "rivals-gemma3"
GEMMAS_DPO, QWENS_DPO = "rivals-gemma3_dpo", "rivals-qwen0.5b_dpo"
GEMMAS_CAA = "CAA (hooks), behind layer 9"
ACT = "Linear-AcT, causal"
NORMS = f"{ACT}, post-norm (hooks)"
STEPS = [f"{OURS} at 0.05", "halfway, step 1", "halfway, step 2"]
TOGETHER = [f"together, {share}% of the diagonal" for share in (10, 50)]

# A page, a pattern that is found there once, and what its numbers are.
QUOTED = [
    (
        "interventions",
        r"corpus together leave ([\d.]+) % and ([\d.]+) % of 600 continuations toxic, by `alt.*?"
        r"writes ([\d.]+) % and ([\d.]+) %, and the corpus alone leaves ([\d.]+) % and ([\d.]+) %"
        r".*?CAA leaves ([\d.]+) % and ([\d.]+) %, ITI-c ([\d.]+) % and ([\d.]+) %, AcT at its "
        r"best site ([\d.]+) % and ([\d.]+) %.*?it leaves ([\d.]+) % and ([\d.]+) %",
        [
            figure
            for trial, part in (
                (OURS, "after"),
                (OURS, "before"),
                ("contrast, corpus alone", "after"),
                ("CAA, behind layer 7", "after"),
                ("ITI-c, 54 heads", "after"),
                ("Linear-AcT, causal, attention", "after"),
                ("DPO (LoRA)", "after"),
            )
            for figure in (rival(trial, part=part), rival(trial, PROBE, part))
        ],
    ),
    (
        "interventions",
        rf"it leaves {TWO}, own samples and the corpus {TWO} by the two scorers, and the corpus "
        rf"alone {TWO}, of {TWO}",
        [
            written(MANY, "aura", group="at-asked"),
            written(MANY, "aura", group="published"),
            *left(MANY, "at-asked", OURS, CORPUS),
            *left(MANY, "at-asked", OURS, part="before"),
        ],
    ),
    (
        "interventions",
        rf"continuations DPO leaves {TWO} at 0\.05.*?perplexity allows, × ([\d.]+) \(a "
        rf"divergence of ([\d.]+)\), they leave {TWO}, a twentieth.*?corpus alone leaves {TWO}",
        [
            *left(MANY, "at-asked", DPO),
            Of(MANY, "at-perplexity", DPO, "ratio", "corpus", "perplexity"),
            divergence(MANY, "at-perplexity", OURS),
            *left(MANY, "at-perplexity", OURS, CORPUS),
        ],
    ),
    (
        "interventions",
        rf"corpus leave {TWO} of its 600.*?of {TWO}; the corpus alone leaves {TWO}.*?layer 9 "
        rf"leaves {TWO}, Linear-AcT at attention {TWO}, at the norms[^.]*?{TWO}, and AurA {TWO}",
        [
            *ours(GEMMA),
            *left(GEMMA, "at-asked", CORPUS, GEMMAS_CAA, f"{ACT}, attention", NORMS, "aura"),
        ],
    ),
    (
        "interventions",
        rf"second scorer\. At 0\.05, own samples and the corpus leave {TWO}, of {TWO}, the corpus "
        rf"alone {TWO}, CAA behind layer 9 {TWO}, AurA {TWO}\..*?× ([\d.]+) \(CAA × "
        rf"([\d.]+)\)\..*?CAA's perplexity allows, own samples and the corpus leave {TWO}",
        [
            *ours(QWEN, by=SMOL_PROBE),
            *left(QWEN, "at-asked", CORPUS, GEMMAS_CAA, "aura", by=SMOL_PROBE),
            *(
                Of(QWEN, "at-asked", trial, "ratio", "corpus", "perplexity")
                for trial in (OURS, GEMMAS_CAA)
            ),
            *left(QWEN, "at-perplexity", OURS, by=SMOL_PROBE),
        ],
    ),
    (
        "interventions",
        rf"level with ours.*?it leaves {TWO}, own samples and the corpus {TWO}, and the corpus "
        rf"alone {TWO}:.*?perplexity of × ([\d.]+) \(DPO × ([\d.]+)\)\. At DPO's perplexity "
        rf"they leave {TWO}:.*?published, DPO\s+leaves {TWO}, at a divergence of ([\d.]+) and × "
        rf"([\d.]+)",
        [
            *left(QWENS_DPO, "at-asked", DPO, OURS, CORPUS, by=SMOL_PROBE),
            *(
                Of(QWENS_DPO, "at-asked", trial, "ratio", "corpus", "perplexity")
                for trial in (OURS, DPO)
            ),
            *left(QWENS_DPO, "at-perplexity", OURS, by=SMOL_PROBE),
            *left(QWENS_DPO, "published", DPO, by=SMOL_PROBE),
            divergence(QWENS_DPO, "published", DPO),
            Of(QWENS_DPO, "published", DPO, "ratio", "corpus", "perplexity"),
        ],
    ),
    (
        "interventions",
        rf"5B has been compared with AurA and CAA, with 300.*? own samples and the corpus leave "
        rf"{TWO}, of {TWO}, the corpus alone {TWO}, CAA behind layer 11 {TWO}, AurA {TWO}\..*?× "
        rf"([\d.]+), they leave {TWO}",
        [
            *ours(LARGER, by=SMOL_PROBE),
            *left(LARGER, "at-asked", CORPUS, LARGERS_CAA, "aura", by=SMOL_PROBE),
            Of(LARGER, "at-perplexity", LARGERS_CAA, "ratio", "corpus", "perplexity"),
            *left(LARGER, "at-perplexity", OURS, by=SMOL_PROBE),
        ],
    ),
    (
        "interventions",
        rf"DPO is not behind.*?it leaves {TWO}, from .*? × ([\d.]+), where ours\s+is × "
        rf"([\d.]+)\. At AurA's own divergence, ([\d.]+), it leaves {TWO}, and ours {TWO}",
        [
            *left(GEMMAS_DPO, "at-asked", DPO),
            *(
                Of(GEMMAS_DPO, "at-asked", trial, "ratio", "corpus", "perplexity")
                for trial in (DPO, OURS)
            ),
            divergence(GEMMAS_DPO, "at-aura", DPO),
            *left(GEMMAS_DPO, "at-aura", DPO, OURS),
        ],
    ),
    (
        "interventions",
        rf"at those norms leaves {TWO}, at a divergence of ([\d.]+) and × ([\d.]+)",
        [
            *left(GEMMA, "published", NORMS),
            divergence(GEMMA, "published", NORMS),
            Of(GEMMA, "published", NORMS, "ratio", "corpus", "perplexity"),
        ],
    ),
    (
        "studies",
        rf"at a divergence of 0\.05, {TWO} of {TWO} are left \(two scorers[^|]*?than prose: "
        rf"([\d.]+) \| {TWO} of {TWO}, likewise; ([\d.]+)",
        [
            figure
            for record, by in (("smollm2", PROBE), ("gemma3", SMOL_PROBE))
            for figure in (
                *left(f"recommended-{record}", "effect", f"{OURS} at 0.05", by=by),
                *left(f"recommended-{record}", "effect", f"{OURS} at 0.05", part="before", by=by),
                divergence(f"recommended-{record}", "harmless", f"{OURS} at 0.05"),
            )
        ],
    ),
    (
        "studies",
        rf"ours leave {TWO}, AurA {TWO}, DPO {TWO}; at DPO's perplexity ours leave {TWO}, "
        rf"[^|]*\| {TWO}, .*? CAA \({TWO}\).*?0\.5B {TWO} of {TWO}, "
        rf"on the 1\.5B {TWO} of {TWO}[^|]*?DPO leaves {TWO} on the 0\.5B, where ours leave {TWO}",
        [
            *left(MANY, "at-asked", OURS, "aura", DPO),
            *left(MANY, "at-perplexity", OURS),
            *left(GEMMA, "at-asked", OURS, GEMMAS_CAA),
            *ours(QWEN, by=SMOL_PROBE),
            *ours(LARGER, by=SMOL_PROBE),
            *left(QWENS_DPO, "at-asked", DPO, OURS, by=SMOL_PROBE),
        ],
    ),
    (
        "interventions",
        rf"the rule leaves {TWO} of 600.*?first step leaves {TWO}.*?second {TWO}",
        left("halfway-smollm2", "steps", *STEPS),
    ),
    (
        "studies",
        rf"halfway leave {TWO} after one step, and {TWO} after two, against {TWO}",
        left("halfway-smollm2", "steps", *STEPS[1:], STEPS[0]),
    ),
    (
        "interventions",
        rf"leaves {TWO} \(κ a tenth\) or {TWO} \(a half\), where the diagonal leaves {TWO}",
        left("curvature-smollm2", "curvature", *TOGETHER, STEPS[0]),
    ),
    (
        "studies",
        rf"together leave {TWO}, the diagonal {TWO}",
        left("curvature-smollm2", "curvature", TOGETHER[0], STEPS[0]),
    ),
    (
        "interventions",
        r"its perplexity is × ([\d.]+) where ours is × (\d\.\d+)",
        [rival_perplexity("DPO (LoRA)"), rival_perplexity(OURS)],
    ),
    (
        "interventions",
        r"Learned factors leave ([\d.]+) % and ([\d.]+) %",
        [rival("learned factors"), rival("learned factors", PROBE)],
    ),
    (
        "studies",
        r"corpus together leave ([\d.]+) % and ([\d.]+) % toxic \(two.*?DPO \(([\d.]+) % and "
        r"([\d.]+) %, not significant\); learned factors leave ([\d.]+) % and ([\d.]+) %",
        [
            figure
            for trial in (OURS, "DPO (LoRA)", "learned factors")
            for figure in (rival(trial), rival(trial, PROBE))
        ],
    ),
    (
        "limits",
        r"unsafe requests from ([\d.]+) % to ([\d.]+) %, AurA to ([\d.]+) %; on .*?"
        r"from ([\d.]+) % to ([\d.]+) %, AurA to ([\d.]+) %",
        [
            refused("chat-qwen0.5b", "contrast", "before"),
            refused("chat-qwen0.5b", "contrast"),
            refused("chat-qwen0.5b", "aura"),
            refused("chat-qwen1.5b", "contrast", "before"),
            refused("chat-qwen1.5b", "contrast"),
            refused("chat-qwen1.5b", "aura"),
        ],
    ),
    *(
        (
            page,
            pattern,
            [refused("chat-qwen0.5b", "contrast with refusals protected")],
        )
        for page, pattern in (
            ("limits", r"still refuses ([\d.]+) % of the unsafe requests"),
            ("studies", r"refusals protected, ([\d.]+) % are left"),
        )
    ),
    (
        "studies",
        r"the 0\.5B from ([\d.]+) % to ([\d.]+) % and the 1\.5B from ([\d.]+) % to ([\d.]+) %, "
        r"AurA to ([\d.]+) % and ([\d.]+) %",
        [
            refused("chat-qwen0.5b", "contrast", "before"),
            refused("chat-qwen0.5b", "contrast"),
            refused("chat-qwen1.5b", "contrast", "before"),
            refused("chat-qwen1.5b", "contrast"),
            refused("chat-qwen0.5b", "aura"),
            refused("chat-qwen1.5b", "aura"),
        ],
    ),
    (
        "studies",
        r"toxic replies from ([\d.]+) to ([\d.]+) % by the probe "
        r"\(alt-profanity-check: ([\d.]+) to ([\d.]+) %",
        [
            replies("chat-smollm2", "contrast", "before", PROBE),
            replies("chat-smollm2", "contrast", by=PROBE),
            replies("chat-smollm2", "contrast", "before"),
            replies("chat-smollm2", "contrast"),
        ],
    ),
    (
        "studies",
        r"contrast takes toxic continuations from ([\d.]+) to ([\d.]+) % and from ([\d.]+) "
        r"to ([\d.]+) %, AurA to ([\d.]+) % and ([\d.]+) %",
        [
            written("chat-gemma3", "contrast", "before"),
            written("chat-gemma3", "contrast"),
            written("chat-gemma3", "contrast", "before", PROBE),
            written("chat-gemma3", "contrast", by=PROBE),
            written("chat-gemma3", "aura"),
            written("chat-gemma3", "aura", by=PROBE),
        ],
    ),
    (
        "studies",
        r"politics × ([\d.]+), and the reverse × ([\d.]+), while their own text rises "
        r"× ([\d.]+) and ([\d.]+)",
        [
            Of(
                "concepts-gemma3",
                measured,
                f"{dampened} dampened by contrast",
                "ratio",
                "corpus",
                "toxic-perplexity",
            )
            for dampened, measured in (
                ("religion", "politics"),
                ("politics", "religion"),
                ("religion", "religion"),
                ("politics", "politics"),
            )
        ],
    ),
    (
        "studies",
        r"eight rows of each matrix keep most of contrast's effect \((−[\d.]+) points\)",
        [written("rank-smollm2", "rank 8", "difference", group="ranks")],
    ),
    (
        "studies",
        r"eight rows: (−[\d.]+) points",
        [written("rank-gemma3", "rank 8", "difference", group="ranks")],
    ),
    *(
        (
            page,
            r"leave ([\d.]+) % and ([\d.]+) % of (?:600 )?continuations(?: of [^.]*? prompts)? "
            r"toxic at a divergence of 0\.05.*?the corpus alone ([\d.]+) % and ([\d.]+) %",
            [
                own("own samples and corpus at 0.05"),
                own("own samples and corpus at 0.05", PROBE),
                own("corpus at 0.05"),
                own("corpus at 0.05", PROBE),
            ],
        )
        for page in ("studies", "interventions")
    ),
    *(
        (
            page,
            r"source (?:it is )?([\d.]+) % and ([\d.]+) % (?:together )?against "
            r"([\d.]+) % and ([\d.]+) %",
            [
                own("own samples and corpus at 0.05", place="elsewhere"),
                own("own samples and corpus at 0.05", PROBE, "elsewhere"),
                own("corpus at 0.05", place="elsewhere"),
                own("corpus at 0.05", PROBE, "elsewhere"),
            ],
        )
        for page in ("studies", "interventions")
    ),
    (
        "interventions",
        r"own samples alone ([\d.]+) % and ([\d.]+) %",
        [own("own samples at 0.05"), own("own samples at 0.05", PROBE)],
    ),
    (
        "interventions",
        r"At 0\.02 it is ([\d.]+) % and ([\d.]+) % against ([\d.]+) % and ([\d.]+) %",
        [
            own("own samples and corpus at 0.02"),
            own("own samples and corpus at 0.02", PROBE),
            own("corpus at 0.02"),
            own("corpus at 0.02", PROBE),
        ],
    ),
    (
        "interventions",
        r"it leaves ([\d.]+) % and ([\d.]+) % on Gemma",
        [
            written("methods-gemma3", "contrast at 0.1", group="budgets"),
            written("methods-gemma3", "contrast at 0.1", by=TOX, group="budgets"),
        ],
    ),
    (
        "interventions",
        r"than AurA on Gemma \(× ([\d.]+) against × ([\d.]+)",
        [
            Of("methods-gemma3", "rules", rule, "ratio", "corpus", "perplexity")
            for rule in ("contrast", "aura")
        ],
    ),
]


def as_said(number: str, value: float) -> bool:
    """Whether a number on a page is this value, to the page's decimals."""
    return number.replace("−", "-").strip("+") == f"{value:.{len(number.partition('.')[2])}f}"


@pytest.mark.parametrize(("page", "pattern", "figures"), QUOTED)
def test_a_sentence_quotes_its_record(page, pattern, figures):
    words = " ".join((ROOT / f"docs/{page}.md").read_text(encoding="utf-8").split())
    [said] = re.findall(pattern, words)
    for number, figure in zip([said] if isinstance(said, str) else said, figures, strict=True):
        assert as_said(number, figure.value()), figure


WORDS = "alt-profanity-check"
NUMBER = r"([−+]?\d\.\d)"
POINTS = rf"{NUMBER} points \({NUMBER} to {NUMBER}\)"
BRIEF = rf"{NUMBER}; {NUMBER} to {NUMBER}"


@pytest.mark.parametrize(
    ("pattern", "differences"),
    [
        (
            rf"significantly \({NUMBER} points; {NUMBER} to {NUMBER}; and {BRIEF}\), at the "
            rf"perplexity of DPO by both \({BRIEF}; and {BRIEF}\)\. On Gemma .*? {POINTS}",
            [
                (MANY, "at-asked", OURS, CORPUS, WORDS),
                (MANY, "at-asked", OURS, CORPUS, PROBE[:-1]),
                (MANY, "at-perplexity", OURS, CORPUS, WORDS),
                (MANY, "at-perplexity", OURS, CORPUS, PROBE[:-1]),
                (GEMMA, "at-asked", OURS, CORPUS, WORDS),
            ],
        ),
        (
            rf"On Qwen 0\.5B it is {POINTS} and {POINTS}, and at AurA's own divergence {POINTS} "
            rf"and {POINTS}",
            [
                (QWEN, group, OURS, CORPUS, by)
                for group in ("at-asked", "at-aura")
                for by in (WORDS, SMOL_PROBE[:-1])
            ],
        ),
        (
            rf"On Qwen 1\.5B it is {POINTS} and {POINTS}",
            [(LARGER, "at-asked", OURS, CORPUS, by) for by in (WORDS, SMOL_PROBE[:-1])],
        ),
        (
            rf"of the corpus alone that cannot be said there \({POINTS} and {POINTS}\)",
            [(LARGER, "at-perplexity", CORPUS, LARGERS_CAA, by) for by in (WORDS, SMOL_PROBE[:-1])],
        ),
        (
            rf"differ from it by {POINTS} and {POINTS} there, the corpus alone by {POINTS} and "
            rf"{POINTS}: .*? From DPO .*? differ by {POINTS} and {POINTS}, .*? by {POINTS} and "
            rf"{POINTS}",
            [
                (MANY, group, ours, DPO, by)
                for group in ("at-asked", "at-perplexity")
                for ours in (OURS, CORPUS)
                for by in (WORDS, PROBE[:-1])
            ],
        ),
        (
            rf"not behind .*? differ by {POINTS} and {POINTS}, at .*?: {POINTS}, which .*? and "
            rf"{POINTS}\. .*? settled \({POINTS} and {POINTS}\)",
            [
                (GEMMAS_DPO, group, OURS, DPO, by)
                for group in ("at-asked", "at-aura", "at-perplexity")
                for by in (WORDS, PROBE[:-1])
            ],
        ),
    ],
    ids=[
        "own samples and corpus",
        "on Qwen",
        "on Qwen 1.5B",
        "at CAA's perplexity",
        "DPO",
        "DPO on Gemma",
    ],
)
def test_the_page_of_rules_quotes_differences_with_their_intervals(pattern, differences):
    words = " ".join((ROOT / "docs/interventions.md").read_text(encoding="utf-8").split())
    [said] = re.findall(pattern, words)
    values = []
    for record, name, one, other, by in differences:
        [group] = [group for group in load(record).groups if group.name == name]
        found = group.finding(f"{one} − {other}, {by}")
        values += [100 * found.value, 100 * found.low, 100 * found.high]
    for number, value in zip(said, values, strict=True):
        assert as_said(number, value)


def test_the_page_of_rules_quotes_what_estimates_of_costs_foretell():
    words = " ".join((ROOT / "docs/interventions.md").read_text(encoding="utf-8").split())
    pattern = r"where it foretells 0\.05, the divergence is (\S+) and (\S+), and (\S+) where"
    [said] = re.findall(pattern, words)
    for number, trial in zip(said, (*TOGETHER, STEPS[0]), strict=True):
        assert as_said(number, finding("curvature-smollm2", "curvature", f"measured, {trial}"))


def test_the_page_of_studies_quotes_its_findings():
    words = " ".join((ROOT / "docs/studies.md").read_text(encoding="utf-8").split())
    correlation = "Rank correlation of the AUROC"
    for pattern, values in {
        r"two halves have a rank correlation of (\S+) with 100 [^,]*, and (\S+) with 500": [
            finding("data-smollm2", "counts", f"{correlation}, {count}") for count in (100, 500)
        ],
        r"rank correlation of (\S+) with a model trained": [
            finding("transfer-smollm2", "sibling", correlation)
        ],
    }.items():
        [said] = re.findall(pattern, words)
        for number, value in zip([said] if isinstance(said, str) else said, values, strict=True):
            assert as_said(number, value), pattern
    [(low, high)] = re.findall(r"the divergence is ([\d.]+) to ([\d.]+) in float32", words)
    spent = [
        divergence("dtype-smollm2", group.name, trial.name).value()
        for group in load("dtype-smollm2").groups
        for trial in group.trials
    ]
    assert as_said(low, min(spent))
    assert as_said(high, max(spent))


@pytest.mark.parametrize("record", ["rank-smollm2", "rank-gemma3"])
def test_the_page_of_serving_has_the_ranks_of_the_record(record):
    """Row by row: neurons, toxic continuations, the change with its interval, perplexity."""
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    smollm2, gemma3 = page.split("Gemma 3 270M likewise")
    part = smollm2 if record == "rank-smollm2" else gemma3.partition("### ")[0]
    rows = dict(re.findall(r"^\| (8|16|32|64|128|all rows) \| (.*) \|$", part, re.M))
    [group] = [group for group in load(record).groups if group.name == "ranks"]
    assert len(rows) == len(group.trials)
    for trial in group.trials:
        toxic = trial.evaluation.figure("toxicity", "continuations.all")
        perplexity = Of(record, "ranks", trial.name, "ratio", "corpus", "perplexity").value()
        numbers = re.findall(r"[−+]?\d[\d,.]*", rows[trial.name.removeprefix("rank ")])
        change = toxic.difference
        points = [100 * of for of in (change.value, change.low, change.high)]
        found = [trial.changed, 100 * toxic.after.value, *points, perplexity]
        for number, value in zip(numbers, found, strict=True):
            assert as_said(number.replace(",", ""), value), (trial.name, number)


def test_the_page_of_interventions_says_how_much_each_rule_removes_on_gemma():
    words = " ".join((ROOT / "docs/interventions.md").read_text(encoding="utf-8").split())
    [said] = re.findall(r"contrast removes (\d+) % and (\d+) %", words)
    for number, by in zip(said, ("", TOX), strict=True):
        of = written("methods-gemma3", "contrast", by=by, group="head-to-head")
        before = of._replace(part="before").value()
        assert as_said(number, 100 * (1 - of.value() / before))
