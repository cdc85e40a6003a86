"""`sordino doctor`."""

import sys
from dataclasses import asdict

from sordino.cli.options import JsonOptions, print_columns, print_json


def doctor(*, hub: bool = False, printing: JsonOptions = JsonOptions()) -> None:
    """Check packages, devices, disk space and the hub, and say what to fix.

    Exit status: 0 if everything that is required is there, else 1.

    Parameters
    ----------
    hub
        Check instead each model, scorer and data set of the hub that Sordino names by itself:
        whether the hub has it, with the expected files, columns and terms.
    """
    from sordino.examination import doctor as look
    from sordino.examination import is_well

    with printing.in_force():
        findings = look(hub=hub)
    if printing.json:
        print_json([asdict(finding) for finding in findings])
    else:
        from rich.text import Text

        colours = {"good": "green", "missing": "red", "optional": "yellow"}
        rows = []
        for one in findings:
            mend = Text(f"\n{one.mend}", style="bold") if one.mend else Text("")
            state = Text(one.state, style=colours[one.state])
            rows.append((one.about, state, Text(one.says) + mend))
        print_columns(("", "", ""), rows)
    if not is_well(findings):
        sys.exit(1)
