"""Causal moments: each layer's, on the model as it was edited so far."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from sordino.errors import UserError
from sordino.expertise import SweepSettings
from sordino.expertise.find import find_experts
from sordino.expertise.sentences import encode_sentences
from sordino.expertise.statistic import Statistic
from sordino.interventions import dampen
from sordino.models.tokenise import equal_length_batches
from sordino.studies.variants import only_at

KINDS = ("mean_shift", "linear_transport")
# As a layer of Llama calls them; q, k and v beside each other.
ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def settings(causal=""):
    return SweepSettings(pooling="mean", moments=True, causal=causal)


def means(opened, concept, path, edit=None):
    """The classes' mean responses of a site, by the ordinary forward under a dampening."""
    seen, outputs = {}, []
    with ExitStack() as stack, torch.inference_mode():
        if edit is not None:
            stack.enter_context(edit.applied(opened.model))
        module = opened.model.get_submodule(path)
        handle = module.register_forward_hook(lambda _m, _i, output: outputs.append(output))
        stack.callback(handle.remove)
        for batch in equal_length_batches(encode_sentences(opened, concept, 128, None), 2048):
            opened.model(batch.input_ids)
            pooled = outputs.pop().mean(dim=1).numpy()
            seen |= dict(zip(batch.indices, pooled, strict=True))
    rows = np.stack([seen[index] for index in range(len(seen))])
    return rows[concept.labels].mean(axis=0), rows[~concept.labels].mean(axis=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("family", "pattern"),
    [("llama", "down_proj$"), ("llama", "attention"), ("gemma3", "norms"), ("gpt2", "c_proj$")],
)
def test_every_site_is_measured_under_the_maps_of_those_before_it(
    kind, family, pattern, open_tiny, concept
):
    opened = replace(open_tiny(family), site_pattern=pattern)
    expertise = find_experts(opened, concept, settings=settings(kind))
    assert expertise.metadata["causal"] == kind
    edit = dampen(expertise, kind)
    kinds = [*ORDER, "post_attention_layernorm", "post_feedforward_layernorm"]
    kinds += ["attn.c_proj", "mlp.c_proj"]

    def called(site):
        return site.layer, next(n for n, name in enumerate(kinds) if site.kind.endswith(name))

    in_order = sorted(opened.sites, key=called)
    for number in (0, 1, len(in_order) // 2, len(in_order) - 1):
        site = in_order[number].path
        before = only_at(edit, {other.path for other in in_order[:number]})
        expected = means(opened, concept, site, before)
        for name, values in zip(
            (Statistic.MEAN_POSITIVE, Statistic.MEAN_NEGATIVE), expected, strict=True
        ):
            np.testing.assert_allclose(expertise[name][site], values, rtol=2e-4, atol=2e-5)


def test_with_all_maps_on_the_positive_means_are_the_negative_ones_everywhere(open_tiny, concept):
    """Which maps that were all measured on the original overshoot."""
    opened = replace(open_tiny("llama"), site_pattern="down_proj$")
    missed = {}
    for causal in ("", "mean_shift"):
        expertise = find_experts(opened, concept, settings=settings(causal))
        edit = dampen(expertise, "mean_shift")
        far = []
        for number, site in enumerate(expertise.sites):
            before = only_at(edit, set(expertise.sites[:number]))
            positive, _ = means(opened, concept, site, before)
            goal = expertise[Statistic.MEAN_NEGATIVE][site]
            far.append(np.abs(positive + edit.shifts[site] - goal).max())
        missed[causal] = max(far)
    assert missed["mean_shift"] < 1e-5 < missed[""]


def test_a_killed_call_goes_on_to_the_same_bytes(open_tiny, concept, tmp_path, monkeypatch):
    opened = open_tiny("llama")
    options = {"settings": settings("linear_transport")}
    monkeypatch.setattr("sordino.expertise.snapshot.EVERY_S", 0.0)
    monkeypatch.setattr("sordino.expertise.snapshot.SHARE", 0)
    layers = [opened.model.get_submodule(f"model.layers.{index}") for index in (0, 1)]

    def runs_of_layers(output, most=float("inf")):
        """How often each of two layers runs, until the second was run so often."""
        runs = [0, 0]

        def count(which):
            def hook(*_):
                runs[which] += 1
                if which and runs[which] > most:
                    raise KeyboardInterrupt

            return hook

        with ExitStack() as stack:
            for which, layer in enumerate(layers):
                stack.callback(layer.register_forward_pre_hook(count(which)).remove)
            find_experts(opened, concept, output=output, **options)
        return runs

    target = tmp_path / "cut.safetensors"
    whole = runs_of_layers(tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        runs_of_layers(target, whole[1] - 1)
    again = runs_of_layers(target)
    assert target.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert again[0] < whole[0] / 2  # the first layer's were kept
    assert again[1] == whole[1]


def test_a_site_that_never_runs_is_refused_like_in_any_sweep(open_tiny, concept):
    opened = open_tiny("llama")
    opened.model.model.layers[1].mlp.spare_proj = torch.nn.Linear(32, 48)
    for causal in ("", "mean_shift"):
        with pytest.raises(UserError, match=r"spare_proj ran 0 times on one batch"):
            find_experts(opened, concept, settings=settings(causal))


def test_what_cannot_be_is_refused(open_tiny, concept):
    opened = open_tiny("llama")
    with pytest.raises(UserError, match="choose mean_shift or linear_transport"):
        settings("aura")
    with pytest.raises(UserError, match="`moments=True`"):
        SweepSettings(pooling="mean", causal="mean_shift")
    with pytest.raises(UserError, match="layer by layer"):
        find_experts(opened.ref.path, concept, settings=settings("mean_shift"), stream=True)
    with pytest.raises(UserError, match="MoE experts"):
        find_experts(open_tiny("mixtral"), concept, settings=settings("mean_shift"))
    expertise = find_experts(opened, concept, settings=settings("mean_shift"))
    assert dampen(expertise, "mean_shift").shifted
    with pytest.raises(UserError, match=r"mean_shift on the layers before.* for aura"):
        dampen(expertise, "aura")
