"""docs/architectures.md says what is so."""

import re

import pytest
import transformers

import architectures
import families


def on_disk() -> str:
    return architectures.DOCUMENT.read_text(encoding="utf-8")


def version_of(page: str) -> str:
    """The version of transformers whose types a page lists."""
    [version] = re.findall(r"model types that transformers (\S+) opens", page)
    return version


def verdicts(text: str) -> dict[str, str]:
    """By type, what a page says of it."""
    table = text.partition("## Every type")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\S+) \| [^|]+ \| (.+) \|$", table, re.MULTILINE)
    return {kind: verdict for kind, verdict in rows if kind != "type"}


def test_the_page_knows_every_type_of_the_installed_transformers():
    version = version_of(on_disk())
    if version != transformers.__version__:
        pytest.skip(f"the page is of transformers {version}, and another is installed")
    assert verdicts(on_disk()).keys() == architectures.types().keys()


def test_what_works_is_tested_and_what_does_not_says_why():
    tested = {make().model_type for make in families.SUPPORTED.values()}
    tested |= families.SUPPORTED.keys() | set(families.FAULTY)
    for kind, said in verdicts(on_disk()).items():
        if said == "works":
            assert kind in tested
        elif said.startswith("refused"):
            assert kind in families.REFUSED | families.BROKEN
        else:
            assert said == f"not tried: {families.NOT_TRIED[kind]}."


@pytest.mark.slow
def test_the_page_is_what_the_tests_find():
    found, page = architectures.document(), on_disk()
    if version_of(page) == transformers.__version__:
        assert page == found
    else:
        # Another version has other types, and may fail itself. All else is the same.
        rows = re.findall(r"^\| .*`.*$", found.partition("## Every type")[0], re.MULTILINE)
        assert len(rows) == len(families.SUPPORTED)
        assert set(rows) <= set(page.splitlines())
        here, there = verdicts(page), verdicts(found)
        both = here.keys() & there.keys() - set(families.FAULTY)
        assert both
        assert {kind: here[kind] for kind in both} == {kind: there[kind] for kind in both}
