"""The page of the chat, driven by clicks and keys in headless Chromium."""

import fcntl
import json
import os
import shutil
import subprocess
import threading
import time

import pytest

from families import random_factors, tiny_folder
from sordino.chat import Settings, open_duet, server
from sordino.interventions import Dampening
from sordino.models.open import open_model
from sordino.models.sites import find_sites

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-pipe", "--window-size=1280,900"),
]


class Chromium:
    """One page of a headless Chromium, by its debugging protocol over a pipe."""

    def __init__(self, folder):
        ours, low_out = os.pipe()
        low_in, self._to = os.pipe()
        # The protocol wants its descriptors to be 3 and 4, which the shell sees to; ours are moved
        # out of the way of these.
        theirs_in, theirs_out = (fcntl.fcntl(low, fcntl.F_DUPFD, 50) for low in (low_in, low_out))
        os.close(low_in)
        os.close(low_out)
        line = f'exec {CHROMIUM} "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, "chromium", *FLAGS, f"--user-data-dir={folder / 'profile'}"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._read = os.fdopen(ours, "rb")
        self._waiting, self._id, self._session = b"", 0, None
        [page] = [
            target
            for target in self.call("Target.getTargets")["targetInfos"]
            if target["type"] == "page"
        ]
        found = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = found["sessionId"]
        self.call("Page.enable")

    def call(self, method, **parameters):
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._waiting:
                more = self._read.read1(65536)
                assert more, "chromium has gone"
                self._waiting += more
            one, _, self._waiting = self._waiting.partition(b"\0")
            answer = json.loads(one)
            if answer.get("id") == self._id:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def value(self, script):
        """What an expression of the page's scripting language gives; a promise's end is awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script, seconds=60):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)

    def click(self, selector):
        """Click in the middle of what a selector finds, as a mouse does."""
        x, y = self.value(
            f"""(() => {{ const found = document.querySelector({json.dumps(selector)});
            found.scrollIntoView({{ block: "center" }});
            const box = found.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name, code, text=""):
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code, **more
            )

    def write(self, text):
        self.call("Input.insertText", text=text)

    def close(self):
        self._process.kill()
        self._process.wait()
        self._read.close()
        os.close(self._to)


@pytest.fixture
def served(tmp_path):
    """A tiny model with a dampening, served; gives the address."""
    folder = tiny_folder("llama", tmp_path)
    opened = open_model(folder)
    sites = {site.path: site.neurons for site in find_sites(opened.model)}
    file = Dampening(random_factors(sites), "by hand").save(tmp_path / "x.safetensors")
    duet = open_duet(
        str(folder), str(file), make=lambda _, file: Dampening.load(file), scorer="none"
    )
    listening = server.listen("127.0.0.1", 0)
    serving = server.web_server(duet, Settings(new_tokens=24), "127.0.0.1")
    running = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
    running.start()
    yield server.address(listening, "127.0.0.1")
    serving.should_exit = True
    running.join()


@pytest.fixture
def page(tmp_path):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    browser = Chromium(tmp_path)
    yield browser
    browser.close()


ANSWERED = "!!document.querySelector('#turns .note') && !document.getElementById('send').hidden"
CATCH = (
    "window.blobs = []; "
    "URL.createObjectURL = (blob) => { blobs.push(blob); return 'data:,'; }; undefined"
)
"""What is downloaded is put aside."""


def texts(page, side):
    return page.value(
        f"[...document.querySelectorAll('#turns .{side} .text')].map(t => t.textContent)"
    )


def test_a_conversation_by_clicks_and_keys(served, page):
    page.call("Page.navigate", url=served)
    page.until("document.readyState === 'complete' && !!document.querySelector('#retry:disabled')")
    page.click("#prompt")
    page.write("the cat sat")
    page.key("Enter", 13, "\r")
    page.until(ANSWERED)
    [first], [quiet] = texts(page, "original"), texts(page, "quiet")
    assert first
    assert quiet != first

    # The slider, by keys: at 0 the quiet side says what the original says.
    page.value("document.getElementById('strength').focus()")
    page.key("Home", 36)
    page.until("document.getElementById('strength-shown').textContent === '0.00'")
    page.until(f"document.querySelector('#turns .quiet .text').textContent === {json.dumps(first)}")
    page.until(ANSWERED)
    assert texts(page, "original") == [first]

    # Another seed, asked again.
    page.click("#another")
    page.click("#retry")
    page.until("document.getElementById('send').hidden")
    page.until(ANSWERED)
    [second], [same] = texts(page, "original"), texts(page, "quiet")
    assert second != first
    assert same == second

    # It stays when the page is loaded again, and is kept as it is shown.
    page.call("Page.reload")
    page.until(ANSWERED)
    assert texts(page, "original") == [second]
    page.value(CATCH)
    page.click("#save-json")
    saved = json.loads(page.value("blobs[0].text()"))
    assert saved["turns"][0]["prompt"] == "the cat sat"
    assert saved["turns"][0]["answers"]["quiet"]["text"] == second
    page.click("#save-markdown")
    page.until("blobs.length === 2")
    assert "> the cat sat" in page.value("blobs[1].text()")

    # What the server refuses is said, and the prompt comes back.
    page.click("[name=new_tokens]")
    page.value("document.querySelector('[name=new_tokens]').value = '1000'")
    page.click("#prompt")
    page.write("a dog")
    page.click("#send")
    page.until("!document.getElementById('alert').hidden")
    assert "leaves no room" in page.value("document.getElementById('alert').textContent")
    assert page.value("document.getElementById('prompt').value") == "a dog"
    page.click("#clear")
    assert page.value("document.getElementById('turns').children.length") == 0
    assert page.value("document.activeElement.id") == "prompt"
