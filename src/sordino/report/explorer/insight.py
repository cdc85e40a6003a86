"""The top neurons in detail: their curves, their sentences, their words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.sentences import chat_of, encode_sentences
from sordino.models.open import OpenModel
from sordino.models.sites import Site
from sordino.models.tokenise import Placed
from sordino.report.exemplars import (
    Excerpt,
    Place,
    excerpts,
    outputs_at_tokens,
    refuse_other_sentences,
)
from sordino.report.explorer.lens import (
    Direction,
    Lens,
    direction_of,
    lens,
    logits_of,
    signs_at_peaks,
    vector,
)

IN_ATTENTION = (
    "A neuron of attention, or of a layer that replaces it, has no fixed direction in the "
    "vocabulary: its effect depends on the tokens that are attended to."
)
QUANTISED = "The weights that it feeds are quantised, so its direction is not computed."


@dataclass(frozen=True)
class Curve:
    """The ROC curve of a neuron's response as a classifier.

    Args:
        false: How many negative sentences lie at or above each threshold, in ascending order.
        true: How many positive sentences do.
        negatives: The number of negative sentences.
        positives: The number of positive sentences.
    """

    false: tuple[int, ...]
    true: tuple[int, ...]
    negatives: int
    positives: int

    @property
    def area(self) -> float:
        """The area under the curve: the AUROC."""
        doubled = sum(
            (right - left) * (low + high)
            for left, right, low, high in zip(
                self.false, self.false[1:], self.true, self.true[1:], strict=False
            )
        )
        return doubled / (2 * self.negatives * self.positives)


@dataclass(frozen=True)
class Insight:
    """One neuron in detail.

    Args:
        site: The site's module path.
        index: The neuron's index in the site.
        curve: Its ROC curve.
        most: The sentences that excite it most, the most exciting first.
        least: Those that excite it least, the least exciting first.
        lens: What it promotes in the vocabulary, or None.
        no_lens: Why there is no lens; "" if there is one.
    """

    site: str
    index: int
    curve: Curve
    most: tuple[Excerpt, ...]
    least: tuple[Excerpt, ...]
    lens: Lens | None
    no_lens: str = ""


def insights(
    opened: OpenModel,
    concept: Concept,
    expertise: Expertise,
    *,
    neurons: int = 24,
    sentences: int = 3,
) -> list[Insight]:
    """The neurons with the highest AUROC in detail. All sentences of the concept are run again.

    Args:
        opened: The model that the expertise was found on.
        concept: The sentences that it was found with.
        expertise: The expertise.
        neurons: How many neurons.
        sentences: How many sentences at each end, most and least.

    Raises:
        UserError: The concept is not the one of the expertise, or the model lacks its sites.
    """
    refuse_other_sentences(concept, expertise)
    top = [(site, index) for site, index, _ in expertise.top(neurons)]
    sites = {site.path: site for site in opened.sites}
    for path, _ in top:
        if path not in sites:
            raise UserError(
                f"{opened.ref.name} has no site {path}: open it with the sites that the expertise "
                "was found at."
            )
    if not top:
        return []
    longest = int(expertise.metadata.get("max_tokens", 128))
    chat = chat_of(opened, expertise.metadata)
    encoded = dict(enumerate(encode_sentences(opened, concept, longest, chat)))
    outputs = outputs_at_tokens(opened, encoded, top, label="responses of the top neurons")
    responses = _pool(outputs, expertise.metadata.get("pooling", "max"))
    ranked = [_ends(responses[:, number], sentences) for number in range(len(top))]
    shown = sorted({sentence for ends in ranked for end in ends for sentence in end})
    excerpt = excerpts(opened, concept, {sentence: encoded[sentence] for sentence in shown})
    lenses = _lenses(
        opened,
        [(sites[path], index) for path, index in top],
        {sentence: encoded[sentence] for sentence in shown},
        outputs,
        [most for most, _ in ranked],
    )
    found = []
    for number, ((path, index), (most, least)) in enumerate(zip(top, ranked, strict=True)):
        seen, reason = lenses[number]
        found.append(
            Insight(
                path,
                index,
                curve(responses[:, number], concept.labels),
                tuple(excerpt(sentence, outputs[sentence][number]) for sentence in most),
                tuple(excerpt(sentence, outputs[sentence][number]) for sentence in least),
                seen,
                reason,
            )
        )
    return found


def curve(responses: NDArray[np.float32], labels: NDArray[np.bool_]) -> Curve:
    """The ROC curve of one neuron.

    Args:
        responses: float32 [sentences]; NaN where no token of a sentence reached the neuron.
        labels: bool [sentences].
    """
    reached = ~np.isnan(responses)
    positives = int(np.count_nonzero(labels[reached]))
    negatives = int(np.count_nonzero(reached)) - positives
    false, true, _ = roc_curve(labels[reached], responses[reached])
    # Ratios of integers, so rounding restores the integers.
    counts = np.rint(false * negatives), np.rint(true * positives)
    across, up = (tuple(int(count) for count in axis) for axis in counts)
    return Curve(across, up, negatives, positives)


def _pool(outputs: dict[int, torch.Tensor], pooling: str) -> NDArray[np.float32]:
    """Each neuron's response to each sentence, [sentences, neurons]; see `pooling.py`."""
    rows = []
    for sentence in range(len(outputs)):
        values = outputs[sentence]
        routed = ~values.isnan()
        if pooling == "mean":
            row = values.nanmean(dim=1)
        elif pooling == "last":
            last = (routed * torch.arange(1, values.shape[1] + 1)).argmax(dim=1)
            row = values[torch.arange(len(values)), last]
        else:
            row = values.nan_to_num(nan=-torch.inf).amax(dim=1)
        rows.append(torch.where(routed.any(dim=1), row, torch.nan))
    found: NDArray[np.float32] = torch.stack(rows).numpy()
    return found


def _ends(responses: NDArray[np.float32], count: int) -> tuple[list[int], list[int]]:
    """The sentences with the largest and the smallest responses; ties go to the earlier one."""
    reached = np.flatnonzero(~np.isnan(responses))
    values = responses[reached]
    most = reached[np.argsort(-values, kind="stable")[:count]]
    least = reached[np.argsort(values, kind="stable")[:count]]
    return most.tolist(), least.tolist()


def _lenses(
    opened: OpenModel,
    neurons: Sequence[tuple[Site, int]],
    encoded: dict[int, Placed],
    outputs: dict[int, torch.Tensor],
    most: Sequence[list[int]],
) -> list[tuple[Lens | None, str]]:
    """What each neuron promotes, or why that is not shown."""
    directions: list[Direction | None] = []
    vectors: dict[int, torch.Tensor] = {}
    for number, (site, index) in enumerate(neurons):
        direction = direction_of(opened, site, index)
        directions.append(direction)
        if direction is not None:
            if opened.streamed:
                opened.streamed.hold(site.layer)
            if (found := vector(opened, direction)) is not None:
                vectors[number] = found
    signs = _signs(opened, directions, encoded, outputs, most)
    wanted = [
        (neurons[n][0].layer, _require_direction(directions[n]).writer, v)
        for n, v in vectors.items()
    ]
    logits = logits_of(opened, wanted) if wanted else torch.empty(0)
    rows = dict(zip(vectors, logits, strict=True))
    return [
        (None, IN_ATTENTION)
        if direction is None
        else (None, QUANTISED)
        if number not in rows
        else (lens(opened, rows[number], direction, signs.get(number, ())), "")
        for number, direction in enumerate(directions)
    ]


def _require_direction(direction: Direction | None) -> Direction:
    assert direction is not None
    return direction


def _signs(
    opened: OpenModel,
    directions: Sequence[Direction | None],
    encoded: dict[int, Placed],
    outputs: dict[int, torch.Tensor],
    most: Sequence[list[int]],
) -> dict[int, list[int]]:
    """The signs at the peaks of the sentences, for neurons that feed an ordinary writer."""
    fed: dict[int, Place] = {
        number: (direction.writer, direction.index)
        for number, direction in enumerate(directions)
        if direction is not None and not direction.is_coordinate and direction.expert is None
    }
    if not fed:
        return {}
    looked_at = sorted({sentence for number in fed for sentence in most[number]})
    places = list(dict.fromkeys(fed.values()))
    inputs = outputs_at_tokens(
        opened, {sentence: encoded[sentence] for sentence in looked_at}, places, of="inputs"
    )
    return {
        number: signs_at_peaks(
            {sentence: outputs[sentence][number] for sentence in most[number]},
            {sentence: inputs[sentence][places.index(place)] for sentence in most[number]},
            most[number],
        )
        for number, place in fed.items()
    }
