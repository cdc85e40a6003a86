"""The explorer's page by clicks and keys in headless Chromium."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from conftest import sentences
from families import tiny_folder
from sordino.concepts.concept import Concept
from sordino.expertise import find_experts
from sordino.expertise.artefact import Expertise
from sordino.report.explorer import explore
from sordino.report.summary import locate

pytestmark = pytest.mark.slow
CALM = Concept("calm", sentences(30, 1, 6), sentences(25, 2, 6), "made for the tests")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Expertise, Path]:
    """An expertise and its page, with two factors silenced, compared with another."""
    folder = tiny_folder("llama", tmp_path_factory.mktemp("page"))
    expertise = find_experts(folder, CALM)
    other = find_experts(folder, Concept("cross", CALM.negative, CALM.positive[::-1]))
    explored = explore(
        expertise,
        other,
        output=folder.parent / "page.html",
        intervention="det_zero",
        settings={"k": 2},
        concept=CALM,
        top=5,
    )
    return expertise, explored.page


@pytest.fixture
def page(browser, made):
    """The page, opened; what went wrong in its scripts fails the test."""
    # Waiting for an expression needs eval, which the page itself forbids.
    opened = browser.new_page(
        viewport={"width": 1100, "height": 900}, color_scheme="light", bypass_csp=True
    )
    wrong: list[str] = []
    asked: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    opened.on("request", lambda request: asked.append(request.url))
    opened.set_default_timeout(20_000)
    opened.goto(made[1].as_uri())
    yield opened
    opened.close()
    assert not wrong
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def rows(page) -> list[list[str]]:
    found = page.locator("#results tbody tr")
    return [[cell.inner_text() for cell in row.locator("th, td").all()] for row in found.all()]


def ranked(expertise: Expertise) -> list[tuple[str, int, float]]:
    return expertise.top(expertise.neurons)


def test_the_table_is_ranked_and_searched(page, made) -> None:
    every = ranked(made[0])
    expected = [[str(n), site, str(index)] for n, (site, index, _) in enumerate(every, 1)]
    assert [row[:3] for row in rows(page)] == expected[:25]
    assert [row[3] for row in rows(page)] == [f"{auroc:.4f}" for _, _, auroc in every[:25]]

    page.click("#find-on")
    assert [row[:3] for row in rows(page)] == expected[25:50]
    page.click("#find-back")
    assert page.locator("#find-back").is_disabled()

    page.select_option("#find-layer", "2")
    page.select_option("#find-kind", label="mlp.up_proj")
    inside = [row for row in expected if locate(row[1]) == (2, "mlp.up_proj")]
    assert [row[:3] for row in rows(page)] == inside[:25]
    assert page.locator("#find-count").inner_text().startswith(f"{len(inside)} neurons")
    page.fill("#find-index", "7")
    assert [row[:3] for row in rows(page)] == [row for row in inside if row[2] == "7"]
    page.fill("#find-rank", "100000")
    assert page.locator("#find-count").inner_text() == "No neuron is like that."

    page.click("#find button[type=reset]")
    page.wait_for_function("document.querySelectorAll('#results tbody tr').length === 25")
    page.select_option("#find-order", "factor")
    assert [row[5] for row in rows(page)[:3]] == ["0.0000", "0.0000", "1.0000"]
    page.select_option("#find-order", "low")
    lowest = min(auroc for _, _, auroc in every)
    assert rows(page)[0][3] == f"{lowest:.4f}"


def test_the_map_by_keys(page, made) -> None:
    readout = page.locator("#map-readout")
    (site, index, auroc), (second, at, _) = ranked(made[0])[:2]
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")  # from nowhere to the top neuron
    assert f"{site} neuron {index}" in readout.inner_text()
    assert f"{auroc:.4f}" in readout.inner_text()
    assert "rank 1 of" in readout.inner_text()
    page.keyboard.press("PageDown")
    assert f"{second} neuron {at}" in readout.inner_text()
    assert "rank 2 of" in readout.inner_text()
    page.keyboard.press("PageUp")
    before = readout.inner_text()
    for way, back in (("ArrowRight", "ArrowLeft"), ("ArrowDown", "ArrowUp")):
        page.keyboard.press(way)
        if readout.inner_text() != before:
            page.keyboard.press(back)
        assert readout.inner_text() == before
    for _ in range(9):
        page.keyboard.press("+")
    page.keyboard.press("Enter")
    page.wait_for_selector("#neuron-1 details.neuron[open]")
    assert page.evaluate("document.activeElement.closest('li').id") == "neuron-1"


def test_the_map_by_the_mouse_shows_the_neuron_under_it(page, made) -> None:
    """Rows are layers, the first at the top, and columns the kinds of site in the model's order."""
    map_ = page.locator("#map")
    map_.scroll_into_view_if_needed()
    box = map_.bounding_box()
    readout = page.locator("#map-readout")
    seen: dict[tuple[str, int], tuple[float, float]] = {}
    for down, across in product(np.linspace(0.12, 0.9, 7), np.linspace(0.06, 0.97, 17)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        found = re.match(r"(\S+) neuron (\d+) · AUROC (\S+)", readout.inner_text())
        if found:
            site, index = found[1], int(found[2])
            assert found[3] == f"{made[0]['auroc'][site][index]:.4f}"
            seen.setdefault((site, index), (down, across))
    assert len(seen) > 20
    layers = [locate(site)[0] for (site, _), _ in sorted(seen.items(), key=lambda of: of[1][0])]
    kinds = [site for (site, _), _ in sorted(seen.items(), key=lambda of: of[1][1])]
    assert layers == sorted(layers)
    order = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    columns = [order.index(locate(site)[1]) for site in kinds]
    assert columns == sorted(columns)

    painted = "(() => { const c = document.getElementById('map'); const d = c.getContext('2d')"
    painted += ".getImageData(0, 0, c.width, c.height).data; let h = 0; for (const b of d) "
    painted += "h = (31 * h + b) | 0; return h; })()"
    whole = page.evaluate(painted)
    page.click("#zoom-in")
    page.wait_for_function(f"{painted} !== {whole}")
    page.click("#zoom-whole")
    page.wait_for_function(f"{painted} === {whole}")
    page.select_option("#map-mode", "factor")
    page.wait_for_function(f"{painted} !== {whole}")
    page.select_option("#map-mode", "auroc")
    page.wait_for_function(f"{painted} === {whole}")
    page.uncheck("#map-marks")
    page.wait_for_function(f"{painted} !== {whole}")
    page.check("#map-marks")
    page.click("#theme")
    page.wait_for_function(f"{painted} !== {whole}")


def test_from_a_row_to_the_map_and_closer(page, made) -> None:
    site, index, _ = ranked(made[0])[2]
    page.locator("#results tbody tr").nth(2).locator("button").click()
    assert page.evaluate("document.activeElement.id") == "map"
    assert f"{site} neuron {index}" in page.locator("#map-readout").inner_text()
    page.locator("#map-readout a").click()
    page.wait_for_selector("#neuron-3 details.neuron[open]")
    page.locator("#neuron-4 summary").first.click()
    page.locator("#neuron-4 button.to-map").click()
    site, index, _ = ranked(made[0])[3]
    assert f"{site} neuron {index}" in page.locator("#map-readout").inner_text()


def test_covered_texts_are_shown_by_a_key_and_by_a_click(page, made) -> None:
    page.evaluate("location.hash = 'neuron-1'")
    page.wait_for_selector("#neuron-1 details.neuron[open]")
    words = page.locator("#neuron-1 .lens .words").first
    assert not words.is_visible()
    page.locator("#neuron-1 .lens .veil > summary").focus()
    page.keyboard.press("Enter")
    assert words.is_visible()
    assert words.locator("li").count() == 12
    covered = page.locator("#neuron-1 .excerpt .veil")
    if covered.count():
        assert not covered.first.locator(".sentence").is_visible()
        covered.first.locator("summary").click()
        assert covered.first.locator(".sentence").is_visible()
    page.click("#neurons button.uncover")
    assert page.locator("#neurons .veil:not([open])").count() == 0
    page.click("#neurons button.uncover")
    assert page.locator("#neurons .veil[open]").count() == 0


def test_the_scatter_leads_to_a_neuron(page, made) -> None:
    scatter = page.locator("#scatter")
    scatter.scroll_into_view_if_needed()
    box = scatter.bounding_box()
    readout = page.locator("#scatter-readout")
    for across, down in product(np.linspace(0.4, 0.6, 20), np.linspace(0.4, 0.6, 20)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        if re.search(r": [1-9]", readout.inner_text()):
            break
    assert re.search(r": [1-9]\d* neurons", readout.inner_text())
    low, high = map(float, re.match(r"(\S+) to (\S+) across", readout.inner_text()).groups())
    page.mouse.down()
    page.mouse.up()
    said = page.locator("#map-readout").inner_text()
    auroc = float(re.search(r"AUROC (\S+)", said)[1])
    assert low - 1e-3 <= auroc <= high + 1e-3


@pytest.mark.parametrize("width", [320, 390, 1100])
def test_it_fits_screens_of_all_widths(page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("location.hash = 'neuron-1'")
    page.click("#neurons button.uncover")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_is_used_by_keys_has_a_name(page) -> None:
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, select, input, canvas[tabindex], [role=region]")]
        .filter((e) => !(e.ariaLabel || e.labels?.length || e.textContent.trim()
          || e.getAttribute("aria-labelledby"))).map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("table:not(:has(caption))").count() == 0
