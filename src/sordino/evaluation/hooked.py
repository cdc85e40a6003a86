"""A model that is measured with a dampening on it by hooks, without baking it first."""

from collections.abc import Iterator
from contextlib import contextmanager

from sordino.errors import UserError
from sordino.evaluation.evaluator import Arm
from sordino.files import fingerprint
from sordino.interventions import Dampening
from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef


def hooked(
    ref: ModelRef, dampening: Dampening, *, device: str = "auto", dtype: str = "auto"
) -> Arm:
    """The model under the dampening, to be evaluated.

    Args:
        ref: The model.
        dampening: Factors for its sites.
        device: Where it runs; as for `open_model`.
        dtype: In which it runs; as for `open_model`.

    Raises:
        UserError: The dampening was found on other weights.
    """
    weights = refuse_other_weights(ref, dampening)

    @contextmanager
    def load() -> Iterator[OpenModel]:
        opened = open_model(ref, device=device, dtype=dtype)
        with dampening.applied(opened.model):
            yield opened

    changes = [
        part
        for kind, by_site in (("factors", dampening.factors), ("shifts", dampening.shifts))
        for site, values in by_site.items()
        for part in (kind, site, values.tobytes())
    ]
    return Arm(f"{ref.name}, dampened", ref.revision, fingerprint(weights, *changes), load)


def refuse_other_weights(ref: ModelRef, dampening: Dampening) -> str:
    """The fingerprint of a model's weights, if the dampening was found on them or names none.

    Raises:
        UserError: It was found on others.
    """
    weights = ref.weights_fingerprint()
    for found in dampening.origins:
        if found.get("weights_fingerprint", weights) != weights:
            raise UserError(
                f"The expertise was found on other weights ({found.get('model', '?')}) than those "
                f"of {ref.name}: find it on this model, or bake it with --allow-other-weights if "
                "it is a sibling (a fine-tuned copy), and take what that gives."
            )
    return weights
