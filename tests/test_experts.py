"""MoE experts: what is seen of them, what an AUROC is made of, and what cannot be done."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import sentences
from families import MIXTURES, everyday, random_factors, tiny_folder, tiny_model, tiny_tokenizer
from sordino.concepts.concept import Concept
from sordino.edits import bake
from sordino.errors import UserError
from sordino.expertise import attribution, sweep
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.find import find_experts
from sordino.expertise.pooling import NOT_REACHED, Capture
from sordino.expertise.snapshot import Progress, Snapshots
from sordino.expertise.statistic import Statistic
from sordino.expertise.sweep import SweepSettings
from sordino.interventions import Dampening, dampen
from sordino.models.experts import experts_hooked
from sordino.models.open import open_model
from sordino.models.ranks import Ranks
from sordino.models.sites import Site, find_sites
from sordino.models.tokenise import Batch, encode
from sordino.report.exemplars import exemplars

SLOW = pytest.mark.slow
IDS = torch.randint(3, 300, (3, 20), generator=torch.Generator().manual_seed(0))


def expert_sites(model):
    return {site.path: site for site in find_sites(model) if site.experts}


@pytest.mark.parametrize("name", everyday(MIXTURES))
@torch.no_grad()
def test_watching_changes_nothing(name):
    model = tiny_model(name)
    if name != "llama4_text":  # which has its own code alone
        model.set_experts_implementation("eager")
    before = model.get_experts_implementation()
    expected = model(IDS).logits
    tokens = dict.fromkeys(expert_sites(model), 0)

    def count(path):
        def hook(routed):
            assert routed.of == IDS.numel()
            assert routed.tokens.unique().numel() == len(routed.outputs)
            tokens[path] += len(routed.tokens)

        return hook

    with experts_hooked(model, {path: count(path) for path in tokens}):
        seen = model(IDS).logits
    names = ("num_experts_per_tok", "top_k_experts", "moe_topk")
    chosen = next(getattr(model.config, each) for each in names if hasattr(model.config, each))
    if name == "longcat_flash":  # some of whose experts have no matrix
        assert 0 < min(tokens.values()) <= max(tokens.values()) < chosen * IDS.numel()
    else:
        assert set(tokens.values()) == {chosen * IDS.numel()}
    assert torch.equal(seen, expected)
    assert model.get_experts_implementation() == before
    assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4_text"])
@torch.no_grad()
def test_who_watches_a_dampened_model_sees_its_outputs(name):
    """Hooks within hooks: the inner ones get what the outer ones made."""
    model = tiny_model(name)
    path, site = next(iter(expert_sites(model).items()))
    factors = np.zeros(site.neurons, np.float32)
    largest = []
    watch = {path: lambda routed: largest.append(float(routed.outputs.abs().max()))}
    dampening = Dampening({path: factors}, "none")
    with dampening.applied(model), experts_hooked(model, watch):
        inside = model(IDS).logits
    assert largest
    assert set(largest) == {0.0}
    with dampening.applied(model):
        assert torch.equal(model(IDS).logits, inside)
    with experts_hooked(model, watch):
        model(IDS)
    assert largest[-1] > 0


@given(st.data())
def test_ranks_that_share_experts_find_the_same(data):
    """A rank's share may begin and end within an expert."""
    experts, width, ranks = (data.draw(st.integers(1, 4)) for _ in range(3))
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    responses = draw.integers(-3, 3, (150, experts * width)).astype(np.float32)
    reached = draw.random((150, experts)) < data.draw(st.sampled_from([0.2, 0.5, 1.0]))
    responses[~reached.repeat(width, axis=1)] = NOT_REACHED
    labels = draw.random(150) < 0.5
    order = draw.permutation(150)
    site = Site("experts", 0, "experts", experts * width, False, False, experts)

    def statistics(share):
        block = torch.from_numpy(responses[:, share].copy())
        widths = sweep._widths(site, share)
        assert sum(widths) == share.stop - share.start
        return sweep._of_experts(block, widths, labels, None, order, SweepSettings())

    whole = statistics(slice(0, site.neurons))
    ends = [rank * site.neurons // ranks for rank in range(ranks + 1)]
    parts = [statistics(slice(a, b)) for a, b in pairwise(ends) if b > a]
    for name, values in whole.items():
        np.testing.assert_array_equal(values, torch.cat([part[name] for part in parts]))
    for expert in range(experts):
        counts = np.bincount(labels[order][reached[:, expert]], minlength=2)
        enough = counts.min() >= 30
        for name, count in zip(("reached_negative", "reached_positive"), counts, strict=True):
            assert (whole[name][expert * width : (expert + 1) * width] == count).all()
        here = whole["auroc"][expert * width : (expert + 1) * width]
        assert here.isfinite().all() == enough
        best = order[reached[:, expert]]
        chosen = whole["strongest_1"][expert * width : (expert + 1) * width]
        assert set(chosen.tolist()) <= (set(best.tolist()) if enough else {-1})


def test_what_is_not_finite_is_told_from_what_was_not_reached():
    model = tiny_model("mixtral")
    path, site = next(iter(expert_sites(model).items()))
    worst = {0: -torch.inf, 1: torch.nan, 2: torch.inf}

    def spoil(routed):
        outputs = routed.outputs.clone()
        outputs[:, :3] = torch.tensor([worst[index] for index in range(3)])
        return outputs

    buffer = torch.empty(3, site.neurons)
    capture = Capture("max")
    with (
        torch.no_grad(),
        experts_hooked(model, {path: spoil}),
        capture.hooked(model, {site: buffer}),
    ):
        capture.rows(0, Batch((0, 1, 2), IDS))
        model.get_decoder()(IDS, use_cache=False)
        capture.check()
    by_expert = buffer.view(3, 4, -1)
    reached = by_expert[..., 3] != NOT_REACHED
    assert reached.any()
    assert (by_expert[..., 0][reached] == torch.finfo(torch.float32).min).all()
    assert by_expert[..., 1][reached].isnan().all()
    assert (by_expert[..., 2][reached] == torch.inf).all()
    assert (by_expert[~reached] == NOT_REACHED).all()


@pytest.fixture(scope="module")
def larger() -> Concept:
    return Concept("calm", sentences(45, 1), sentences(40, 2), "made for the tests")


def hushed(opened, expert):
    """Route no token to this expert."""
    for layer in opened.model.model.layers:
        layer.mlp.e_score_correction_bias[expert] = -99.0


def test_an_expert_that_nothing_reaches_stays_as_it_is(open_tiny, larger, capsys):
    opened = open_tiny("minimax_m2")
    hushed(opened, 2)
    expertise = find_experts(opened, larger)
    assert "1 of 4 experts were reached by fewer than 30" in capsys.readouterr().err
    dampening = dampen(expertise, "aura")
    for path, auroc in expertise["auroc"].items():
        by_expert = auroc.reshape(4, -1)
        assert np.isnan(by_expert[2]).all()
        assert np.isfinite(by_expert[[0, 1, 3]]).any()
        assert (dampening.factors[path].reshape(4, -1)[2] == 1).all()
        assert dampening.factors[path].min() < 1
    for exemplar in exemplars(opened, larger, expertise, neurons=3):
        assert all(np.isfinite(excerpt.responses).all() for excerpt in exemplar.excerpts)


@pytest.mark.parametrize("name", ["mixtral", "granitemoe", "llama4_text"])
def test_streamed_is_the_same(name, tmp_path, larger):
    folder = tiny_folder(name, tmp_path, shard="20KB")
    found = []
    for stream in (False, True):
        target = tmp_path / f"{stream}.safetensors"
        find_experts(folder, larger, output=target, stream=stream)
        found.append(target.read_bytes())
    assert found[0] == found[1]


def test_statistics_of_experts_leave_out_what_did_not_reach_them(open_tiny, larger):
    """Strata and moments, too."""
    expertise = find_experts(
        open_tiny("olmoe"),
        larger,
        settings=SweepSettings(stratify="length", moments=True, pooling="mean"),
    )
    for site in expertise.sites:
        found = expertise.statistics[site]
        known = np.isfinite(found["auroc"])
        for name in ("mean_positive", "mean_negative", "transport_scale"):
            np.testing.assert_array_equal(np.isfinite(found[name]), known)


def derivatives(model, sites, texts):
    """Of the texts' log-likelihood a token by every factor: the experts' own code, on parameters
    that are multiplied by them. And how many texts reach each expert, by the routers' choices."""
    factors = {path: torch.ones(site.neurons, requires_grad=True) for path, site in sites.items()}
    if type(model).__name__ != "Llama4ForCausalLM":
        model.set_experts_implementation("eager")
    scaled = {}
    for path, site in sites.items():
        by_expert = factors[path].view(site.experts, -1)
        weight = model.get_parameter(path)
        scaled[path] = weight * (
            by_expert[:, None, :] if site.transposed else by_expert[:, :, None]
        )
        if site.bias:
            scaled[f"{path}_bias"] = model.get_parameter(f"{path}_bias") * by_expert
    total, tokens = 0.0, 0
    for ids in texts:
        logits = torch.func.functional_call(model, scaled, (ids,), {"use_cache": False}).logits
        log_p = logits[0, :-1].log_softmax(-1)
        total = total + log_p.gather(-1, ids[0, 1:, None]).sum()
        tokens += ids.shape[1] - 1
    total.backward()
    return {path: (of.grad / tokens).numpy() for path, of in factors.items()}


def see(experts):
    return lambda routed: experts.add(routed.expert)


def reached(model, sites, texts):
    """How many texts reach each expert, float64 [experts], by site."""
    counts = {path: np.zeros(site.experts) for path, site in sites.items()}
    for ids in texts:
        seen: dict[str, set[int]] = {path: set() for path in sites}
        hooks = {path: see(of_path) for path, of_path in seen.items()}
        with torch.no_grad(), experts_hooked(model, hooks):
            model(ids)
        for path, experts in seen.items():
            counts[path][list(experts)] += 1
    return counts


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("mixtral", "gpt_oss", "llama4_text") else pytest.param(name, marks=SLOW)
        for name in MIXTURES
    ],
)
def test_attribution_is_the_derivative_by_each_factor(name, open_tiny, larger, monkeypatch):
    monkeypatch.setattr(attribution, "FEWEST_SENTENCES", 12)
    opened = open_tiny(name)
    sites = expert_sites(opened.model)
    expertise = find_experts(opened, larger, attribution=AttributionSettings(20))
    drawn = larger.sampled(max_per_class=20, seed=0)
    texts = {
        label: [torch.tensor([ids]) for ids in encode(opened.tokenizer, of_class, 128)]
        for label, of_class in (("positive", drawn.positive), ("negative", drawn.negative))
    }
    expected = {label: derivatives(opened.model, sites, of) for label, of in texts.items()}
    counts = {label: reached(opened.model, sites, of) for label, of in texts.items()}
    compared = 0
    for path, site in sites.items():
        least = np.minimum(counts["positive"][path], counts["negative"][path])
        enough = (least >= 12).repeat(site.neurons // site.experts)
        for statistic, found in expertise.statistics[path].items():
            if statistic.startswith("attribution") or statistic == "cost":
                assert np.array_equal(np.isfinite(found), enough), statistic
        for label, derivative in expected.items():
            found = expertise[f"attribution_{label}"][path]
            np.testing.assert_allclose(
                found[enough], derivative[path][enough], rtol=1e-3, atol=1e-5
            )
        assert (expertise["cost"][path][enough] >= 0).all()
        compared += enough.sum()
    assert compared > 100


def test_contrast_leaves_experts_alone_of_which_too_little_is_known(open_tiny, larger, capsys):
    opened = open_tiny("minimax_m2")
    hushed(opened, 2)
    expertise = find_experts(opened, larger, attribution=AttributionSettings(40))
    assert "1 of 4 experts were reached by fewer than 30 of a class" in capsys.readouterr().err
    dampening = dampen(expertise, "contrast")
    for factors in dampening.factors.values():
        by_expert = factors.reshape(4, -1)
        assert np.isfinite(factors).all()
        assert (by_expert[2] == 1).all()
    assert min(factors.min() for factors in dampening.factors.values()) < 1


def test_what_few_refusals_need_of_experts_is_known(open_tiny, larger, tmp_path):
    """It is about these texts alone, however few of them reach an expert."""
    opened = open_tiny("mixtral")
    refusals = encode(opened.tokenizer, larger.positive[:2], 128)
    work = [
        *attribution.passages(opened, larger, AttributionSettings(20), 128, 2048),
        *attribution.in_batches(opened, Statistic.REFUSALS, refusals, [1, 1], [1, 1], 2048),
    ]
    found = attribution.attribute(
        opened,
        work,
        0,
        folder=tmp_path,
        snapshots=Snapshots(None, ""),
        restored=Progress(),
        ranks=Ranks(),
    )
    sites = expert_sites(opened.model)
    expected = derivatives(opened.model, sites, [torch.tensor([ids]) for ids in refusals])
    for path in sites:
        np.testing.assert_allclose(
            found[path][Statistic.REFUSALS], expected[path], rtol=1e-3, atol=1e-5
        )


@pytest.mark.slow
def test_the_cost_of_an_expert_s_neuron_predicts_the_divergence(open_tiny, larger):
    """Averaged over draws, ½·d²·F is the divergence that dampening by d causes."""
    opened = open_tiny("mixtral", dtype=torch.float64)
    opened.model.set_experts_implementation("eager")  # the default has no float64
    site, amount = "model.layers.2.mlp.experts.down_proj", 0.02
    drawn = larger.sampled(max_per_class=30, seed=0)
    costs = []
    for seed in range(0, 12_000, 1000):
        found = find_experts(opened, drawn, attribution=AttributionSettings(30, seed))
        costs.append(found.statistics[site]["cost"])
    mean = np.mean(costs, axis=0)
    neuron = int(np.nanargmax(mean))
    factors = np.ones(mean.size, np.float32)
    factors[neuron] -= amount
    divergence, tokens = 0.0, 0
    with torch.no_grad():
        for ids in encode(opened.tokenizer, drawn.negative, 128):
            p = opened.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            with Dampening({site: factors}, "one neuron").applied(opened.model):
                q = opened.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            divergence += float((p.exp() * (p - q)).sum())
            tokens += len(p)
    error = 0.5 * amount**2 * np.std([cost[neuron] for cost in costs]) / np.sqrt(len(costs))
    predicted = 0.5 * amount**2 * mean[neuron]
    assert divergence / tokens == pytest.approx(predicted, abs=4 * error, rel=0.05)
    assert error < predicted / 5


@pytest.mark.parametrize(
    "name", ["llama4_text", *(pytest.param(name, marks=SLOW) for name in ("mixtral", "gpt_oss"))]
)
def test_streamed_attribution_is_the_same(name, tmp_path, larger):
    folder = tiny_folder(name, tmp_path, shard="20KB")
    found = []
    for stream in (False, True):
        target = tmp_path / f"{stream}.safetensors"
        find_experts(
            folder, larger, output=target, stream=stream, attribution=AttributionSettings(20)
        )
        found.append(target.read_bytes())
    assert found[0] == found[1]


def shifted(name):
    sites = expert_sites(tiny_model(name))
    return Dampening(
        random_factors({path: site.neurons for path, site in sites.items()}),
        "mean_shift",
        shifts={path: np.full(site.neurons, 0.1, np.float32) for path, site in sites.items()},
    )


def test_shifts_go_into_the_biases_that_experts_have(tmp_path):
    folder = tiny_folder("gpt_oss", tmp_path)
    dampening = shifted("gpt_oss")
    bake(folder, dampening, tmp_path / "baked")
    model = open_model(folder, device="cpu").model
    with torch.no_grad():
        with dampening.applied(model):
            hooked = model(IDS).logits
        dampening.bake_into(model)
        in_memory = model(IDS).logits
        written = open_model(tmp_path / "baked", device="cpu").model(IDS).logits
    torch.testing.assert_close(written, hooked, rtol=1e-5, atol=1e-5)
    assert torch.equal(written, in_memory)


def test_shifts_of_experts_without_biases_are_refused(tmp_path):
    folder = tiny_folder("mixtral", tmp_path)
    with pytest.raises(UserError, match="`format=hooks`"):
        bake(folder, shifted("mixtral"), tmp_path / "baked")
    with pytest.raises(UserError, match="use hooks"):
        shifted("mixtral").bake_into(tiny_model("mixtral"))
    assert not (tmp_path / "baked").exists()


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("mixtral", "ia3", r"whose outputs no \(IA\)³ adapter of PEFT multiplies.*`format=lora`"),
        ("gpt_oss", "lora", r"change their bias .*no biases"),
        ("laguna", "lora", r"PEFT renames .*shared_experts\.gate_proj"),
    ],
)
def test_what_no_adapter_holds_of_experts_is_refused(name, form, message, tmp_path):
    folder = tiny_folder(name, tmp_path)
    sites = {site.path: site.neurons for site in find_sites(tiny_model(name))}
    dampening = Dampening(random_factors(sites), "aura").limited(5)
    with pytest.raises(UserError, match=message):
        bake(folder, dampening, tmp_path / "x", format=form)


def test_experts_of_another_number_are_refused():
    factors = {"model.layers.0.mlp.experts.gate_up_proj": np.ones(96, np.float32)}
    model = tiny_model("mixtral")
    with pytest.raises(UserError, match="has 384 neurons"):
        Dampening(factors, "none").bake_into(model)


def test_the_tokenizer_s_text_reaches_the_exemplars(open_tiny, larger):
    opened = open_tiny("llama4_text")
    expertise = find_experts(opened, larger)
    shown = exemplars(opened, larger, expertise, neurons=4)
    texts = {"".join(excerpt.pieces) for neuron in shown for excerpt in neuron.excerpts}
    whole = {tiny_tokenizer().bos_token + text for text in larger.sentences}
    assert texts <= whole
