"""The page of the chat, driven by clicks and keys in headless Chromium."""

import json
from pathlib import Path

import pytest

from chat_page import serving
from families import random_factors, tiny_folder
from sordino.chatting import Settings, open_duet
from sordino.interventions import Dampening
from sordino.models.open import open_model
from sordino.models.sites import find_sites


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
    with serving(duet, Settings(new_tokens=24)) as address:
        yield address


@pytest.fixture
def page(browser):
    """A page; what goes wrong in its scripts fails the test."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()
    assert not wrong


def wait_for_answer(page):
    # Not for a note: an answer that ends by itself has none.
    page.wait_for_selector("#turns .text:not(.running)", state="attached")
    page.wait_for_selector("#send", state="visible")


def texts(page, side):
    return page.locator(f"#turns .{side} .text").all_text_contents()


def saved(page, button):
    """What a click on a button downloads."""
    with page.expect_download() as download:
        page.click(button)
    return Path(download.value.path()).read_text(encoding="utf-8")


def test_a_conversation_by_clicks_and_keys(served, page):
    from playwright.sync_api import expect

    page.goto(served)
    page.click("#prompt")
    page.keyboard.insert_text("the cat sat")
    page.keyboard.press("Enter")
    wait_for_answer(page)
    [first], [quiet] = texts(page, "original"), texts(page, "quiet")
    assert first
    assert quiet != first

    # A reader is not misled by controls.
    assert page.evaluate(r"tame('a\x1b[2J\u202eb\r\n\té')") == "a\ufffd[2J\ufffdb\n\té"

    # The slider, by keys: at 0 the quiet side says what the original says.
    page.focus("#strength")
    page.keyboard.press("Home")
    expect(page.locator("#turns .quiet .text")).to_have_text(first, timeout=60_000)
    assert page.text_content("#strength-shown") == "0.00"
    wait_for_answer(page)
    assert texts(page, "original") == [first]

    # Another seed, asked again.
    page.click("#another")
    page.click("#retry")
    page.wait_for_selector("#send", state="hidden")
    wait_for_answer(page)
    [second], [same] = texts(page, "original"), texts(page, "quiet")
    assert second != first
    assert same == second

    # It stays when the page is loaded again, and is kept as it is shown.
    page.reload()
    wait_for_answer(page)
    assert texts(page, "original") == [second]
    [turn] = json.loads(saved(page, "#save-json"))["turns"]
    assert turn["prompt"] == "the cat sat"
    assert page.evaluate("said => tame(said)", turn["answers"]["quiet"]["text"]) == second
    assert "> the cat sat" in saved(page, "#save-markdown")

    # What the server refuses is said, and the prompt comes back.
    page.fill("[name=new_tokens]", "1000")
    page.fill("#prompt", "a dog")
    page.click("#send")
    page.wait_for_selector("#alert", state="visible")
    assert "leaves no room" in page.text_content("#alert")
    assert page.input_value("#prompt") == "a dog"
    page.click("#clear")
    assert page.locator("#turns > *").count() == 0
    assert page.evaluate("document.activeElement.id") == "prompt"
