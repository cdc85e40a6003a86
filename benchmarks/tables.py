"""Put the recorded figures into docs/performance.md, between their marks."""

import argparse
import json
import re
from pathlib import Path

from benchmarks.measure import RESULTS, table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
_MARKED = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
_MISSING = "*Not measured yet: `python -m benchmarks.{}`.*"


def filled(page: str, results: Path = RESULTS) -> str:
    """The page with each mark's table as its record says."""

    def replace(match: re.Match[str]) -> str:
        record = results / f"{match[2]}.json"
        if record.exists():
            text = table(json.loads(record.read_text(encoding="utf-8")))
        else:
            text = _MISSING.format(match[2])
        return f"{match[1]}\n{text}\n\n{match[3]}"

    return _MARKED.sub(replace, page)


def main() -> None:
    """Write the page, or with --check only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true")
    page = PAGE.read_text(encoding="utf-8")
    new = filled(page)
    if parser.parse_args().check:
        if new != page:
            raise SystemExit(f"{PAGE} is out of date: run python -m benchmarks.tables.")
        return
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
