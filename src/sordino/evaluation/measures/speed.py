"""Whether an edited model is as fast as the original."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from sordino.errors import UserError, require_at_least
from sordino.evaluation.measure import Column, JointTask, Measure, Summary, register
from sordino.evaluation.result import Figure
from sordino.evaluation.statistics import Floats, compare
from sordino.interventions.dampening import Dampening
from sordino.models.open import OpenModel

_PROMPT_TOKENS = 32


@register
@dataclass(frozen=True)
class Speed(Measure):
    """Tokens per second of the edited model divided by those of the original.

    Both are in memory together and take turns, so that other load on the machine slows both alike.
    The original with a hook at each site takes turns, too: it shows the cost of an edit that is not
    baked. Only ratios are reported. They are measured anew each time, so the same inputs do not
    give the same bytes.

    Args:
        rounds: How often each is timed.
        rows: How many texts are written at once.
        new_tokens: How many tokens are written for each text.

    Raises:
        UserError: A setting is outside its range.
    """

    name: ClassVar[str] = "speed"
    version: ClassVar[int] = 1
    streamable: ClassVar[bool] = False
    title: ClassVar[str] = "Speed"
    sentence: ClassVar[str] = (
        "The original’s time divided by the edited model’s: 1 is equally fast."
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column("speed baked", "times", "edited", place=70),
        Column("speed with hooks", "times", "hooks", place=70),
    )

    rounds: int = 20
    rows: int = 4
    new_tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(2, rounds=self.rounds)
        require_at_least(1, rows=self.rows, new_tokens=self.new_tokens)

    def prepare(self, seed: int, device: torch.device) -> "_SpeedTask":  # noqa: ARG002
        """Nothing but the models is needed."""
        return _SpeedTask(self, seed)


class Round(NamedTuple):
    """How long each takes to write the tokens, in seconds.

    Args:
        original: The original.
        edited: The edited model.
        hooked: The original with hooks at all sites.
    """

    original: float
    edited: float
    hooked: float


class _SpeedTask(JointTask[Round]):
    record = Round
    unit = "rounds"

    def __init__(self, settings: Speed, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self.records = settings.rounds
        self.protocol = {**asdict(settings), "prompt_tokens": _PROMPT_TOKENS}

    def collect_both(
        self, before: OpenModel, after: OpenModel, *, start: int
    ) -> Iterator[list[Round]]:
        """One round after the other."""
        if before.model is after.model:
            raise UserError(
                "The speed of a model that is edited in memory cannot be compared with that of its "
                "original: bake it, and pass the folder."
            )
        neutral = {site.path: np.ones(site.neurons, dtype=np.float32) for site in before.sites}
        hooks = Dampening(neutral, "none")
        runs: list[tuple[OpenModel, bool]] = [(before, False), (after, False), (before, True)]

        def seconds(which: int) -> float:
            opened, hooked = runs[which]
            inside: AbstractContextManager[None] = (
                hooks.applied(opened.model) if hooked else nullcontext()
            )
            with inside:
                return self._seconds(opened)

        for which in range(len(runs)):
            seconds(which)  # the first run is slower: kernels are chosen and memory is allocated
        for number in range(start, self._settings.rounds):
            # Each goes first equally often.
            order = np.roll(np.arange(len(runs)), number)
            times = {int(which): seconds(int(which)) for which in order}
            yield [Round(*(times[which] for which in range(len(runs))))]

    def summarise_both(self, records: Sequence[Round]) -> Summary:
        """Geometric means of the rounds' ratios; rounds are resampled."""
        original, edited, hooked = np.array(records, dtype=np.float64).T
        figures = tuple(
            Figure.of(
                compare(None, np.log(original / other)[:, None], _geometric, self._seed),
                name=name,
                label=label,
                unit="times",
                better="higher",
                ratio_of="after/before",
                n={"rounds": len(records)},
            )
            for name, label, other in (
                ("edited", "Speed of the edited model, of the original’s", edited),
                ("hooks", "Speed with hooks at all sites, of the original’s", hooked),
            )
        )
        return Summary(figures)

    @torch.inference_mode()
    def _seconds(self, opened: OpenModel) -> float:
        """How long a model takes to write the tokens; the text is ignored."""
        generator = torch.Generator().manual_seed(self._seed)
        shape = self._settings.rows, _PROMPT_TOKENS
        ids = torch.randint(opened.vocabulary, shape, generator=generator).to(opened.device)
        _wait(opened.device)
        began = time.perf_counter()
        opened.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=self._settings.new_tokens,
            max_new_tokens=self._settings.new_tokens,
            pad_token_id=0,
        )
        _wait(opened.device)
        return time.perf_counter() - began


def _geometric(means: Floats) -> Floats:
    return np.asarray(np.exp(means[..., 0]))


def _wait(device: torch.device) -> None:
    """Let a GPU, which works asynchronously, finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
