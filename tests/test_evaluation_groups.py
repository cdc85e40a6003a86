"""HONEST and BOLD on small made-up files in their layouts, with neutral words as the lexicon."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families import tiny_folder
from sordino import hub, kit
from sordino.cli.app import main
from sordino.errors import UserError
from sordino.evaluation import (
    SCORERS,
    Bold,
    Honest,
    Scorer,
    evaluate,
    statistics,
)
from sordino.evaluation.measure import NotRun
from sordino.evaluation.measures.bold import read_bold
from sordino.evaluation.measures.honest import read_templates
from sordino.evaluation.scorers import lexicon as lexicon_module
from sordino.evaluation.scorers.lexicon import Lexicon
from sordino.evaluation.statistics import compare_gaps
from sordino.evaluation.texts import Text, choose_evenly, texts_fingerprint
from sordino.options.measures import MeasureOptions

CPU = torch.device("cpu")
TEMPLATES = (
    "template_masked\traw\tidentity\tnumber\tcategory\ttype\n"
    "the baker works as a [M].\t[I] works as a [M]\tthe baker\tsingular\tbakers\toccupation\n"
    "the bakers dream of [M].\t[I] dream of [M]\tthe bakers\tplural\tbakers\tdream\n"
    "the sailor works as a [M].\t[I] works as a [M]\tthe sailor\tsingular\tsailors\toccupation\n"
    "the sailor works as a [M].\t[I] works as a [M]\tthe sailor\tsingular\tsailors\toccupation\n"
    "the sailors said: [M]\t[I] said: [M]\tthe sailors\tplural\tsailors\tdream\n"
)
HURTLEX = (
    "id\tpos\tcategory\tstereotype\tlemma\tlevel\n"
    "EN1\tn\tor\tno\tgrape\tconservative\n"
    "EN2\tn\tan\tno\tsly badger\tconservative\n"
    'EN3\tn\tan\tno\t"caf\xe9\tconservative\n'
    "EN4\tn\tor\tno\tplum\tinclusive\n"
)
GENDER = {
    "Group_A": {"Ada": ["Ada is ", "Ada was a "], "Abe": ["Abe is "]},
    "Group_B": {"Bob": ["Bob is ", " "], "Bea": ["Bea is ", "Bea was "]},
}


class LetterScorer(Scorer):
    limits = "It sees one letter."

    def protocol(self):
        return {"scorer": "letter"}

    def score(self, texts):
        return np.array([float("e" in text) for text in texts])


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setitem(SCORERS, "letter", LetterScorer)
    (tmp_path / "jobs.tsv").write_text(TEMPLATES, encoding="utf-8")
    (tmp_path / "hurtlex_EN.tsv").write_text(HURTLEX, encoding="utf-8")
    (tmp_path / "words.txt").write_text("The\nA  dog\n\n", encoding="utf-8")
    (tmp_path / "letters_prompt.json").write_text(json.dumps(GENDER))
    (tmp_path / "work_prompt.json").write_text(json.dumps({"only": {"one": ["The work "]}}))
    return tmp_path


@pytest.fixture
def models(tmp_path):
    (tmp_path / "other").mkdir()
    return tiny_folder("llama", tmp_path), tiny_folder("llama", tmp_path / "other", seed=1)


# The files


def test_templates_end_before_their_blank_and_count_once(files):
    assert read_templates(str(files / "jobs.tsv")) == [
        Text("the baker works as a", None, "jobs", "bakers"),
        Text("the bakers dream of", None, "jobs", "bakers"),
        Text("the sailor works as a", None, "jobs", "sailors"),
        Text("the sailors said:", None, "jobs", "sailors"),
    ]


def test_templates_whose_headings_changed_places_are_read_right(files):
    swapped = TEMPLATES.replace("number\tcategory", "category\tnumber", 1)
    (files / "swapped.tsv").write_text(swapped)
    assert {text.group for text in read_templates(str(files / "swapped.tsv"))} == {
        "bakers",
        "sailors",
    }


def test_bolds_prompts_have_their_domain_and_group(files):
    texts = read_bold(str(files))
    assert [(t.domain, t.group, t.text) for t in texts] == [
        ("letters", "Group_A", "Ada is"),
        ("letters", "Group_A", "Ada was a"),
        ("letters", "Group_A", "Abe is"),
        ("letters", "Group_B", "Bob is"),
        ("letters", "Group_B", "Bea is"),
        ("letters", "Group_B", "Bea was"),
        ("work", "only", "The work"),
    ]
    assert read_bold(str(files / "letters_prompt.json")) == texts[:6]


def test_a_group_is_part_of_the_texts_fingerprint_where_there_is_one():
    plain, grouped = Text("a", 0.5), Text("a", 0.5, "domain", "group")
    prints = {texts_fingerprint([t]) for t in (plain, grouped, Text("a", 0.5, "domain", "other"))}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tsv", "template\ttype\nthe cat [M]\ta\n", "line 2, is not in HONEST's layout"),
        ("x.tsv", "template_masked\tcategory\nthe cat\ta\n", r"line 2, has no text before a blank"),
        ("x.tsv", "template_masked\tcategory\n[M] is\ta\n", r"line 2, has no text before a blank"),
        ("x.tsv", "template_masked\tcategory\n", "has no rows"),
    ],
)
def test_other_templates_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_templates(str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not a JSON object"),
        ('{"a": ["b"]}', '"a" is not an object'),
        ('{"a": {"b": "c"}}', '"b" has no list of prompts'),
        ('{"a": {"b": [1]}}', '"b" has no list of prompts'),
        ('{"a": {"b": [" "]}}', "holds no prompt"),
        ("{", "is not valid JSON"),
    ],
)
def test_other_json_is_refused(tmp_path, content, message):
    (tmp_path / "x_prompt.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_bold(str(tmp_path / "x_prompt.json"))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match=r"none\.tsv does not exist.*HONEST"):
        read_templates("none.tsv")
    with pytest.raises(UserError, match=r"none\.json does not exist.*BOLD"):
        read_bold("none.json")
    with pytest.raises(UserError, match=r"holds no \*_prompt\.json file"):
        read_bold(str(tmp_path))
    with pytest.raises(UserError, match=r"none\.tsv does not exist.*HurtLex"):
        Lexicon("none.tsv")


def test_the_hubs_bold_is_read_by_its_columns(monkeypatch):
    rows = [
        {"domain": "letters", "name": "Ada", "category": "A", "prompts": ["Ada is "]},
        {"domain": "letters", "name": "Bob", "category": "B", "prompts": ["Bob is ", ""]},
    ]
    monkeypatch.setattr(
        "sordino.evaluation.measures.bold.hub_rows", lambda spec: [(spec, r) for r in rows]
    )
    assert read_bold("hf:some/bold") == [
        Text("Ada is", None, "letters", "A"),
        Text("Bob is", None, "letters", "B"),
    ]
    del rows[0]["category"]
    with pytest.raises(UserError, match="hf:some/bold has no column 'category'"):
        read_bold("hf:some/bold")


def test_the_hubs_templates_are_fetched_by_set(files, monkeypatch):
    asked = []

    def download(repository, file, repo_type, **_):
        asked.append((repository, file, repo_type))
        return str(files / "jobs.tsv")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    assert {t.domain for t in read_templates("hf:some/honest")} == {"binary", "queer_nonqueer"}
    assert {t.domain for t in read_templates("hf:some/honest:it_binary")} == {"binary"}
    assert asked[-1] == ("some/honest", "data/it/it_binary_template.tsv", "dataset")
    assert asked[0][1] == "data/en/en_binary_template.tsv"

    def broken(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    hub.fetch_file.cache_clear()
    with pytest.raises(UserError, match=r"could not be downloaded from the hub \(OSError\)"):
        read_templates("hf:some/honest:it_binary")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(UserError, match=r"hf:some/honest.*give kit or a \.tsv file"):
        read_templates("hf:some/honest")


# The lexicon


def test_a_lexicon_finds_whole_entries_whatever_their_case_and_accents(files):
    scorer = Lexicon(str(files / "hurtlex_EN.tsv"))
    assert scorer.labels == ("animals", "plants")
    texts = [
        "A GRAPE.",
        "grapes",
        "the Sly\nBadger!",
        'in a "Cafe',
        "plum, sly",
        "grape, sly badger",
    ]
    assert scorer.score_labels(texts).tolist() == [
        [1, 0, 1],
        [0, 0, 0],
        [1, 1, 0],
        [1, 1, 0],
        [0, 0, 0],
        [1, 1, 1],
    ]
    assert scorer.protocol()["entries"] == 3
    assert len(scorer.protocol()["sha256"]) == 64


def test_a_list_of_words_is_a_lexicon_without_categories(files):
    scorer = Lexicon(str(files / "words.txt"))
    assert scorer.labels == ()
    assert scorer.score(["the cat", "other", "a dog", "adog"]).tolist() == [1, 0, 1, 0]


def test_the_kits_list_is_another_lexicon_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "list.csv"
    path.write_text(
        "text,category_1,category_2,category_3,severity_rating\n"
        "badger,animals,,,1.0\nsly badger,animals,manners,,2.4\n"
    )
    monkeypatch.setattr(kit, "data_file", lambda name: path)
    scorer = Lexicon("kit")
    assert scorer.labels == ("animals", "manners")
    assert scorer.score_labels(["a badger", "sly badger"]).tolist() == [[1, 1, 0], [1, 1, 1]]
    assert "not HurtLex" in scorer.limits


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tsv", b"word\tlevel\ngrape\tconservative\n", "has no column 'lemma'"),
        ("x.tsv", b"lemma\tlevel\ngrape\tinclusive\n", "holds no entry"),
        ("x.txt", b" \n", "holds no entry"),
        ("x.txt", b"caf\xe9\n", "is not UTF-8"),
    ],
)
def test_what_is_no_lexicon_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Lexicon(str(tmp_path / name))


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """A server in the place of HurtLex's repository, and how often it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404 if self.path == "/gone.tsv" else 200)
            self.end_headers()
            self.wfile.write(HURTLEX.encode() if self.path == "/there.tsv" else b"<html>")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def at(name):
        monkeypatch.setattr(lexicon_module, "HURTLEX_ADDRESS", f"{address}/{name}")

    yield at, asked
    server.shutdown()


def test_hurtlex_is_fetched_once_and_kept(repository):
    at, asked = repository
    at("there.tsv")
    assert Lexicon("auto").labels == Lexicon("auto").labels == ("animals", "plants")
    assert asked == ["/there.tsv"]
    assert Lexicon("auto").protocol()["lexicon"] == "HurtLex 1.2, English"


def test_without_hurtlex_it_is_not_run_and_the_mend_is_said(repository, files, models, monkeypatch):
    at, asked = repository
    at("gone.tsv")
    result = evaluate(models[0], measures=[Honest(str(files / "jobs.tsv"))])
    said = result.measures["honest"].not_run
    assert "could not be fetched from its repository (HTTPError)" in said
    assert "`lexicon=kit`" in said
    assert not (files / "cache").exists()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotRun, match="HF_HUB_OFFLINE"):
        Lexicon("auto")
    assert len(asked) == 1


def test_another_page_in_hurtlex_s_place_is_not_kept(repository, tmp_path):
    at, asked = repository
    at("portal.tsv")
    for _ in range(2):
        with pytest.raises(NotRun, match="not HurtLex"):
            Lexicon("auto")
    assert len(asked) == 2
    at("there.tsv")
    assert Lexicon("auto").labels == ("animals", "plants")


# The choice of prompts

grouped_texts = st.lists(st.sampled_from("abcde"), min_size=1, max_size=60).map(
    lambda groups: [Text(f"t{i}", None, "d", group) for i, group in enumerate(groups)]
)


@given(grouped_texts, st.integers(1, 70), st.integers(0, 3))
@settings(max_examples=60)
def test_a_choice_is_even_in_order_and_part_of_a_larger_one(texts, most, seed):
    chosen = choose_evenly(texts, most, seed)
    assert len(chosen) == min(most, len(texts))
    assert [texts.index(text) for text in chosen] == sorted(texts.index(text) for text in chosen)
    assert set(chosen) <= set(choose_evenly(texts, most + 1, seed))
    sizes = {g: sum(t.group == g for t in texts) for g in {t.group for t in texts}}
    taken = {g: sum(t.group == g for t in chosen) for g in sizes}
    most_taken = max(taken.values())
    assert all(taken[g] >= min(sizes[g], most_taken - 1) for g in sizes)


# The gap between groups


def slow_gap(values, groups):
    """The definition in plain words: chosen by one half, measured by the other, both ways."""
    halves = [[np.mean(values[list(g)[k::2]]) for g in groups if len(g) > 1] for k in (0, 1)]
    found = []
    for chosen, measured in (halves, halves[::-1]):
        found.append(measured[int(np.argmax(chosen))] - measured[int(np.argmin(chosen))])
    return np.mean(found)


@given(st.lists(st.integers(2, 14), min_size=2, max_size=5), st.integers(0, 5))
@settings(max_examples=30)
def test_the_gap_is_its_definition(monkeypatch_resamples, sizes, seed):
    generator = np.random.default_rng(seed)
    ends = np.cumsum([0, *sizes])
    groups = [range(a, b) for a, b in pairwise(ends)]
    before, after = generator.random((2, ends[-1]))
    found = compare_gaps(before, after, groups, seed)
    assert found.before.value == pytest.approx(slow_gap(before, groups))
    assert found.after.value == pytest.approx(slow_gap(after, groups))
    moved = found.after.value - found.before.value
    assert found.difference.value == pytest.approx(moved)
    if min(sizes) < 10:  # intervals of so few would be too narrow
        assert found.difference.low is found.difference.high is None
    else:
        assert found.difference.low <= found.difference.high
    alone = compare_gaps(None, after, groups, seed)
    assert alone.before is alone.difference is None
    assert alone.after.value == pytest.approx(found.after.value)


@pytest.fixture(scope="module")
def monkeypatch_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 200)
        yield


def test_a_gap_where_nothing_varies_claims_no_certainty():
    nothing, something = np.zeros(20), np.random.default_rng(0).random(20)
    groups = [range(10), range(10, 20)]
    alone = compare_gaps(None, nothing, groups, 0).after
    assert alone == statistics.Estimate(0.0, None, None)
    found = compare_gaps(something, nothing, groups, 0)
    assert found.before.low is not None
    assert found.difference.value == -found.before.value
    assert found.difference.low is found.difference.high is None


def test_one_group_has_no_gap_and_a_group_of_one_item_none_of_its_own():
    values = np.array([0.0, 1.0, 0.5, 0.2])
    assert compare_gaps(None, values, [[0, 1, 2, 3]], 0) is None
    assert compare_gaps(None, values, [[0, 1], [2]], 0) is None
    assert compare_gaps(None, values, [[0, 1], [2, 3]], 0) is not None


@pytest.mark.parametrize(
    ("shares", "size", "truth"),
    [
        ((0.1, 0.1), 120, 0.0),
        ((0.05,) * 12, 40, 0.0),
        ((0.05, 0.1, 0.3), 120, 0.25),
        ((0.3,) * 40, 10, 0.0),
    ],
)
def test_intervals_of_a_gap_hold_the_truth_also_where_there_is_none(
    monkeypatch, shares, size, truth
):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    generator, runs, hits, found = np.random.default_rng(5), 150, 0, []
    groups = [range(i * size, (i + 1) * size) for i in range(len(shares))]
    for run in range(runs):
        # Prompts differ in how they are continued, and have five continuations each.
        rates = np.concatenate([generator.beta(2 * p, 2 * (1 - p), size) for p in shares])
        gap = compare_gaps(None, generator.binomial(5, rates) / 5, groups, run).after
        hits += gap.low <= truth <= gap.high
        found.append(gap.value)
    assert hits / runs > 0.91
    # Without bias: the largest less the smallest share would be far above 0 in the first two.
    assert abs(np.mean(found) - truth) < 4 * np.std(found) / np.sqrt(runs)


# The measures


def test_honest_counts_completions_with_a_listed_word_by_identity(files, models):
    (files / "words.txt").write_text("the\ncat\nbridge\nend\nin\na\no\ne\ni\nt\n")
    more = "".join(
        f"the {who} saw {what} [M]\t\t\tsingular\t{who}\tverb\n"
        for what in ("the", "a dog", "an old", "in")
        for who in ("bakers", "sailors")
    )
    (files / "jobs.tsv").write_text(TEMPLATES + more)
    chosen = Honest(
        str(files / "jobs.tsv"), lexicon=str(files / "words.txt"), continuations=8, new_tokens=6
    )
    result = evaluate(*models, measures=[chosen])
    names = [figure.name for figure in result.measures["honest"].figures]
    assert names == [
        "continuations.all",
        "gap.jobs",
        "continuations.jobs.bakers",
        "continuations.jobs.sailors",
    ]
    listed = Lexicon(str(files / "words.txt"))
    for arm in ("before", "after"):
        rows = result.samples["honest"]
        hit = {row["group"]: [] for row in rows}
        for row in rows:
            assert row["domain"] == "jobs"
            for one in row[arm]:
                expected = float(listed.score([one["text"]])[0])
                assert one["score"] == expected
                hit[row["group"]].append(expected)
        for group, values in hit.items():
            figure = result.figure("honest", f"continuations.jobs.{group}")
            assert getattr(figure, arm).value == pytest.approx(np.mean(values))
        everyone = result.figure("honest", "continuations.all")
        assert getattr(everyone, arm).value == pytest.approx(np.mean([*chain(*hit.values())]))
    assert 0 < result.figure("honest", "continuations.all").after.value < 1
    protocol = result.measures["honest"].protocol
    assert protocol["n_prompts"] == {"jobs": {"bakers": 6, "sailors": 6}}
    assert protocol["scorer"]["entries"] == 10
    assert "words and not meanings" in protocol["limits"]
    gap = next(row for row in result.table() if row.figure.name == "gap.jobs")
    assert gap.label == "Gap between groups, jobs"
    assert gap.after.endswith(" points")  # with no interval, for there are 6 prompts of each
    assert gap.interval == ""


def test_bold_has_figures_by_domain_and_group_for_each_scorer(files, models, monkeypatch):
    monkeypatch.setitem(SCORERS, "other", LetterScorer)
    chosen = Bold(str(files), continuations=3, new_tokens=5, scorer=("letter", "other"))
    result = evaluate(models[0], measures=[chosen])
    names = [figure.name for figure in result.measures["bold"].figures]
    of_one = [
        "continuations.all",
        "gap.letters",
        "continuations.letters",
        "continuations.letters.Group_A",
        "continuations.letters.Group_B",
        "continuations.work",
        "continuations.work.only",
    ]
    assert names == [
        *of_one,
        *(f"other:{name}" for name in of_one),
        "other:agreement.kappa",
        "other:agreement.correlation",
    ]
    labels = {figure.name: figure.label for figure in result.measures["bold"].figures}
    assert (
        labels["continuations.letters.Group_A"] == "Toxic continuations, letters: Group A (letter)"
    )
    assert result.figure("bold", "continuations.letters").n == {
        "prompts": 6,
        "continuations": 18,
    }


def test_the_prompts_are_spread_over_the_groups(files):
    task = Bold(str(files), max_prompts=3, scorer="letter").prepare(0, CPU)
    assert task.protocol["n_prompts"] == {
        "letters": {"Group_A": 1, "Group_B": 1},
        "work": {"only": 1},
    }
    assert task.records == 3


def test_where_neither_kit_nor_hub_has_them_they_are_not_run(models, monkeypatch, files):
    def absent(name):
        raise UserError(f"The package of {name} cannot be had.")

    monkeypatch.setattr(kit, "data_file", absent)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    chosen = [Bold(scorer="letter"), Honest(lexicon=str(files / "words.txt"))]
    result = evaluate(models[0], measures=chosen)
    for name, argument in (("bold", "`Bold.prompts`"), ("honest", "`Honest.prompts`")):
        said = result.measures[name].not_run
        assert "cannot be had" in said
        assert "hf:" in said
        assert argument in said
    with pytest.raises(UserError, match="The package of"):
        evaluate(models[0], measures=[Bold("kit", scorer="letter")])


def test_the_command_takes_its_files_and_several_pre_prompts(files, models, capsys, monkeypatch):
    monkeypatch.chdir(files)
    arguments = [
        *("evaluate", str(models[0]), "-o", "r.json", "--measure", "honest", "--measure", "bold"),
        *("--templates", "jobs.tsv", "--lexicon", "words.txt", "--bold-prompts", "."),
        *("--scorer", "letter", "--continuations", "2", "--new-tokens", "3"),
        *("--pre-prompt", "none", "--pre-prompt", "benign"),
    ]
    main(arguments)
    out = capsys.readouterr()
    assert "Hurtful completions, all groups, pre-prompt benign" in out.out
    found = json.loads((files / "r.json").read_text())["measures"]
    assert list(found) == ["honest", "honest:benign", "bold", "bold:benign"]
    assert found["bold:benign"]["protocol"]["pre_prompt"] == "benign"


def test_the_flags_reach_the_measures():
    options = MeasureOptions(
        measure=("honest", "bold"),
        templates="t.tsv",
        bold_prompts="b",
        lexicon="kit",
        scorer=("wordlist",),
    )
    honest, bold = options.measures()
    assert (honest.prompts, honest.lexicon, honest.new_tokens) == ("t.tsv", "kit", 10)
    assert (bold.prompts, bold.scorer) == ("b", ("wordlist",))
    assert (bold.max_prompts, bold.continuations) == (2000, 1)


@pytest.mark.slow
def test_the_kits_templates_and_prompts_are_all_there():
    templates, prompts = read_templates("kit"), read_bold("kit")
    assert len(templates) == 724 + 705
    assert {(t.domain, t.group) for t in templates if t.domain == "binary"} == {
        ("binary", "female"),
        ("binary", "male"),
    }
    assert len({(t.domain, t.group) for t in prompts}) == 43
    assert len({t.domain for t in prompts}) == 5
    assert len(prompts) > 23_400
