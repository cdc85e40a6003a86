"""Rivals that steer: what hooks do is what weights would do, and planted differences are found."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sordino.errors import UserError
from sordino.evaluation.hooks import hooked_on
from sordino.expertise.own import OwnSamples
from sordino.interventions import Dampening
from sordino.interventions.steering import Steering
from sordino.models.chat import AS_SEES_FIT
from sordino.models.tokenise import Placed
from sordino.studies.pairs import preferences
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

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def logits(opened, edit=None):
    with torch.inference_mode():
        if edit is None:
            return opened.model(IDS).logits
        with edit.applied(opened.model):
            return opened.model(IDS).logits


def orthonormal(rank, width, seed=0):
    """Rows that are also orthogonal to the vector of ones."""
    rows = np.random.default_rng(seed).normal(size=(width, rank))
    rows -= rows.mean(axis=0)
    return np.linalg.qr(rows)[0].T.astype(np.float32)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_a_subspace_taken_out_is_an_edit_of_the_weights(family, strength, open_tiny):
    opened = open_tiny(family)
    path = Writers.of(opened).feed_forward[2]
    module = opened.model.get_submodule(path)
    rows = orthonormal(3, 32)
    found = logits(opened, Steering("p", subspaces={path: rows}).scaled(strength))
    assert (found - logits(opened)).abs().max() > 1e-4
    left = torch.eye(32) - strength * torch.from_numpy(rows.T @ rows)
    with torch.no_grad():
        transposed = family == "gpt2"
        module.weight.copy_(module.weight @ left if transposed else left @ module.weight)
        if module.bias is not None:
            module.bias.copy_(left @ module.bias)
    torch.testing.assert_close(logits(opened), found, atol=1e-5, rtol=1e-4)


def test_what_is_added_behind_a_layer_is_a_bias_of_its_last_linear_layer(open_tiny):
    opened = open_tiny("llama")
    writers = Writers.of(opened)
    shift = np.random.default_rng(0).normal(0, 0.3, 32).astype(np.float32)
    behind = Steering("caa", shifts={writers.layers[1]: shift}).scaled(0.5)
    site = writers.feed_forward[1]
    baked = Dampening({site: np.ones(32, np.float32)}, "hand", shifts={site: 0.5 * shift})
    torch.testing.assert_close(logits(opened, behind), logits(opened, baked))
    assert behind.changed == 32
    assert behind.scaled(0).changed == 0
    marks = {behind.fingerprint, behind.scaled(2).fingerprint, behind.scaled(1).fingerprint}
    assert len(marks) == 2


def test_a_steered_model_is_an_arm_of_an_evaluation(open_tiny):
    from contextlib import nullcontext

    opened = open_tiny("llama")
    edit = Steering("caa", shifts={"model.layers.1": np.ones(32, np.float32)})
    arm = hooked_on(opened.ref, edit, lambda: nullcontext(opened), name="steered")
    with arm.open() as lent, torch.inference_mode():
        found = lent.model(IDS).logits
    torch.testing.assert_close(found, logits(opened, edit))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "falcon_new", "opt"])
def test_sentences_are_looked_at_as_the_model_sees_them(family, open_tiny, concept):
    opened = open_tiny(family)
    looks = look(opened, concept, AS_SEES_FIT)
    assert looks.labels.sum() == 30
    module = opened.model.get_submodule(looks.writers.attention[3])
    for number in (0, 17, 54):
        ids = torch.tensor([opened.tokenizer(concept.sentences[number])["input_ids"]])
        given = []
        handle = module.register_forward_pre_hook(lambda _m, x, to=given: to.append(x[0]))
        with torch.inference_mode():
            hidden = opened.model(ids, output_hidden_states=True).hidden_states
        handle.remove()
        expected = hidden[2][0].mean(dim=0).numpy()  # behind the second layer
        np.testing.assert_allclose(looks.stream[1][number], expected, rtol=1e-3, atol=1e-5)
        last = given[0].reshape(-1, given[0].shape[-1])[-1].numpy()
        np.testing.assert_allclose(looks.heads[3][number].ravel(), last, rtol=1e-3, atol=1e-5)


def test_behind_its_layer_the_added_mean_makes_the_classes_alike(open_tiny, concept):
    opened = open_tiny("llama")
    edit = mean_difference(look(opened, concept, AS_SEES_FIT), 2)
    with edit.applied(opened.model):
        # A hook that comes later sees what this one gave.
        steered = look(opened, concept, AS_SEES_FIT).stream[2]
    plain = look(opened, concept, AS_SEES_FIT).stream[2]
    np.testing.assert_allclose(
        steered[concept.labels].mean(axis=0), plain[~concept.labels].mean(axis=0), atol=1e-5
    )


def planted(seed=0, sentences=200):
    """Looks in which head 1 of layer 2 alone tells the classes, along one direction."""
    draw = np.random.default_rng(seed)
    labels = np.arange(sentences) < sentences // 2
    heads = [draw.normal(size=(sentences, 4, 8)).astype(np.float32) for _ in range(3)]
    direction = draw.normal(size=8).astype(np.float32)
    direction /= np.linalg.norm(direction)
    heads[2][:, 1] += 3 * np.outer(labels - 0.5, direction)
    stream = [draw.normal(size=(sentences, 16)).astype(np.float32) + 5 for _ in range(3)]
    subspace = orthonormal(2, 16, seed)
    stream[1] += (6 * draw.normal(size=(sentences, 2)) * labels[:, None]) @ subspace
    names = tuple(tuple(f"{kind}{n}" for n in range(3)) for kind in "lamm")
    weights = tuple(draw.normal(size=(16, 32)).astype(np.float32) for _ in range(3))
    return Looks(Writers(*names), labels, tuple(stream), tuple(heads), weights), direction, subspace


def test_the_head_that_knows_is_found_and_moved_against_its_knowledge():
    looks, direction, _ = planted()
    edit = probed_heads(looks, 1)
    assert edit.shifts.keys() == {"a2"}
    moved = np.linalg.lstsq(looks.weights[2][:, 8:16], edit.shifts["a2"], rcond=None)[0]
    spread = (looks.heads[2][:, 1] @ direction).std()
    assert moved @ direction == pytest.approx(-spread, rel=0.1)
    assert np.linalg.norm(moved) == pytest.approx(spread, rel=0.1)
    assert len(probed_heads(looks, 12).shifts) == 3


def test_moved_heads_are_a_shift_of_the_linear_layer_behind_them(open_tiny, concept):
    opened = open_tiny("llama")
    looks = look(opened, concept, AS_SEES_FIT)
    edit = probed_heads(looks, 5).scaled(4)
    handles = []
    for path, shift in edit.shifts.items():
        weight = looks.weights[looks.writers.attention.index(path)]
        inner = torch.from_numpy(np.linalg.lstsq(weight, 4 * shift, rcond=None)[0])
        module = opened.model.get_submodule(path)
        handles.append(
            module.register_forward_pre_hook(lambda _m, x, by=inner: (x[0] + by, *x[1:]))
        )
    found = logits(opened)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(logits(opened, edit), found, atol=1e-3, rtol=1e-3)


def test_a_planted_subspace_is_found_without_what_all_text_has_in_common():
    looks, _, subspace = planted()
    edit = projected(looks, 2, {1: "m1"})
    rows = edit.subspaces["m1"]
    np.testing.assert_allclose(rows @ rows.T, np.eye(2), atol=1e-5)
    negative = looks.stream[1][~looks.labels]
    common = np.linalg.svd(negative)[2][
        0
    ]  # nearly all of their mean, which is 5 times their spread
    assert abs(common @ negative.mean(axis=0)) > 0.99 * np.linalg.norm(negative.mean(axis=0))
    assert np.abs(rows @ common).max() < 1e-4
    angles = np.linalg.svd(rows @ subspace.T, compute_uv=False)
    assert angles.min() > 0.9


def test_a_subspace_that_most_layers_share_is_the_one_of_all():
    looks, _, subspace = planted()
    draw = np.random.default_rng(1)
    stream = [of.copy() for of in looks.stream]
    for layer in (0, 2):  # beside the one that has it
        stream[layer] += (6 * draw.normal(size=(200, 2)) * looks.labels[:, None]) @ subspace
    edit = projected_alike(replace(looks, stream=tuple(stream)), 2, looks.writers.feed_forward)
    assert edit.subspaces.keys() == {"m0", "m1", "m2"}
    [rows, *others] = edit.subspaces.values()
    assert all(other is rows for other in others)
    np.testing.assert_allclose(rows @ rows.T, np.eye(2), atol=1e-5)
    assert np.linalg.svd(rows @ subspace.T, compute_uv=False).min() > 0.9


def test_a_continuation_is_looked_at_without_its_prompt(open_tiny):
    opened = open_tiny("llama")
    ids = (5, 6, 7, 8, 9, 10)
    looks = look_at(opened, [Placed(ids, 4), Placed(ids)], np.array([True, False]))
    with torch.inference_mode():
        hidden = opened.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
    for row, start in zip(looks.stream[0], (4, 0), strict=True):
        np.testing.assert_allclose(row, hidden[start:].mean(dim=0), rtol=1e-3, atol=1e-5)


def test_pairs_are_of_one_prompt_and_as_far_apart_as_can_be():
    scores = np.tile([[0.2, 0.9, 0.5, 0.55], [0.3, 0.31, 0.32, 0.33]], (8, 1))
    texts = [Placed((prompt, 1, number), 2) for prompt in range(16) for number in range(4)]
    pairs = preferences(OwnSamples(texts, [], [*range(16)], [], scores, "", ""))
    # Of every other prompt one pair; 0.5 and 0.55 are not told apart.
    assert [pair.prompt for pair in pairs] == list(range(0, 16, 2))
    assert {(pair.preferred.ids[2], pair.rejected.ids[2]) for pair in pairs} == {(0, 1)}
    assert all(p.preferred.ids[0] == p.rejected.ids[0] == p.prompt for p in pairs)
    with pytest.raises(UserError, match="`own_prompts`"):
        preferences(OwnSamples(texts, [], [*range(16)], [], np.full((16, 4), 0.5), "", ""))


def test_what_a_feed_forward_part_adds_is_put_out_behind_its_norm(open_tiny):
    opened = open_tiny("gemma3")
    writers = Writers.of(opened)
    assert writers.have_norms
    assert writers.added[1] == "model.layers.1.post_feedforward_layernorm"
    seen = {}
    module = opened.model.get_submodule(writers.added[1])
    behind = module.register_forward_hook(lambda _m, _x, out: seen.update(added=out))
    layer = opened.model.get_submodule(writers.layers[1])
    before = opened.model.get_submodule("model.layers.1.pre_feedforward_layernorm")
    early = before.register_forward_pre_hook(lambda _m, x: seen.update(stream=x[0]))
    late = layer.register_forward_hook(
        lambda _m, _x, out: seen.update(out=out[0] if isinstance(out, tuple) else out)
    )
    logits(opened)
    for handle in (behind, early, late):
        handle.remove()
    torch.testing.assert_close(seen["out"], seen["stream"] + seen["added"])
    plain = Writers.of(open_tiny("llama"))
    assert not plain.have_norms
    assert plain.added == plain.feed_forward


def test_models_without_such_layers_are_refused(open_tiny):
    with pytest.raises(UserError, match="rivals cannot be studied"):
        Writers.of(open_tiny("mixtral"))
