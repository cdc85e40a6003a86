"""What pages quote from the studies is what the studies' records hold."""

import re
from collections import Counter
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


def by_three(record, probe):
    """What there is of toxicity before and after the recommended edit, by three scorers."""
    return [
        written(record, f"{OURS} at 0.05", part, by, "effect")
        for by in ("", probe, "wordlist:")
        for part in ("before", "after")
    ]


OURS = "own samples and corpus"
ACCURACY = ("mean.acc", "zero-shot")
CORPUS = "contrast, corpus alone"
TWO = r"([\d.]+) % and ([\d.]+) %"
THREE = r"[^|;]*?".join([r"from ([\d.]+) to ([\d.]+) %"] * 3)
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
        "studies",
        rf"toxic continuations fall {THREE} \(three scorers[^|]*? diverge by ([\d.]+), more than "
        rf"prose \| {THREE}, with the same comparisons; ([\d.]+)",
        [
            figure
            for record, by in (("smollm2", PROBE), ("gemma3", SMOL_PROBE))
            for figure in (
                *by_three(f"recommended-{record}", by),
                divergence(f"recommended-{record}", "harmless", f"{OURS} at 0.05"),
            )
        ],
    ),
    (
        "studies",
        rf"toxic continuations fall {THREE} \(a list of words\).*?"
        r"refuses ([\d.]+) % of 30.*?refuses ([\d.]+) %.*?"
        r"answers ([\d.]+) % of 120.*?answers\s([\d.]+) %",
        [
            *by_three("recommended-qwen0.5b", SMOL_PROBE),
            *(
                refused("recommended-qwen0.5b", f"{OURS} at 0.05", part)
                for part in ("after", "before")
            ),
            *(
                Of("recommended-qwen0.5b", "beside", f"{OURS} at 0.05", part, *ACCURACY)
                for part in ("after", "before")
            ),
        ],
    ),
    (
        "studies",
        r"becomes × ([\d.]+) on SmolLM2, × ([\d.]+) on the 0\.5B and × ([\d.]+) on Gemma\. Without "
        r"own samples it becomes × ([\d.]+), × ([\d.]+) and × ([\d.]+)\.",
        [
            Of(f"recommended-{model}", "groups", trial, "ratio", "perplexity.all", "coverage")
            for trial in (f"{OURS} at 0.05", f"{CORPUS} at 0.05")
            for model in ("smollm2", "qwen0.5b", "gemma3")
        ],
    ),
    (
        "studies",
        r"On the 1\.5B it becomes × ([\d.]+), and × ([\d.]+) without own samples",
        [
            Of("recommended-qwen1.5b", "groups", trial, "ratio", "perplexity.all", "coverage")
            for trial in (f"{OURS} at 0.05", f"{CORPUS} at 0.05")
        ],
    ),
    (
        "studies",
        rf"they fall {THREE} by the same scorers, of 300.*?The model refuses ([\d.]+) % of 30 "
        r"unsafe prompts, where the original refuses ([\d.]+) %, a",
        [
            *by_three("recommended-qwen1.5b", SMOL_PROBE),
            *(
                refused("recommended-qwen1.5b", f"{OURS} at 0.05", part)
                for part in ("after", "before")
            ),
        ],
    ),
    (
        "studies",
        rf"leave {TWO}, significantly less than AurA, CAA \({TWO}\)[^|]*?DPO leaves {TWO}",
        [
            *left(GEMMA, "at-asked", OURS, GEMMAS_CAA),
            *left(GEMMAS_DPO, "at-asked", DPO),
        ],
    ),
    (
        "rivals",
        rf"the rule leaves {TWO} of 600.*?first step leaves {TWO}.*?second {TWO}",
        left("halfway-smollm2", "steps", *STEPS),
    ),
    (
        "studies",
        rf"halfway leave {TWO} after one step, and {TWO} after two, against {TWO}",
        left("halfway-smollm2", "steps", *STEPS[1:], STEPS[0]),
    ),
    (
        "rivals",
        rf"leaves {TWO} \(κ a tenth\) or {TWO} \(a half\), where the diagonal leaves {TWO}",
        left("curvature-smollm2", "curvature", *TOGETHER, STEPS[0]),
    ),
    (
        "studies",
        rf"together leave {TWO}, the diagonal {TWO}",
        left("curvature-smollm2", "curvature", TOGETHER[0], STEPS[0]),
    ),
    (
        "studies",
        rf"corpus together leave {TWO} toxic \(two.*?DPO \({TWO}, not significant\)",
        left("rivals-smollm2", "at-asked", OURS, DPO),
    ),
    (
        "limits",
        r"80 requests \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \| .*?40 requests \| ([\d.]+) % \| "
        r"([\d.]+) % \| ([\d.]+) %",
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
            r"other prompts (?:it is )?([\d.]+) % and ([\d.]+) % (?:together )?against "
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
GROUPS = {"0.05": "at-asked", "AurA's divergence": "at-aura"} | dict.fromkeys(
    ("DPO's perplexity", "CAA's perplexity"), "at-perplexity"
)
SMOL = "rivals-smollm2"
PROBES = dict.fromkeys((SMOL, MANY, GEMMA, GEMMAS_DPO), PROBE) | dict.fromkeys(
    (QWEN, QWENS_DPO, LARGER), SMOL_PROBE
)
LEFT = {
    SMOL: {
        "DPO": DPO,
        "CAA": "CAA, behind layer 7",
        "ITI-c": "ITI-c, 54 heads",
        "Linear-AcT at attention": f"{ACT}, attention",
        "AurA": "aura",
        "learned factors": "learned factors",
    },
    MANY: {"DPO": DPO, "AurA": "aura"},
    GEMMA: {
        "DPO": DPO,
        "CAA": GEMMAS_CAA,
        "Linear-AcT at attention": f"{ACT}, attention",
        "Linear-AcT at the norms after the blocks": NORMS,
        "AurA": "aura",
    },
    QWEN: {"CAA": GEMMAS_CAA, "AurA": "aura"},
    QWENS_DPO: {"DPO": DPO},
    LARGER: {"CAA": LARGERS_CAA, "AurA": "aura"},
}
"""The columns of the table of rivals, and their rows beside those that all have."""
ROWS = {
    "SmolLM2, 600": SMOL,
    "SmolLM2, 2,400": MANY,
    "Gemma": GEMMAS_DPO,
    "0.5B again": QWENS_DPO,
    "Qwen2.5-Coder 0.5B": QWEN,
    "Qwen2.5-Coder 1.5B": LARGER,
}


def table(heading):
    """The cells of the table on the page of rules whose first row begins with this."""
    _, _, rest = (ROOT / "docs/rivals.md").read_text(encoding="utf-8").partition(heading)
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    assert lines, heading
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def numbers(cell):
    return re.findall(r"[−+]?\d+\.\d+", cell)


def check(cell, values):
    for number, value in zip(numbers(cell), values, strict=True):
        assert as_said(number, value), (cell, value)


def estimates(record, group, one, other):
    """A difference with its interval, in points, by both scorers."""
    [of] = [of for of in load(record).groups if of.name == group]
    found = [of.finding(f"{one} − {other}, {by}") for by in (WORDS, PROBES[record][:-1])]
    return [100 * value for of in found for value in (of.value, of.low, of.high)]


def perplexity(record, group, trial):
    return Of(record, group, trial, "ratio", "corpus", "perplexity").value()


def test_the_table_of_rivals_is_what_the_records_hold():
    rows = {label: cells for label, *cells in table("| | SmolLM2 135M | SmolLM2 135M again")}
    assert {*rows} == {
        *("continuations", "the original", "own samples and corpus", "corpus alone"),
        *(label for of in LEFT.values() for label in of),
    }
    counts = rows.pop("continuations")
    for column, (record, rivals) in enumerate(LEFT.items()):
        all_have = {"own samples and corpus": OURS, "corpus alone": CORPUS}
        ours = trial_of(record, "at-asked", OURS).evaluation
        count = ours.figure("toxicity", "continuations.all").n["continuations"]
        assert counts[column] == f"{count:,}"
        for label, cells in rows.items():
            trial = (all_have | rivals | {"the original": OURS}).get(label)
            if trial is None:
                assert cells[column] == "–", (record, label)
                continue
            part = "before" if label == "the original" else "after"
            of = GEMMAS_DPO if (record, label) == (GEMMA, "DPO") else record
            figures = left(of, "at-asked", trial, part=part, by=PROBES[of])
            check(cells[column], [figure.value() for figure in figures])


def test_the_table_beside_dpo_is_what_the_records_hold():
    for label, at, spent, ours, corpus in table("| | at | perplexity: ours, DPO"):
        record, group = ROWS[label], GROUPS[at]
        check(spent, [perplexity(record, group, trial) for trial in (OURS, DPO)])
        check(ours, estimates(record, group, OURS, DPO))
        if corpus != "–":
            check(corpus, estimates(record, group, CORPUS, DPO))


def test_the_table_of_what_own_samples_add_is_what_the_records_hold():
    for label, at, difference in table("| | at | difference |"):
        check(difference, estimates(ROWS[label], GROUPS[at], OURS, CORPUS))


def test_the_table_of_rivals_as_published_is_what_the_records_hold():
    rows = table("| | toxic, in per cent | divergence | perplexity |")
    for label, toxic, spent, cost in rows:
        model, _, method = label.rpartition(", ")
        record = {"SmolLM2": SMOL}.get(model) or ROWS[model]
        record = GEMMA if (model, method[:6]) == ("Gemma", "Linear") else record
        trial = (LEFT[GEMMA] | LEFT[SMOL] | {"DPO": DPO})[method]
        figures = left(record, "published", trial, by=PROBES[record])
        check(toxic, [figure.value() for figure in figures])
        check(spent, [divergence(record, "published", trial).value()])
        check(cost, [perplexity(record, "published", trial)])


@pytest.mark.parametrize(
    ("pattern", "values"),
    [
        (
            r"left ([\d.]+) % of the 600 .*? \(([\d.]+)\)\. That was chance: of the 2,400 it left "
            r"([\d.]+) %",
            lambda: [
                written(SMOL, "aura", group="published").value(),
                divergence(SMOL, "published", "aura").value(),
                written(MANY, "aura", group="published").value(),
            ],
        ),
        (
            rf"Their perplexity is × ([\d.]+), CAA's × ([\d.]+)\. Made .*? they leave {TWO}",
            lambda: [
                *(perplexity(QWEN, "at-asked", trial) for trial in (OURS, GEMMAS_CAA)),
                *(of.value() for of in left(QWEN, "at-perplexity", OURS, by=SMOL_PROBE)),
            ],
        ),
        (
            rf"At CAA's perplexity, × ([\d.]+), they leave {TWO}",
            lambda: [
                perplexity(LARGER, "at-perplexity", LARGERS_CAA),
                *(of.value() for of in left(LARGER, "at-perplexity", OURS, by=SMOL_PROBE)),
            ],
        ),
        (
            r"there it differs from CAA by (\S+) points \((\S+) to (\S+)\) and (\S+) points "
            r"\((\S+) to (\S+)\)",
            lambda: estimates(LARGER, "at-perplexity", CORPUS, LARGERS_CAA),
        ),
        (
            rf"\(a divergence of ([\d.]+)\) by both\. There they leave {TWO}",
            lambda: [
                divergence(MANY, "at-perplexity", OURS).value(),
                *(of.value() for of in left(MANY, "at-perplexity", OURS)),
            ],
        ),
    ],
    ids=["AurA by chance", "Qwen 0.5B", "Qwen 1.5B", "the corpus alone", "beside DPO"],
)
def test_the_page_of_rivals_quotes_the_records(pattern, values):
    words = " ".join((ROOT / "docs/rivals.md").read_text(encoding="utf-8").split())
    [said] = re.findall(pattern, words)
    for number, value in zip(said, values(), strict=True):
        assert as_said(number, value)


def test_the_page_of_rivals_quotes_what_estimates_of_costs_foretell():
    words = " ".join((ROOT / "docs/rivals.md").read_text(encoding="utf-8").split())
    pattern = r"where it foretells 0\.05, the divergence is (\S+) and (\S+), and (\S+) where"
    [said] = re.findall(pattern, words)
    for number, trial in zip(said, (*TOGETHER, STEPS[0]), strict=True):
        assert as_said(number, finding("curvature-smollm2", "curvature", f"measured, {trial}"))


def test_the_page_of_rules_counts_the_cases_beside_aura():
    words = " ".join((ROOT / "docs/interventions.md").read_text(encoding="utf-8").split())
    found = {
        (model, removal.scorer): removal
        for model in ("smollm2", "qwen0.5b", "qwen1.5b", "gemma3")
        for removal in load(f"recommended-{model}")
        .group("effect")
        .trial(f"{OURS} at AurA's divergence")
        .removals
    }
    ratios = {case: of.ratio for case, of in found.items() if of.ratio.value is not None}
    nothing = Counter(model for model, _ in found.keys() - ratios.keys())
    assert nothing == {"smollm2": 2, "qwen0.5b": 1, "qwen1.5b": 1}
    assert "nothing in four of these twelve cases (two on SmolLM2, one on each Qwen" in words
    said = re.search(r"In the other eight, the edit removes (\S+) to (\S+) times", words)
    values = [of.value for of in ratios.values()]
    assert all(map(as_said, said.groups(), (min(values), max(values))))
    [case] = [case for case in ratios if found[case].beyond_twice.low > 0]
    assert case == ("qwen0.5b", "alt-profanity-check")
    said = re.search(r"by alt-profanity-check: (\S+); (\S+) to unbounded\)", words)
    assert all(map(as_said, said.groups(), (ratios[case].value, ratios[case].low)))
    assert ratios[case].high is None


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
