"""`sordino inspect`."""

from sordino.cli.options import (
    JsonOptions,
    print_json,
    print_lines,
)
from sordino.errors import UserError
from sordino.options.groups import InterventionOptions


def inspect(
    subject: str,
    /,
    *,
    revision: str | None = None,
    sites: str | None = None,
    rule: InterventionOptions = InterventionOptions(),
    printing: JsonOptions = JsonOptions(),
) -> None:
    """Show a model's linear layers, an expertise file, or what was done to a model.

    For an expertise file it also shows what the intervention would do at the given strength.

    Parameters
    ----------
    subject
        A model, an expertise or dampening file (hf:org/name for one of the hub), or a folder or
        .gguf file that Sordino wrote.
    revision
        Branch, tag or commit, for a model on the hub.
    sites
        Which linear layers of a model are shown: attention (also attention's), all (every one
        except routers), norms (the gains of norms between a block and the residual stream), or a
        regular expression that their module paths must match.
    """
    from sordino.jobs.inspect import inspect as look

    with printing.in_force():
        if rule.divergence is not None:
            raise UserError(
                "--divergence needs a model to measure on: leave it out, or set the rule's own "
                "size with --set."
            )
        found = look(
            subject,
            intervention=rule.intervention,
            strength=rule.strength,
            settings=rule.settings(),
            revision=revision,
            sites=sites,
        )
    if printing.json:
        print_json(found.facts)
    else:
        print_lines(*found.lines)
