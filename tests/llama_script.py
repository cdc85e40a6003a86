"""What llama.cpp makes of a GGUF file, for the tests: run by an interpreter that has llama_cpp.

Reads {"model", "texts" (lists of token ids), "new"} as JSON from standard input and prints, for
each text, the most likely token after each of its tokens, the log-probabilities of its own next
tokens, and the greedy continuation of `new` tokens.
"""

import json
import sys

import numpy as np
from llama_cpp import Llama


def log_softmax(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def main():
    task = json.load(sys.stdin)
    longest = max(map(len, task["texts"])) + task["new"]
    threads = {"n_threads": 1, "n_threads_batch": 1}
    llama = Llama(task["model"], n_ctx=longest + 8, logits_all=True, verbose=False, **threads)
    for ids in task["texts"]:
        llama.reset()
        llama.eval(ids)
        logits = np.array(llama.scores[: len(ids)])
        chances = log_softmax(logits[:-1])
        written = []
        for _ in range(task["new"]):
            written.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
            llama.eval(written[-1:])
        print(
            json.dumps(
                {
                    "top": logits.argmax(axis=-1).tolist(),
                    "own": chances[np.arange(len(ids) - 1), ids[1:]].tolist(),
                    "written": written,
                }
            )
        )


main()
