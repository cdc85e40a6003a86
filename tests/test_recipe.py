"""Recipes: what a run was told, in a file that any run can take."""

import json
import os
import re
import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import sentences
from families import tiny_folder
from sordino.cli.app import app, main
from sordino.cli.recipe import expand
from sordino.errors import UserError
from sordino.options.groups import (
    ConceptOptions,
    ModelOptions,
    OwnOptions,
    RunRuleOptions,
    SweepOptions,
)
from sordino.options.job import Job
from sordino.options.measures import MeasureOptions, RunMeasureOptions, of_other_measures
from sordino.options.recipe import defaults, read, recipe_of, schema

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=9)


def parsed(arguments):
    _, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    return bound.arguments


# Names of the kit, so that a recipe is complete without a model or a hub.
MEASURED = st.lists(
    st.sampled_from(["toxicity", "honest", "bold", "refusals", "perplexity", "coverage", "piqa"]),
    unique=True,
).map(tuple)
LEFT_OUT = {
    *("negatives", "label", "text-column", "label-column", "positive", "concept-config"),
    *("concept-revision", "split", "max-per-class", "set", "measure-set", "preset", "turns"),
    *("toxic-label", "draws", "judge-refusal", "refusal-judge", "revision", "sites"),
    *("batch-tokens", "stratify", "causal", "protect", "stream", "system"),
}
"""Options that a recipe leaves out, for they are nothing by default."""


_VARIED = {"max_prompts", "temperature"}


def _of_what_is_taken(how):
    taken = tuple(one for one in how.measure_set if one.partition(".")[0] in how.measure)
    others = of_other_measures(how.measure or ("toxicity",)) - {"preset", "texts"}
    preset = None if "continuations" in others else how.preset
    return replace(how, measure_set=taken, preset=preset, **dict.fromkeys(_VARIED & others))


@settings(max_examples=30)
@given(
    st.builds(ConceptOptions, concept=TEXT, balance=st.booleans()),
    st.builds(
        RunRuleOptions,
        intervention=st.sampled_from(["aura", "contrast"]),  # a run writes the rule that it used
        strength=st.floats(0, 2),
        set=st.sampled_from([(), ("rows=3",)]),
    ),
    st.builds(
        RunMeasureOptions,
        measure=MEASURED,
        max_prompts=st.none() | st.integers(1, 9),
        temperature=st.none() | st.just(0.0) | st.floats(1e-10, 2),
        measure_set=st.sampled_from([(), ("bold.max-prompts=7", "coverage.max-texts=3")]),
        preset=st.sampled_from([None, "act"]),
    ).map(_of_what_is_taken),
    st.builds(ModelOptions, device=TEXT, sites=st.none() | TEXT),
    st.builds(SweepOptions, stream=st.none() | st.booleans(), moments=st.booleans()),
    st.integers(0, 2**31),
)
def test_a_recipe_is_read_as_it_was_given(
    tmp_path_factory, concept, rule, how, opening, sweep, seed
):
    text = recipe_of({"model": "m", "seed": seed}, concept, rule, how, opening, sweep)
    assert tomllib.loads(text)["model"] == "m"
    file = tmp_path_factory.mktemp("recipe") / "r.toml"
    file.write_text(text, encoding="utf-8")
    found = parsed(expand(["run", "--recipe", str(file), "-o", "x"]))
    for name, value in (
        ("concept", concept),
        ("rule", rule),
        ("how", how),
        ("opening", opening),
        ("sweep", sweep),
    ):
        assert found.get(name, type(value)()) == value
    assert found["seed"] == seed
    job = Job.of_recipe(read(file))
    without = OwnOptions(own=False)  # as a run did that wrote nothing of own samples
    assert job == Job("m", seed, (), concept, rule, how, opening, sweep, own=without)
    # What a run writes is the same run, and states what was a default.
    again = Job.of_recipe(tomllib.loads(job.recipe()))
    assert again.recipe() == job.recipe()
    assert again.how.measures() == job.how.measures()
    assert (again.decided.intervention, again.decided.strength, again.decided.divergence) == (
        job.decided.intervention,
        job.decided.strength,
        job.decided.divergence,
    )
    assert replace(again, rule=rule, how=how) == job


def test_a_recipe_of_a_run_leaves_nothing_to_a_default():
    """Neither to an option's nor to a measure's or a rule's own."""
    every = ("toxicity", "ordinary-toxicity", "diversity", "honest", "bold", "refusals")
    every += ("perplexity", "toxic-perplexity", "divergence", "coverage", "zero-shot", "piqa")
    job = Job(
        "m",
        rule=RunRuleOptions("contrast", strength=1),
        how=RunMeasureOptions(measure=every),
        own=OwnOptions(own=True),
    )
    stated = tomllib.loads(job.recipe(own=job.own.plan()))
    # Who gives one of these a default must also say in `_OF_BEFORE` what recipes from before meant.
    assert {key for key, value in defaults().items() if value in (None, "", ())} == LEFT_OUT | {
        *("intervention", "measure", "divergence", "tasks", "questions", "max-texts", "own"),
        *("max-prompts", "continuations", "new-tokens", "temperature", "top-k", "top-p"),
        "repetition-penalty",
    }
    by_measure = {"max-texts"}  # for coverage has no limit
    nothing = LEFT_OUT - {"set", "measure-set"} | {"divergence"}
    assert defaults().keys() - stated.keys() == nothing | by_measure
    assert stated["set"] == ["budget=0.05", "amplify=0.0", "evidence=all"]
    again = Job.of_recipe(stated).how
    for one, other in zip(job.how.measures(), again.measures(), strict=True):
        assert one == other
        flags = {f"{one.name}.{key}={value}" for key, value in stated.items()}
        flags |= {*again.measure_set}
        for field, option in one.options.items():
            value, flag = getattr(one, field), option.replace("_", "-")
            if isinstance(value, int | float):
                assert f"{one.name}.{flag}={value}" in flags
    assert "divergence" in tomllib.loads(Job("m").recipe())


@pytest.mark.parametrize(
    ("typed", "gone"),
    [
        (("--max-prompts", "5"), {"max-prompts": [], "measure-set": ["refusals.new-tokens=64"]}),
        (("--new-tokens=5",), {"new-tokens": [], "measure-set": ["refusals.max-prompts=200"]}),
        (
            ("--preset", "quick"),
            {"max-prompts": [], "continuations": [], "new-tokens": [], "measure-set": []},
        ),
        (("--intervention=damp", "--set", "k=3"), {"intervention": [], "set": []}),
        (("--intervention", "damp"), {"intervention": [], "set": []}),
        (("--divergence", "0.1"), {"set": ["amplify=0.0", "evidence=all"], "divergence": []}),
        (
            ("--measure-set=refusals.max-prompts=9",),
            {"measure-set": ["refusals.new-tokens=64"]},
        ),
        (
            ("--measure", "refusals"),  # nothing of toxicity's is left
            {"measure": [], "continuations": [], "temperature": [], "scorer": []},
        ),
    ],
)
def test_what_is_typed_replaces_what_a_recipe_states_of_the_same(tmp_path, typed, gone):
    file = tmp_path / "r.toml"
    how = RunMeasureOptions(measure=("toxicity", "refusals"))
    file.write_text(Job("m", rule=RunRuleOptions("contrast", strength=1), how=how).recipe())
    whole, left = (
        expand(["run", f"--recipe={file}", "-o", "x", *more])[2:] for more in ((), typed)
    )
    expected = [one for one in whole if one.removeprefix("--").partition("=")[0] not in gone]
    expected += [f"--{key}={value}" for key, values in gone.items() for value in values]
    assert sorted(left) == sorted([*expected, *typed])


@pytest.mark.parametrize(
    ("typed", "own"),
    [
        ((), True),
        (("--no-own",), False),
        (("--intervention", "contrast"), True),
        (("--intervention", "aura"), False),
        (("--intervention", "aura", "--own"), True),
    ],
)
def test_a_typed_rule_that_takes_no_own_samples_leaves_those_of_a_recipe_out(tmp_path, typed, own):
    file = tmp_path / "r.toml"
    plan = OwnOptions().settings()
    file.write_text(Job("m", rule=RunRuleOptions("contrast")).recipe(own=plan))
    assert Job.of_recipe(read(file)).own.own is True
    assert parsed(expand(["run", f"--recipe={file}", "-o", "x", *typed]))["own"].own is own


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("refusals", "not of the form MEASURE.OPTION=VALUE"),
        ("refusals.max-prompts=", "not of the form"),
        ("refusal.max-prompts=3", "did you mean refusals"),
        ("refusals.texts=kit", "it has: max-prompts, new-tokens, "),
        ("speed.max-texts=3", "it has: none"),
        ("refusals.max-prompts=many", "valid integer"),
        ("refusals.max-prompts=0", "at least 1"),
    ],
)
def test_a_setting_of_one_measure_that_is_none(given, said):
    measured = RunMeasureOptions(measure=("refusals", "toxicity"), measure_set=(given,))
    with pytest.raises(UserError, match=said):
        measured.measures()


def test_a_setting_of_one_measure_is_that_of_no_other():
    plain = RunMeasureOptions(measure=("toxicity", "zero-shot"), max_prompts=7)
    given = ("toxicity.max-prompts=3", "toxicity.top-p=0.5", "zero-shot.tasks=kit_siqa,kit_piqa")
    [one, asked], [other, _] = replace(plain, measure_set=given).measures(), plain.measures()
    assert one == replace(other, max_prompts=3, top_p=0.5)
    assert asked.tasks == ("kit_siqa", "kit_piqa")


def test_a_setting_of_a_measure_that_is_not_taken_is_refused():
    given = ("toxicity.max-prompts=3",)
    with pytest.raises(UserError, match="toxicity as well"):
        MeasureOptions(measure=("refusals",), measure_set=given).measures()
    with pytest.raises(UserError, match="toxicity as well"):
        RunMeasureOptions(measure=("refusals",), measure_set=given).measures()
    assert RunMeasureOptions(measure_set=("perplexity.max-texts=3",)).measures()  # by default


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"measure": ("diversity",), "prompts": "mine.txt"},
            "`prompts` decides nothing about what",
        ),
        ({"measure": ("perplexity",), "scorer": ("wordlist",)}, "what is measured (perplexity); "),
        ({"measure": ("perplexity", "piqa"), "continuations": 3}, "it is for bold, diversity, h"),
        ({"measure": ("piqa",), "preset": "quick"}, "`preset` decides nothing"),
        ({"measure": ("toxicity",), "shots": 5}, "zero-shot"),
        ({"measure": ("toxicity",), "texts": "mine.txt"}, "`texts`"),
    ],
)
def test_a_setting_that_no_measure_has_that_is_taken_is_said(given, said, capsys):
    """Whoever gives prompts of their own would take the figures for those of these prompts."""
    for kind in (MeasureOptions, RunMeasureOptions):
        assert kind(**given).measures(sizing=False)
        assert said in capsys.readouterr().err
    assert MeasureOptions(measure=("toxicity",), texts="mine.txt").measures(sizing=True)
    assert MeasureOptions(measure=("refusals",), preset="reply").measures()
    assert capsys.readouterr().err == ""


def test_a_switch_can_be_off_in_a_recipe(tmp_path):
    file = tmp_path / "r.toml"
    switches = [key for key, value in defaults().items() if isinstance(value, bool)]
    assert {"thinking", "balance"} <= {*switches}
    for key in ("own", *switches):
        file.write_text(f'model = "m"\n{key} = false')
        arguments = parsed(expand(["run", f"--recipe={file}", "-o", "y"]))
        groups = [vars(one) for one in arguments.values() if is_dataclass(one)]
        assert not any(group.get(key.replace("-", "_")) for group in groups)


def test_what_is_typed_goes_before_the_recipe(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('model = "a"\nseed = 3\nbalance = false\nbeside = ["aura", "damp"]')
    typed = ["run", "b", f"--recipe={file}", "--seed", "4", "--balance", "-o", "y"]
    assert expand(typed) == [
        *("run", "b", "--seed", "4", "--balance", "-o", "y", "--beside=aura", "--beside=damp")
    ]
    assert expand(["find", "m", "--recipe", "x"]) == ["find", "m", "--recipe", "x"]


@pytest.mark.parametrize("second", [["--recipe", "b.toml"], ["--recipe=b.toml"], ["--recipe"]])
def test_two_recipes_are_refused(second, tmp_path, capsys):
    file = tmp_path / "a.toml"
    file.write_text('model = "m"\n')
    with pytest.raises(SystemExit) as ended:
        main(["run", "--recipe", str(file), "-o", "x", *second])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "sordino: --recipe is given 2 times: give one recipe.\n"


def test_a_byte_order_mark_changes_nothing(tmp_path, capsys):
    """Also not whether a run wrote it, which decides what it leaves out."""
    plain, marked = tmp_path / "plain.toml", tmp_path / "marked.toml"
    plain.write_text('# sordino run --recipe THIS_FILE -o OUTPUT\nmodel = "m"\nseed = 0\n')
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert read(marked) == read(plain)
    assert capsys.readouterr().err.count("from before") == 2


def test_a_recipe_of_a_run_from_before_means_what_that_run_did(tmp_path, capsys):
    """Which did AurA by default and wrote no default into its recipe; a typed rule is still it."""
    file = tmp_path / "r.toml"
    file.write_text('# sordino run --recipe THIS_FILE -o OUTPUT\nmodel = "m"\nseed = 0\n')
    job = Job.of_recipe(read(file))
    assert (job.decided.intervention, job.decided.divergence, job.chat.chat) == (
        "aura",
        None,
        "off",
    )
    assert "from before" in capsys.readouterr().err
    assert "--intervention=aura" in expand(["run", f"--recipe={file}", "-o", "x"])
    typed = expand(["run", f"--recipe={file}", "-o", "x", "--intervention", "damp"])
    assert "--intervention=aura" not in typed
    # From before there were own samples, and from after.
    for written, meant in (('intervention = "contrast"\n', False), ("own = true\n", True)):
        file.write_text(f'# sordino run --recipe THIS_FILE -o OUTPUT\nmodel = "m"\n{written}')
        assert Job.of_recipe(read(file)).own.own is meant
    # What a run writes today says its rule, and a recipe by hand has today's defaults.
    capsys.readouterr()
    file.write_text(Job("m").recipe())
    assert Job.of_recipe(read(file)).rule == Job("m").rule.stated()
    file.write_text('model = "m"\n')
    assert Job.of_recipe(read(file)).decided == Job("m").decided
    assert Job.of_recipe(read(file)).own == OwnOptions()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        ("seed = ", "cannot be read as TOML"),
        ("[table]\na = 1", "table"),
        ("[seed]\na = 1", "seed"),
        ('wrong = 1\nmodel = "m"', "wrong"),
        ('model = "m"\nmax_prompts = 3', "max-prompts"),
        ('model = "m"\nmeasure = []', "measure is an empty list"),
        ('model = "m"\nforce = true', "force"),
        ('model = "m"\noutput = "x"', "output"),
        ('model = "m"\njson = true', "json"),
        ('model = "--force"', "model"),
        ("seed = true", "seed"),
        ('seed = "3"', "seed"),
        ("seed = 1.5", "seed"),
        ("seed = -1", "seed"),
        ("seed = " + "9" * 30, "seed"),
        ("seed = " + "9" * 5000, "cannot be read as TOML"),
        ("concept = 5", "concept"),
        ("concept = 2024-01-01", "concept"),
        ("negatives = 2024-01-01T00:00:00Z", "negatives"),
        ('prompts = ["a", "b"]', "prompts"),
        ('measure = ["toxicity", 1]', "measure.*1"),
        ("strength = nan", "strength"),
        ("strength = inf", "strength"),
        ("max-prompts = true", "max-prompts"),
        ("balance = 1", "balance"),
        ('preset = "fast"', "preset"),
        ("set = " + "[" * 5000 + "]" * 5000, "cannot be read as TOML|set"),
        (b"model = '\xff'", "cannot be read as TOML"),
        (b"model = 'm\x00'", "cannot be read as TOML"),
    ],
)
def test_recipes_that_are_none(tmp_path, capsys, content, said):
    file = tmp_path / "r.toml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as ended:
        main(["run", "--recipe", str(file), "-o", "x"])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(said, line)
    assert str(file) in line


def test_a_recipe_that_is_a_folder_or_a_pipe(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.toml")
    for file in (tmp_path, tmp_path / "pipe.toml"):
        with pytest.raises(SystemExit) as ended:
            main(["run", f"--recipe={file}", "-o", "x"])
        assert ended.value.code == 2
        assert "is not a file" in capsys.readouterr().err


TOML = st.recursive(
    st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("a"), inner, max_size=1),
    max_leaves=4,
)


def written(value):
    """A value as TOML."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {written(of)}' for key, of in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


@given(st.sampled_from(sorted(schema()["properties"])) | TEXT, TOML)
def test_no_value_of_any_option_is_anything_but_read_or_refused(tmp_path_factory, key, value):
    file = tmp_path_factory.mktemp("recipe") / "r.toml"
    file.write_text(f"{json.dumps(key, ensure_ascii=False)} = {written(value)}", encoding="utf-8")
    try:
        recipe = read(file)
    except UserError as error:
        assert str(file) in str(error)  # noqa: PT017
        return
    assert recipe == {key: value}
    assert key in schema()["properties"]
    for one in value if isinstance(value, list) else [value]:
        assert isinstance(one, str | int | float)


def test_a_recipe_without_a_file(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "m", "--recipe"])
    assert ended.value.code == 2
    assert "--recipe" in capsys.readouterr().err


def test_the_schema_in_the_docs_is_that_of_the_options():
    file = Path(__file__).parents[1] / "docs" / "recipe.schema.json"
    assert json.loads(file.read_text()) == json.loads(json.dumps(schema()))
    names = {field.name.replace("_", "-") for field in fields(SweepOptions)}
    assert names <= schema()["properties"].keys()


def test_a_run_leaves_a_recipe_that_does_it_again(tmp_path, monkeypatch):
    tiny_folder("llama", tmp_path).rename(tmp_path / "tiny")
    for name, lines in {
        "yes.txt": sentences(24, 1),
        "no.txt": sentences(24, 2),
        "prompts.txt": sentences(4, 3, longest=5),
        "prose.txt": sentences(6, 5, longest=20),
    }.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    main(
        [
            *("run", "tiny", "--concept", "yes.txt", "--negatives", "no.txt", "-o", "a"),
            *("--prompts", "prompts.txt", "--texts", "prose.txt", "--strength", "0.5"),
            *("--intervention", "aura"),
            *("--scorer", "alt-profanity-check", "--continuations", "2", "--new-tokens", "4"),
        ]
    )
    main(["run", "--recipe", "a/sordino/recipe.toml", "-o", "b"])
    for name in ("model.safetensors", "sordino/recipe.toml", "sordino/evaluation.samples.jsonl"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
