"""`sordino doctor`."""

import sys
from dataclasses import asdict

from sordino.cli.options import JsonOptions, print_json


def doctor(*, hub: bool = False, printing: JsonOptions = JsonOptions()) -> None:
    """Check packages, devices, disk space, caches and the hub, and say how to fix what is missing.

    Exit status: 0 if everything that is required is there, else 1.

    Parameters
    ----------
    hub
        Look instead at each model, scorer and data set that Sordino takes from the hub by itself:
        whether the hub has it with the files, columns and terms that are expected.
    """
    from sordino.examination import doctor as look
    from sordino.examination import is_well

    with printing.in_force():
        findings = look(hub=hub)
    if printing.json:
        print_json([asdict(finding) for finding in findings])
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        colours = {"good": "green", "missing": "red", "optional": "yellow"}
        table = Table(box=None, pad_edge=False, show_header=False)
        for _ in range(3):
            table.add_column(overflow="fold")  # a command is shown whole
        for one in findings:
            mend = Text(f"\n{one.mend}", style="bold") if one.mend else Text("")
            table.add_row(
                one.about, Text(one.state, style=colours[one.state]), Text(one.says) + mend
            )
        Console().print(table)
    if not is_well(findings):
        sys.exit(1)
