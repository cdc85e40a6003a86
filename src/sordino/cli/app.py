"""The `sordino` command: its subcommands, and what becomes of errors."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from sordino.errors import UserError
from sordino.files import is_disk_full
from sordino.version import __version__

app = App(
    name="sordino",
    version=__version__,
    help=(
        "Turn a concept down inside a language model: find the neurons that recognise it, dampen "
        "them, write that into the weights once, and show what changed.\n\n"
        "Start with: sordino run kit:smollm2 -o quiet"
    ),
    result_action="return_value",
)
# Named by import path, so that `--help` does not wait for torch.
app.command("sordino.cli.run:run", name="run")
app.command("sordino.cli.find:find", name="find")
app.command("sordino.cli.bake:bake", name="bake")
app.command("sordino.cli.evaluate:evaluate", name="evaluate")
app.command("sordino.cli.inspect:inspect", name="inspect")
app.command("sordino.cli.kit:kit", name="kit")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exit status: 0 done; 2 something that the user can mend, said in one sentence on standard
    error; 130 interrupted (the same command goes on from there). Anything else is a bug and shows
    its traceback.
    """
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except UserError as error:
        _fail(str(error))
    except CycloptsError as error:
        _fail(f"{' '.join(str(error).split())} See sordino --help.")
    except KeyboardInterrupt:
        print("sordino: interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read standard output has gone; there is nothing left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if not is_disk_full(error):
            raise
        place = f" writing {error.filename}" if error.filename else ""
        _fail(f"The disk is full{place}: free some space and run the same command again.")


def _fail(message: str) -> None:
    print(f"sordino: {message}", file=sys.stderr)
    sys.exit(2)
