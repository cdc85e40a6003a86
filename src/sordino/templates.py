"""Find and fill in the packages' own templates."""

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def environment(package: str, *, html: bool = True) -> Environment:
    """The templates of a package.

    Args:
        package: Its import path; the templates are in its `templates/` folder.
        html: Whether they are HTML, in which values are escaped. In Markdown they are not, and
            `sordino.markdown.line` escapes foreign text.
    """
    return Environment(
        loader=PackageLoader(package),
        autoescape=html,  # noqa: S701 (see above)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
    )


def own_file(package: str, name: str) -> Markup:
    """A style or a script from a package's `templates/` folder; not escaped, since it is ours."""
    path = files(package) / "templates" / name
    return Markup(path.read_text(encoding="utf-8"))  # noqa: S704
