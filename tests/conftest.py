import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkProcess

# One thread a test process: the tests run side by side, and what they compare must not depend on
# how a product was divided.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What one test measures must not stand in for what another does.
os.environ.setdefault("SORDINO_NO_CACHE", "1")

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http
from hypothesis import settings

from families import SITES, tiny_model, tiny_tokenizer
from sordino import hub
from sordino.cli.app import main
from sordino.concepts.concept import Concept
from sordino.evaluation import endpoint
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef
from stub_hub import StubHub
from stub_server import Stub
from tools.screenshots import find_chromium

torch.set_num_threads(1)
settings.register_profile("sordino", deadline=None)
settings.load_profile("sordino")


def forked(act: Callable[[], object]) -> ForkProcess:
    """Do something in a process of its own that has imported what this one has.

    Not for what differentiates: torch's autograd does not survive a fork.
    """
    process = multiprocessing.get_context("fork").Process(target=act, daemon=True)
    process.start()
    return process


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """Collecting garbage, which evaluations do, need not look again at what was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _measured_by_default():
    """A run measures no more of a chat model than of others: refusals and PIQA need the kit.

    Tests of what a run measures by default set it themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sordino.pipeline.MEASURED_OF_CHAT", ())
        yield


_WORDS = ["quiet", "river", "turned", "under", "an", "old", "bridge", "nobody", "heard", "sing"]


def sentences(count: int, seed: int, longest: int = 12) -> tuple[str, ...]:
    """Different sentences of different lengths."""
    import random

    draw = random.Random(seed)
    return tuple(
        f"{number} " + " ".join(draw.choices(_WORDS, k=draw.randint(1, longest)))
        for number in range(count)
    )


@pytest.fixture(scope="session")
def concept() -> Concept:
    """Thirty positive and twenty-five negative sentences."""
    return Concept("calm", sentences(30, 1), sentences(25, 2), "made for the tests")


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, driven by playwright."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium here: install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture(scope="session")
def open_tiny(tmp_path_factory):
    """A function that gives an open tiny model of a family, with files behind it."""

    def give(family: str, **changes) -> OpenModel:
        folder = tmp_path_factory.mktemp(family)
        model, tokenizer = tiny_model(family, **changes), tiny_tokenizer()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        ref = ModelRef(family, "folder", folder)
        return OpenModel(ref, model, tokenizer, SITES.get(family))

    return give


@pytest.fixture
def call_in(monkeypatch, capsys):
    """A function of a folder that gives one which runs a command there.

    That one gives the command's exit status, standard output and error.
    """

    def give(folder):
        def run(*arguments):
            monkeypatch.chdir(folder)
            capsys.readouterr()
            try:
                main([str(argument) for argument in arguments])
                status = 0
            except SystemExit as stop:
                status = stop.code
            out = capsys.readouterr()
            return status, out.out, out.err

        return run

    return give


@pytest.fixture
def serve(monkeypatch):
    """Start stubs; pauses between tries are short."""
    monkeypatch.setattr(endpoint, "BACKOFF_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    stubs = []

    def start(behave, **settings):
        stubs.append(Stub(behave, **settings))
        return stubs[-1]

    yield start
    for stub in stubs:
        stub.close()


@pytest.fixture
def online(stub_hub, monkeypatch, tmp_path):
    """The hub on loopback, as this process' hub, without a token and with an empty cache.

    Pauses between tries are left out.
    """
    monkeypatch.setattr(constants, "ENDPOINT", stub_hub.address)
    template = stub_hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    forget_the_hub()
    yield stub_hub
    monkeypatch.undo()
    forget_the_hub()


def forget_the_hub():
    """Ask the hub again, as another process would."""
    _http.close_session()
    hub.reachable.cache_clear()
    hub.fetch_file.cache_clear()


@pytest.fixture
def stub_hub():
    """A hub on loopback."""
    hub = StubHub()
    yield hub
    hub.close()


@contextmanager
def interrupted(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, calls: int
) -> Iterator[list[str]]:
    """Inside the block a function is interrupted after so many calls; gives its name per call."""
    plain, made = getattr(owner, name), list[str]()

    def failing(*args: object, **kwargs: object) -> object:
        made.append(name)
        if len(made) > calls:
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(KeyboardInterrupt):
            yield made
