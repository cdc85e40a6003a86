"""`sordino undo`."""

from dataclasses import asdict
from pathlib import Path

from sordino.cli.options import Output, OutputOptions, print_json, print_lines


def undo(
    folder: Path,
    /,
    *,
    output: Output,
    partly: bool = False,
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Restore the original model from a baked folder, by dividing the factors out.

    If the edit's rounding mapped two weights to one value, no division can tell which it was; such
    weights are counted.

    Parameters
    ----------
    folder
        A folder that Sordino baked.
    output
        The folder to write.
    partly
        Leave neurons that were multiplied by 0 as they are, and restore the others.
    """
    from sordino.edits import undo as undo_edit

    with printing.in_force():
        undone = undo_edit(folder, output, partly=partly, force=printing.force)
    if printing.json:
        print_json({"output": str(output), **asdict(undone)})
        return
    print_lines(f"{undone.weights:,} weights of {undone.original} brought back")
    if undone.uncertain:
        print(
            f"{undone.uncertain:,} of them ({undone.uncertain / undone.weights:.2%}) may be off in "
            "their last place, where the edit's rounding made one value of several"
        )
    if undone.lost:
        count = sum(undone.lost.values())
        print(f"{count:,} neurons of {len(undone.lost)} sites were multiplied by 0 and stay so")
    if undone.same is not None:
        print(
            "the weight files are the original's"
            if undone.same
            else "the weight files are not the original's to the byte"
        )
    if undone.missing:
        missing = ", ".join(undone.missing)
        print_lines(f"not here, since they were left out when it was baked: {missing}")
    print(f"written: {output}")
