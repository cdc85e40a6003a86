"""Strip notebooks of what only their last run knows: `python -m tools.notebooks` does it in place.

Kept are the cells and what they gave. Progress, warnings, times and paths of the machine go.
"""

from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"


def stripped(notebook: Any) -> Any:
    """The notebook without standard error and the metadata of its run; it is changed."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = None
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(stripped(nbformat.read(path, as_version=4)), path)
