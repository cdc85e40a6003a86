"""docs/architectures.md says what is so."""

import architectures


def test_the_page_is_what_the_tests_find():
    assert architectures.DOCUMENT.read_text(encoding="utf-8") == architectures.document()
