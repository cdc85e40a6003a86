"""What the tests of both of PEFT's adapters begin with."""

import torch

from families import random_factors, tiny_tokenizer
from sordino.interventions import Dampening
from sordino.models.sites import find_sites


def dampening_of(model, seed=0, rows=None, pattern=None):
    """Random factors for a model's sites, at most so many rows of each."""
    sites = {site.path: site.neurons for site in find_sites(model, pattern)}
    made = Dampening(random_factors(sites, seed), "aura", expertise={"concept": f"number {seed}"})
    return made if rows is None else made.limited(rows)


@torch.no_grad()
def logits(model, dampening=None):
    """A model's logits for one text, dampened by hooks or as it is."""
    ids = torch.tensor([tiny_tokenizer()("the otter in the sea")["input_ids"]])
    if dampening is None:
        return model(ids).logits
    with dampening.applied(model):
        return model(ids).logits
