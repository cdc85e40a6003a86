"""What bfloat16 changes: in the model, and in the responses alone."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.find import model_and_concept
from benchmarks.measure import Figure, Options, Result, command
from sordino.concepts.concept import Concept
from sordino.expertise.auroc import auroc
from sordino.expertise.pooling import Capture
from sordino.expertise.sweep import SweepSettings
from sordino.models.open import OpenModel
from sordino.models.tokenise import encode, equal_length_batches


@torch.inference_mode()
def responses_of(opened: OpenModel, concept: Concept) -> dict[str, torch.Tensor]:
    """By site, float32 [sentences, neurons] in the concept's order, from the ordinary forward."""
    settings = SweepSettings()
    encoded = encode(opened.tokenizer, concept.sentences, settings.max_tokens)
    batches = equal_length_batches(encoded, settings.at_once(opened.device))
    buffers = {site: torch.empty(len(encoded), site.neurons) for site in opened.sites}
    capture = Capture(settings.pooling)
    start = 0
    with capture.hooked(opened.model, buffers):
        for batch in batches:
            capture.rows(start, batch)
            opened.model.get_decoder()(input_ids=batch.input_ids, use_cache=False)
            start += len(batch.indices)
    order = torch.tensor([index for batch in batches for index in batch.indices])
    return {site.path: buffer[order.argsort()] for site, buffer in buffers.items()}


def run(options: Options) -> Result:
    """The change of every neuron's AUROC when something is rounded to 16 bits."""
    opened, concept = model_and_concept(options, "float32")
    single = responses_of(opened, concept)
    half = responses_of(model_and_concept(options, "bfloat16")[0], concept)

    def auroc_of(
        responses: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float32
    ) -> NDArray[np.float64]:
        return np.concatenate([auroc(z.to(dtype), concept.labels) for z in responses.values()])

    exact = auroc_of(single)
    rounded = {
        "model in bfloat16, responses in float32": auroc_of(half),
        "model in float32, responses rounded to bfloat16": auroc_of(single, torch.bfloat16),
        "model in float32, responses rounded to float16": auroc_of(single, torch.float16),
    }
    figures = []
    for what, values in rounded.items():
        change = np.abs(values - exact)
        figures += [
            Figure(f"{what}: mean change of AUROC", float(change.mean()), ""),
            Figure(f"{what}: largest change of AUROC", float(change.max()), ""),
        ]
    about = {
        "model": "random" if options.quick else "SmolLM2-135M-Instruct",
        "sentences": f"{len(concept.sentences):,}",
        "neurons": f"{exact.size:,}",
        "seed": 0,
    }
    return Result("rounding", about, {}, figures)


if __name__ == "__main__":
    command(run)
