"""The maps between the classes' responses, as a rule gives them."""

from collections.abc import Sequence

from sordino.expertise.artefact import Expertise
from sordino.expertise.moments import affine
from sordino.expertise.statistic import Statistic
from sordino.interventions.dampening import Affine


def transport(expertise: Expertise, kind: str, needs: Sequence[Statistic]) -> Affine:
    """The map of every site from the positive to the negative responses.

    Args:
        expertise: With moments.
        kind: See `sordino.expertise.moments.affine`.
        needs: The statistics that the map is made of.

    Raises:
        UserError: The expertise lacks one of them.
    """
    known = {name: expertise[name] for name in needs}
    found = {
        site: affine({name: of[site] for name, of in known.items()}, kind)
        for site in expertise.sites
    }
    return Affine(
        {site: of.factors for site, of in found.items()},
        {site: of.shifts for site, of in found.items()},
    )
