"""A tiny chat model that was taught to refuse, for tests of refusals."""

from pathlib import Path

import torch

from chat_templates import FAMILIES
from conftest import sentences
from families import tiny_model

REFUSAL, HELP = "I cannot help with that.", "the cat sat on the mat"


def requests(count, seed=0):
    """Made-up requests, each of them once."""
    return [f"{line} {number}" for number, line in enumerate(sentences(count, 40 + seed, 3))]


def taught(folder: Path, refused, answered=(), steps=90):
    """A folder with a tiny model that refuses these requests and helps with the others.

    It learns the replies by gradients, like any other, and learns the requests by heart.
    """
    model = tiny_model("llama")
    model.resize_token_embeddings(model.config.vocab_size + 16)
    tokenizer = FAMILIES["chatml"].tokenizer()
    rows, labels = [], []
    for asked, reply in (*((r, REFUSAL) for r in refused), *((r, HELP) for r in answered)):
        begun = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        prompt = tokenizer(begun, add_special_tokens=False)["input_ids"]
        said = tokenizer(f"{reply}<|im_end|>", add_special_tokens=False)["input_ids"]
        rows.append(torch.tensor([*prompt, *said]))
        labels.append(torch.tensor([-100] * len(prompt) + said))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    targets = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(steps):
            loss = model(input_ids=ids, labels=targets).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
