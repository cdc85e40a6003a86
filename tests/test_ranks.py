"""Several processes: the same artefact, byte for byte, and an end in a sentence."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import sentences
from families import tiny_folder
from sordino.errors import UserError
from sordino.models import ranks as ranks_module
from sordino.models.ranks import Ranks, sharing

SRC = Path(__file__).parents[1] / "src"


@given(st.lists(st.integers(1, 5), min_size=4, max_size=12), st.integers(1, 4))
def test_batches_are_dealt_out_whole_and_once(sizes, ranks):
    dealt, rows = [], []
    for rank in range(ranks):
        one = Ranks()
        one.rank, one.size = rank, ranks
        mine = list(one.deal(range(len(sizes))))
        dealt += mine
        rows.append(one.rows(sizes))
        assert len(mine) <= one.rounds(len(sizes))
        assert [sizes[batch] for batch in mine] == [
            size for batch, size in enumerate(sizes) if batch % ranks == rank
        ]
    assert sorted(dealt) == list(range(len(sizes)))
    assert all(one == rows[0] for one in rows)
    assert sorted(row for its in rows[0] for row in its) == list(range(sum(sizes)))


@given(st.integers(0, 100), st.integers(1, 7))
def test_neurons_are_shared_out_once(neurons, ranks):
    one = Ranks()
    one.size = ranks
    shares = [one.share(neurons, rank) for rank in range(ranks)]
    assert np.concatenate([np.arange(neurons)[s] for s in shares]).tolist() == list(range(neurons))


def test_fewer_batches_than_processes_is_said():
    one = Ranks()
    one.size = 3
    with pytest.raises(UserError, match="start fewer"):
        one.deal([1, 2])


@pytest.fixture
def here(tmp_path):
    """A folder with a tiny model and a concept."""
    tiny_folder("llama", tmp_path).rename(tmp_path / "tiny")
    (tmp_path / "yes.txt").write_text("\n".join(sentences(40, 1)) + "\n")
    (tmp_path / "no.txt").write_text("\n".join(sentences(41, 2)) + "\n")
    return tmp_path


FIND = [
    *("find", "tiny", "--concept", "yes.txt", "--negatives", "no.txt", "--stratify", "length"),
    *("--attribution", "--attribution-per-class", "20", "--batch-tokens", "60"),
    *("--device", "cpu"),  # of GPUs there are seldom as many as processes here
]


def start(here, processes, *arguments, **environment):
    """Start sordino, alone or by torchrun."""
    many = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command = [sys.executable, *(many if processes > 1 else []), "-m", "sordino", *arguments]
    surroundings = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command,
        cwd=here,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


OWN = [
    *("--own", "--own-prompts", "no.txt", "--own-max-prompts", "20"),
    *("--own-continuations", "2", "--own-new-tokens", "4"),
]


@pytest.mark.parametrize(
    "more",
    [
        OWN,
        pytest.param(["--stream"], marks=pytest.mark.slow),
        pytest.param(["--moments", "--pooling", "mean"], marks=pytest.mark.slow),
    ],
)
def test_three_processes_write_what_one_writes(here, more):
    for name, processes in {"one": 1, "three": 3}.items():
        process = start(here, processes, *FIND, *more, "-o", f"{name}.safetensors")
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        assert out.count("written:") == 1
    assert (here / "one.safetensors").read_bytes() == (here / "three.safetensors").read_bytes()
    assert not list(here.glob(".*.work"))


@pytest.mark.slow
def test_three_processes_measure_what_one_measures(here):
    (here / "prompts.txt").write_text("\n".join(sentences(7, 3, longest=6)) + "\n")
    (here / "prose.txt").write_text("\n".join(sentences(20, 5, longest=20)) + "\n")
    tiny_folder("llama", here / "again", seed=1).rename(here / "other")
    arguments = [
        *("evaluate", "other", "--against", "tiny", "--prompts", "prompts.txt"),
        *("--device", "cpu"),
        *("--texts", "prose.txt", "--scorer", "alt-profanity-check", "--continuations", "3"),
        *("--measure", "toxicity", "--measure", "perplexity", "--measure", "divergence"),
        *("--batch-tokens", "60"),
    ]
    for name, processes in {"one": 1, "three": 3}.items():
        process = start(here, processes, *arguments, "-o", f"{name}.json")
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        assert out.count("written:") == 1
    for kind in ("json", "samples.jsonl"):
        assert (here / f"one.{kind}").read_bytes() == (here / f"three.{kind}").read_bytes()
    assert not list(here.glob(".*journal*"))


@pytest.mark.slow
def test_accelerate_starts_them_as_well(here):
    """Its launcher for several GPUs is torchrun; where there are none, ranks use the processor."""
    whole = start(here, 1, *FIND, "-o", "whole.safetensors")
    assert whole.wait(timeout=300) == 0
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
            *("--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"),
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--module", "sordino"),
            *(*FIND, "-o", "shared.safetensors"),
        ],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written:") == 1
    assert (here / "shared.safetensors").read_bytes() == (here / "whole.safetensors").read_bytes()


def test_more_processes_than_gpus_end_in_a_sentence(monkeypatch):
    for name, value in {"WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks_module, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"fewer GPUs \(2\) than processes"), sharing("auto"):
        pass


@pytest.mark.slow
def test_when_one_dies_the_others_end_with_a_sentence_and_the_run_goes_on(here):
    (here / "slow.py").write_text(SLOW)
    whole = start(here, 1, *FIND, "-o", "whole.safetensors")
    assert whole.wait(timeout=300) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Without torchrun, which would stop the other at once: as if they were on two machines.
    both = [
        subprocess.Popen(
            [sys.executable, "slow.py", *FIND, "-o", "shared.safetensors"],
            cwd=here,
            env={
                **os.environ,
                **{"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"},
                **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    kept = here / ".shared.safetensors.work"
    deadline = time.monotonic() + 200
    while not all((kept / f"rank-{r}-of-2/snapshot.safetensors").exists() for r in (0, 1)):
        assert [one.poll() for one in both] == [None, None]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    both[1].kill()
    _, error = both[0].communicate(timeout=200)
    both[1].communicate()
    assert both[0].returncode == 2
    assert "Another process of this run ended: its own message says why." in error
    assert "Traceback" not in error
    assert not (here / "shared.safetensors").exists()
    again = start(here, 2, *FIND, "-o", "shared.safetensors")
    _, error = again.communicate(timeout=300)
    assert again.returncode == 0, error
    assert (here / "shared.safetensors").read_bytes() == (here / "whole.safetensors").read_bytes()


SLOW = """
import sys, time
import sordino.expertise.snapshot as snapshot
snapshot.EVERY_S = 0
from sordino.expertise.passes import LayerByLayer
run = LayerByLayer.run
def slowly(*arguments):
    time.sleep(0.05)
    run(*arguments)
LayerByLayer.run = slowly
from sordino.cli.app import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_together_they_go_on_to_the_same_bytes(here):
    (here / "slow.py").write_text(SLOW)
    whole = start(here, 1, *FIND, "-o", "whole.safetensors")
    assert whole.wait(timeout=300) == 0
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"),
        *("slow.py", *FIND, "-o", "killed.safetensors"),
    ]
    surroundings = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=here, env=surroundings, stderr=subprocess.DEVNULL, start_new_session=True
    )
    kept = here / ".killed.safetensors.work"
    deadline = time.monotonic() + 200
    while not all((kept / f"rank-{r}-of-2/snapshot.safetensors").exists() for r in (0, 1)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # torchrun gives its processes sessions of their own, so they are killed one by one.
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.send_signal(signal.SIGKILL)
    process.wait()
    assert not (here / "killed.safetensors").exists()
    again = start(here, 2, *FIND, "-o", "killed.safetensors")
    _, error = again.communicate(timeout=300)
    assert again.returncode == 0, error
    assert (here / "killed.safetensors").read_bytes() == (here / "whole.safetensors").read_bytes()
