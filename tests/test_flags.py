"""The library speaks of arguments, and the command line of flags."""

import ast
import re

from pages import ROOT
from sordino.cli.app import app
from sordino.cli.flags import in_flags
from test_docs import FOREIGN_FLAGS, flags

SOURCE = ROOT / "src/sordino"
ERRORS = ("UserError", "NotRun", "NotThereError", "NoSuchLabelError")
# What is no message: commands to type, and words for pages and for the terminal alone.
NOT_MESSAGES = {
    "extras.py",  # other programs' commands
    "examination.py",  # what doctor prints
    "folders.py",  # a recipe's first line
    "jobs/tune.py",  # the command for the next step
    "options/groups.py",  # the help of flags
    "options/measures.py",
    "options/recipe.py",  # a recipe's first line
    "pipeline.py",  # commands for the next step
    "sharing/bundle.py",
    "report/explorer/exploring.py",
    "report/outcome.py",
    "report/text.py",
}
FLAG = re.compile(r"(?<![\w-])--[a-z{][a-z-]*|(?<![\w-])-o(?= |$)")
ARGUMENT = re.compile(r"(?:setting )?`(?:\w+\.)?[a-z][a-z_]*(?:=[^`]*)?`")


def modules():
    """Every module of the library, by its path, without the command line's."""
    for file in sorted(SOURCE.rglob("*.py")):
        name = file.relative_to(SOURCE).as_posix()
        if not name.startswith("cli/"):
            yield name, ast.parse(file.read_text(encoding="utf-8"))


def texts(node):
    """The constant texts in a piece of code, docstrings aside."""
    docstrings = {id(one.value) for one in ast.walk(node) if isinstance(one, ast.Expr)}
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and id(one) not in docstrings:
            yield one.value if isinstance(one.value, str) else ""


def messages(node):
    """What the errors say that a piece of code makes."""
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and getattr(one.func, "id", "") in ERRORS:
            for argument in one.args:
                shown = ast.unparse(argument) if isinstance(argument, ast.JoinedStr) else ""
                yield shown or "".join(texts(argument))


def test_no_message_outside_the_command_line_names_a_flag():
    known = flags(app) - FOREIGN_FLAGS
    found = {
        (name, flag)
        for name, tree in modules()
        for text in [*messages(tree), *(() if name in NOT_MESSAGES else texts(tree))]
        for flag in FLAG.findall(text)
        if flag in known | {"--{"}
    }
    assert found == set()


def test_every_argument_that_a_message_names_has_its_flag():
    known = flags(app) | {"ORIGINAL", "QUIET", "--set"}
    wrong = {
        (name, said)
        for name, tree in modules()
        for text in messages(tree)
        for named in ARGUMENT.findall(text)
        if (said := in_flags(named)) != named and said.split()[0] not in known
    }
    assert wrong == set()


def test_flags_of_messages():
    assert in_flags("leave `load_concept.revision` out") == "leave --concept-revision out"
    assert in_flags("`README.md` and `config.json` stay") == "`README.md` and `config.json` stay"
    assert in_flags(r"give `sites='\.mlp\.'`") == r"give --sites '\.mlp\.'"
    assert in_flags("with `stream=False`, and `force=True`") == "with --no-stream, and --force"
    assert in_flags("pass `original` and `quiet`") == "pass ORIGINAL and QUIET"
