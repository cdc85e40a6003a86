"""What llama.cpp makes of a GGUF file, for the tests: run by an interpreter that has it.

Reads {"model", "texts" (lists of token ids), "new"} as JSON from standard input and prints, for
each text, the most likely token after each of its tokens, the log-probabilities of its own next
tokens, and the greedy continuation of `new` tokens.
"""

import json
import os
import sys
from urllib.request import Request, urlopen

try:
    import numpy as np
    from llama_cpp import Llama
except ImportError:
    Llama = None


def log_softmax(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def by_llama_cpp_python(model, texts, new):
    longest = max(map(len, texts)) + new
    threads = {"n_threads": 1, "n_threads_batch": 1}
    llama = Llama(model, n_ctx=longest + 8, logits_all=True, verbose=False, **threads)
    for ids in texts:
        llama.reset()
        llama.eval(ids)
        logits = np.array(llama.scores[: len(ids)])
        chances = log_softmax(logits[:-1])
        written = []
        for _ in range(new):
            written.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
            llama.eval(written[-1:])
        own = chances[np.arange(len(ids) - 1), ids[1:]].tolist()
        yield {"top": logits.argmax(axis=-1).tolist(), "own": own, "written": written}


def by_xllamacpp(model, texts, new):
    """The server is asked for the next token's probabilities, prefix by prefix."""
    from xllama_server import start

    server = start(model, 0, "model", max(map(len, texts)) + new + 8)

    def after(ids):
        wanted = {"prompt": ids, "n_predict": 1, "n_probs": 10**6, "temperature": 0}
        # Probabilities are those before any sampling, and are not told of half a character.
        wanted |= {"logit_bias": [["a", 1000]]}
        body = json.dumps(wanted).encode()
        request = Request(f"{server.listening_address}/completion", body)
        with urlopen(request) as answer:
            [found] = json.load(answer)["completion_probabilities"]
        return {token["id"]: token["logprob"] for token in found["top_logprobs"]}

    for ids in texts:
        chances = [after(ids[:length]) for length in range(1, len(ids) + 1)]
        own = [of[token] for of, token in zip(chances, ids[1:], strict=False)]
        top, written = [max(of, key=of.get) for of in chances], []
        for _ in range(new):
            of = after([*ids, *written])
            written.append(max(of, key=of.get))
        yield {"top": top, "own": own, "written": written}


def main():
    task = json.load(sys.stdin)
    # llama.cpp itself writes to the standard output that the answers go to.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    way = by_llama_cpp_python if Llama else by_xllamacpp
    for found in way(task["model"], task["texts"], task["new"]):
        print(json.dumps(found), file=answers, flush=True)


main()
