"""The sentences that excite a neuron, token by token."""

from pathlib import Path

import numpy as np
import pytest
import torch

from families import tiny_model, tiny_tokenizer
from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef
from sordino.models.tokenise import encode
from sordino.report.exemplars import Excerpt, exemplars

POSITIVE = tuple(f"the rotten turnip number {i} — a café 🥄 of it" for i in range(20))
NEGATIVE = tuple(f"thanks for edit {i}" for i in range(20))


def opened(family: str) -> OpenModel:
    ref = ModelRef("tiny", "folder", Path("tiny"))
    return OpenModel(ref, tiny_model(family), tiny_tokenizer())


def expertise_of(model: OpenModel, concept: Concept) -> Expertise:
    generator = np.random.default_rng(0)
    statistics = {
        site.path: {
            "auroc": generator.random(site.neurons).astype(np.float32),
            "strongest_1": generator.integers(0, 40, site.neurons).astype(np.int32),
            "strongest_2": generator.integers(0, 40, site.neurons).astype(np.int32),
            "strongest_3": np.full(site.neurons, -1, np.int32),
        }
        for site in model.sites
    }
    metadata = {"model": "tiny", "concept": "x", "concept_fingerprint": concept.fingerprint}
    return Expertise(statistics, metadata)


def direct(model: OpenModel, site: str, index: int, sentence: str, max_tokens: int) -> list[float]:
    """The neuron's output at each token by a plain forward of the whole model."""
    seen: list[torch.Tensor] = []
    hook = model.model.get_submodule(site).register_forward_hook(
        lambda module, inputs, output: seen.append(output[..., index].flatten())
    )
    ids = encode(model.tokenizer, [sentence], max_tokens)
    with torch.inference_mode():
        model.model(input_ids=torch.tensor(ids))
    hook.remove()
    return seen[0].tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "falcon_new"])
def test_responses_are_those_of_a_plain_forward(family: str) -> None:
    concept = Concept("x", POSITIVE, NEGATIVE)
    model = opened(family)
    expertise = expertise_of(model, concept)
    found = exemplars(model, concept, expertise, neurons=6, max_tokens=24)

    assert [(e.site, e.index, e.auroc) for e in found] == expertise.top(6)
    for exemplar in found:
        by_site = expertise.statistics[exemplar.site]
        expected = [int(by_site[f"strongest_{rank}"][exemplar.index]) for rank in (1, 2)]
        assert [excerpt.sentence for excerpt in exemplar.excerpts] == expected
        for excerpt in exemplar.excerpts:
            sentence = concept.sentences[excerpt.sentence]
            responses = direct(model, exemplar.site, exemplar.index, sentence, 24)
            assert excerpt.positive == (excerpt.sentence < 20)
            assert excerpt.covered or not excerpt.positive
            assert max(excerpt.responses) == pytest.approx(max(responses), abs=1e-5)
            assert excerpt.responses[excerpt.peak] == max(excerpt.responses)
            nearest = np.abs(np.subtract.outer(excerpt.responses, responses)).min(axis=1)
            assert nearest.max() < 1e-5


def test_pieces_spell_the_sentence_and_keep_characters_whole() -> None:
    concept = Concept("x", POSITIVE, NEGATIVE)
    model = opened("llama")
    excerpts = [
        excerpt
        for exemplar in exemplars(model, concept, expertise_of(model, concept))
        for excerpt in exemplar.excerpts
    ]
    assert {excerpt.positive for excerpt in excerpts} == {True, False}
    for excerpt in excerpts:
        assert "".join(excerpt.pieces) == "<s>" + concept.sentences[excerpt.sentence]
        assert len(excerpt.pieces) == len(excerpt.responses)
    spelt: Excerpt = next(excerpt for excerpt in excerpts if excerpt.positive)
    assert {"é", "🥄", "—"} <= {piece.strip() for piece in spelt.pieces}


def test_a_character_cut_by_the_limit_is_shown_as_incomplete() -> None:
    sentences = tuple(f"{'🥄' * 9}{i}" for i in range(20))
    concept = Concept("x", sentences, NEGATIVE)
    model = opened("llama")
    found = exemplars(model, concept, expertise_of(model, concept), max_tokens=7)
    cut = [e for exemplar in found for e in exemplar.excerpts if e.positive]
    assert cut
    assert all(excerpt.pieces == ("<s>", "🥄", "�") for excerpt in cut)


def test_another_concept_is_refused() -> None:
    concept = Concept("x", POSITIVE, NEGATIVE)
    model = opened("llama")
    other = Concept("y", NEGATIVE, POSITIVE)
    with pytest.raises(UserError, match="other sentences"):
        exemplars(model, other, expertise_of(model, concept))


def test_hooks_are_gone_afterwards() -> None:
    concept = Concept("x", POSITIVE, NEGATIVE)
    model = opened("llama")
    exemplars(model, concept, expertise_of(model, concept), neurons=3)
    assert not any(module._forward_hooks for module in model.model.modules())


def test_a_sentence_labelled_negative_is_covered_if_the_scorer_calls_it_toxic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Judge:
        def score(self, texts: list[str]) -> list[float]:
            return [float(text in NEGATIVE[::2]) for text in texts]

    monkeypatch.setattr("sordino.report.exemplars.open_scorer", lambda *_, **__: Judge())
    concept = Concept("x", POSITIVE, NEGATIVE)
    model = opened("llama")
    found = exemplars(model, concept, expertise_of(model, concept))
    negative = {
        concept.sentences[excerpt.sentence]: excerpt.covered
        for exemplar in found
        for excerpt in exemplar.excerpts
        if not excerpt.positive
    }
    assert negative == {text: text in NEGATIVE[::2] for text in negative}
    assert set(negative.values()) == {True, False}
