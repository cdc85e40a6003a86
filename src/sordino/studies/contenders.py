"""The methods that the study rivals compares, with the settings that each leaves open."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sordino.concepts.concept import Concept
from sordino.edits.biases import can_shift
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.moments import LINEAR_TRANSPORT, MEAN_SHIFT
from sordino.expertise.own import OwnSamples, OwnSettings
from sordino.expertise.sentences import chat_for, encode_sentences
from sordino.expertise.statistic import Statistic
from sordino.expertise.sweep import SweepSettings
from sordino.interventions import Dampening, family
from sordino.interventions.adapter import Adapter
from sordino.interventions.steering import Steering
from sordino.models.open import OpenModel
from sordino.models.sites import ATTENTION, NORMS
from sordino.studies.learned import Goals, Texts, learn
from sordino.studies.pairs import preferences
from sordino.studies.preference import train
from sordino.studies.steered import (
    Looks,
    Writers,
    look,
    look_at,
    mean_difference,
    probed_heads,
    projected,
    projected_alike,
)
from sordino.studies.study import Plan, Sizes
from sordino.studies.variants import by_changes
from sordino.tuning.lab import Lab

OURS, CORPUS = "own samples and corpus", "contrast, corpus alone"
LEARNED = "learned factors"
_HOOKS = " (hooks)"
# What rivals leave to be chosen, and is chosen on other prompts than those of the figures. Depths
# are shares of the decoder's layers.
_DEPTHS = (0.25, 0.4, 0.55, 0.7)
_HEADS = (0.05, 0.2)
_SUBSPACES = (2, 10)
_ABOVE = 0.4
"""Subspaces are taken out of the layers above this depth: ProFS begins at 0.31 to 0.47."""
_ALPHA = 15.0
"""ITI's published strength."""


@dataclass(frozen=True)
class Contender:
    """A method to compare, with all settings decided except its size.

    Args:
        sizes: The method as a function of its dial.
        start: Where to look first for a size; None for the rule's own estimate.
        published: The dial at which it was published; 0 if there is none.
    """

    sizes: Sizes
    start: float | None = None
    published: float = 0.0


Settings = Mapping[str, Contender]
"""A method's variants by setting; the only key is "" if it has no open setting."""


@dataclass(frozen=True)
class Bench:
    """What several methods are made from; each is made at its first use.

    Args:
        lab: The model.
        plan: How much is measured.
    """

    lab: Lab
    plan: Plan

    @cached_property
    def own(self) -> OwnSettings:
        """Own samples of prompts that are used neither for measuring nor for choosing."""
        chosen_on = self.plan.elsewhere().chosen(self.lab.seed)
        apart = [text.text for text in chosen_on]
        return self.plan.own(self.lab, self.plan.toxicity(), apart)

    @cached_property
    def everywhere(self) -> Expertise:
        """The expertise of all linear layers, with attribution also to own samples."""
        return self.plan.with_own(self.lab, self.own)

    @cached_property
    def papers(self) -> Expertise:
        """The expertise of the linear layers that AurA's paper uses."""
        return self.everywhere.at({site.path for site in self.lab.finder.sites})

    @cached_property
    def concept(self) -> Concept:
        """The concept, with as many sentences as attribution takes."""
        lab = self.lab
        return lab.concept.sampled(max_per_class=self.plan.per_class, balance=False, seed=lab.seed)

    @cached_property
    def looks(self) -> Looks:
        """The model's hidden states for these sentences."""
        return look(self.lab.finder, self.concept, self.lab.chat)

    @cached_property
    def samples(self) -> OwnSamples:
        """The model's own samples."""
        return self.lab.own_samples(self.own)

    @cached_property
    def looks_of_pairs(self) -> Looks:
        """The hidden states for pairs of own samples of one prompt, the worse one labelled."""
        pairs = preferences(self.samples)
        texts = [pair.rejected for pair in pairs] + [pair.preferred for pair in pairs]
        labels = [True] * len(pairs) + [False] * len(pairs)
        return look_at(self.lab.finder, texts, np.array(labels))


Method = Callable[[Bench], Mapping[str, Settings]]
"""Gives the rules of one method by name, at several places or with several rules."""


def contrast(bench: Bench) -> dict[str, Settings]:
    """Our rule, with all evidence and with the labelled sentences alone."""
    evidence = {OURS: "all", CORPUS: "corpus"}
    return {
        name: {"": Contender(family(bench.everywhere, "contrast", evidence=of))}
        for name, of in evidence.items()
    }


def _of_the_paper(rule: str, start: float | None = None) -> Method:
    """A rule of AurA's paper on the paper's linear layers."""
    return lambda bench: {rule: {"": Contender(family(bench.papers, rule), start)}}


def _transport(name: str, kind: str) -> Method:
    """Mean-AcT or Linear-AcT at the ends of both blocks, and at the norms after them.

    Rodriguez et al., 2024, arXiv:2410.23054: responses are means over a sentence's tokens; each
    module's map is measured with those of all modules before it applied (the paper's causal
    estimation); the map from the responses to toxic sentences onto those to others is a shift by
    the means' difference, or the least-squares line through sorted pairs (`sordino.expertise.
    moments`); it is applied at every token; its published strength is 1. What differs: a map is
    applied to every output and not only within the range of the toxic responses, since biases and
    gains cannot tell them apart (the paper's code has that as its setting "q_all"); and all
    sentences are taken, in classes of any two sizes.
    """

    def give(bench: Bench) -> dict[str, Settings]:
        writers = Writers.of(bench.lab.finder)
        places = {"MLP": _only(writers.feed_forward), "attention": _only(writers.attention)}
        if writers.have_norms:
            places["post-norm"] = NORMS
        found: dict[str, Settings] = {}
        for place, pattern in places.items():
            expertise = bench.lab.find(
                f"causal-{kind}-{place}",
                concept=bench.concept,
                sites=pattern,
                sweep=SweepSettings(pooling="mean", moments=True, causal=kind),
            )
            marked = f"{name}, causal, {place}{_mark(bench.lab.finder, expertise.sites)}"
            found[marked] = {"": Contender(family(expertise, kind), published=1.0)}
        return found

    return give


def _added_means(bench: Bench) -> dict[str, Settings]:
    """CAA behind layers of several depths."""
    opened, looks = bench.lab.finder, bench.looks
    # Behind a norm, what a layer adds to the stream is not what its last linear layer puts out.
    held = looks.writers.layers if looks.writers.have_norms else looks.writers.feed_forward
    count = len(looks.writers.layers)
    layers = dict.fromkeys(min(int(depth * count), count - 1) for depth in _DEPTHS)
    return {
        f"CAA{_mark(opened, held)}": {
            f"behind layer {layer}": Contender(mean_difference(looks, layer).scaled, published=1.0)
            for layer in layers
        }
    }


def _moved_heads(bench: Bench) -> dict[str, Settings]:
    """ITI with few and with many heads."""
    looks = bench.looks
    heads = sum(of.shape[1] for of in looks.heads)
    return {
        f"ITI-c{_mark(bench.lab.finder, looks.writers.attention)}": {
            f"{most} head{'s' if most > 1 else ''}": Contender(
                probed_heads(looks, most).scaled, published=_ALPHA
            )
            for most in dict.fromkeys(max(1, round(part * heads)) for part in _HEADS)
        }
    }


def _subspaces(bench: Bench) -> dict[str, Settings]:
    """ProFS by sentences and by own samples in pairs, and the same in the residual stream."""
    writers = bench.looks.writers
    count = len(writers.layers)
    above = range(int(_ABOVE * count), count)
    matrices = {layer: writers.added[layer] for layer in above}
    mark = _HOOKS if writers.have_norms else ""
    stream = {layer: writers.layers[layer] for layer in above}
    places = {
        f"sentences, feed-forward part{mark}": (bench.looks, matrices),
        f"own samples in pairs, feed-forward part{mark}": (bench.looks_of_pairs, matrices),
        f"sentences, residual stream{_HOOKS}": (bench.looks, stream),
    }
    return {
        "projection (ProFS)": {
            f"{place}, rank {rank}": _taken_out(projected(looks, rank, paths))
            for place, (looks, paths) in places.items()
            for rank in _SUBSPACES
        }
    }


def _one_subspace(bench: Bench) -> dict[str, Settings]:
    """GLOSS by own samples in pairs."""
    looks = bench.looks_of_pairs
    mark = _HOOKS if looks.writers.have_norms else ""
    return {
        f"projection of one subspace (GLOSS){mark}": {
            f"rank {rank}": _taken_out(projected_alike(looks, rank, looks.writers.added))
            for rank in _SUBSPACES
        }
    }


def _trained(bench: Bench) -> dict[str, Settings]:
    """A LoRA by DPO on own samples in pairs."""
    lab, own = bench.lab, bench.own

    def make(file: Path) -> None:
        pairs = preferences(bench.samples)
        state = lab.path_of("dpo", own.metadata, "state.pt")
        train(lab.finder, pairs, lab.seed, state).save(file)

    adapter = Adapter.load(lab.kept("dpo", own.metadata, "adapter.safetensors", make))
    return {"DPO (LoRA)": {"": Contender(adapter.scaled, published=1.0)}}


def _learned(bench: Bench) -> dict[str, Settings]:
    """Factors that are learned from contrast's, with its texts and its budget."""
    lab, plan = bench.lab, bench.plan
    expertise = bench.everywhere
    budget, first = _sized(lab, OURS, family(expertise, "contrast"), plan.asked)
    made_of = [expertise.metadata, first.fingerprint, plan.asked]

    def made_by(changes: NDArray[np.float64]) -> Dampening:
        return by_changes(expertise, changes, "learned", budget=budget)

    def scale(changes: NDArray[np.float64]) -> float:
        return _sized(lab, LEARNED, made_by(changes).scaled, plan.asked)[0]

    def make() -> Dampening:
        opened = replace(lab.finder, site_pattern=ATTENTION)
        settings = AttributionSettings(plan.per_class, lab.seed)
        drawn = lab.concept.sampled(max_per_class=settings.per_class, seed=settings.seed)
        chat = chat_for(opened, drawn, lab.chat)
        placed = encode_sentences(opened, drawn, SweepSettings().max_tokens, chat)
        count = len(drawn.positive)
        texts = {
            Statistic.POSITIVE: Texts.of_sentences(placed[:count]),
            Statistic.NEGATIVE: Texts.of_sentences(placed[count:]),
            Statistic.OWN: Texts.of_samples(bench.samples),
        }
        goals = Goals(opened, texts, expertise, budget)
        start = 1 - np.concatenate([*first.factors.values()]).astype(np.float64)
        state = lab.path_of("learned", made_of, "state.pt")
        return made_by(learn(goals, start, scale, lab.seed, state))

    made = lab.made("learned", made_of, make)
    return {LEARNED: {"": Contender(made.scaled, 1.0)}}


METHODS: dict[str, Method] = {
    "aura": _of_the_paper("aura"),
    "damp": _of_the_paper("damp", 500.0),
    "det_zero": _of_the_paper("det_zero", 200.0),
    "mean-act": _transport("Mean-AcT", MEAN_SHIFT),
    "linear-act": _transport("Linear-AcT", LINEAR_TRANSPORT),
    "caa": _added_means,
    "iti": _moved_heads,
    "profs": _subspaces,
    "gloss": _one_subspace,
    "dpo": _trained,
    "learned": _learned,
}
"""The methods that are compared with contrast, by the names by which they are asked for."""


def _sized(
    lab: Lab, name: str, sizes: Callable[[float], Dampening], divergence: float
) -> tuple[float, Dampening]:
    """The dial at which a rule has this divergence, and its dampening there."""
    dial = lab.largest(name, sizes, divergence).dial
    assert dial is not None  # it was found by turning it
    return dial, sizes(dial)


def _taken_out(steering: Steering) -> Contender:
    """A removed subspace: at 1 nothing of it is left, and beyond it would be mirrored."""
    return Contender(lambda at: steering.scaled(min(at, 1.0)), 0.5, published=1.0)


def _mark(opened: OpenModel, paths: Collection[str]) -> str:
    """The mark of a rule whose shifts no biases of the model can hold; "" for others."""
    return "" if can_shift(opened.model, paths) else _HOOKS


def _only(paths: Iterable[str]) -> str:
    """The pattern of these sites alone."""
    return f"^(?:{'|'.join(map(re.escape, paths))})$"
