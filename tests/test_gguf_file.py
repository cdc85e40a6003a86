"""GGUF files baked to GGUF files."""

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from families import random_factors
from sordino.edits import bake, is_dampened, read_provenance, verify_file
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.open import empty_model, open_model
from sordino.models.reference import resolve
from tiny_gguf import ARCHITECTURES, tiny_of

DENSE = [name for name in ARCHITECTURES if not name.endswith("moe")]


def dampening_of(path, sites=None, seed=0) -> Dampening:
    found = open_model(path, device="cpu", sites=sites).sites
    factors = random_factors({site.path: site.neurons for site in found}, seed)
    return Dampening(factors, "aura", expertise={"concept": "rudeness"})


@pytest.mark.parametrize("architecture", DENSE)
def test_the_baked_file_loads_as_the_model_baked_in_memory(architecture, tmp_path):
    """Every linear layer of every architecture, attention's with it: permuted, fused, transposed."""
    source = tiny_of(architecture, tmp_path / "model.gguf")
    dampening = dampening_of(source, sites=".")
    bake(source, dampening, tmp_path / "quiet.gguf")
    expected = open_model(source, device="cpu").model
    dampening.bake_into(expected)
    found = open_model(tmp_path / "quiet.gguf", device="cpu").model
    before, after = expected.state_dict(), found.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    checked = verify_file(resolve(source), dampening, tmp_path / "quiet.gguf")
    assert checked.others_equal
    assert checked.largest_relative < 1e-7
    assert checked.weights > 0
