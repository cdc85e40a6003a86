"""docs/architectures.md says what is so."""

import re

import pytest
import transformers

import architectures
import families


def verdicts() -> dict[str, str]:
    """By type, what the page says of it."""
    text = architectures.DOCUMENT.read_text(encoding="utf-8")
    table = text.partition("## Every type")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\S+) \| [^|]+ \| (.+) \|$", table, re.MULTILINE)
    return {kind: verdict for kind, verdict in rows if kind != "type"}


def test_the_page_knows_every_type_of_the_installed_transformers():
    text = architectures.DOCUMENT.read_text(encoding="utf-8")
    [version] = re.findall(r"model types that transformers (\S+) opens", text)
    if version != transformers.__version__:
        pytest.skip(f"the page is of transformers {version}, and another is installed")
    assert verdicts().keys() == architectures.types().keys()


def test_what_works_is_tested_and_what_does_not_says_why():
    tested = {make().model_type for make in families.SUPPORTED.values()} | families.SUPPORTED.keys()
    for kind, said in verdicts().items():
        if said == "works":
            assert kind in tested
        elif said.startswith("refused"):
            assert kind in families.REFUSED | families.BROKEN
        else:
            assert said == f"not tried: {families.NOT_TRIED[kind]}."


@pytest.mark.slow
def test_the_page_is_what_the_tests_find():
    assert architectures.DOCUMENT.read_text(encoding="utf-8") == architectures.document()
