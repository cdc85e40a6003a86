"""`sordino push`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sordino.cli.options import JsonOptions, print_json, print_lines


def push(
    subject: Path,
    repository: str,
    /,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: Annotated[str | None, Parameter(name=["--commit-message", "-m"])] = None,
    license: str | None = None,
    base_model: str | None = None,
    samples: bool = False,
    dry_run: bool = False,
    printing: JsonOptions = JsonOptions(),
) -> None:
    """Push a dampened model, an adapter or an expertise to the hub, with its card.

    The repository is created if there is none. Large files are uploaded one by one and become
    visible in one commit at the end; to continue a failed push, run the same command again. Sizes
    and checksums are compared at the end. Only files that Sordino wrote and files that a model
    consists of are pushed; the others are listed. Folders of this machine and addresses of servers
    are removed from records, recipe and card, and the page is rendered again without sentences and
    continuations. The token is HF_TOKEN's, or that of `hf auth login`.

    Parameters
    ----------
    subject
        A folder or .gguf file that sordino wrote, or an expertise or dampening file.
    repository
        Its name on the hub, org/name.
    private
        Make the repository private.
    revision
        A branch, created from main if it does not exist.
    commit_message
        The commit's message.
    license
        The original's licence, by the hub's name for it (apache-2.0, gemma, other, …), if its card
        does not name it.
    base_model
        The hub's name of the original, if it was opened from a folder, a file or the kit.
    samples
        Also push the continuations (evaluation.samples.jsonl), which show harmful text.
    dry_run
        Only show what would be pushed, and what would be left out.
    """
    from sordino.files import counted, printable
    from sordino.sharing import push as push_to_hub

    with printing.in_force():
        pushed = push_to_hub(
            subject,
            repository,
            private=private,
            revision=revision,
            message=commit_message,
            license=license,
            base_model=base_model,
            samples=samples,
            dry_run=dry_run,
        )
    if printing.json:
        print_json(asdict(pushed))
        return
    if dry_run:
        for name, size in pushed.files.items():
            print_lines(f"{size:>15,}  {name}")
    for name, reason in pushed.left_out.items():
        print_lines(f"left out: {name} ({reason})")
    for name, how in pushed.changed.items():
        print_lines(f"changed: {name} ({how})")
    if pushed.older:
        print_lines(f"already there: {', '.join(map(printable, pushed.older))}")
    count, size = len(pushed.files), sum(pushed.files.values())
    if dry_run:
        print(f"nothing was pushed; it would be {counted(count, 'file')}, {size:,} bytes")
    else:
        print(
            f"pushed and checked: {counted(count, 'file')}, {size:,} bytes, commit {pushed.commit}"
        )
        print(pushed.address + (f"/tree/{revision}" if revision else ""))
