"""The explorer's page: what it embeds, what it shows of the top neurons, and what it refuses."""

import json
import re
from base64 import b64decode
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

import sordino
from conftest import sentences
from families import PURE, SITES, SUPPORTED, everyday, tiny_folder, tiny_model, tiny_tokenizer
from sordino.concepts.concept import Concept
from sordino.edits import bake
from sordino.errors import UserError
from sordino.expertise import SweepSettings, find_experts
from sordino.expertise.artefact import Expertise
from sordino.interventions import aura
from sordino.models.experts import Routed, experts_hooked
from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef
from sordino.models.sites import Site
from sordino.models.tokenise import encode
from sordino.report.explorer import explore, read_subject
from sordino.report.explorer.comparison import compare
from sordino.report.explorer.insight import curve, insights
from sordino.report.explorer.lens import direction_of, logits_of, vector
from sordino.report.explorer.packed import coarse, pack_neurons
from sordino.report.explorer.page import Exploration, render
from sordino.report.explorer.subject import Subject

LONG = Concept("calm", sentences(30, 1, 6), sentences(25, 2, 6), "made for the tests")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny model's folder and the expertise that was found on it."""
    folder = tiny_folder("llama", tmp_path_factory.mktemp("tiny"))
    file = folder.parent / "calm.expertise.safetensors"
    find_experts(folder, LONG, output=file)
    return folder, file


def made_up(*, seed: int = 0, prefix: str = "model.layers", **metadata: str) -> Expertise:
    generator = np.random.default_rng(seed)
    statistics = {
        f"{prefix}.{layer}.mlp.{kind}": {"auroc": generator.random(size).astype(np.float32)}
        for layer in range(3)
        for kind, size in (("up_proj", 17), ("down_proj", 8))
    }
    about = {"model": "tiny", "architecture": "Tiny", "n_positive": "30", "n_negative": "30"}
    about |= {"concept": "calm", "concept_fingerprint": "x", "concept_source": "made up"}
    return Expertise(statistics, {**about, "weights_fingerprint": "y", **metadata})


def embedded(page: str) -> dict:
    [found] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found)


def unpacked(codes: dict) -> np.ndarray:
    steps = np.frombuffer(b64decode(codes["codes"]), "<i2")
    return codes["rest"] + codes["step"] * steps


# What the page embeds.


def test_what_the_page_embeds_is_the_artefact(tmp_path: Path) -> None:
    expertise, second = made_up(), made_up(seed=1)
    broken = dict(expertise.statistics)
    first = next(iter(broken))
    broken[first] = {"auroc": np.r_[np.float32(np.nan), broken[first]["auroc"][1:]]}
    expertise = Expertise(broken, expertise.metadata)
    dampening = aura(expertise)
    explored = explore(expertise, second, output=tmp_path / "page.html", top=0)

    data = embedded(explored.page.read_text())
    auroc = np.concatenate(list(expertise["auroc"].values()))
    assert [(path, size) for path, _, _, size in data["sites"]] == [
        (site, values.size) for site, values in expertise["auroc"].items()
    ]
    assert [data["kinds"][kind] for _, _, kind, _ in data["sites"]] == [
        *("mlp.up_proj", "mlp.down_proj") * 3,
    ]
    assert [layer for _, layer, _, _ in data["sites"]] == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(np.frombuffer(b64decode(data["auroc"]), "<f4"), auroc)
    np.testing.assert_array_equal(
        np.frombuffer(b64decode(data["second"]), "<f4"),
        np.concatenate(list(second["auroc"].values())),
    )
    factors = np.concatenate(list(dampening.factors.values()))
    found = unpacked(data["factors"])
    assert np.abs(found - factors).max() <= data["factors"]["step"] / 2 + 1e-9
    np.testing.assert_array_equal(found == 1, factors == 1)
    assert data["shifts"] is None
    assert explored.size == explored.page.stat().st_size
    assert explored.neurons == auroc.size


@given(
    arrays(np.float32, st.integers(1, 40), elements=st.floats(-8, 8, width=32)),
    st.sampled_from([0.0, 1.0]),
)
def test_two_bytes_keep_values_and_what_rests(values: np.ndarray, rest: float) -> None:
    codes = coarse(values, rest)
    if codes is None:
        assert np.all(values == rest)
        return
    found = unpacked(codes)
    np.testing.assert_array_equal(found == rest, values == rest)
    # What is next to the resting value is moved away from it, by less than a step.
    assert np.abs(found - values).max() <= codes["step"] * (1 + 1e-6)


def test_a_site_without_factors_has_factors_of_one() -> None:
    expertise = made_up()
    one = aura(expertise.at(expertise.sites[:1]))
    factors = unpacked(pack_neurons(expertise, one)["factors"])
    assert np.all(factors[17:] == 1)
    assert np.any(factors[:17] != 1)


def test_names_from_files_are_text_on_the_page() -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    expertise = made_up(prefix=f"model.{hostile}", model=hostile, concept=hostile)
    subject = read_subject(expertise)
    page = render(Exploration(subject, (), hostile, subject, compare(expertise, expertise)))
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert hostile in unescape(page)
    assert embedded(page)["names"][0] == f"“{hostile}” in {hostile}"


def test_the_page_loads_nothing() -> None:
    page = render(Exploration(read_subject(made_up())))
    assert "default-src 'none'" in page
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.S)
    assert not re.findall(r'<(?:link|script|img|iframe)[^>]+(?:src|href)="(?!data:)', markup)


# The top neurons.


def plain_outputs(model, concept, site: str, index: int) -> list[np.ndarray]:
    """One neuron's outputs to each sentence, by the whole model on one sentence at a time."""
    seen: list[torch.Tensor] = []
    handle = model.model.get_submodule(site).register_forward_hook(
        lambda module, inputs, output: seen.append(output[..., index].flatten())
    )
    with torch.inference_mode():
        for ids in encode(model.tokenizer, concept.sentences, 128):
            model.model(input_ids=torch.tensor([ids]))
    handle.remove()
    return [outputs.numpy() for outputs in seen]


@pytest.mark.parametrize("pooling", ["max", "mean", "last"])
def test_curves_and_sentences_are_those_of_a_plain_forward(open_tiny, pooling: str) -> None:
    model = open_tiny("llama")
    expertise = find_experts(model, LONG, settings=SweepSettings(pooling=pooling))
    found = insights(model, LONG, expertise, neurons=3, sentences=4)

    assert [(one.site, one.index) for one in found] == [n[:2] for n in expertise.top(3)]
    for one in found:
        outputs = plain_outputs(model, LONG, one.site, one.index)
        pool = {"max": np.max, "mean": np.mean, "last": lambda values: values[-1]}[pooling]
        responses = np.array([pool(values) for values in outputs])
        auroc = float(expertise.statistics[one.site]["auroc"][one.index])
        assert one.curve.area == pytest.approx(auroc, abs=1e-6)
        assert one.curve.area == pytest.approx(roc_auc_score(LONG.labels, responses), abs=2e-3)
        assert (one.curve.negatives, one.curve.positives) == (25, 30)
        for shown, expected in ((one.most, np.sort(-responses)), (one.least, np.sort(responses))):
            at = [responses[excerpt.sentence] for excerpt in shown]
            np.testing.assert_allclose(np.abs(at), np.abs(expected[:4]), atol=1e-5)
            assert [excerpt.positive for excerpt in shown] == [e.sentence < 30 for e in shown]
        if pooling == "max":
            by_site = expertise.statistics[one.site]
            assert [excerpt.sentence for excerpt in one.most[:3]] == [
                by_site[f"strongest_{rank}"][one.index] for rank in (1, 2, 3)
            ]
        for excerpt in (*one.most, *one.least):
            assert max(excerpt.responses) == pytest.approx(
                float(outputs[excerpt.sentence].max()), abs=1e-5
            )


@given(
    arrays(np.float32, 40, elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, np.nan])),
    st.integers(1, 38),
)
def test_the_area_under_any_curve_is_the_auroc(responses: np.ndarray, positives: int) -> None:
    labels = np.arange(40) < positives
    reached = ~np.isnan(responses)
    if len(set(labels[reached])) < 2:
        return
    found = curve(responses, labels)
    ranks = rankdata(responses[reached])
    p, n = found.positives, found.negatives
    u = ranks[labels[reached]].sum() - p * (p + 1) / 2
    assert found.area == pytest.approx(u / (p * n), abs=1e-12)


def test_experts_that_few_sentences_reach_have_curves_of_those(open_tiny) -> None:
    many = Concept("calm", sentences(80, 1, 8), sentences(80, 2, 8))
    model = open_tiny("mixtral")
    expertise = find_experts(model, many)
    for one in insights(model, many, expertise, neurons=6):
        auroc = float(expertise.statistics[one.site]["auroc"][one.index])
        assert one.curve.area == pytest.approx(auroc, abs=1e-6)


# The logit lens.


def opened(family: str) -> OpenModel:
    ref = ModelRef("tiny", "folder", Path("tiny"))
    return OpenModel(ref, tiny_model(family), tiny_tokenizer(), SITES.get(family))


def runs(model: OpenModel, path: str, of: str) -> list[torch.Tensor]:
    """What a module is given ("inputs") or gives at nine tokens, [tokens, width]."""
    seen: list[torch.Tensor] = []
    module = model.model.get_submodule(path)
    if of == "inputs":
        handle = module.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    else:
        handle = module.register_forward_hook(lambda m, given, output: seen.append(output))
    with torch.inference_mode():
        model.model(input_ids=torch.arange(3, 12)[None], use_cache=False)
    handle.remove()
    return [one.reshape(9, -1) for one in seen]


# In these a norm, or a layer as wide as another, lies between a neuron and its writer.
_INDIRECT = {"bitnet", "kosmos-2.5", "muse_spark"}


@pytest.mark.parametrize("family", everyday([f for f in SUPPORTED if f not in _INDIRECT]))
def test_a_neuron_feeds_the_input_that_it_moves(family: str) -> None:
    """Oracle: one output is made larger, and it is seen which inputs of the writer change."""
    model = opened(family)
    linear = [site for site in model.sites if not site.experts]
    for site in {site.kind: site for site in linear}.values():
        index = 2 * site.neurons // 3
        direction = direction_of(model, site, index)
        if family in PURE or "receptance" in site.kind:
            assert direction is None
            continue
        assert direction is not None
        width = model.model.config.get_text_config(decoder=True).hidden_size
        found = vector(model, direction)
        assert found is not None
        assert found.shape == (width,)
        if direction.is_coordinate:
            assert (direction.writer, direction.index) == (site.path, index)
            assert found.nonzero().flatten().tolist() == [index]
            continue
        before = runs(model, direction.writer, "inputs")[0], runs(model, direction.writer, "out")[0]

        def larger(module, given, output, index=index):
            output = output.clone()
            output[..., index] += 1.7
            return output

        handle = model.model.get_submodule(site.path).register_forward_hook(larger)
        after = runs(model, direction.writer, "inputs")[0], runs(model, direction.writer, "out")[0]
        handle.remove()
        moved = after[0] - before[0]
        assert moved.any(dim=0).nonzero().flatten().tolist() == [direction.index]
        # What the writer adds is that much of the direction.
        expected = moved[:, direction.index, None] * found
        torch.testing.assert_close(after[1] - before[1], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text", "nemotron_h"])
def test_an_experts_neuron_feeds_its_own_expert(family: str) -> None:
    model = opened(family)
    sites = [site for site in model.sites if site.experts and "down" not in site.kind]
    site = sites[-1]
    down = f"{site.path.rpartition('.')[0]}.down_proj"
    width = site.neurons // site.experts
    seen: list[dict[int, torch.Tensor]] = []

    def run(larger: int | None) -> None:
        def change(routed: Routed) -> torch.Tensor | None:
            if larger is None or routed.expert != larger // width:
                return None
            outputs = routed.outputs.clone()
            outputs[:, larger % width] += 1.0
            return outputs

        put_out: dict[int, torch.Tensor] = {}

        def keep(routed: Routed) -> None:
            put_out[routed.expert] = routed.outputs.clone()

        with torch.inference_mode(), experts_hooked(model.model, {site.path: change, down: keep}):
            model.model(input_ids=torch.arange(3, 40)[None], use_cache=False)
        seen.append(put_out)

    run(None)
    for expert in seen[0]:
        index = expert * width + width // 3
        run(index)
        direction = direction_of(model, site, index)
        assert direction is not None
        assert direction.expert == expert
        found = vector(model, direction)
        moved = seen[-1][expert] - seen[0][expert]
        strongest = moved[moved.norm(dim=1).argmax()]
        cosine = torch.nn.functional.cosine_similarity(strongest, found, dim=0)
        assert abs(float(cosine)) > 0.999


def root_mean_square(norm, states: torch.Tensor, one: float = 0.0) -> torch.Tensor:
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return states / (states.square().mean(-1, keepdim=True) + eps).sqrt() * (one + norm.weight)


def layer_norm(norm, states: torch.Tensor) -> torch.Tensor:
    apart = states - states.mean(-1, keepdim=True)
    return apart / (apart.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


@torch.no_grad()
def test_the_lens_is_what_a_plain_computation_gives(open_tiny) -> None:
    for family in ("llama", "gpt2", "gemma3"):
        model = open_tiny(family)
        inner = model.model.get_decoder()
        site = next(s for s in model.sites if s.layer == 1 and s.kind.split(".")[1] != "c_proj")
        direction = direction_of(model, site, 7)
        column = vector(model, direction)
        if family == "gpt2":
            torch.testing.assert_close(column, inner.h[1].mlp.c_proj.weight[7])
            through = layer_norm(inner.ln_f, column)
        elif family == "llama":
            torch.testing.assert_close(column, inner.layers[1].mlp.down_proj.weight[:, 7])
            through = root_mean_square(inner.norm, column)
        else:
            after = inner.layers[1].post_feedforward_layernorm
            through = root_mean_square(
                inner.norm, root_mean_square(after, column, one=1.0), one=1.0
            )
        expected = model.model.lm_head.weight @ through
        logits = logits_of(model, [(1, direction.writer, column)])
        torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=1e-4)


def test_words_are_ranked_by_that_and_signs_are_those_at_the_peaks(open_tiny) -> None:
    model = open_tiny("llama")
    expertise = find_experts(model, LONG)
    signs = set()
    for one in insights(model, LONG, expertise, neurons=8, sentences=3):
        site = next(site for site in model.sites if site.path == one.site)
        direction = direction_of(model, site, one.index)
        logits = logits_of(model, [(site.layer, direction.writer, vector(model, direction))])[0]
        words = one.lens
        assert words.is_coordinate == (site.kind == "mlp.down_proj")
        assert (words.writer, words.column) == (direction.writer, direction.index)
        known = (logits - logits[: len(model.tokenizer)].mean())[: len(model.tokenizer)]
        expected = (words.sign * known).sort(descending=True).values
        np.testing.assert_allclose([c for _, c in words.promoted], expected[:12], atol=1e-4)
        np.testing.assert_allclose(
            [c for _, c in words.suppressed], expected.flip(0)[:12], atol=1e-4
        )
        if words.is_coordinate:
            assert (words.sign, words.peaks) == (1, 0)
            continue
        fed = []
        every = plain_outputs(model, LONG, one.site, one.index)
        for excerpt in one.most:
            ids = torch.tensor(encode(model.tokenizer, [LONG.sentences[excerpt.sentence]], 128))
            outputs = every[excerpt.sentence]
            given: list[torch.Tensor] = []
            handle = model.model.get_submodule(words.writer).register_forward_pre_hook(
                lambda module, inputs, given=given: given.append(inputs[0])
            )
            with torch.inference_mode():
                model.model(input_ids=ids)
            handle.remove()
            fed.append(float(given[0][0, int(outputs.argmax()), words.column]))
        assert words.sign == (-1 if sum(np.sign(fed)) < 0 else 1)
        assert words.agreeing == sum(np.sign(fed) == words.sign)
        signs.add(words.sign)
    assert signs == {-1, 1}


def test_attention_has_no_words_and_says_so(open_tiny) -> None:
    model = open_tiny("llama")
    site = Site("model.layers.0.self_attn.v_proj", 0, "self_attn.v_proj", 16, False, False)
    assert direction_of(model, site, 3) is None


def test_a_model_read_layer_by_layer_shows_the_same(tiny: tuple[Path, Path]) -> None:
    folder, file = tiny
    expertise = Expertise.load(file)
    whole = insights(open_model(folder), LONG, expertise, neurons=4)
    streamed = insights(open_model(folder, stream=True), LONG, expertise, neurons=4)
    assert [one.curve for one in streamed] == [one.curve for one in whole]
    assert [one.most for one in streamed] == [one.most for one in whole]
    for one, other in zip(streamed, whole, strict=True):
        assert [w for w, _ in one.lens.promoted[:3]] == [w for w, _ in other.lens.promoted[:3]]


# Two of them.


def test_a_comparison_is_what_ranks_say() -> None:
    one, other = made_up(seed=1), made_up(seed=2)
    found = compare(one, other)
    a, b = (np.concatenate(list(of["auroc"].values())).astype(float) for of in (one, other))
    expected = np.corrcoef(rankdata(a), rankdata(b))[0, 1]
    assert found.correlation == pytest.approx(expected, abs=1e-12)
    assert found.neurons == a.size
    assert list(found.by_kind) == ["mlp.up_proj", "mlp.down_proj"]
    top = [set(np.argsort(-of)[: found.high]) for of in (a, b)]
    assert found.overlap == len(top[0] & top[1]) == len(found.both)
    assert len(found.first) == len(found.second) == found.high - found.overlap
    for shared in (*found.both, *found.first, *found.second):
        assert shared.first == one["auroc"][shared.site][shared.index]
        assert shared.second == other["auroc"][shared.site][shared.index]


def test_the_same_compared_with_itself() -> None:
    found = compare(made_up(), made_up())
    assert found.correlation == pytest.approx(1)
    assert found.overlap == found.high
    assert not found.first


def test_other_sites_cannot_be_compared() -> None:
    other = made_up().at(made_up().sites[:2])
    with pytest.raises(UserError, match=r"differ in their sites \(such as model.layers.1"):
        compare(made_up(), other)


# What is explored, and what is not.


def test_the_page_of_a_file_with_all_that_is_at_hand(tiny: tuple[Path, Path], tmp_path) -> None:
    _, file = tiny
    explored = explore(file, output=tmp_path / "page.html", concept=LONG, top=3)
    page = explored.page.read_text()
    assert (explored.shown, explored.without) == (3, "")
    for number, (site, index, auroc) in enumerate(Expertise.load(file).top(3), 1):
        [_, of] = page.split(f'<li id="neuron-{number}">')
        of = of.partition('<li id="neuron-')[0]
        assert f"<code>{site} · {index}</code>" in of
        assert f"AUROC {auroc:.4f}" in of
        [drawn] = re.findall(r'class="curve" d="M([^"]*)"', of)
        points = np.array([[int(n) for n in point.split()] for point in drawn.split("L")])
        area = np.trapezoid(30 - points[:, 1], points[:, 0]) / (30 * 25)
        assert area == pytest.approx(auroc, abs=1e-6)
        # Sentences that have the concept are covered, and so are words.
        for veil in re.findall(r'<p class="label">has the concept.*?</p>\s*(<\w+)', of, re.S):
            assert veil == "<details"
        assert re.search(r"<h4>What it promotes</h4>.*?<details class=\"veil\">", of, re.S)


def test_without_sentences_or_model_the_page_says_so(tiny, tmp_path: Path) -> None:
    _, file = tiny
    explored = explore(file, output=tmp_path / "a.html")
    assert "the sentences of “calm” are not available" in explored.without
    assert explored.without in unescape(explored.page.read_text())
    lost = Expertise.load(file)
    lost = Expertise(lost.statistics, {**lost.metadata, "model": str(tmp_path / "gone")})
    explored = explore(lost, output=tmp_path / "b.html", concept=LONG)
    assert "the model is not available" in explored.without
    assert explored.shown == 0


def test_what_was_asked_for_by_name_has_to_fit(tiny, tmp_path: Path) -> None:
    _, file = tiny
    other = tiny_folder("llama", tmp_path, seed=3)
    with pytest.raises(UserError, match="has other weights than the model"):
        explore(file, output=tmp_path / "a.html", concept=LONG, model=other)
    with pytest.raises(UserError, match="found with other sentences"):
        explore(
            file, output=tmp_path / "a.html", concept=Concept("x", LONG.negative, LONG.positive)
        )
    assert not list(tmp_path.glob("*.html"))
    with pytest.raises(UserError, match="needs an output"):
        explore(Expertise.load(file))


def test_a_run_s_folder_has_its_own_factors_and_sentences(tiny, tmp_path, call_in) -> None:
    folder, file = tiny
    expertise = Expertise.load(file)
    quiet = tmp_path / "quiet"
    bake(folder, aura(expertise).scaled(0.5), quiet)
    run = call_in(tmp_path)
    status, _, error = run("explore", "quiet")
    assert status == 2
    assert "holds 0 expertise files" in error

    for name, texts in (("calm.txt", LONG.positive), ("other.txt", LONG.negative)):
        (tmp_path / name).write_text("\n".join(texts))
    recipe = 'concept = "calm.txt"\nnegatives = "other.txt"\nbalance = false\n'
    (quiet / "sordino" / "recipe.toml").write_text(recipe)
    expertise.save(quiet / "sordino" / file.name)
    status, out, error = run("explore", "quiet", "--top", "2", "--json")
    assert (status, error) == (0, "")
    told = json.loads(out)
    page = quiet / "sordino" / "explorer.html"
    assert told["page"] == str(Path("quiet/sordino/explorer.html"))
    assert (told["shown"], told["without"], told["comparison"]) == (2, "", None)
    assert told["bytes"] == page.stat().st_size
    factors = unpacked(embedded(page.read_text())["factors"])
    baked = read_subject(quiet).dampening
    assert baked.strength == 0.5
    np.testing.assert_allclose(factors, np.concatenate(list(baked.factors.values())), atol=1e-4)

    status, _, error = run("explore", "quiet", "--strength", "2", "--force")
    assert status == 2
    assert "has its factors already" in error


def test_errors_are_one_sentence(tiny, tmp_path: Path, call_in) -> None:
    folder, file = tiny
    run = call_in(tmp_path)
    aura(Expertise.load(file)).save(tmp_path / "factors.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    made_up().save(tmp_path / "other.expertise.safetensors")
    (tmp_path / "page.html").write_text("mine")
    for arguments, expected in {
        ("factors.safetensors",): "holds factors but no expertise",
        ("broken.safetensors",): "broken.safetensors is damaged",
        ("gone.safetensors",): "does not exist",
        (folder,): "nor an output of Sordino",
        (file, "other.expertise.safetensors", "-o", "new.html"): "differ in their sites",
        (file, "--top", "-1", "-o", "new.html"): "--top takes 0 or more",
        (file, "-o", "page.html"): "exists already",
        (file, "--divergence", "0.1", "-o", "new.html"): "explore the folder",
        (file, "--max-per-class", "20", "-o", "new.html"): "--concept",
        (file, "--intervention", "auro", "-o", "new.html"): "did you mean aura?",
        (file, "--concept", "gone.csv", "-o", "new.html"): "gone.csv",
    }.items():
        status, out, error = run("explore", *arguments)
        assert (status, out) == (2, "")
        assert expected in error
        assert error.rstrip().count("\n") == 0, error
    assert (tmp_path / "page.html").read_text() == "mine"
    assert not (tmp_path / "new.html").exists()


def test_the_command_compares_and_tells(tiny, tmp_path: Path, call_in) -> None:
    _, file = tiny
    status, out, _ = call_in(tmp_path)(
        "explore",
        file,
        file,
        "--top",
        "0",
        "-o",
        "page.html",
        "--intervention",
        "damp",
        "--set",
        "k=5",
    )
    assert status == 0
    assert "rank correlation 1.000" in out
    assert "the page to open: page.html" in out
    data = embedded((tmp_path / "page.html").read_text())
    assert np.count_nonzero(unpacked(data["factors"]) != 1) == 5
    assert data["second"] == data["auroc"]


def test_it_is_in_the_package() -> None:
    assert sordino.explore is explore
    assert isinstance(read_subject(made_up()), Subject)
