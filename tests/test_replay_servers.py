"""A month of traffic through two servers that have real models behind them."""

import json
import threading

import numpy as np
import pytest
import torch

from families import random_factors, tiny_folder
from llama_server import serving
from sordino.cli.app import main
from sordino.edits import bake
from sordino.evaluation import SCORERS, Scorer
from sordino.interventions import Dampening
from sordino.models.open import open_model
from sordino.replaying import ReplayOutcome
from stub_server import Stub, said
from tiny_gguf import tiny_of
from traffic import rows, traffic

DRAWING = threading.Lock()
"""Both servers draw from torch's one generator, each from its own seed."""


class Capitals(Scorer):
    """A scorer for models that write nothing but noise."""

    limits = "It sees capital letters and nothing else."

    def protocol(self):
        return {"scorer": "capitals"}

    def score(self, texts):
        return np.array([float(any("A" <= c <= "Z" for c in text)) for text in texts])


@pytest.fixture(autouse=True)
def capitals(monkeypatch):
    monkeypatch.setitem(SCORERS, "capitals", Capitals)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def dampened(model, output):
    """The same model with random factors, baked in."""
    sites = open_model(model, device="cpu").sites
    factors = random_factors({site.path: site.neurons for site in sites}, 0)
    bake(model, Dampening(factors, "aura", expertise={"concept": "noise"}), output)
    return output


def writing(folder):
    """What a server around a transformers model answers."""
    opened = open_model(folder, device="cpu")

    def behave(path, body):
        if path == "/models":
            return None
        if "messages" in body:
            text = opened.tokenizer.apply_chat_template(body["messages"], tokenize=False)
        else:
            text = body["prompt"]
        ids = opened.tokenizer(text, return_tensors="pt").input_ids
        with DRAWING, torch.inference_mode():
            torch.manual_seed(body["seed"])
            written = opened.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=body["temperature"],
                top_p=body["top_p"],
                max_new_tokens=body["max_tokens"],
            )
        answer = opened.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        if path == "/completions":
            return said(answer)
        return 200, {"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]}

    return behave


def replayed(folder, log, first, second, *more):
    servers = ("--endpoint", first, "--endpoint", second)
    arguments = ("replay", log, *servers, "--scorer", "capitals", "--max-tokens", 6, *more)
    main([str(part) for part in (*arguments, "-o", folder)])
    return ReplayOutcome.model_validate_json((folder / "replay.json").read_text())


def check(folder, outcome, a_day):
    """A page of thirty days, whose figures are those of the texts that are kept."""
    assert len(outcome.looks) == 30
    assert outcome.pairs == outcome.prompts == 30 * a_day
    texts = rows(folder, "SELECT text_a, text_b FROM pair ORDER BY number")
    expected = np.stack([Capitals().score(arm) for arm in zip(*texts, strict=True)], axis=1)
    assert 0 < expected.mean() < 1
    assert expected.mean(axis=0) == pytest.approx([share.value for share in outcome.shares])
    assert any(a != b for a, b in texts)  # they are two models
    page = (folder / "replay.html").read_text()
    assert "2026-03-01" in page
    assert "2026-03-30" in page
    assert "capital letters and nothing else" in page


def test_a_month_through_two_transformers_models(tmp_path):
    original = tiny_folder("llama", tmp_path)
    stubs = [
        Stub(writing(folder), models=(folder.name,))
        for folder in (original, dampened(original, tmp_path / "quiet"))
    ]
    log = traffic(tmp_path / "log.jsonl", days=30, a_day=1)
    try:
        addresses = [stub.address for stub in stubs]
        outcome = replayed(tmp_path / "out", log, *addresses)
        check(tmp_path / "out", outcome, a_day=1)
        assert outcome.servers == tuple(
            f"{name} at {address}"
            for name, address in zip((original.name, "quiet"), addresses, strict=True)
        )
        # A server that honours seeds says the same again, and a model equals itself.
        again = replayed(tmp_path / "again", log, *addresses, "--concurrency", 1)
        assert again == outcome
        same = replayed(tmp_path / "same", log, addresses[0], addresses[0])
        assert same.looks[-1].difference.value == 0
        assert same.first is None
        assert all(a == b for a, b in rows(tmp_path / "same", "SELECT text_a, text_b FROM pair"))
    finally:
        for stub in stubs:
            stub.close()


@pytest.mark.slow
def test_a_month_through_two_servers_of_llama_cpp(tmp_path):
    original = tiny_of("llama", tmp_path / "tiny.gguf", "Q8_0")
    quiet = dampened(original, tmp_path / "quiet.gguf")
    log = traffic(tmp_path / "log.jsonl", days=30, a_day=8)
    with (
        serving(original, "tiny", tmp_path / "tiny.log") as first,
        serving(quiet, "quiet", tmp_path / "quiet.log") as second,
    ):
        outcome = replayed(tmp_path / "out", log, first, second)
    check(tmp_path / "out", outcome, a_day=8)
    assert [name.split(" at ")[0] for name in outcome.servers] == ["tiny", "quiet"]
    print(json.dumps(outcome.model_dump(mode="json")["looks"][-1], indent=2))
