"""A LoRA by DPO: the loss against its definition, what it learns, resuming to the same bytes."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sordino import progress
from sordino.errors import UserError
from sordino.interventions.adapter import Adapter
from sordino.models.tokenise import Placed
from sordino.studies import preference
from sordino.studies.pairs import Pair
from sordino.studies.preference import train

pytest.importorskip("peft")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def made_pairs(prompts=16, seed=0):
    """Continuations that have an even last token are preferred; lengths differ."""
    draw = np.random.default_rng(seed)

    def text(prompt, parity):
        body = draw.integers(20, 60, draw.integers(2, 6)) // 2 * 2 + parity
        return Placed((3, prompt, *map(int, body)), 2)

    return [Pair(n, text(n, 0), text(n, 1)) for n in range(10, 10 + prompts)]


def log_likelihood(opened, text):
    """One text alone, without padding."""
    with torch.no_grad():
        log_p = opened.model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
    return sum(float(log_p[at - 1, text.ids[at]]) for at in range(text.start, len(text.ids)))


def margins(opened, pairs):
    return np.array(
        [log_likelihood(opened, p.preferred) - log_likelihood(opened, p.rejected) for p in pairs]
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_trained_adapter_prefers_what_is_preferred(family, open_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(preference, "RATE", 1e-2)  # a tiny model has far to go
    opened, pairs = open_tiny(family), made_pairs()
    flags = [parameter.requires_grad for parameter in opened.model.parameters()]
    names = [name for name, _ in opened.model.named_modules()]
    before, logits = margins(opened, pairs), opened.model(IDS).logits
    adapter = train(opened, pairs, 0, tmp_path / "state")
    # The model is as it was, with nothing of PEFT left.
    assert [name for name, _ in opened.model.named_modules()] == names
    assert [parameter.requires_grad for parameter in opened.model.parameters()] == flags
    torch.testing.assert_close(opened.model(IDS).logits, logits, rtol=0, atol=0)
    with adapter.applied(opened.model):
        after = margins(opened, pairs)
    assert after.mean() > before.mean() + 0.5
    with adapter.scaled(0.5).applied(opened.model):
        half = margins(opened, pairs)
    assert before.mean() < half.mean() < after.mean()
    torch.testing.assert_close(opened.model(IDS).logits, logits, rtol=0, atol=0)
    adapter.save(tmp_path / "x.safetensors")
    assert Adapter.load(tmp_path / "x.safetensors").fingerprint == adapter.fingerprint
    assert adapter.scaled(0).changed == 0 < adapter.changed


def test_the_loss_is_that_of_the_paper(open_tiny):
    opened, pairs = open_tiny("llama"), made_pairs(5)
    shifted = margins(opened, pairs) - np.linspace(-3, 3, 5)
    expected = -np.log(1 / (1 + np.exp(-0.1 * np.linspace(-3, 3, 5))))
    given = torch.tensor(shifted, dtype=torch.float32)
    found = np.empty(5)
    chosen = list(preference._batches(opened, pairs))
    for at, losses in zip(chosen, preference._losses(opened, pairs, given), strict=True):
        found[at] = losses.detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert sorted(index for at in chosen for index in at) == list(range(5))


def test_what_is_adapted_is_what_the_merged_weights_do(open_tiny, tmp_path):
    """PEFT's own merge is the oracle."""
    from peft import LoraConfig, get_peft_model

    opened = open_tiny("llama")
    path = "model.layers.1.mlp.down_proj"
    config = LoraConfig(r=4, lora_alpha=8, target_modules=[path], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = get_peft_model(opened.model, config)
    layer = opened.model.get_submodule(path)
    down, up = (m["default"].weight.detach().numpy() for m in (layer.lora_A, layer.lora_B))
    adapter = Adapter("hand", {path: down.copy()}, {path: 2 * up})
    adapted.unload()
    with adapter.applied(opened.model), torch.no_grad():
        found = opened.model(IDS).logits
    again = get_peft_model(opened.model, config)
    for name, values in (("lora_A", down), ("lora_B", up)):
        with torch.no_grad():
            getattr(opened.model.get_submodule(path), name)["default"].weight.copy_(
                torch.from_numpy(values.copy())
            )
    merged = again.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, found, atol=1e-5, rtol=1e-4)


def test_an_interrupted_training_goes_on_to_the_same_bytes(open_tiny, tmp_path, monkeypatch):
    opened, pairs = open_tiny("llama"), made_pairs()
    train(opened, pairs, 3, tmp_path / "whole").save(tmp_path / "whole.safetensors")
    save, track, calls, tracked = torch.save, progress.track, [], []

    def failing(*args):
        calls.append(args)
        if len(calls) == 4:  # after the margins and two passes
            raise KeyboardInterrupt
        save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", failing)
        with pytest.raises(KeyboardInterrupt):
            train(opened, pairs, 3, tmp_path / "cut")

    def tracking(title, *args):
        tracked.append(title)
        return track(title, *args)

    monkeypatch.setattr(progress, "track", tracking)
    train(opened, pairs, 3, tmp_path / "cut").save(tmp_path / "cut.safetensors")
    whole, cut = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert tracked == ["training"]  # and the margins were not computed again


def test_no_prompt_is_learned_from_and_held_out():
    pairs = [pair for pair in made_pairs() for _ in range(2)]
    learned, held_out = preference._split(pairs, 0)
    assert len(learned) + len(held_out) == len(pairs)
    assert not {pair.prompt for pair in learned} & {pair.prompt for pair in held_out}
    assert len({pair.prompt for pair in held_out}) == 2


def test_a_file_says_how_strong_the_adapter_is(tmp_path):
    draw = np.random.default_rng(0)
    down, up = (draw.normal(size=size).astype(np.float32) for size in ((2, 5), (3, 2)))
    weak = Adapter("hand", {"site": down}, {"site": up}).scaled(0.3)
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        weak.save(file)
    again = Adapter.load(files[0])
    assert (again.intervention, again.strength) == ("hand", 0.3)
    assert again.fingerprint == weak.fingerprint
    assert len({file.read_bytes() for file in files}) == 1
    tensors = {"site.down": down, "site.up": up}
    save_file(tensors, tmp_path / "older.safetensors", metadata={"intervention": "hand"})
    assert Adapter.load(tmp_path / "older.safetensors").strength == 1


@pytest.mark.parametrize("where", ["the pairs", "held-out pairs"])
def test_a_loss_that_is_no_number_ends_the_training_at_once(
    where, open_tiny, tmp_path, monkeypatch
):
    losses, passed = preference._losses, []

    def spoilt(opened, pairs, margins):
        passed.append(len(pairs))
        bad = torch.is_inference_mode_enabled() == (where == "held-out pairs")
        for each in losses(opened, pairs, margins):
            yield each * float("nan") if bad else each

    monkeypatch.setattr(preference, "_losses", spoilt)
    with pytest.raises(UserError, match=f"loss on {where} .* is not a finite number"):
        train(open_tiny("llama"), made_pairs(), 0, tmp_path / "state")
    assert len(passed) == (1 if where == "the pairs" else 2)


def test_a_training_that_makes_nothing_better_changes_nothing(open_tiny, tmp_path, monkeypatch):
    """Here what is held out is judged the other way round."""
    monkeypatch.setattr(preference, "RATE", 1e-2)
    split = preference._split

    def contrary(pairs, seed):
        learned, held_out = split(pairs, seed)
        return learned, [Pair(p.prompt, p.rejected, p.preferred) for p in held_out]

    monkeypatch.setattr(preference, "_split", contrary)
    assert train(open_tiny("llama"), made_pairs(), 0, tmp_path / "state").changed == 0


def test_models_of_experts_are_refused(open_tiny, tmp_path):
    with pytest.raises(UserError, match="A trained LoRA would leave"):
        train(open_tiny("mixtral"), made_pairs(), 0, tmp_path / "state")
    assert not (tmp_path / "state").exists()
