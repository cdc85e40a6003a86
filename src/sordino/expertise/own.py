"""Own samples: the model's own continuations of prompts, and a judge's scores of them.

The weight of a continuation is the judge's score less the mean score of the same prompt's other
continuations. With it, the mean of weight times attribution is an unbiased estimate of the change
of the judge's mean score to first order (`sordino.expertise.attribution`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sordino import progress as show
from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.expertise.attribution import Passage, in_batches
from sordino.expertise.statistic import Statistic
from sordino.expertise.written import Judge, Row, ToWrite, score_spoken, write
from sordino.files import counted, fingerprint, to_json
from sordino.models.chat import RAW, Chat, Spoken, opening_ids, replies, template_fingerprint
from sordino.models.generation import Sampling, encode_prompts
from sordino.models.open import OpenModel
from sordino.models.probe import Probe
from sordino.models.ranks import Ranks
from sordino.models.tokenise import Placed

FEWEST_PROMPTS = 20
_PROMPT_TOKENS = 128
_JUDGE_PER_CLASS = 1000
_STEP = "own samples"


@dataclass(frozen=True)
class ConceptJudge:
    """A judge that is still to be made: a probe of the model, trained on a concept's sentences.

    The sentences are read as they are, without a chat template, and so are the texts that it
    judges. It reads with the model as it is, also while hooks edit it (`sordino.models.probe`).

    Args:
        concept: The labelled sentences, of which at most 1,000 of each class are drawn.
        seed: Of the draw.
    """

    concept: Concept
    seed: int = 0
    name: ClassVar[str] = "concept"

    def record(self) -> dict[str, Any]:
        """The data that it is trained on, as JSON values."""
        drawn = self._drawn
        return {
            "scorer": "probe of the model itself",
            "trained_on": self.concept.source,
            "concept_fingerprint": self.concept.fingerprint,
            "sentences_per_class": len(drawn.positive),
            "seed": self.seed,
        }

    def trained(self, opened: OpenModel) -> "TrainedJudge":
        """The judge of a model."""
        drawn = self._drawn
        count = len(drawn.sentences)
        show.note(f"training a probe of {opened.ref.name} on {count:,} sentences, to judge")
        probe = Probe(opened, drawn.positive, drawn.negative)
        show.note(f"its AUROC on sentences that it was not trained on is {probe.auroc:.3f}")
        return TrainedJudge(self, probe)

    @property
    def _drawn(self) -> Concept:
        return self.concept.sampled(max_per_class=_JUDGE_PER_CLASS, seed=self.seed)


@dataclass(frozen=True)
class TrainedJudge:
    """A `ConceptJudge` that was trained."""

    of: ConceptJudge
    probe: Probe
    name = ConceptJudge.name

    def record(self) -> dict[str, Any]:
        """The same, with the layer and the AUROC, to six digits."""
        auroc = float(f"{self.probe.auroc:.6g}")
        return self.of.record() | self.probe.record() | {"cross_validated_auroc": auroc}

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of the concept if both classes were equally frequent, float64 [texts]."""
        return self.probe.score(texts)


@dataclass(frozen=True)
class OwnSettings:
    """Which own samples are taken, and who judges them; `sordino.OwnPlan` makes one.

    Args:
        prompts: What the model continues; none of them may be used for measuring.
        judge: Scores the continuations; it must not be used for measuring either.
        source: Where the prompts come from, for the record.
        continuations: Of each prompt.
        new_tokens: The most tokens of a continuation.
        seed: Of the sampling.
        chat: Whether the prompts stand as a user's turn in the model's chat template, so that its
            replies are judged; "auto" for models that have one.
        permuted: A control: the seed by which the judge's scores are permuted among the
            continuations of each prompt, so that they say nothing of them; None for the judge's
            own.
        journal: A file of this model's samples, which an earlier call with the same settings may
            have written; None for one that goes with the rest of the work.

    Raises:
        UserError: There are too few prompts or continuations.

    Example:
        >>> own = sordino.OwnPlan("prompts.txt", max_prompts=20, continuations=2).settings(concept)
        >>> settings = sordino.AttributionSettings(per_class=20)
        >>> found = sordino.find_experts("tiny", concept, attribution=settings, own=own)
        >>> found.metadata["own_n_prompts"]
        '20'
    """

    prompts: tuple[str, ...]
    judge: Judge | ConceptJudge
    source: str = "given in Python"
    continuations: int = 8
    new_tokens: int = 20
    seed: int = 0
    chat: Chat = RAW
    permuted: int | None = None
    journal: Path | None = None

    def __post_init__(self) -> None:
        if len(self.prompts) < FEWEST_PROMPTS:
            raise UserError(
                f"Own samples have only {counted(len(self.prompts), 'prompt')}, from "
                f"{self.source}: give at least {FEWEST_PROMPTS}."
            )
        if self.continuations < 2:
            raise UserError(
                f"`own_continuations={self.continuations}` is too few: the continuations of a "
                "prompt are compared with each other, so give at least 2."
            )
        Sampling(self.new_tokens)

    @property
    def metadata(self) -> dict[str, str]:
        """Their entries in an artefact's metadata."""
        return {
            "own_judge": self.judge.name,
            "own_judge_record": _to_line(self.judge.record()),
            "own_prompts": self.source,
            "own_prompts_fingerprint": fingerprint(*self.prompts),
            "own_n_prompts": str(len(self.prompts)),
            "own_continuations": str(self.continuations),
            "own_new_tokens": str(self.new_tokens),
            "own_seed": str(self.seed),
            **self._metadata_of_chat(),
            **({} if self.permuted is None else {"own_permuted": str(self.permuted)}),
        }

    @property
    def written(self) -> dict[str, str]:
        """Those that tell which samples are written: a permuted control's are the judge's own."""
        return replace(self, permuted=None).metadata

    def _metadata_of_chat(self) -> dict[str, str]:
        if self.chat.use == "off":
            return {}
        thinking = "kept" if self.chat.thinking else "skipped"
        return {
            "own_chat": self.chat.use,
            "own_chat_system": self.chat.system,
            "own_chat_thinking": thinking,
        }


@dataclass(frozen=True)
class OwnSamples:
    """What the model wrote, and the judge's scores.

    Args:
        texts: The continuations with their prompts, prompt after prompt.
        said: Their texts alone, as the judge reads them.
        prompts: Which of the prompts each row of the scores is of.
        passages: The same in batches with their weights, for attribution.
        scores: float64 [prompts, continuations].
        digest: SHA-256 over the continuations' tokens and scores.
        judge: The judge's record, as JSON.
        template: The fingerprint of the chat template in which they are replies; "" for none.
    """

    texts: list[Placed]
    said: list[str]
    prompts: list[int]
    passages: list[Passage]
    scores: NDArray[np.float64]
    digest: str
    judge: str
    template: str = ""

    @property
    def metadata(self) -> dict[str, str]:
        """Their entries in an artefact's metadata, beside those of `OwnSettings`."""
        return {
            "own_judge_record": self.judge,
            "own_mean_score": f"{self.scores.mean():.6g}",
            "own_samples": self.digest,
            **({"own_chat": "on", "own_chat_template": self.template} if self.template else {}),
        }


def sample(
    opened: OpenModel,
    settings: OwnSettings,
    *,
    batch_tokens: int,
    journal: Path | None,
    ranks: Ranks,
) -> OwnSamples:
    """Let the model continue the prompts, and the judge score what it wrote.

    Args:
        opened: The model.
        settings: Which samples.
        batch_tokens: How many tokens go through the model at a time in attribution.
        journal: A file in which finished batches are kept, so that an interrupted call continues.
        ranks: The processes that share the work.

    Raises:
        UserError: The model has no room for the continuations, or the judge gave no score.
    """
    chat = settings.chat.settled(opened, otherwise=True)
    how = "replies in the chat template" if chat else "continuations of prompts as they are"
    show.note(f"own samples are {how}")
    prompts = _encode(opened, settings, chat)
    asked = ToWrite(
        prompts,
        Sampling(settings.new_tokens),
        settings.continuations,
        settings.seed,
        replies(opened, chat) if chat else None,
    )
    # The folder of the journal is cleared for another sweep, so the key has to tell samples alone.
    key = fingerprint(to_json(settings.written), template_fingerprint(opened) if chat else "")
    rows = _complete(write(opened, asked, _STEP, journal, key, ranks), settings)
    texts = [text for *_, text, _ in rows]
    scores, judge = ranks.from_first(
        _judged(opened, settings.judge, texts) if ranks.first else (np.empty(0), "")
    )
    table = scores.reshape(-1, settings.continuations)
    if settings.permuted is not None:
        table = np.random.default_rng(settings.permuted).permuted(table, axis=1)
    placed = [
        Placed((*prompts[prompt], *chosen), len(prompts[prompt])) for prompt, _, chosen, *_ in rows
    ]
    passages = in_batches(
        opened,
        Statistic.OWN,
        [text.ids for text in placed],
        [text.start for text in placed],
        weights(table).ravel().tolist(),
        batch_tokens,
    )
    digest = fingerprint(json.dumps([row[:3] for row in rows]), table.tobytes())
    template = template_fingerprint(opened) if chat else ""
    numbers = list(dict.fromkeys(prompt for prompt, *_ in rows))
    return OwnSamples(placed, texts, numbers, passages, table, digest, judge, template)


def foretell(opened: OpenModel, settings: OwnSettings, batch_tokens: int) -> list[Passage]:
    """Batches of the size of own samples that are not written yet, each as long as it can become.

    Args:
        opened: The model.
        settings: Which samples.
        batch_tokens: See `sample`.
    """
    prompts = _encode(opened, settings, settings.chat.settled(opened, otherwise=True))
    texts = [(*prompt, *prompt[-1:] * settings.new_tokens) for prompt in prompts]
    texts = [text for text in texts for _ in range(settings.continuations)]
    starts = [len(text) - settings.new_tokens for text in texts]
    return in_batches(opened, Statistic.OWN, texts, starts, [0.0] * len(texts), batch_tokens)


def own_in_words(metadata: Mapping[str, str]) -> str:
    """An artefact's own samples in a few words; "" where it has none.

    Args:
        metadata: The artefact's.

    Example:
        >>> counts = {"own_n_prompts": "300", "own_continuations": "8", "own_judge": "tox-block"}
        >>> own_in_words(counts)
        '8 continuations of each of 300 prompts, judged by tox-block'
    """
    if "own_n_prompts" not in metadata:
        return ""
    what = "replies to" if metadata.get("own_chat") == "on" else "continuations of"
    judge = metadata["own_judge"]
    return (
        f"{metadata['own_continuations']} {what} each of {metadata['own_n_prompts']} prompts, "
        f"judged by {'a probe of the model' if judge == ConceptJudge.name else judge}"
    )


def _encode(opened: OpenModel, settings: OwnSettings, chat: Chat | None) -> list[list[int]]:
    """The token ids after which the model continues, or replies."""
    most, new, nouns = _PROMPT_TOKENS, settings.new_tokens, "prompts of own samples"
    if chat is None:
        return encode_prompts(
            opened, settings.prompts, max_tokens=most, new_tokens=new, nouns=nouns
        )
    asked = [Spoken(prompt, role="user") for prompt in settings.prompts]
    return opening_ids(opened, asked, chat, max_tokens=most, new_tokens=new, nouns=nouns)


def _complete(rows: list[Row], settings: OwnSettings) -> list[Row]:
    """The continuations of the prompts of which none is missing."""
    without = {prompt: missing for prompt, *_, missing in rows if missing}
    if not without:
        return rows
    left = len(settings.prompts) - len(without)
    why = next(iter(without.values()))
    many = f"{len(without):,} of {len(settings.prompts):,} prompts"
    if left < FEWEST_PROMPTS:
        raise UserError(
            f"For {many} of own samples a reply is missing ({why}): give a larger "
            f"`own_new_tokens` than {settings.new_tokens}, or more `own_prompts`."
        )
    show.note(f"warning: {many} of own samples are left out, for a reply is missing ({why})")
    return [row for row in rows if row[0] not in without]


def weights(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each score less the mean of the others of its row, float64 [prompts, continuations].

    Example:
        >>> weights(np.array([[1.0, 0.0, 0.5]]))
        array([[ 0.75, -0.75,  0.  ]])
    """
    count = scores.shape[1]
    return (scores - scores.mean(axis=1, keepdims=True)) * count / (count - 1)


def _judged(
    opened: OpenModel, settled: Judge | ConceptJudge, texts: Sequence[str]
) -> tuple[NDArray[np.float64], str]:
    """The judge's scores, float64 [texts], and its record; a text without words is 0."""
    judge = settled.trained(opened) if isinstance(settled, ConceptJudge) else settled
    said = sum(bool(text.strip()) for text in texts)
    if said:
        show.note(f"{judge.name} judges {said:,} continuations")
    found = score_spoken(judge.score, texts)
    if not np.isfinite(found).all():
        missing = int((~np.isfinite(found)).sum())
        raise UserError(
            f"The judge {judge.name} gave no score for {missing:,} of {len(texts):,} "
            "continuations: give another judge of own samples."
        )
    return found, _to_line(judge.record())


def _to_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True)
