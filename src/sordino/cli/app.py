"""The `sordino` command: its subcommands, and how errors are reported."""

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, Group, Parameter, Token, convert
from cyclopts.exceptions import CycloptsError

from sordino.cli import typed
from sordino.cli.encoding import speak_plainly
from sordino.cli.flags import in_flags
from sordino.cli.recipe import expand
from sordino.errors import UserError
from sordino.extras import started_as
from sordino.files import (
    has_working_folder,
    is_disk_full,
    is_memory_full,
    is_refused,
    today,
    user_path,
)
from sordino.progress import tame, worded
from sordino.version import __version__

_FIRST = """\
Sordino turns a concept, such as toxicity, down inside a language model. It finds the neurons that
recognise it, dampens them, writes that into the weights once, and shows what changed.

  sordino run kit:smollm2 -o quiet         a first result, on a small model of the demo kit
  sordino run org/model -o quiet           any causal model: of the hub, a folder or a .gguf file
  sordino run org/model --plan             how long finding will take
  sordino chat org/model quiet             talk to both, side by side

sordino doctor checks this machine; sordino --help lists all commands."""


_DISK_FULL = "The disk is full: free some space and run the same command again."
_NOBODY_READS = 128 + 13
"""The status of a program that SIGPIPE ends."""


def _shown_default(value: Any) -> str | None:
    """A default as the help shows it; None, for nothing, if it is empty or a switch that is off."""
    if value is None or value is False or value in ("", ()):
        return None
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _convert(kind: Any, tokens: Sequence[Token]) -> Any:
    """What the tokens of an option mean; a fraction is refused where it would be rounded.

    Raises:
        UserError: The name of a file is empty, as where a shell's variable is not set. `Path` takes
            it for the working folder.
        ValueError: They are none of that kind, which the caller puts into words.
    """
    if kind in (Path, Path | None, tuple[Path, ...]):
        for token in tokens:
            user_path(token.value)
    if kind in (int, int | None):
        for token in tokens:
            if "." in token.value and not token.value.rstrip("0").endswith("."):
                raise ValueError
    return convert(kind, tokens)


app = App(
    name="sordino",
    version=__version__,
    help=(
        "Turn a concept down inside a language model: find the neurons that recognise it, dampen "
        "them, write that into the weights once, and show what changed.\n\n"
        f"Start with: {started_as()} run kit:smollm2 -o quiet"
    ),
    help_epilogue=(
        "Exit status: 0 done; 1 from diff (something differs) and doctor (something is "
        "missing); 2 usage error, explained in one sentence; 130 interrupted: run the same command "
        "again to continue. Colours respect NO_COLOR and FORCE_COLOR."
    ),
    result_action="return_value",
    default_parameter=Parameter(negative=(), show_default=_shown_default, converter=_convert),
)
# Named by import path, so that `--help` imports none of them.
_GROUPS = {
    "The job, and its steps": {
        "run": "Do the whole job: find, dampen, bake, measure before and after, report.",
        "find": "Measure how well each neuron recognises a concept.",
        "bake": "Write dampening factors into a model's weights, or as an adapter.",
        "evaluate": "Measure a model, or a dampened one against its original.",
    },
    "Comparing rules": {
        "tune": "Find the rule, the linear layers and the strength that remove most in a budget.",
        "study": "Answer a question about one model or several, with figures and a page.",
        "reproduce": "Repeat a published result or a run, and compare the figures.",
    },
    "Using the result": {
        "chat": "Talk to a model and its quiet counterpart, side by side.",
        "push": "Push a dampened model, an adapter or an expertise to the hub, with its card.",
        "replay": "Send the prompts of a log to the original and the dampened server, and compare.",
    },
    "Looking at an edit, and undoing it": {
        "inspect": "Show a model's linear layers, an expertise file, or what was done to a model.",
        "explore": "Write a page that shows every neuron.",
        "diff": "Show what an edit changed between two models or files.",
        "undo": "Restore the original model from a baked folder.",
    },
    "This machine": {
        "doctor": "Check packages, devices, disk space and the hub, and say what to fix.",
        "kit": "Show what the demo kit contains, or download parts of it.",
    },
}
COMMANDS = {name: line for group in _GROUPS.values() for name, line in group.items()}
"""Each command with its line in the list of commands."""
for _title, _commands in _GROUPS.items():
    _group = Group.create_ordered(_title)
    for _name, _line in _commands.items():
        app.command(f"sordino.cli.{_name}:{_name}", name=_name, help=_line, group=_group)
app.command(
    "sordino.cli.completion:install_completion",
    name="--install-completion",
    help="Let the shell complete commands, flags and file names.",
    group=_group,  # the last one: this machine
)


def describe(*names: str) -> None:
    """Let these commands describe themselves by their whole docstrings.

    A command that is registered by its import path has nothing but its line in the list to say.

    Args:
        names: Of `COMMANDS`; they are imported.
    """
    for name in names:
        app[name].help = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exit status: 0 done; 2 a mistake that the user can correct, explained in one sentence on
    standard error; 130 interrupted (the same command continues); 141 nobody reads the output any
    more, and the work may not be done. Anything else is a bug and shows its traceback.
    """
    _replace_closed()
    speak_plainly(sys.stdout, sys.stderr)
    # Threads that spin while they wait take cores from other programs and from one another. Torch
    # reads this when it is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    given = sys.argv[1:] if arguments is None else arguments
    typed.remember(given)
    # Imports leave no garbage, and looking for it takes a fifth of their time. A command lets it
    # be collected again when it begins its work.
    gc.disable()
    done = False
    try:
        today()  # libraries end in a traceback if SOURCE_DATE_EPOCH is not a number
        if given:
            with worded(in_flags):
                words = expand(given)
                describe(*(word for word in words[:1] if word in COMMANDS))
                app(words, exit_on_error=False, print_error=False)
        else:
            print(_FIRST)
            if (here := started_as()) != "sordino":
                print(f"\nHere, for sordino type: {here}")
        done = True
        sys.stdout.flush()
    except UserError as error:
        _fail(in_flags(str(error)))
    except CycloptsError as error:
        _fail(f"{' '.join(str(error).split())} See {started_as()} --help.")
    except SystemExit as ended:
        lost = _write_out_or_drop()
        if lost is not None and is_disk_full(lost):
            _fail(_DISK_FULL)
        # Rich ends the process with status 1 there.
        if isinstance(ended.__context__, BrokenPipeError):
            sys.exit(_NOBODY_READS)
        raise
    except KeyboardInterrupt:
        print("sordino: interrupted; run the same command again to continue.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        _write_out_or_drop()
        sys.exit(0 if done else _NOBODY_READS)
    except (MemoryError, RuntimeError) as error:
        if not is_memory_full(error):
            raise
        _fail(
            "Memory ran out. Reduce --batch-tokens, or pass --stream to find, and run the same "
            "command again. find --plan estimates the memory needed."
        )
    except OSError as error:
        if is_disk_full(error):
            place = f" writing {error.filename}" if error.filename else ""
            _fail(_DISK_FULL.replace(":", f"{place}:", 1))
        if isinstance(error, FileNotFoundError) and not has_working_folder():
            _fail("The working folder has been deleted: change to another one.")
        if not is_refused(error):
            raise
        place = str(error.filename) if error.filename else "A file"
        _fail(
            f"{place} can be neither read nor written ({error.strerror}): check its permissions, "
            "its disk and the limits of this shell (ulimit -a)."
        )
    finally:
        gc.enable()


def _fail(message: str) -> None:
    print(f"sordino: {tame(message)}", file=sys.stderr)
    _write_out_or_drop()
    sys.exit(2)


def _replace_closed() -> None:
    """Let streams that were closed from the beginning be the null device.

    Otherwise the next file that is opened gets their number, and what is meant for standard error
    is printed to standard output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _write_out_or_drop() -> OSError | None:
    """Write what is left for standard output; drop it if that fails, or Python tries again.

    Returns:
        Why it failed.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
