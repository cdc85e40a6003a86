"""The documentation site's own tools: drawings, notebooks, and what no page may hold."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mkdocs.exceptions import PluginError
from sklearn.metrics import average_precision_score, roc_auc_score

from pages import ROOT
from sordino.evaluation.scorer import SCORERS
from sordino.expertise.artefact import Expertise
from sordino.interventions import aura
from tools import notebooks, pictures, site

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def test_the_drawings_are_those_that_the_command_draws():
    kept = {path.name: path.read_text() for path in (ROOT / "docs/pictures").glob("*.svg")}
    assert kept == pictures.drawn()


@pytest.mark.parametrize("auroc", pictures.SHOWN)
@pytest.mark.parametrize("prevalence", [0.5, 0.05])
def test_the_drawn_neurons_have_the_figures_that_are_said(auroc, prevalence):
    draw = np.random.default_rng(0)
    positive = int(200_000 * prevalence)
    responses = draw.standard_normal(200_000)
    responses[:positive] += pictures.distance(auroc)
    labels = np.arange(200_000) < positive
    assert roc_auc_score(labels, responses) == pytest.approx(auroc, abs=0.01)
    precision = average_precision_score(labels, responses)
    assert pictures.average_precision(auroc, prevalence) == pytest.approx(precision, abs=0.015)


@given(st.floats(0, 1, width=32))
def test_the_drawn_factor_is_auras(auroc):
    of = {"x": {"auroc": np.array([auroc], np.float32)}}
    [factor] = aura(Expertise(of, {})).factors["x"]
    assert pictures.alpha(auroc) == pytest.approx(factor, abs=1e-6)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_and_tells_nothing_of_the_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert nbformat.writes(notebooks.stripped(notebook)) == path.read_text().rstrip("\n")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not any(output.output_type == "error" for output in outputs)
    lines = [
        line
        for output in outputs
        for line in (output.get("text") or output.get("data", {}).get("text/plain", "")).split("\n")
        if line.strip()
    ]
    assert not any("/tmp" in line for line in lines)
    scores = SCORERS["alt-profanity-check"]().score(lines)
    assert max(scores) < 0.5


def test_a_notebook_becomes_a_page():
    cells = nbformat.v4
    code = cells.new_code_cell("1 + 1")
    code.outputs = [
        cells.new_output("stream", name="stdout", text="two\n"),
        cells.new_output("display_data", {"image/svg+xml": "<svg/>", "text/plain": "Chart"}),
    ]
    page = site.as_markdown(
        cells.new_notebook(cells=[cells.new_markdown_cell("# Sum"), code]), "sum.ipynb"
    )
    assert page == (
        "# Sum\n\n[The notebook](sum.ipynb) itself.\n\n```python\n1 + 1\n```\n\n"
        '```text\ntwo\n```\n\n<div class="drawing"><svg/></div>\n'
    )


@pytest.mark.parametrize(
    "wrong",
    [
        '<script src="https://cdn.example.org/x.js"></script>',
        '<img alt="x" src="//example.org/x.png">',
        '<link rel="stylesheet" href="https://fonts.example.org/css">',
        '<a href="http://example.org">',
        '<a class="x" href="https://nowhere">',
        '<a href="javascript:alert(1)">',
    ],
)
def test_pages_fetch_nothing_and_link_by_https(wrong):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="x.md"))
    fine = '<a href="https://example.org/x"><img src="x.svg"><link rel="icon" href="x.png">'
    assert site.on_post_page(fine, page, None) == fine
    with pytest.raises(PluginError, match=r"x\.md"):
        site.on_post_page(fine + wrong, page, None)


@pytest.mark.parametrize("wrong", ["[x](gone.md)", "[x](index.md#nowhere)", "![x](gone.png)", ""])
def test_make_docs_stops_at_a_dead_link(wrong, tmp_path):
    """By the command of the Makefile, whatever its flags are."""
    [command] = re.findall(r"-m (mkdocs build.*)", (ROOT / "Makefile").read_text())
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Title\n\n{wrong}\n")
    changes = {"INHERIT": str(ROOT / "mkdocs.yml"), "nav": [{"Start": "index.md"}]}
    changes |= {"plugins": [], "hooks": [], "theme": {"name": None, "custom_dir": str(tmp_path)}}
    changes |= {"extra_css": [], "markdown_extensions": []}
    (tmp_path / "main.html").write_text("{{ page.content }}")
    (tmp_path / "mkdocs.yml").write_text(json.dumps(changes))
    built = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=tmp_path, capture_output=True, check=False
    )
    assert (built.returncode == 0) == (not wrong), built.stderr


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_of_the_pages_outside_the_site_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    for one, other in links:
        target, _, anchor = (one or other).partition("#")
        if target.startswith("https://"):
            continue
        assert (ROOT / (target or page)).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (ROOT / (target or page)).read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}
            assert anchor in slugs, one or other
