"""The main path on a real model against the plain way, written out in thirty lines."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from sordino import kit
from sordino.concepts import load_concept
from sordino.expertise.auroc import auroc
from sordino.expertise.find import find_experts


def plain(path, concept):
    """Responses float32 [sentences, neurons] by site path: one sentence at a time, with hooks."""
    folder, file = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    responses = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".mlp." in name:
            responses[name] = []
            module.register_forward_hook(
                lambda _m, _i, z, name=name: responses[name].append(z[0].max(dim=0).values)
            )
    with torch.no_grad():
        for text in concept.sentences:
            model(**tokenizer(text, truncation=True, max_length=128, return_tensors="pt"))
    return {name: torch.stack(rows).numpy() for name, rows in responses.items()}


@pytest.mark.slow
def test_find_on_smollm2_equals_the_plain_way(tmp_path):
    torch.set_num_threads(2)
    concept = load_concept("insults")
    assert len(concept.positive) == len(concept.negative) == 1049
    expertise = find_experts("kit:smollm2", concept, output=tmp_path / "x.safetensors")
    responses = plain(kit.model_file("smollm2"), concept)
    assert expertise.sites == tuple(responses)
    differences = []
    for site, values in responses.items():
        oracle = np.array([roc_auc_score(concept.labels, column) for column in values.T])
        np.testing.assert_allclose(auroc(values, concept.labels), oracle, rtol=0, atol=1e-12)
        differences.append(np.abs(expertise["auroc"][site] - oracle))
    differences = np.concatenate(differences)
    print(f"mean {differences.mean():.2e}, largest {differences.max():.2e}, n {differences.size}")
    assert differences.size == 109_440
    assert differences.mean() < 1e-4
    assert differences.max() < 5e-3
