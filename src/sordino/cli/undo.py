"""`sordino undo`."""

from dataclasses import asdict
from pathlib import Path

from sordino.cli.options import Output, OutputOptions, print_json, print_lines
from sordino.files import counted


def undo(
    folder: Path,
    /,
    *,
    output: Output,
    partly: bool = False,
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Restore the original model from a baked folder.

    The factors are divided out. If the edit's rounding mapped several weights to one value,
    division cannot recover which it was; such weights are counted.

    Parameters
    ----------
    folder
        A folder that Sordino baked.
    output
        The folder to write.
    partly
        Restore the other neurons even if some were multiplied by 0, which cannot be undone.
    """
    from sordino.edits import undo as undo_edit

    with printing.in_force():
        undone = undo_edit(folder, output, partly=partly, force=printing.force)
    if printing.json:
        print_json({"output": str(output), **asdict(undone)})
        return
    print_lines(f"{counted(undone.weights, 'weight')} of {undone.original} restored")
    if undone.uncertain:
        print(
            f"{undone.uncertain:,} of them ({undone.uncertain / undone.weights:.2%}) may be off in "
            "their last place, since the edit's rounding mapped several values to one"
        )
    if undone.lost:
        lost = counted(sum(undone.lost.values()), "neuron")
        print(f"multiplied by 0 and still 0: {lost} of {counted(len(undone.lost), 'site')}")
    if undone.same is not None:
        print(
            "the weight files are the original's"
            if undone.same
            else "the weight files differ from the original's"
        )
    if undone.missing:
        missing = ", ".join(undone.missing)
        print_lines(f"missing, since baking left them out: {missing}")
    print(f"written: {output}")
