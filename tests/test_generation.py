"""Sampling: the right distribution, the same tokens whatever the batches, for every family."""

import math
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers import processors
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from families import FAMILIES, SUPPORTED, everyday, tiny_model, tiny_tokenizer
from sordino.errors import UserError
from sordino.models.generation import (
    Continuation,
    Sampling,
    encode_prompts,
    generate,
    inverse_cdf,
    plan,
    uniforms,
)
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef

PROMPTS = ["the cat sat", "a dog and a", "in the end of the day it is", "who", "the other way is"]


def opened(family="llama", **changes) -> OpenModel:
    ref = ModelRef("tiny", "folder", Path())
    return OpenModel(ref, tiny_model(family, **changes), tiny_tokenizer())


def written(
    model: OpenModel, sampling: Sampling, *, continuations=3, batch_tokens=4096, seed=7
) -> dict[tuple[int, int], Continuation]:
    batches = _plan(model, batch_tokens, continuations, sampling.new_tokens)
    return {
        (one.prompt, one.number): one
        for batch in generate(model, batches, sampling, seed=seed)
        for one in batch
    }


def _plan(model: OpenModel, batch_tokens: int, continuations: int = 3, new_tokens: int = 20):
    encoded = encode_prompts(model, PROMPTS, max_tokens=32, new_tokens=new_tokens)
    return plan(
        model,
        encoded,
        continuations=continuations,
        new_tokens=new_tokens,
        batch_tokens=batch_tokens,
    )


def plainly(model: OpenModel, sampling: Sampling, rules, prompt, number, ends, seed=7):
    [ids] = encode_prompts(model, [PROMPTS[prompt]], max_tokens=32, new_tokens=1)
    return without_cache(model, sampling, rules, ids, (prompt, number), ends, seed)


def without_cache(model: OpenModel, sampling: Sampling, rules, ids, owner, ends, seed=7):
    """One sequence, no cache, the whole cumulative distribution in float64."""
    draws = uniforms(seed, *owner, sampling.new_tokens)
    new: list[int] = []
    for draw in draws:
        sequence = torch.tensor([ids + new])
        with torch.no_grad():
            scores = model.model(input_ids=sequence, use_cache=False).logits[:, -1].float()
        for rule in rules:
            scores = rule(sequence, scores)
        cumulative = scores.double().softmax(-1).cumsum(-1)[0]
        token = int(torch.searchsorted(cumulative, draw * cumulative[-1], right=True))
        new.append(token)
        if token in ends:
            break
    return tuple(new)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_writes_what_a_plain_loop_without_cache_writes(family):
    model, sampling = opened(family), Sampling(new_tokens=6)
    result = written(model, sampling, continuations=2)
    for prompt, number in ((0, 0), (2, 1), (3, 1), (4, 0)):
        assert result[prompt, number].chosen == plainly(model, sampling, [], prompt, number, {1})


# Families that keep something else than keys and values that grow, or nothing.
KEEPING_OTHERWISE = {
    *("bamba", "bart", "falcon_h1", "lfm2", "minimax", "openai-gpt", "qwen3_5_text"),
    *("qwen3_next", "jamba", "mamba", "recurrent_gemma"),
}
# Eight tokens at most: beyond, a tiny model's window or sparse attention may differ with a cache.
SHORT = ["the cat", "who", "a dog and"]


@pytest.mark.parametrize("family", everyday(SUPPORTED, KEEPING_OTHERWISE))
def test_whatever_a_family_keeps_it_writes_what_it_would_without(family):
    """Caches of all kinds are copied, reordered and given room; some models have none."""
    model, sampling = opened(family), Sampling(3)
    encoded = encode_prompts(model, SHORT, max_tokens=5, new_tokens=3)
    assert len({*map(len, encoded)}) > 1
    batches = plan(model, encoded, continuations=2, new_tokens=3, batch_tokens=4096)
    for one in chain.from_iterable(generate(model, batches, sampling, seed=7)):
        assert one.chosen == without_cache(
            model, sampling, [], encoded[one.prompt], (one.prompt, one.number), {1}
        )


def test_rows_that_end_are_cut_at_their_end_and_dropped_without_changing_the_others():
    model, sampling = opened("gpt2"), Sampling(new_tokens=12)
    ends = set(range(0, 300, 9))
    model.model.generation_config.eos_token_id = sorted(ends)
    result = written(model, sampling, continuations=8)
    lengths = {len(one.ids) for one in result.values()}
    assert 0 in lengths
    assert 12 in lengths
    for prompt, number in ((0, 0), (1, 5), (2, 1), (3, 7), (4, 4)):
        assert result[prompt, number].chosen == plainly(model, sampling, [], prompt, number, ends)
    for one in result.values():
        assert not ends & set(one.ids)
        assert one.text == model.tokenizer.decode(one.ids, skip_special_tokens=True)


@pytest.mark.parametrize("batch_tokens", [1, 40, 200])
def test_batches_do_not_change_what_is_written(batch_tokens):
    model, sampling = opened("mistral"), Sampling(new_tokens=20)
    assert len(_plan(model, 4096)) == 1  # prompts of all lengths together
    assert written(model, sampling, batch_tokens=batch_tokens) == written(model, sampling)


def test_settings_are_those_of_transformers():
    model = opened("qwen2")
    sampling = Sampling(10, temperature=0.7, top_k=40, top_p=0.8, repetition_penalty=1.3)
    rules = [
        RepetitionPenaltyLogitsProcessor(1.3),
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(40),
        TopPLogitsWarper(0.8),
    ]
    result = written(model, sampling)
    for prompt, number in ((0, 0), (2, 2), (3, 1)):
        assert result[prompt, number].chosen == plainly(model, sampling, rules, prompt, number, {1})


def test_temperature_0_is_greedy_and_the_models_own_settings_do_not_matter():
    model = opened("gemma3")
    result = written(model, Sampling(8, temperature=0, repetition_penalty=1.2), continuations=1)
    [ids] = encode_prompts(model, [PROMPTS[2]], max_tokens=32, new_tokens=8)
    expected = model.model.generate(
        torch.tensor([ids]), max_new_tokens=8, do_sample=False, repetition_penalty=1.2
    )[0, len(ids) :].tolist()
    assert list(result[2, 0].ids) == [token for token in expected if token != 1]
    plain = written(model, Sampling(8))
    model.model.generation_config.update(do_sample=True, temperature=0.1, top_k=1)
    assert written(model, Sampling(8)) == plain


def test_the_distribution_is_the_models():
    model, count = opened("llama"), 6000
    [ids] = encode_prompts(model, [PROMPTS[0]], max_tokens=32, new_tokens=1)
    batches = plan(model, [ids], continuations=count, new_tokens=1, batch_tokens=10**6)
    seen = np.zeros(300)
    for batch in generate(model, batches, Sampling(new_tokens=1), seed=3):
        for one in batch:
            seen[one.ids[0] if one.ids else 1] += 1
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    expected = count * logits.softmax(-1).numpy()
    rare = expected < 5
    observed = np.append(seen[~rare], seen[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 0.001


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16), vocabulary=st.integers(1, 1000), forbidden=st.floats(0, 0.99))
def test_inverse_cdf_is_that_of_the_full_sum_and_never_a_forbidden_token(
    seed, vocabulary, forbidden
):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(5, vocabulary, generator=generator)
    logits[torch.rand(5, vocabulary, generator=generator) < forbidden] = -torch.inf
    logits[:, vocabulary // 2] = 0.0
    draws = torch.tensor([0.0, 0.25, 0.5, 1 - 2**-53, 0.9], dtype=torch.float64)
    tokens = inverse_cdf(logits, draws)
    chosen = logits.gather(1, tokens.unsqueeze(-1))
    assert bool((chosen > -torch.inf).all())
    cumulative = logits.double().softmax(-1).cumsum(-1)
    below = torch.nn.functional.pad(cumulative, (1, 0)).gather(1, tokens.unsqueeze(-1))
    above = cumulative.gather(1, tokens.unsqueeze(-1))
    assert bool((below.squeeze(-1) <= draws + 1e-6).all())
    assert bool((above.squeeze(-1) >= draws - 1e-6).all())


def test_random_numbers_belong_to_their_place_alone():
    assert np.array_equal(uniforms(1, 2, 3, 5), uniforms(1, 2, 3, 50)[:5])
    places = [(s, p, c) for s in (0, 1) for p in range(20) for c in range(20)]
    values = np.array([uniforms(*place, 5) for place in places])
    assert len(np.unique(values)) == values.size
    assert stats.kstest(values.ravel(), "uniform").pvalue > 0.001
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.15


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    continuations=st.integers(1, 9),
    batch_tokens=st.integers(1, 200),
)
def test_a_plan_holds_every_continuation_once_and_fits(lengths, continuations, batch_tokens):
    batches = plan(
        _MODEL,
        [[5] * length for length in lengths],
        continuations=continuations,
        new_tokens=4,
        batch_tokens=batch_tokens,
    )
    pairs = [(p, c) for batch in batches for p in batch.prompts for c in batch.numbers]
    assert sorted(pairs) == [(p, c) for p in range(len(lengths)) for c in range(continuations)]
    for batch in batches:
        rows, length = len(batch.prompts) * len(batch.numbers), max(map(len, batch.ids))
        assert rows == 1 or rows * (length + 4) <= batch_tokens
        assert [lengths[p] for p in batch.prompts] == [len(ids) for ids in batch.ids]
        assert length - min(map(len, batch.ids)) <= 4


_MODEL = opened()


def test_an_end_token_that_the_tokenizer_appends_is_left_off():
    model = opened()
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    [ids] = encode_prompts(model, ["the cat"], max_tokens=32, new_tokens=4)
    assert ids[0] == 0
    assert ids[-1] != 1


def test_a_long_prompt_is_cut_so_that_the_continuation_fits():
    model = opened("gpt2")
    [ids] = encode_prompts(model, ["the cat sat " * 200], max_tokens=1000, new_tokens=20)
    assert len(ids) == 236
    with pytest.raises(UserError, match=r"`new_tokens=256` leaves no room.*256 positions"):
        encode_prompts(model, ["the"], max_tokens=10, new_tokens=256)


def test_logits_that_are_no_numbers_are_an_error():
    model = opened()
    torch.nn.init.constant_(model.model.lm_head.weight, torch.nan)
    with pytest.raises(UserError, match="tiny gives logits that are not finite numbers in float32"):
        written(model, Sampling(2))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"new_tokens": 0}, "`new_tokens=0` is out of range: it must be at least 1"),
        ({"temperature": -1.0}, "`temperature=-1` is out of range"),
        ({"top_k": -1}, "`top_k=-1` is out of range"),
        ({"top_p": 0.0}, "`top_p=0` is out of range"),
        (
            {"temperature": math.inf},
            "`temperature=inf` is out of range: it must be 0, or from 1e-10",
        ),
        ({"temperature": math.nan}, "`temperature=nan` is out of range"),
        ({"temperature": 1e-40}, "`temperature=1e-40` is out of range"),
        ({"repetition_penalty": 1e-40}, "`repetition_penalty=1e-40` is out of range"),
        ({"repetition_penalty": math.inf}, "`repetition_penalty=inf` is out of range"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty=0` is out of range"),
    ],
)
def test_a_setting_out_of_range_is_an_error(setting, message):
    with pytest.raises(UserError, match=message):
        Sampling(**setting)


_FACTOR = st.sampled_from([1e-10, 1e10]) | st.floats(1e-10, 1e10)


@given(
    temperature=st.just(0.0) | _FACTOR,
    penalty=_FACTOR,
    logits=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=9),
)
def test_no_setting_in_range_makes_finite_logits_infinite(temperature, penalty, logits):
    change = Sampling(temperature=temperature, repetition_penalty=penalty).processors()
    scores = change(torch.arange(len(logits))[None], torch.tensor([logits]))
    assert bool(scores.isfinite().all())
