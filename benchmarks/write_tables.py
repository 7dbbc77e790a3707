"""Put the tables of benchmarks into a page, each between its markers.

    python benchmarks/write_tables.py runs/bench docs/performance.md

FOLDER/NAME.md goes between the lines `<!-- NAME -->` and `<!-- end of NAME -->`; what has no file there stays.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def put(page: Path, name: str, text: str) -> None:
    """Put a text between its markers in a page, in the place of what stands there; without markers, say so."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if start not in page.read_text():  # what was found took hours, and must not be lost in an error
        print(f"{page} has no markers for {name}; it stays as it is")
        return
    before, rest = page.read_text().split(start)
    page.write_text(f"{before}{start}\n{text}\n\n{end}{rest.split(end)[1]}")


def main(folder: Path, page: Path) -> None:
    """Rewrite the page."""
    for name in re.findall(r"<!-- end of (\w+) -->", page.read_text()):
        found = folder / f"{name}.md"
        if found.is_file():
            put(page, name, found.read_text().rstrip("\n"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
