"""Find and fill in the packages' own templates."""

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sordino.progress import tame


def environment(package: str, *, html: bool = True) -> Environment:
    """The templates of a package.

    Args:
        package: Its import path; the templates are in its `templates/` folder.
        html: Whether they are HTML, in which values are escaped, and controls in them replaced. In
            Markdown they are not, and `sordino.markdown.line` escapes foreign text.
    """
    made = Environment(
        loader=PackageLoader(package),
        autoescape=html,  # noqa: S701 (see above)
        finalize=_tamed if html else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
    )
    made.policies["json.dumps_function"] = _json  # of the filter tojson
    return made


def _tamed(value: Any) -> Any:
    """A value of a page; foreign text as `tame` makes it, and tabs stay."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "\t".join(map(tame, value.replace("\r\n", "\n").split("\t")))


def _json(value: Any, **options: Any) -> str:
    return json.dumps(_tamed_inside(value), **options)


def _tamed_inside(value: Any) -> Any:
    if isinstance(value, dict):
        return {_tamed(name): _tamed_inside(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_tamed_inside, value)]
    return _tamed(value)


def own_file(package: str, name: str) -> Markup:
    """A style or a script from a package's `templates/` folder; not escaped, since it is ours."""
    path = files(package) / "templates" / name
    return Markup(path.read_text(encoding="utf-8"))  # noqa: S704
