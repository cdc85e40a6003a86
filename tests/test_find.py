"""The sweep against the plain way: one sentence at a time, forward hooks, scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from families import FAMILIES, SUPPORTED, everyday, tiny_tokenizer
from sordino.errors import UserError
from sordino.expertise import find, passes, sweep
from sordino.expertise.artefact import Expertise
from sordino.expertise.find import find_experts
from sordino.expertise.passes import WholeForward, why_not_alone
from sordino.expertise.sweep import SweepSettings
from sordino.models.ranks import Ranks
from sordino.models.tokenise import encode, equal_length_batches


def plain_responses(opened, concept, pool=lambda z: z.amax(1), max_tokens=128):
    """By site path, float32 [sentences, neurons]: the ordinary forward, sentence by sentence."""
    found = {site.path: [] for site in opened.sites}

    def hook(path):
        return lambda _m, _i, z: found[path].append(pool(z if z.dim() == 3 else z[None])[0].float())

    def expert_hook(path):
        def keep(module, args, kwargs):
            responses = []
            for z in expert_outputs(module, *args, *kwargs.values())[path.rpartition(".")[-1]]:
                reached = pool(z[None])[0] if len(z) else torch.full(z.shape[1:], -torch.inf)
                responses.append(reached.float())
            found[path].append(torch.cat(responses))

        return keep

    handles = []
    for site in opened.sites:
        if site.experts:
            module = opened.model.get_submodule(site.path.rpartition(".")[0])
            handles.append(
                module.register_forward_pre_hook(expert_hook(site.path), with_kwargs=True)
            )
        else:
            module = opened.model.get_submodule(site.path)
            handles.append(module.register_forward_hook(hook(site.path)))
    with torch.inference_mode():
        for ids in encode(opened.tokenizer, concept.sentences, max_tokens):
            opened.model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {path: torch.stack(rows).numpy() for path, rows in found.items()}


def expert_outputs(module, states, index=None, weights=None):
    """By matrix, what each expert puts out for the tokens routed to it, from the module's input."""
    kind = type(module).__name__
    if kind == "InklingSharedExperts":  # all get every token, each times a factor of its own
        x, gammas = states.reshape(-1, states.shape[-1]), index.reshape(-1, module.n_shared_experts)
        found = {"gate_proj": [], "up_proj": [], "down_proj": []}
        for expert in range(module.n_shared_experts):
            opened, passed = (x @ getattr(module, f"{n}_proj")[expert].T for n in ("gate", "up"))
            inner = module.act_fn(opened) * passed * gammas[:, expert : expert + 1]
            outputs = (opened, passed, inner @ module.down_proj[expert].T)
            for of_matrix, z in zip(found.values(), outputs, strict=True):
                of_matrix.append(z)
        return found
    if index is None:  # Llama 4: every expert's copy of all tokens, 0 where it has none
        copies = states.view(module.num_experts, -1, states.shape[-1])
        of_expert = [tokens[tokens.abs().sum(-1) > 0] for tokens in copies]
        first, transposed, biased = "gate_up_proj", True, False

        def gate(z):
            opened, passed = z.chunk(2, dim=-1)
            return passed * module.act_fn(opened)

    elif kind in ("LongcatFlashExperts", "Step3p7Experts"):
        count = module.gate_up_proj.shape[0]
        of_expert = [states[(index == e).any(dim=1)] for e in range(count)]
        if kind == "LongcatFlashExperts":  # the last give back what they get, without a matrix
            real = module.num_routed_experts
            of_expert[real:] = [states[:0]] * (count - real)
        first, transposed, biased = "gate_up_proj", False, False

        def gate(z):
            opened, passed = z.chunk(2, dim=-1)
            if kind == "Step3p7Experts":
                return module._apply_gate(z)
            return module.act_fn(opened) * passed

    else:
        of_expert = [states[(index == e).any(dim=1)] for e in range(module.num_experts)]
        gate = module._apply_gate if module.has_gate else module.act_fn
        first = "gate_up_proj" if module.has_gate else "up_proj"
        transposed, biased = module.is_transposed, module.has_bias
    found = {first: [], "down_proj": []}
    for expert, x in enumerate(of_expert):
        for name in found:
            if expert >= len(getattr(module, name)):
                continue  # LongCat's have no second matrix
            weight = getattr(module, name)[expert]
            x = torch.einsum("ti,in->tn" if transposed else "ti,ni->tn", x, weight)
            if biased:
                x = x + getattr(module, f"{name}_bias")[expert]
            found[name].append(x)
            x = gate(x) if name == first else x
    return found


def swept(monkeypatch, opened, concept, **settings):
    """The expertise, and the responses of the sweep in the sentences' order, by site path."""
    exchange, given = Ranks.exchange, []
    chosen = SweepSettings(**settings)
    encoded = encode(opened.tokenizer, concept.sentences, chosen.max_tokens)
    batches = equal_length_batches(encoded, chosen.at_once(opened.device))
    order = [index for batch in batches for index in batch.indices]

    def keep(ranks, responses, rows):
        given.append(np.empty(responses.shape, np.float32))
        given[-1][order] = responses
        return exchange(ranks, responses, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Ranks, "exchange", keep)
        expertise = find_experts(opened, concept, settings=chosen)
    return expertise, dict(zip(expertise.sites, given, strict=True))


def oracle(labels, column):
    """scikit-learn's AUROC of the sentences that reached the neuron, if there are enough."""
    reached = column != -np.inf
    if np.bincount(labels[reached], minlength=2).min() < sweep.FEWEST_SENTENCES:
        return np.nan
    return roc_auc_score(labels[reached], column[reached])


def assert_matches_plain(monkeypatch, opened, concept, pool=lambda z: z.amax(1), **settings):
    """The sweep's responses are the plain way's to rounding, and its AUROC is scikit-learn's."""
    monkeypatch.setattr(sweep, "FEWEST_SENTENCES", 8)
    expertise, responses = swept(monkeypatch, opened, concept, **settings)
    plain = plain_responses(opened, concept, pool, settings.get("max_tokens", 128))
    assert expertise.sites == tuple(plain)
    for path, values in responses.items():
        # A sum is rounded by the size of what it adds up, in batches and alone in another order:
        # Muse Spark's experts give outputs up to 600, and those near 0 are off by as much as these.
        largest = np.abs(plain[path][np.isfinite(plain[path])]).max()
        np.testing.assert_allclose(values, plain[path], rtol=1e-4, atol=1e-5 * max(1, largest))
        expected = [oracle(concept.labels, column) for column in values.T]
        np.testing.assert_allclose(expertise["auroc"][path], expected, atol=1e-7)  # it is float32


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_layer_by_layer(family, open_tiny, concept):
    opened = open_tiny(family)
    batches = equal_length_batches(encode(opened.tokenizer, concept.sentences, 128), 64)
    with torch.inference_mode():
        assert not why_not_alone(opened, batches)


@pytest.mark.parametrize("family", everyday(SUPPORTED))
def test_every_family_equals_the_plain_way(family, open_tiny, concept, monkeypatch):
    assert_matches_plain(monkeypatch, open_tiny(family), concept, batch_tokens=64)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_the_whole_forward_gives_the_same(family, open_tiny, concept, monkeypatch):
    opened = open_tiny(family)
    by_layer = find_experts(opened, concept)
    monkeypatch.setattr("sordino.expertise.sweep.why_not_alone", lambda *_: "so")
    # So little room that the forward is run several times.
    monkeypatch.setattr(passes, "RESPONSE_BYTES", 4 * 55 * 100)
    whole = find_experts(opened, concept)
    assert len(WholeForward(opened, [], len(concept.labels)).stages) > 1
    for site in by_layer.sites:
        for name, values in by_layer.statistics[site].items():
            np.testing.assert_array_equal(values, whole.statistics[site][name])


def test_layers_that_share_state_take_the_whole_forward(open_tiny, concept, capsys, monkeypatch):
    opened = open_tiny("llama")
    layers = opened.model.model.layers
    left_behind = []
    layers[0].register_forward_hook(lambda _m, _i, z: left_behind.append(z / 2))
    layers[2].register_forward_hook(lambda _m, _i, z: z + left_behind[-1])
    assert_matches_plain(monkeypatch, opened, concept)
    assert "cannot be run one by one" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_other_poolings(pooling, family, open_tiny, concept, monkeypatch):
    opened = open_tiny(family)
    pool = {"mean": lambda z: z.mean(1), "last": lambda z: z[:, -1]}[pooling]
    assert_matches_plain(monkeypatch, opened, concept, pool, pooling=pooling)


def test_sentences_are_cut_at_max_tokens(open_tiny, concept, monkeypatch):
    assert_matches_plain(monkeypatch, open_tiny("gpt2"), concept, max_tokens=5)


def test_the_strongest_sentences_are_the_concept_s(open_tiny, concept, monkeypatch):
    expertise, responses = swept(monkeypatch, open_tiny("llama"), concept, batch_tokens=40)
    for path, values in responses.items():
        ranked = -np.sort(-values, axis=0)
        for rank in range(3):
            chosen = expertise[f"strongest_{rank + 1}"][path]
            found = values[chosen, np.arange(values.shape[1])]
            np.testing.assert_array_equal(found, ranked[rank])


def always_save(monkeypatch):
    monkeypatch.setattr("sordino.expertise.snapshot.EVERY_S", 0.0)
    monkeypatch.setattr("sordino.expertise.snapshot.SHARE", 0)


def test_an_interrupted_sweep_goes_on_to_the_same_bytes(open_tiny, concept, tmp_path, monkeypatch):
    opened = open_tiny("gemma3")
    settings = SweepSettings(batch_tokens=48)
    find_experts(opened, concept, settings=settings, output=tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    always_save(monkeypatch)
    run = passes.LayerByLayer.run
    target = tmp_path / "cut.safetensors"
    for calls_before_the_power_fails in (1, 5, 17, 40):
        left = calls_before_the_power_fails

        def failing(self, stage, batch):
            nonlocal left
            left -= 1
            if left < 0 and len(self._calls) > 2:  # not in the self-check
                raise KeyboardInterrupt
            run(self, stage, batch)

        monkeypatch.setattr(passes.LayerByLayer, "run", failing)
        with pytest.raises(KeyboardInterrupt):
            find_experts(opened, concept, settings=settings, output=target)
        assert not target.exists()
    monkeypatch.setattr(passes.LayerByLayer, "run", run)
    find_experts(opened, concept, settings=settings, output=target)
    assert target.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [
            "cut.safetensors",
            "whole.safetensors",
        ]
    )


def test_a_snapshot_of_other_settings_is_not_used(open_tiny, concept, tmp_path, monkeypatch):
    opened = open_tiny("llama")
    target = tmp_path / "x.safetensors"
    work = tmp_path / ".x.safetensors.work"
    always_save(monkeypatch)
    find.measure_expertise(opened, concept, SweepSettings(pooling="mean"), work=work)
    assert (work / "snapshot.safetensors").exists()
    expertise = find_experts(opened, concept, output=target)
    alone = find_experts(opened, concept)
    for site in alone.sites:
        np.testing.assert_array_equal(expertise["auroc"][site], alone["auroc"][site])


def test_sentences_that_are_cut_are_counted(open_tiny, concept, capsys):
    opened = open_tiny("llama")
    lengths = [len(opened.tokenizer(text)["input_ids"]) for text in concept.sentences]
    most = sorted(lengths)[-5]
    find_experts(opened, concept, settings=SweepSettings(max_tokens=most))
    full = sum(length >= most for length in lengths)
    said = capsys.readouterr().err
    assert f"cut at {most} tokens: {full} of {len(lengths)} are cut or end there" in said
    find_experts(opened, concept, settings=SweepSettings(max_tokens=max(lengths) + 1))
    assert "are cut" not in capsys.readouterr().err


def test_not_a_number_is_reported_by_site(open_tiny, concept, capsys):
    opened = open_tiny("llama_biased")
    opened.model.model.layers[1].mlp.up_proj.bias.data[3] = float("nan")
    expertise = find_experts(opened, concept)
    assert np.isnan(expertise["auroc"]["model.layers.1.mlp.up_proj"][3])
    said = capsys.readouterr().err
    assert "model.layers.1.mlp.up_proj: 55 responses of 1 neuron are not finite; 1 of" in said


def test_the_artefact_says_what_was_measured(open_tiny, concept, tmp_path):
    opened = open_tiny("llama")
    path = tmp_path / "calm.expertise.safetensors"
    expertise = find_experts(opened, concept, output=path)
    loaded = Expertise.load(path)
    assert loaded.metadata == expertise.metadata
    assert loaded.sites == expertise.sites
    assert loaded.metadata["concept"] == "calm"
    assert loaded.metadata["n_positive"] == "30"
    assert loaded.metadata["n_negative"] == "25"
    assert loaded.metadata["architecture"] == "LlamaForCausalLM"
    with pytest.raises(UserError, match="force=True"):
        find_experts(opened, concept, output=path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "median"}, "pooling=median"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        SweepSettings(**settings)


def test_a_site_that_runs_twice_is_refused(open_tiny, concept):
    opened = open_tiny("llama")
    mlp = opened.model.model.layers[2].mlp
    run = mlp.forward
    mlp.forward = lambda x: (run(x) + run(x)) / 2
    with pytest.raises(UserError, match=r"layers\.2\.mlp\.\w+ ran 2 times"):
        find_experts(opened, concept)


def test_a_site_that_sees_other_tokens_is_refused(open_tiny, concept):
    opened = open_tiny("llama")
    mlp = opened.model.model.layers[2].mlp
    run = mlp.forward
    mlp.forward = lambda x: run(x[:, :1]).expand_as(x)
    with pytest.raises(UserError, match=r"layers\.2\.mlp\.\w+ gave outputs of shape"):
        find_experts(opened, concept)


def test_a_text_without_a_token_is_refused(open_tiny):
    with pytest.raises(UserError, match="Text 2 of 2 has no tokens"):
        encode(tiny_tokenizer(bos=False), ["fine", ""], 128)
