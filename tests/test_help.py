"""The help of the command line says all that the commands' docstrings say."""

import inspect
import re
from importlib import import_module

import pytest

from sordino.cli.app import COMMANDS, app, describe
from sordino.studies import STUDIES
from sordino.studies.rivals import RIVALS


def function(name):
    return getattr(import_module(f"sordino.cli.{name}"), name)


def described(name, capsys):
    """What `sordino NAME --help` prints, in one line."""
    describe(name)
    app([name, "--help"])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_describes_itself_as_the_list_does_and_in_full(name, capsys):
    first, *rest = inspect.getdoc(function(name)).partition("\nParameters\n")[0].split("\n\n")
    assert first == COMMANDS[name]
    shown = re.sub(r"[•`]", "", described(name, capsys))
    for words in (first, *(" ".join(part.split()) for part in rest)):
        assert re.sub(r"(?:^|(?<= ))- |`", "", words) in re.sub(r" +", " ", shown), words


def test_the_help_of_study_names_all_rivals():
    typed = inspect.getsource(import_module("sordino.cli.study").PlanOptions)
    [named] = re.findall(r"For rivals: [^(]*\(all of ([^)]*)\)", typed)
    assert tuple(re.split(r",\s+", named)) == RIVALS


def test_the_help_of_study_names_all_studies():
    named = re.findall(r"^ *- ([\w-]+): ", inspect.getdoc(function("study")), re.MULTILINE)
    assert set(named) == set(STUDIES)
    assert len(named) == len(STUDIES)
